"""Evaluation of rule groups: rules in order, each seeing what those before it recorded; states kept over restarts.

A rule that fails shows its error and keeps its state; its group goes on. A store that is away fails every rule: nothing
resolves, nothing acts, and evaluation goes on when it is back.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from alerts.labels import Labels, labels_of
from alerts.querier import Querier, QueryError, Sample, SampleWriter, StoreAway, WriteError
from alerts.rules import Rule, RuleGroup
from alerts.state_store import StateStore
from alerts.states import Alert, DuplicateAlert, Event, Instance, RuleState, step
from alerts.templates import Surroundings, expand
from observability import names
from observability.metrics import Metrics

log = logging.getLogger(__name__)


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


@dataclass(slots=True)
class GroupStatus:
    """How a group fares."""

    group: RuleGroup
    rules: list[RuleStatus]
    evaluated_at: float = 0.0
    duration_seconds: float = 0.0
    write_error: str = ""
    has_series: bool = True  # the store may hold series from before a restart


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one evaluation of a group changed, and which alerts its successful rules hold firing now."""

    group: RuleGroup
    ts: float
    events: tuple[Event, ...]
    firing: tuple[Alert, ...]
    failures: tuple[str, ...]


class RuleEngine:
    """Rule groups and their states. `evaluate` is called from one thread; the statuses may be read from any."""

    def __init__(
        self,
        groups: Iterable[RuleGroup],
        querier: Querier,
        writer: SampleWriter,
        store: StateStore,
        *,
        metrics: Metrics | None = None,
        external_url: str = "",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._querier = querier
        self._writer = writer
        self._store = store
        self._metrics = metrics or Metrics()
        self._external_url = external_url
        self._clock = clock
        self.groups = [
            GroupStatus(group, [RuleStatus(rule, store.load(group, place)) for place, rule in enumerate(group.rules)])
            for group in groups
        ]

    def due(self, now: float) -> list[tuple[GroupStatus, float]]:
        """Groups to evaluate at `now`, with the time on their grid; grid points that were missed are skipped."""
        found = []
        for status in self.groups:
            interval = status.group.interval_seconds
            ts = math.floor(now / interval + 1e-9) * interval
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
        written: list[Sample] = []
        events: list[Event] = []
        away: StoreAway | None = None
        for place, rule_status in enumerate(status.rules):
            try:
                if away is not None:
                    raise away
                samples, changes = self._rule(group, place, rule_status, ts, at)
                written += samples
                events += changes
            except (QueryError, WriteError, EvaluationError, DuplicateAlert) as error:
                away = error if isinstance(error, StoreAway) else away
                self._failed(group, rule_status, error)
        if away is None:
            self._write(status, written, at)
        self._store.save(group, {place: rule.state for place, rule in enumerate(status.rules)})
        status.evaluated_at, status.duration_seconds = ts, self._clock() - started
        self._metrics[names.RULE_EVALUATION_DURATION].labels(group.name).observe(status.duration_seconds)
        return Evaluation(
            group,
            ts,
            tuple(events),
            tuple(alert for rule in status.rules if rule.health == "ok" for alert in _firing(rule.state)),
            tuple(f"{rule.rule.name}: {rule.last_error}" for rule in status.rules if rule.health == "err"),
        )

    def _rule(
        self, group: RuleGroup, place: int, status: RuleStatus, ts: float, at: float
    ) -> tuple[Sequence[Sample], Sequence[Event]]:
        started = self._clock()
        rule = status.rule
        vector = self._querier.instant(rule.expr, at)
        if group.limit and len(vector) > group.limit:
            status.state = {}
            raise EvaluationError(f"exceeded limit of {group.limit} with {len(vector)} series")
        events: Sequence[Event] = ()
        if rule.kind == "record":
            samples = _recorded(rule, vector)
            if any(rule.name in later.expr for later in group.rules[place + 1 :]):
                self._writer.append(group.name, samples, at)
        else:
            result = step(rule, status.state, self._instances(rule, vector, at), ts)
            status.state, samples, events = result.state, list(result.samples), result.events
        status.health, status.last_error, status.evaluated_at = "ok", "", ts
        status.duration_seconds = self._clock() - started
        return samples, events

    def _instances(self, rule: Rule, vector: Sequence[Sample], at: float) -> list[Instance]:
        def query(expr: str) -> Sequence[Sample]:
            return self._querier.instant(expr, at)

        surroundings = Surroundings(query, at, self._external_url, server_url=self._external_url)
        instances = []
        for sample in vector:
            labels = _unnamed(sample.labels)

            def text(template: str, labels: Labels = sample.labels, value: float = sample.value) -> str:
                return expand(template, labels, value, surroundings, name=rule.name)

            own = {name: text(template) for name, template in rule.labels}
            merged = labels_of({**dict(labels), **own, "alertname": rule.name})
            annotations = tuple((name, text(template)) for name, template in rule.annotations)
            instances.append(Instance(merged, annotations, sample.value))
        return instances

    def _failed(self, group: RuleGroup, status: RuleStatus, error: Exception) -> None:
        if status.last_error != str(error):
            log.warning("rule %s of group %s failed: %s", status.rule.name, group.name, error)
        status.health, status.last_error = "err", str(error)
        self._metrics[names.RULE_FAILURES].labels(group.name, status.rule.name).inc()

    def _write(self, status: GroupStatus, samples: Sequence[Sample], at: float) -> None:
        if not samples and not status.has_series:
            return
        # A failed rule's series must not end: then only add.
        failed = any(rule.health == "err" for rule in status.rules)
        write = self._writer.append if failed else self._writer.replace
        try:
            write(status.group.name, samples, at)
            status.has_series = bool(samples)
            status.write_error = ""
        except WriteError as error:
            if not status.write_error:
                log.warning("cannot write the series of group %s: %s", status.group.name, error)
            status.write_error = str(error)


def _firing(state: RuleState) -> Iterable[Alert]:
    return (alert for alert in state.values() if alert.state == "firing")


def _unnamed(labels: Labels) -> Labels:
    return tuple(pair for pair in labels if pair[0] != "__name__")


def _recorded(rule: Rule, vector: Sequence[Sample]) -> list[Sample]:
    samples = []
    seen: set[Labels] = set()
    for sample in vector:
        labels = labels_of({**dict(sample.labels), **dict(rule.labels), "__name__": rule.name})
        if labels in seen:
            raise EvaluationError(f"two results have the labels {dict(labels)}; aggregate so that one is left")
        seen.add(labels)
        samples.append(Sample(labels, sample.value))
    return samples
