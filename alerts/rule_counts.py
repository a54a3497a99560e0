"""The metrics of rule groups, under the names that Prometheus gives them."""

from __future__ import annotations

from alerts.rule_status import GroupStatus
from alerts.rules import RuleGroup
from observability import names
from observability.metrics import Metrics

_GROUP_FAMILIES = (
    names.RULE_EVALUATIONS,
    names.RULE_FAILURES,
    names.RULE_ITERATIONS,
    names.RULE_ITERATIONS_MISSED,
    names.RULE_GROUP_INTERVAL,
    names.RULE_GROUP_RULES,
    names.RULE_GROUP_LAST_EVALUATION,
    names.RULE_GROUP_LAST_DURATION,
    names.RULE_GROUP_LAST_SAMPLES,
)
RULE_FAMILIES = (*_GROUP_FAMILIES, names.RULE_EVALUATION_DURATION, names.RULES_RELOAD_GOOD, names.RULES_RELOADED)


class RuleCounts:
    """Counts evaluations; each group is its file and name."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self, group: RuleGroup) -> None:
        """Show the group from now on."""
        for family in _GROUP_FAMILIES:
            self._metrics[family].labels(group.key)
        self._metrics[names.RULE_GROUP_INTERVAL].labels(group.key).set(group.interval_seconds)
        self._metrics[names.RULE_GROUP_RULES].labels(group.key).set(len(group.rules))

    def begin(self, status: GroupStatus, ts: float) -> None:
        """An evaluation begins; those between it and the one before were missed."""
        key, passed = status.group.key, 1
        if status.evaluated_at:
            passed = max(round((ts - status.evaluated_at) / status.group.interval_seconds), 1)
        self._metrics[names.RULE_ITERATIONS].labels(key).inc(passed)
        self._metrics[names.RULE_ITERATIONS_MISSED].labels(key).inc(passed - 1)
        self._metrics[names.RULE_EVALUATIONS].labels(key).inc(len(status.rules))

    def finish(self, status: GroupStatus, made: int) -> None:
        """An evaluation is over; it made so many samples."""
        key = status.group.key
        self._metrics[names.RULE_EVALUATION_DURATION].labels(status.group.name).observe(status.duration_seconds)
        self._metrics[names.RULE_GROUP_LAST_EVALUATION].labels(key).set(status.looked_at)
        self._metrics[names.RULE_GROUP_LAST_DURATION].labels(key).set(status.duration_seconds)
        self._metrics[names.RULE_GROUP_LAST_SAMPLES].labels(key).set(made)

    def failed(self, group: RuleGroup) -> None:
        """A rule of the group failed."""
        self._metrics[names.RULE_FAILURES].labels(group.key).inc()

    def forget(self, group: RuleGroup) -> None:
        """The group is no more."""
        for family in _GROUP_FAMILIES:
            self._metrics[family].remove(group.key)
