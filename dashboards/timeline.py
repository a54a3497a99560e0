"""What happened, on one axis of time: releases as bands, alerts as spans, actions as marks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dashboards.journal import is_result_of, reason_words, why
from dashboards.series import Series, Span


@dataclass(frozen=True, slots=True)
class Band:
    """A version carried a share of the traffic."""

    version: str
    role: str
    weight: float
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class AlertSpan:
    """An alert was pending or firing."""

    name: str
    severity: str
    state: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Mark:
    """Something was done: by the loop, by a person, or to the traffic. `why` is one sentence."""

    time: float
    kind: str
    title: str
    why: str
    state: str
    told: bool = True  # False: another mark tells the same in more words


@dataclass(frozen=True, slots=True)
class Timeline:
    """All of it, each kind in order of time."""

    span: Span
    bands: tuple[Band, ...]
    alerts: tuple[AlertSpan, ...]
    marks: tuple[Mark, ...]

    @property
    def empty(self) -> bool:
        """True when nothing is known."""
        return not (self.bands or self.alerts or self.marks)


def timeline(
    span: Span,
    weights: Iterable[Series],
    alerts: Iterable[Series],
    actions: Iterable[dict[str, Any]] = (),
    history: Iterable[dict[str, Any]] = (),
) -> Timeline:
    """Put together what the services know; `actions` and `history` are theirs as they come (unix seconds)."""
    bands = [band for series in weights for band in _bands(series, span)]
    spans = [item for series in alerts for item in _alert_spans(series, span)]
    deeds = list(actions)
    marks = [*map(_action_mark, deeds), *(_history_mark(event, not is_result_of(event, deeds)) for event in history)]
    inside = [mark for mark in marks if span.start <= mark.time <= span.end + span.step]
    return Timeline(
        span,
        tuple(sorted(bands, key=lambda b: (b.version, b.start))),
        tuple(sorted(spans, key=lambda a: (a.start, a.name, a.state))),
        tuple(sorted(inside, key=lambda m: m.time)),
    )


def runs(times: Sequence[float] | np.ndarray[Any, Any], step: float) -> list[tuple[int, int]]:
    """Index ranges [first, last] of stretches without a hole: a gap above one and a half steps is one."""
    stamps = np.asarray(times, dtype=np.float64)
    if not len(stamps):
        return []
    breaks = np.flatnonzero(np.diff(stamps) > 1.5 * step)
    firsts, lasts = [0, *(breaks + 1)], [*breaks, len(stamps) - 1]
    return [(int(a), int(b)) for a, b in zip(firsts, lasts, strict=True)]


def _bands(series: Series, span: Span) -> list[Band]:
    version, role = series.labels.get("version", ""), series.labels.get("role", "")
    found: list[Band] = []
    for first, last in runs(series.times, span.step):
        start = first
        for i in range(first, last + 1):
            if i == last or series.values[i + 1] != series.values[start]:
                weight = float(series.values[start])
                if weight > 0:
                    end = min(float(series.times[i]) + span.step, span.end)
                    found.append(Band(version, role, weight, float(series.times[start]), end))
                start = i + 1
    return found


def _alert_spans(series: Series, span: Span) -> list[AlertSpan]:
    labels = series.labels
    name, severity = labels.get("alertname", "alert"), labels.get("severity", "warning")
    state = labels.get("alertstate", "firing")
    return [
        AlertSpan(name, severity, state, float(series.times[a]), min(float(series.times[b]) + span.step, span.end))
        for a, b in runs(series.times, span.step)
    ]


def _action_mark(action: dict[str, Any]) -> Mark:
    state = str(action.get("state") or "")
    time = float(action.get("completed_at") or action.get("started_at") or action.get("created_at") or 0)
    by = action.get("alert") or action.get("actor") or ""
    words = why(action)
    return Mark(time, "action", f"{action.get('action')} {state}", f"{words} ({by})" if by else words, state)


def _history_mark(event: dict[str, Any], told: bool) -> Mark:
    title = f"{event.get('event')} v{event.get('version')}" if event.get("version") else str(event.get("event"))
    words = reason_words(event.get("reason") or event.get("release"))
    actor = event.get("actor")
    # Serving calls whoever does not give a name "api": that says nothing.
    words = f"{words} ({actor})" if actor and actor != "api" else words
    return Mark(float(event.get("time") or 0), "traffic", title, words, "done", told)
