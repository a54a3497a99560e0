"""The alarms of all versions: fed pane by pane, told as metrics, and explained when they are raised."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from collectors.alarm_slices import AlarmSlice, Asked, alarm_slices
from collectors.alarms import EVIDENCE_ROWS, Raised, VersionAlarms, cause_of, step_of
from collectors.computed import Value, alarm_slice_values, alarm_values, differs
from collectors.drift import ColumnDrift
from collectors.history import Against, History, JudgedWindow
from collectors.windows import Key, Pane
from observability.columns import Column, NumericColumn, missing_ratio
from observability.profile import Profile

# Columns and categories that an explanation names at most.
NAMED = 5

logger = logging.getLogger(__name__)


class Evidence:
    """The evidence of every version that has a reference. Not thread-safe."""

    def __init__(self, alarm_windows: float, amend_seconds: float) -> None:
        self._alpha = 1 / alarm_windows
        self._amend_seconds = amend_seconds
        self._versions: dict[Key, VersionAlarms] = {}
        self._changed: set[Key] = set()

    def restore(self, stored: Mapping[Key, bytes]) -> None:
        """Takes over what `take_changed` gave before a restart; what cannot be read begins anew."""
        for key, body in stored.items():
            try:
                alarms = VersionAlarms.from_json(body, self._amend_seconds)
            except ValueError as error:
                logger.warning("the evidence of %s version %s begins anew: %s", *key, error)
                continue
            if alarms.alpha == self._alpha:
                self._versions[key] = alarms

    def forget(self, key: Key) -> None:
        """Begins anew: what a version is compared with is another."""
        self._versions.pop(key, None)

    def put(self, pane: Pane, against: Against | None, history: History) -> None:
        """Takes in a closed or amended pane that is in the history; explains the alarms that it raises."""
        if against is None or pane.profile is None or not against.profile.columns:
            return
        key, columns = (pane.model, pane.version), tuple(against.profile.columns)
        alarms = self._versions.get(key)
        if alarms is None or alarms.columns != columns:
            alarms = self._versions[key] = VersionAlarms(columns, self._alpha, self._amend_seconds)
        fewest = min(EVIDENCE_ROWS, against.thresholds.min_rows)
        verdicts = against.evidence_verdicts(pane, fewest) if pane.seen >= EVIDENCE_ROWS else {}
        if not verdicts:
            return
        self._changed.add(key)
        found = alarms.put(step_of(pane.start, pane.end, columns, verdicts, against.thresholds, against.memory(pane)))
        if not found:
            return
        verdicts = against.pane_verdicts(pane, fewest)
        slices = _slices(found, pane, against, history)
        for raised in found:
            explanation = _explanation(raised, pane, verdicts, against, history)
            alarms.explain(raised, explanation | {"slices": [one.to_json() for one in slices[raised.column]]})

    def standing(self, key: Key) -> tuple[float, list[Raised]]:
        """The evidence of a version, and its alarms that stand."""
        alarms = self._versions.get(key)
        return (alarms.evidence, alarms.active()) if alarms else (0.0, [])

    def values(self, key: Key) -> list[Value]:
        """The samples of a version."""
        alarms = self._versions.get(key)
        if alarms is None:
            return []
        active = alarms.active()
        since = {raised.column: raised.since for raised in active}
        slices = {raised.column: raised.explanation.get("slices", []) for raised in active}
        return alarm_values(key, alarms.columns, since, alarms.evidence) + alarm_slice_values(key, slices)

    def take_changed(self) -> dict[Key, bytes]:
        """The states that changed since the last call."""
        changed, self._changed = self._changed, set()
        return {key: self._versions[key].to_json() for key in changed if key in self._versions}


def summary(column: Column) -> dict[str, Any]:
    """What a column looks like in a few numbers: its middle and spread, or its most frequent values."""
    body: dict[str, Any] = {"rows": column.rows, "missing_ratio": missing_ratio(column)}
    if isinstance(column, NumericColumn):
        if column.count:
            deviation = math.sqrt(column.variance)
            body |= {
                "mean": column.mean,
                "deviation": deviation,
                "minimum": column.minimum,
                "maximum": column.maximum,
            }
    elif hasattr(column, "labels"):
        order = np.argsort(-column.counts, kind="stable")[:NAMED]
        total = max(int(column.counts.sum()), 1)
        body["shares"] = {str(column.labels[place]): float(column.counts[place] / total) for place in order}
    return body


def _explanation(
    raised: Raised, pane: Pane, verdicts: Mapping[str, ColumnDrift], against: Against, history: History
) -> dict[str, Any]:
    """How far the column is, what it looked like before and looks like now, and where in the data that is."""
    verdict, key = verdicts[raised.column], (pane.model, pane.version)
    before = history.before(key, raised.since)
    assert pane.profile is not None
    return {
        "cause": cause_of(verdict, against.thresholds),
        "missing": {
            "reference": verdict.reference_missing_ratio,
            "now": verdict.missing_ratio,
            "p_value": verdict.missing_p_value,
        },
        "score": verdict.score,
        "threshold": verdict.threshold,
        "p_value": verdict.p_value,
        "method": verdict.method,
        "psi": verdict.psi,
        "reference": summary(against.reference_of(pane).columns[raised.column]),
        "before": _summary_in(before, raised.column),
        "now": summary(pane.profile.columns[raised.column]),
        "columns": _with(raised.column, verdicts),
    }


def _summary_in(window: JudgedWindow | None, column: str) -> dict[str, Any] | None:
    profile: Profile | None = window.last.profile if window else None
    return summary(profile.columns[column]) if profile and column in profile.columns else None


def _with(column: str, verdicts: Mapping[str, ColumnDrift]) -> list[dict[str, Any]]:
    """The columns that differ in the same pane, furthest first by their score in thresholds."""
    found = [(name, verdict) for name, verdict in verdicts.items() if name != column and differs(verdict)]
    found.sort(key=lambda item: -item[1].score / max(item[1].threshold, 1e-12))
    return [{"column": name, "score": verdict.score, "threshold": verdict.threshold} for name, verdict in found[:NAMED]]


def _slices(found: Sequence[Raised], pane: Pane, against: Against, history: History) -> dict[str, list[AlarmSlice]]:
    """The slices that explain the alarms of a pane, of all together: one family of tests."""
    key = (pane.model, pane.version)
    asked = [
        Asked(
            raised.column,
            history.panes(key, -math.inf, raised.since),
            history.panes(key, raised.since, pane.end),
        )
        for raised in found
    ]
    return alarm_slices(asked, against.profile, against.thresholds, against.pane_calibration or against.calibration)
