"""Evaluation of rule groups: rules in order, each seeing what those before it recorded; states kept over restarts.

A rule that fails shows its error and keeps its state; its group goes on. A store that is away fails every rule: nothing
resolves, nothing acts, and evaluation goes on when it is back. Source: Prometheus, rules/group.go.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence

from alerts.dependencies import batches
from alerts.labels import Labels
from alerts.querier import Querier, QueryError, Sample, SampleWriter, StoreAway, WriteError
from alerts.rule_counts import RuleCounts
from alerts.rule_results import EvaluationError, instances, recorded
from alerts.rule_status import Evaluation, GroupStatus, RuleStatus
from alerts.rules import Rule, RuleGroup
from alerts.state_store import NoStateStore, StateStore, rule_keys
from alerts.states import Alert, DuplicateAlert, Event, Instance, resumed, series, step
from alerts.templates import Surroundings
from collectors.store import STALE_NAN
from observability.metrics import Metrics

log = logging.getLogger(__name__)

# Nobody looked for this long, besides two intervals: then the time does not count for what waits.
_GAP_SECONDS = 5.0


class RuleEngine:
    """Rule groups and their states. `evaluate` is called from one thread; the statuses may be read from any.

    `external_url` and `external_labels` are what templates know as `$externalURL` and `$externalLabels`, `server_url`
    what the functions externalURL and pathPrefix give. `clock` measures durations.
    """

    def __init__(
        self,
        groups: Iterable[RuleGroup],
        querier: Querier,
        writer: SampleWriter,
        store: StateStore | NoStateStore,
        *,
        metrics: Metrics | None = None,
        external_url: str = "",
        external_labels: Labels = (),
        server_url: str | None = "",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._querier = querier
        self._writer = writer
        self._store = store
        self._counts = RuleCounts(metrics or Metrics())
        self._external_url = external_url
        self._external_labels = external_labels
        self._server_url = server_url
        self._clock = clock
        self.groups: list[GroupStatus] = [self._restored(group) for group in groups]
        self._store.keep_only([status.group for status in self.groups])

    def replace(self, groups: Sequence[RuleGroup], now: float) -> None:
        """Go on with other groups: a rule of the same group, name and labels keeps its state; others' series end."""
        before = {status.group.key: status for status in self.groups}
        after = [self._succeeding(group, before.pop(group.key, None)) for group in groups]
        for status in before.values():
            self._end(status, now)
        self.groups = after
        self._store.keep_only([status.group for status in after])

    def due(self, now: float) -> list[tuple[GroupStatus, float]]:
        """Groups to evaluate at `now`, with the time on their grid; grid points that were missed are skipped."""
        found = []
        for status in self.groups:
            ts = grid_time(status.group, now)
            if ts > status.evaluated_at:
                found.append((status, ts))
        return found

    def alerts(self) -> list[Alert]:
        """Every alert that is pending, firing or lately resolved."""
        return [alert for group in self.groups for rule in group.rules for alert in list(rule.state.values())]

    def asking(self) -> list[Alert]:
        """Every firing alert whose rule has the label `action`; those of rules that are not due, or fail now, too."""
        return [
            alert
            for group in self.groups
            for rule in group.rules
            if any(name == "action" for name, _ in rule.rule.labels)
            for alert in list(rule.state.values())
            if alert.state == "firing"
        ]

    def evaluate(self, status: GroupStatus, ts: float) -> Evaluation:
        """Evaluate a group at `ts` (unix seconds); never raises for a rule's failure."""
        started = self._clock()
        group, at = status.group, ts - status.group.query_offset_seconds
        self._counts.begin(status, ts)
        if status.restored_at:
            self._resume(status, ts)
        events: list[Event] = []
        firing: list[Alert] = []
        asking: list[Alert] = []
        made = 0
        away: StoreAway | None = None
        for batch in status.batches:
            samples: list[Sample] = []
            good: list[tuple[RuleStatus, frozenset[Labels]]] = []
            for rule_status, answer in self._answers([status.rules[place] for place in batch], at, away):
                began = self._clock()
                try:
                    result, changes = self._rule(group, rule_status, answer, ts)
                except (QueryError, EvaluationError, DuplicateAlert) as error:
                    away = error if isinstance(error, StoreAway) else away
                    self._failed(group, rule_status, error)
                else:
                    rule_status.health, rule_status.last_error = "ok", ""
                    series_now = frozenset(sample.labels for sample in result)
                    samples += result
                    samples += [Sample(labels, STALE_NAN) for labels in rule_status.written - series_now]
                    good.append((rule_status, series_now))
                    events += changes
                    now_firing = [alert for alert in rule_status.state.values() if alert.state == "firing"]
                    firing += now_firing
                    asking += now_firing if any(name == "action" for name, _ in rule_status.rule.labels) else ()
                    made += len(result)
                rule_status.evaluated_at = ts
                rule_status.duration_seconds += self._clock() - began
            if good:
                self._write(status, samples, good, at)
        if status.gone and away is None:
            self._write(status, [Sample(labels, STALE_NAN) for labels in status.gone], (), at)
            status.gone = frozenset()
        self._store.save(group, [rule.state for rule in status.rules], ts)
        status.evaluated_at, status.looked_at, status.duration_seconds = ts, ts, self._clock() - started
        self._counts.finish(status, made)
        return Evaluation(
            group,
            ts,
            tuple(events),
            tuple(firing),
            tuple(f"{rule.rule.name}: {rule.last_error}" for rule in status.rules if rule.health == "err"),
            tuple(asking),
        )

    # --- one rule -----------------------------------------------------------------------------------------------------
    def _answers(
        self, statuses: Sequence[RuleStatus], at: float, away: StoreAway | None
    ) -> list[tuple[RuleStatus, Sequence[Sample] | QueryError]]:
        """The results of rules that do not read each other, asked for together; each gets its share of the time."""
        began = self._clock()
        answers: Sequence[Sequence[Sample] | QueryError]
        if away is not None:
            answers = [away] * len(statuses)
        else:
            try:
                answers = self._querier.instants([status.rule.expr for status in statuses], at)
            except QueryError as error:
                answers = [error] * len(statuses)
        share = (self._clock() - began) / max(len(statuses), 1)
        for status in statuses:
            status.duration_seconds = share
        return list(zip(statuses, answers, strict=True))

    def _rule(
        self, group: RuleGroup, status: RuleStatus, answer: Sequence[Sample] | QueryError, ts: float
    ) -> tuple[Sequence[Sample], Sequence[Event]]:
        if isinstance(answer, QueryError):
            raise answer
        rule = status.rule
        if rule.kind == "record":
            if 0 < group.limit < len(answer):
                raise EvaluationError(f"exceeded limit of {group.limit} with {len(answer)} series")
            return recorded(rule, answer), ()
        result = step(rule, status.state, self._instances(rule, answer, ts), ts)
        active = sum(alert.state != "inactive" for alert in result.state.values())
        if 0 < group.limit < active:
            status.state = {}
            raise EvaluationError(f"exceeded limit of {group.limit} with {active} alerts")
        status.state = result.state
        return result.samples, result.events

    def _instances(self, rule: Rule, vector: Sequence[Sample], ts: float) -> list[Instance]:
        answers: dict[str, Sequence[Sample]] = {}

        def query(expr: str) -> Sequence[Sample]:
            if expr not in answers:  # the alerts of a rule often ask the same
                answers[expr] = self._querier.instant(expr, ts)
            return answers[expr]

        surroundings = Surroundings(query, ts, self._external_url, self._external_labels, server_url=self._server_url)
        return instances(rule, vector, surroundings)

    def _failed(self, group: RuleGroup, status: RuleStatus, error: Exception) -> None:
        if status.last_error != str(error):
            log.warning("rule %s of group %s failed: %s", status.rule.name, group.name, error)
        status.health, status.last_error = "err", str(error)
        self._counts.failed(group)

    def _write(
        self,
        status: GroupStatus,
        samples: Sequence[Sample],
        good: Sequence[tuple[RuleStatus, frozenset[Labels]]],
        at: float,
    ) -> None:
        """Write what rules made; if that fails it is theirs to show, though their alerts are what they are."""
        try:
            if samples:
                self._writer.write(samples, at)
        except WriteError as error:
            if not status.write_error:
                log.warning("cannot write the series of group %s: %s", status.group.name, error)
            status.write_error = str(error)
            for rule_status, _ in good:
                rule_status.health, rule_status.last_error = "err", str(error)
                self._counts.failed(status.group)
        else:
            status.write_error = ""
            for rule_status, written in good:
                rule_status.written = written

    # --- groups -------------------------------------------------------------------------------------------------------
    def _restored(self, group: RuleGroup) -> GroupStatus:
        states, evaluated_at = self._store.load(group)
        rules = [
            RuleStatus(rule, state, written=frozenset(sample.labels for sample in series(rule, state)))
            for rule, state in zip(group.rules, states, strict=True)
        ]
        self._counts.describe(group)
        return GroupStatus(group, rules, batches(group.rules), restored_at=evaluated_at)

    def _resume(self, status: GroupStatus, ts: float) -> None:
        """Let a gap in which nobody looked not count for what waits, unless it is as short as a restart."""
        gap = ts - status.restored_at - status.group.interval_seconds
        if gap > status.group.interval_seconds + _GAP_SECONDS:
            for rule in status.rules:
                rule.state = resumed(rule.state, gap)
        status.restored_at = 0.0

    def _succeeding(self, group: RuleGroup, before: GroupStatus | None) -> GroupStatus:
        if before is None:
            return self._restored(group)
        known = dict(zip(rule_keys(before.group.rules), before.rules, strict=True))
        rules = []
        for key, rule in zip(rule_keys(group.rules), group.rules, strict=True):
            kept = known.pop(key, None)
            rules.append(RuleStatus(rule) if kept is None else RuleStatus(rule, kept.state, written=kept.written))
        self._counts.describe(group)
        gone = before.gone.union(*(status.written for status in known.values()))
        same_grid = group.interval_seconds == before.group.interval_seconds
        return GroupStatus(
            group,
            rules,
            batches(group.rules),
            evaluated_at=before.evaluated_at if same_grid else 0.0,
            looked_at=before.looked_at,
            duration_seconds=before.duration_seconds,
            restored_at=before.restored_at,
            gone=gone,
        )

    def _end(self, status: GroupStatus, now: float) -> None:
        """End the series of a group that is no more."""
        labels = status.gone.union(*(rule.written for rule in status.rules))
        self._write(status, [Sample(one, STALE_NAN) for one in labels], (), now)
        self._counts.forget(status.group)


def grid_time(group: RuleGroup, now: float) -> float:
    """The last point of a group's grid up to `now`. Groups of the same interval are spread over its whole seconds."""
    interval, phase = group.interval_seconds, 0
    if interval >= 2:
        digest = hashlib.blake2b(group.key.encode(), digest_size=8).digest()
        phase = int.from_bytes(digest, "big") % int(interval)
    return math.floor((now - phase) / interval + 1e-9) * interval + phase
