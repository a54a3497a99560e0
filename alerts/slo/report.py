"""How objectives stand: budget left, burn rates, and what spent it, asked of any Prometheus.

Everything is worked out from the indicators' own series, counted over the period, so it is exact and needs none of the
rules to have run. Budget left = 1 - bad / (budget * all); Timeslices have a budget of time: 1 - bad slices / (budget *
slices of the period).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from alerts.labels import Labels, labels_of
from alerts.rules import format_duration
from alerts.slo.indicator import Events
from alerts.slo.objective import Objective
from alerts.slo.slices import slice_error
from collectors.query import Matrix, QueryError, Result, Vector

State = Literal["kept", "ticket", "page", "spent", "no data"]
_PARTS = 30
_MOST_CAUSES = 3
# Which copy of a service failed is no cause.
_NO_CAUSE = "instance, job, le, pod"


class Prometheus(Protocol):
    """What answers; `collectors.query.PrometheusClient` does. Raises QueryError."""

    def instant(self, expr: str, at: float | None = None) -> Result:
        """The value at a time."""

    def range(self, expr: str, start: float, end: float, step: float) -> Matrix:
        """The values from start to end."""


@dataclass(frozen=True, slots=True)
class Cause:
    """A part of what spent a budget: whose events, or from when (unix seconds) until when; as a share of all bad."""

    share: float
    bad: float
    labels: Labels = ()
    start: float = 0.0
    end: float = 0.0


@dataclass(frozen=True, slots=True)
class Standing:
    """How one group of an objective (a model, a version) stands at a time."""

    objective: Objective
    labels: Labels
    start: float
    end: float
    """The period, as far as it has come (unix seconds)."""
    events: float
    """Events, or time slices, of the period."""
    bad: float
    error_ratio: float | None
    """Share of what was counted that was bad; None without events."""
    budget_left: float | None
    """1 untouched, 0 spent, below 0 overdrawn; None without events."""
    burn_rates: dict[str, float | None] = field(default_factory=dict)
    """By window: 1 spends the budget exactly in the period; None where nothing was counted."""
    state: State = "no data"
    by: tuple[Cause, ...] = ()
    when: tuple[Cause, ...] = ()

    def to_json(self) -> dict[str, object]:
        """As `trimtab slo report --json` prints it."""
        chosen = self.objective
        return {
            "slo": chosen.name,
            "service": chosen.service,
            "title": chosen.title or chosen.name,
            "labels": dict(self.labels),
            "target": chosen.target,
            "method": chosen.method,
            "period": {"name": chosen.period.name, "start": self.start, "end": self.end},
            "events": self.events,
            "bad": self.bad,
            "error_ratio": self.error_ratio,
            "budget_left": self.budget_left,
            "burn_rates": self.burn_rates,
            "state": self.state,
            "spent_by": [{"labels": dict(c.labels), "bad": c.bad, "share": c.share} for c in self.by],
            "spent_when": [{"start": c.start, "end": c.end, "bad": c.bad, "share": c.share} for c in self.when],
        }


Groups = dict[Labels, float]


def report(objectives: Iterable[Objective], prometheus: Prometheus, at: float) -> list[Standing]:
    """Every group of every objective at a time (unix seconds), in order. Raises QueryError."""
    return [standing for chosen in objectives for standing in stand(chosen, prometheus, at)]


def stand(objective: Objective, prometheus: Prometheus, at: float) -> list[Standing]:
    """The groups of one objective; one without labels and events, if there is nothing to count."""
    start, end = objective.period.bounds(at)
    span = at - start
    total, bad = _counts(objective, prometheus, span, at)
    burns = {format_duration(window): _ratios(objective, prometheus, window, at) for window in objective.spans}
    times = _when(objective, prometheus, start, at) if total else {}
    # Time slices have their budget from the start, whether they have come yet or not.
    whole = objective.slices(end - start) if objective.sliced and objective.method == "Timeslices" else None
    standings = []
    for labels in sorted(total) or [()]:
        events, failed = total.get(labels, 0.0), bad.get(labels, 0.0)
        counted = events > 0
        standing = Standing(
            objective=objective,
            labels=labels,
            start=start,
            end=at,
            events=events,
            bad=failed,
            error_ratio=failed / events if counted else None,
            budget_left=1 - failed / ((whole or events) * objective.budget) if counted else None,
            burn_rates={
                name: None if labels not in found else found[labels][0] / objective.budget
                for name, found in burns.items()
            },
            by=_causes(objective, prometheus, span, at, labels, failed) if failed > 0 else (),
            when=_largest(times.get(labels, []), failed),
        )
        standings.append(replace(standing, state=_state(standing, burns)))
    return standings


def _counts(objective: Objective, prometheus: Prometheus, span: float, at: float) -> tuple[Groups, Groups]:
    """Events and bad events of the window, by labels."""
    indicator = objective.indicator
    if isinstance(indicator, Events) and not objective.sliced:
        total = _vector(prometheus, indicator.total_over(span), at)
        return total, _vector(prometheus, indicator.bad_over(span), at)
    width = objective.slice_seconds
    # An end less by a millisecond has one sample a slice, whether ranges are closed or not.
    seen = f"({slice_error(objective)})[{format_duration(objective.slices(span) * width - 0.001)}:{_step(width)}]"
    return _vector(prometheus, f"count_over_time({seen})", at), _vector(prometheus, f"sum_over_time({seen})", at)


def _ratios(objective: Objective, prometheus: Prometheus, span: float, at: float) -> dict[Labels, tuple[float, float]]:
    """Error ratio and events of a window, by labels, where there were any."""
    total, bad = _counts(objective, prometheus, span, at)
    whole = objective.slices(span) if objective.sliced and objective.method == "Timeslices" else None
    return {labels: (bad.get(labels, 0.0) / (whole or n), n) for labels, n in total.items() if n > 0}


def _state(standing: Standing, burns: dict[str, dict[Labels, tuple[float, float]]]) -> State:
    objective = standing.objective
    if standing.budget_left is None:
        return "no data"
    found: State = "kept"
    for window in objective.windows:
        long, short = format_duration(window.long_seconds), format_duration(window.short_seconds)
        ratio, events = burns[long].get(standing.labels, (0.0, 0.0))
        fast = all((standing.burn_rates[name] or 0.0) > window.factor for name in (long, short))
        failures = objective.sliced or ratio * events > objective.minimum_bad_events - 0.5
        if fast and failures and events >= objective.enough:
            found = "page" if "page" in (found, window.severity) else "ticket"
    return "spent" if standing.budget_left < 0 and found == "kept" else found


def _causes(
    objective: Objective, prometheus: Prometheus, span: float, at: float, labels: Labels, bad: float
) -> tuple[Cause, ...]:
    """Whose events they were: the largest groups of the bad events' own labels."""
    indicator = objective.indicator
    if not isinstance(indicator, Events) or objective.sliced:
        return ()
    counters = [counter for counter in (indicator.bad, indicator.good) if counter is not None]
    if counters[0].form != "selector" or indicator.total.form != "selector":
        return ()
    window = format_duration(span)

    def split(text: str) -> Groups:
        return _vector(prometheus, f"sum without ({_NO_CAUSE}) ({counters[0].function}({text}[{window}]))", at)

    found = split(counters[0].text)
    if indicator.good is not None:
        found = {key: max(0.0, value - found.get(key, 0.0)) for key, value in split(indicator.total.text).items()}
    mine = {key: value for key, value in found.items() if set(labels) <= set(key)}
    told = [Cause(value / bad, value, key) for key, value in mine.items() if value > 0]
    return tuple(sorted(told, key=lambda cause: -cause.share)[:_MOST_CAUSES])


def _when(
    objective: Objective, prometheus: Prometheus, start: float, at: float
) -> dict[Labels, list[tuple[float, float, float]]]:
    """Bad events by stretches of the period: start, end, number."""
    width = max(objective.slice_seconds, (at - start) / _PARTS)
    if objective.sliced:
        width = objective.slices(width) * objective.slice_seconds
        seen = f"({slice_error(objective)})[{format_duration(width - 0.001)}:{_step(objective.slice_seconds)}]"
        expr = f"sum_over_time({seen})"
    else:
        assert isinstance(objective.indicator, Events)
        expr = objective.indicator.bad_over(width)
    first = at - width * max(0, int((at - start) / width + 1e-9) - 1)
    found = prometheus.range(expr, first, at, width)
    return {
        labels_of({k: v for k, v in series.labels.items() if k != "__name__"}): [
            (float(t) / 1000 - width, float(t) / 1000, float(value))
            for t, value in zip(series.t, series.v, strict=True)
        ]
        for series in found.series
    }


def _largest(parts: list[tuple[float, float, float]], bad: float) -> tuple[Cause, ...]:
    told = [Cause(number / bad, number, (), start, end) for start, end, number in parts if bad > 0 and number > 0]
    return tuple(sorted(told, key=lambda cause: -cause.share)[:_MOST_CAUSES])


def _vector(prometheus: Prometheus, expr: str, at: float) -> Groups:
    result = prometheus.instant(expr, at)
    if not isinstance(result, Vector):
        raise QueryError(f"{expr} gives no vector", "bad_data")
    pairs = ((item.labels, float(item.value)) for item in result.elements)
    return {
        labels_of({k: v for k, v in labels.items() if k != "__name__"}): value
        for labels, value in pairs
        if value == value
    }


def _step(seconds: float) -> str:
    return format_duration(seconds)


def grouped(objective: Objective, by: tuple[str, ...]) -> Objective:
    """The objective with a budget for each value of other labels, where its queries are plain selectors."""
    indicator = objective.indicator
    if not isinstance(indicator, Events) or indicator.total.form != "selector":
        return objective
    return replace(objective, indicator=replace(indicator, by=by))
