"""The life of an alert, as Prometheus lives it: a pure function of an alerting rule's state, its result and the time.

Inactive -> pending (the expression holds) -> firing (it has held for `for`) -> resolved, kept 15 minutes so that every
receiver hears of it. Source: Prometheus, rules/alerting.go.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from alerts.labels import Labels, fingerprint, labels_of
from alerts.rules import Rule
from alerts.samples import Sample

RESOLVED_RETENTION_SECONDS = 15 * 60.0

State = Literal["pending", "firing", "inactive"]


class DuplicateAlert(ValueError):
    """Two elements of a result have the same labels once the rule's labels are set."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One element of a rule's result with the labels and annotations of the alert that it makes."""

    labels: Labels
    annotations: Labels
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alert; times are unix seconds. Its labels, `alertname` among them, are its identity."""

    labels: Labels
    annotations: Labels
    value: float
    state: State
    active_at: float
    fired_at: float | None = None
    keep_firing_since: float | None = None
    resolved_at: float | None = None
    generator_url: str = ""
    """Where a sender says that its expression is found; "" for our own rules."""

    @property
    def fingerprint(self) -> str:
        """The identity as Alertmanager writes it."""
        return fingerprint(self.labels)

    @property
    def name(self) -> str:
        """The rule's name."""
        return self.label("alertname")

    def label(self, name: str) -> str:
        """A label's value, "" when it is absent."""
        return next((value for key, value in self.labels if key == name), "")

    def annotation(self, name: str) -> str:
        """An annotation's text, "" when it is absent."""
        return next((text for key, text in self.annotations if key == name), "")


RuleState = Mapping[Labels, Alert]


Change = Literal["pending", "firing", "resolved", "dropped"]


@dataclass(frozen=True, slots=True)
class Event:
    """A change in an alert's life, in the evaluation that made it."""

    kind: Change
    alert: Alert


@dataclass(frozen=True, slots=True)
class Step:
    """What an evaluation made of a rule: its new state, the series to write, and what changed."""

    state: RuleState
    samples: tuple[Sample, ...]
    events: tuple[Event, ...]


def step(rule: Rule, state: RuleState, result: Sequence[Instance], ts: float) -> Step:
    """Evaluate once. Raises DuplicateAlert; the caller then keeps the old state."""
    present = _by_labels(result)
    after: dict[Labels, Alert] = {}
    events: list[Event] = []
    for labels in (*state, *(labels for labels in present if labels not in state)):
        before, instance = state.get(labels), present.get(labels)
        moved, change = _seen(rule, before, instance, ts) if instance else _missed(rule, state[labels], ts)
        if moved is not None:
            after[labels] = moved
        if change is not None:
            events.append(Event(change, moved or state[labels]))
    return Step(after, tuple(series(rule, after)), tuple(events))


def _by_labels(result: Sequence[Instance]) -> dict[Labels, Instance]:
    present: dict[Labels, Instance] = {}
    for instance in result:
        if instance.labels in present:
            raise DuplicateAlert(
                "vector contains metrics with the same labelset after applying alert labels: "
                f"{dict(instance.labels)}; aggregate the expression so that one is left"
            )
        present[instance.labels] = instance
    return present


def _seen(rule: Rule, alert: Alert | None, instance: Instance, ts: float) -> tuple[Alert, Change | None]:
    """The alert after the expression held for it."""
    if alert is None or alert.state == "inactive":
        alert = Alert(
            labels=instance.labels,
            annotations=instance.annotations,
            value=instance.value,
            state="pending",
            active_at=ts,
        )
        begun: Change | None = "pending"
    else:
        alert = replace(alert, value=instance.value, annotations=instance.annotations, keep_firing_since=None)
        begun = None
    held = elapsed(alert.active_at, ts) >= rule.for_seconds
    if alert.state == "pending" and held:
        return replace(alert, state="firing", fired_at=ts), "firing"
    if alert.state == "firing" and not held:  # the rule was given a longer `for`
        return replace(alert, state="pending", fired_at=None), "pending"
    return alert, begun


def _missed(rule: Rule, alert: Alert, ts: float) -> tuple[Alert | None, Change | None]:
    """The alert after the expression did not hold for it; None when it is forgotten."""
    if alert.state == "pending":
        return None, "dropped"
    if alert.state == "inactive":
        kept = elapsed(alert.resolved_at or ts, ts) <= RESOLVED_RETENTION_SECONDS
        return (alert if kept else None), None
    if rule.keep_firing_for_seconds > 0:
        since = ts if alert.keep_firing_since is None else alert.keep_firing_since
        if elapsed(since, ts) < rule.keep_firing_for_seconds:
            if elapsed(alert.active_at, ts) < rule.for_seconds:
                return replace(alert, state="pending", fired_at=None, keep_firing_since=None), "pending"
            return replace(alert, keep_firing_since=since), None
    return replace(alert, state="inactive", resolved_at=ts, keep_firing_since=None), "resolved"


def elapsed(since: float, until: float) -> float:
    """Seconds between two unix times, to the microsecond: floats of this size know no more."""
    return round(until - since, 6)


def resumed(state: RuleState, gap_seconds: float) -> RuleState:
    """The state after `gap_seconds` in which nobody looked: what waits, or is kept firing, goes on where it was."""
    return {
        labels: replace(alert, active_at=alert.active_at + gap_seconds)
        if alert.state == "pending"
        else replace(alert, keep_firing_since=alert.keep_firing_since + gap_seconds)
        if alert.state == "firing" and alert.keep_firing_since is not None
        else alert
        for labels, alert in state.items()
    }


def series(rule: Rule, state: RuleState) -> list[Sample]:
    """ALERTS and ALERTS_FOR_STATE of the active alerts."""
    samples = []
    for alert in state.values():
        if alert.state == "inactive":
            continue
        # As in Prometheus, a label whose template came out empty stands in these series as it is written.
        own = {**dict(rule.labels), **dict(alert.labels), "alertname": rule.name}
        samples.append(Sample(labels_of({**own, "__name__": "ALERTS", "alertstate": alert.state}), 1.0))
        samples.append(Sample(labels_of({**own, "__name__": "ALERTS_FOR_STATE"}), float(math.floor(alert.active_at))))
    return samples
