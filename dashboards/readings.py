"""What the pages read out of series and of the services' JSON: shares, objectives, distributions, spans. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from dashboards import format as fmt
from dashboards.series import Series, Span
from dashboards.timeline import runs
from observability import names

Floats = npt.NDArray[np.float64]
# A refused or cancelled request is the client's or the limit's doing: no fault, but no success to count either.
_JUDGED = ("ok", *names.FAULTS)


def total(series: Iterable[Series], keep: Callable[[Mapping[str, str]], bool] = lambda labels: True) -> Series:
    """The sum of the series that `keep` picks, over all their times; where none has a value there is no sum."""
    picked = [item.finite for item in series if keep(item.labels)]
    times = np.unique(np.concatenate([np.empty(0), *(item.times for item in picked)]))
    values = np.zeros(len(times))
    for item in picked:
        values[np.searchsorted(times, item.times)] += item.values
    return Series({}, times, values)


def by(series: Iterable[Series], label: str) -> dict[str, list[Series]]:
    """Series grouped by a label's value, in the order of versions where they are numbers."""
    groups: dict[str, list[Series]] = {}
    for item in series:
        groups.setdefault(item.labels.get(label, ""), []).append(item)
    return dict(sorted(groups.items(), key=lambda group: _natural(group[0])))


def _natural(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (1 << 62, text)


def while_served(series: Series, rate: Series) -> Series:
    """The series where requests came: a version that has none is neither quick nor idle, it is out of the game."""
    served = np.isin(series.times, rate.times[rate.values > 0])
    return Series(series.labels, series.times[served], series.values[served])


def share(part: Series, whole: Series) -> Series:
    """`part / whole` at the times of the whole; where nothing came there is no share."""
    values = np.zeros(len(whole.times))
    values[np.isin(whole.times, part.times)] = part.values[np.isin(part.times, whole.times)]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(whole.values > 0, values / whole.values, np.nan)
    return Series(whole.labels, whole.times, ratio)


def is_fault(labels: Mapping[str, str]) -> bool:
    """True for outcomes that are the version's fault."""
    return labels.get("outcome") in names.FAULTS


def is_judged(labels: Mapping[str, str]) -> bool:
    """True for outcomes that availability counts."""
    return labels.get("outcome") in _JUDGED


def of_numbers(performance: Iterable[Series]) -> bool:
    """Whether a model's scores are those of numbers (RMSE, R²), by the newest of them, not of probabilities."""
    newest = dict.fromkeys(("rmse", "log_loss"), -1.0)
    for item in performance:
        metric = item.labels.get("metric", "")
        if metric in newest and len(item.times):
            newest[metric] = max(newest[metric], float(item.times[-1]))
    return newest["rmse"] > newest["log_loss"]


def latest(series: Iterable[Series]) -> float | None:
    """The newest value among the series; of several equally new ones the greatest."""
    best: tuple[float, float] | None = None
    for item in series:
        finite = np.flatnonzero(np.isfinite(item.values))
        if len(finite):
            point = (float(item.times[finite[-1]]), float(item.values[finite[-1]]))
            best = max(best, point) if best else point
    return best[1] if best else None


def while_running(series: Series) -> Series:
    """A run's gauge without the zeros before its first report and without what stays pushed after its last one."""
    moved = np.flatnonzero(np.diff(series.values)) + 1
    begun = np.flatnonzero(series.values)
    if not len(begun):
        return series
    kept = slice(int(begun[0]), int(max(moved.max(initial=0), begun[0])) + 1)
    return Series(series.labels, series.times[kept], series.values[kept])


def gained(series: Series, span: Span, *, watched_since: float = 0.0, gaps_restart: bool = False) -> float:
    """What a counter gained in the span, the first value of one that was born within it among it.

    `rate` and `increase` see no first value, but a short job's counter is often born with its last one, and a bad
    release's with all its faults. What a counter had when watching began (`watched_since`) is not counted. With
    `gaps_restart` a counter begins anew after every gap: its job's next run took its place.
    """
    begun_before = len(series.times) > 0 and series.times[0] <= max(span.start, watched_since)
    gain, before = 0.0, float(series.values[0]) if begun_before else 0.0
    for first, last in runs(series.times, span.step):
        before = 0.0 if gaps_restart and first else before
        for value in map(float, series.values[first : last + 1]):
            gain += value - before if value >= before else value
            before = value
    return gain


def counts(counters: Iterable[Series], span: Span, label: str) -> dict[str, float]:
    """What counters of one metric gained in the span, summed by a label; watching began with the first of them."""
    known = [item for item in counters if len(item.times)]
    since = min((float(item.times[0]) for item in known), default=0.0)
    found: dict[str, float] = {}
    for item in known:
        name = item.labels.get(label, "")
        found[name] = found.get(name, 0.0) + gained(item, span, watched_since=since)
    return found


@dataclass(frozen=True, slots=True)
class Availability:
    """An availability objective over a span: what was promised, what was kept, what may still fail."""

    objective: float
    requests: float
    faults: float

    @property
    def ratio(self) -> float | None:
        """Share of judged requests without a fault; None without requests."""
        return None if self.requests <= 0 else 1 - self.faults / self.requests

    @property
    def budget_left(self) -> float | None:
        """Share of the error budget that is left: 1 untouched, 0 spent, below 0 overdrawn; None without requests."""
        return None if self.requests <= 0 else 1 - self.faults / (self.requests * (1 - self.objective))


def availability(outcomes: Iterable[Series], objective: float, span: Span) -> Availability:
    """The objective's state from the courses of the request counters, one series an outcome and version."""
    found = counts(outcomes, span, "outcome")
    requests = sum(count for name, count in found.items() if name in _JUDGED)
    return Availability(objective, requests, sum(found.get(name, 0.0) for name in names.FAULTS))


def seconds_of(value: Any) -> float:
    """Unix seconds of a number or of an RFC 3339 text."""
    if isinstance(value, int | float):
        return float(value)
    stamp = datetime.fromisoformat(str(value))
    return (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()


def lineage_words(lineage: Mapping[str, Any] | None) -> dict[str, str]:
    """Where a version comes from, in words."""
    lineage = lineage or {}
    data = lineage.get("data") or {}
    window = data.get("window") or ()
    parent = lineage.get("parent")
    return {
        "window": " – ".join(str(day)[:10] for day in window) or fmt.DASH,
        "rows": fmt.number(data.get("rows")),
        "source": str(data.get("source") or fmt.DASH),
        "revision": str(lineage.get("code_revision") or fmt.DASH)[:10],
        "parent": fmt.version(str(parent)) if parent else fmt.DASH,
        "run": str(lineage.get("run") or fmt.DASH),
    }
