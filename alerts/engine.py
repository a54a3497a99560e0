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
from dataclasses import dataclass, field
from typing import Literal

from alerts.dependencies import batches
from alerts.labels import Labels, labels_of
from alerts.querier import Querier, QueryError, Sample, SampleWriter, StoreAway, WriteError
from alerts.rules import Rule, RuleGroup
from alerts.state_store import NoStateStore, StateStore, rule_keys
from alerts.states import Alert, DuplicateAlert, Event, Instance, RuleState, resumed, series, step
from alerts.templates import Surroundings, expand
from collectors.store import STALE_NAN
from observability import names
from observability.metrics import Metrics

log = logging.getLogger(__name__)

# Nobody looked for this long, besides two intervals: then the time does not count for what waits.
_GAP_SECONDS = 5.0


class EvaluationError(RuntimeError):
    """A rule's result cannot be used: too many elements, or two with the same labels."""


@dataclass(slots=True)
class RuleStatus:
    """How a rule fares: its alerts, and its last evaluation (unix seconds; seconds)."""

    rule: Rule
    state: RuleState = field(default_factory=dict)
    health: Literal["unknown", "ok", "err"] = "unknown"
    last_error: str = ""
    evaluated_at: float = 0.0
    duration_seconds: float = 0.0
    written: frozenset[Labels] = frozenset()
    """The series that the rule made last; those that it makes no longer get stale markers."""


@dataclass(slots=True)
class GroupStatus:
    """How a group fares. `evaluated_at` is the last time on its grid, `looked_at` when that really was."""

    group: RuleGroup
    rules: list[RuleStatus]
    batches: list[range]
    evaluated_at: float = 0.0
    looked_at: float = 0.0
    duration_seconds: float = 0.0
    write_error: str = ""
    restored_at: float = 0.0
    """When the states that were restored had been evaluated last; 0 once evaluation goes on."""
    gone: frozenset[Labels] = frozenset()
    """Series of rules that the group had before it was read anew: they end at the next evaluation."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one evaluation of a group changed, and which alerts its successful rules hold firing now."""

    group: RuleGroup
    ts: float
    events: tuple[Event, ...]
    firing: tuple[Alert, ...]
    failures: tuple[str, ...]


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
        self._metrics = metrics or Metrics()
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

    def evaluate(self, status: GroupStatus, ts: float) -> Evaluation:
        """Evaluate a group at `ts` (unix seconds); never raises for a rule's failure."""
        started = self._clock()
        group, at = status.group, ts - status.group.query_offset_seconds
        self._count(status, ts)
        if status.restored_at:
            self._resume(status, ts)
        events: list[Event] = []
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
                    made += len(result)
                rule_status.evaluated_at = ts
                rule_status.duration_seconds += self._clock() - began
            if good:
                self._write(status, samples, good, at)
        if status.gone and away is None:
            self._write(status, [Sample(labels, STALE_NAN) for labels in status.gone], (), at)
            status.gone = frozenset()
        self._store.save(group, [rule.state for rule in status.rules], ts)
        self._finish(status, ts, self._clock() - started, made)
        return Evaluation(
            group,
            ts,
            tuple(events),
            tuple(alert for rule in status.rules if rule.health == "ok" for alert in _firing(rule.state)),
            tuple(f"{rule.rule.name}: {rule.last_error}" for rule in status.rules if rule.health == "err"),
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
        def query(expr: str) -> Sequence[Sample]:
            return self._querier.instant(expr, ts)

        surroundings = Surroundings(query, ts, self._external_url, self._external_labels, server_url=self._server_url)
        return instances(rule, vector, surroundings)

    def _failed(self, group: RuleGroup, status: RuleStatus, error: Exception) -> None:
        if status.last_error != str(error):
            log.warning("rule %s of group %s failed: %s", status.rule.name, group.name, error)
        status.health, status.last_error = "err", str(error)
        self._metrics[names.RULE_FAILURES].labels(group.key).inc()

    def _write(
        self,
        status: GroupStatus,
        samples: Sequence[Sample],
        good: Iterable[tuple[RuleStatus, frozenset[Labels]]],
        at: float,
    ) -> None:
        try:
            if samples:
                self._writer.write(samples, at)
        except WriteError as error:
            if not status.write_error:
                log.warning("cannot write the series of group %s: %s", status.group.name, error)
            status.write_error = str(error)
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
        self._describe(group)
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
        self._describe(group)
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
        for family in _GROUP_FAMILIES:
            self._metrics[family].remove(status.group.key)

    def _describe(self, group: RuleGroup) -> None:
        for family in _GROUP_FAMILIES:
            self._metrics[family].labels(group.key)
        self._metrics[names.RULE_GROUP_INTERVAL].labels(group.key).set(group.interval_seconds)
        self._metrics[names.RULE_GROUP_RULES].labels(group.key).set(len(group.rules))

    def _count(self, status: GroupStatus, ts: float) -> None:
        key, passed = status.group.key, 1
        if status.evaluated_at:
            passed = max(round((ts - status.evaluated_at) / status.group.interval_seconds), 1)
        self._metrics[names.RULE_ITERATIONS].labels(key).inc(passed)
        self._metrics[names.RULE_ITERATIONS_MISSED].labels(key).inc(passed - 1)
        self._metrics[names.RULE_EVALUATIONS].labels(key).inc(len(status.rules))

    def _finish(self, status: GroupStatus, ts: float, seconds: float, made: int) -> None:
        status.evaluated_at, status.looked_at, status.duration_seconds = ts, ts, seconds
        key = status.group.key
        self._metrics[names.RULE_EVALUATION_DURATION].labels(status.group.name).observe(seconds)
        self._metrics[names.RULE_GROUP_LAST_EVALUATION].labels(key).set(ts)
        self._metrics[names.RULE_GROUP_LAST_DURATION].labels(key).set(seconds)
        self._metrics[names.RULE_GROUP_LAST_SAMPLES].labels(key).set(made)


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


def grid_time(group: RuleGroup, now: float) -> float:
    """The last point of a group's grid up to `now`. Groups of the same interval are spread over its whole seconds."""
    interval, phase = group.interval_seconds, 0
    if interval >= 2:
        digest = hashlib.blake2b(group.key.encode(), digest_size=8).digest()
        phase = int.from_bytes(digest, "big") % int(interval)
    return math.floor((now - phase) / interval + 1e-9) * interval + phase


def instances(rule: Rule, vector: Sequence[Sample], surroundings: Surroundings) -> list[Instance]:
    """The alerts that a result makes: its labels without the name, the rule's, expanded, over them, and annotations."""
    found = []
    for sample in vector:

        def text(template: str, labels: Labels = sample.labels, value: float = sample.value) -> str:
            return expand(template, labels, value, surroundings, name=rule.name)

        own = {name: text(template) for name, template in rule.labels}
        labels = labels_of({**_unnamed(sample.labels), **own, "alertname": rule.name})
        annotations = tuple((name, text(template)) for name, template in rule.annotations)
        found.append(Instance(labels, annotations, sample.value))
    return found


def recorded(rule: Rule, vector: Sequence[Sample]) -> list[Sample]:
    """The series that a recording rule makes of a result; EvaluationError if two have the same labels."""
    samples = []
    seen: set[Labels] = set()
    for sample in vector:
        labels = labels_of({**dict(sample.labels), **dict(rule.labels), "__name__": rule.name})
        if labels in seen:
            raise EvaluationError(
                "vector contains metrics with the same labelset after applying rule labels: "
                f"{dict(labels)}; aggregate the expression so that one is left"
            )
        seen.add(labels)
        samples.append(Sample(labels, sample.value))
    return samples


def _firing(state: RuleState) -> Iterable[Alert]:
    return (alert for alert in state.values() if alert.state == "firing")


def _unnamed(labels: Labels) -> dict[str, str]:
    return {name: value for name, value in labels if name != "__name__"}
