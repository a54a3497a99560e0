"""Which slices explain the alarms of a version: those whose own rows changed, by more than chance among all looked at.

A slice is compared with its own earlier rows, not with the whole reference: slices differ from each other at all times,
and that explains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from collectors.alarms import EVIDENCE_ROWS, Cause, cause_of, p_values_of
from collectors.drift import DriftThresholds, benjamini_hochberg, judge
from collectors.drift.calibration import Calibration
from collectors.windows import Pane, same_layout
from observability.columns import Column
from observability.profile import Profile

# Slices of a column that are named at most.
NAMED = 5
# Panes on either side of a change that are added up.
MOST_PANES = 50

Against = Literal["before", "reference"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A column whose alarm was raised: the panes before its change, oldest first, and those since."""

    column: str
    before: Sequence[Pane]
    since: Sequence[Pane]


@dataclass(frozen=True, slots=True)
class AlarmSlice:
    """A slice in which the column of an alarm changed."""

    slice: str
    value: str
    rows: int
    """Rows since the change."""
    cause: Cause
    """Whether its values changed or the share of them that is missing."""
    effect: float
    """How far: the calibrated distance of the values, or the change of the missing share."""
    score: float
    threshold: float | None
    """The distance from which a slice differs, among all looked at; None where no distance would do."""
    p_value: float
    q_value: float
    """The smallest expected share of false slices at which it is still named."""
    against: Against
    """Whether it was compared with its own rows before the change or, as it had too few, with the whole reference."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def alarm_slices(
    asked: Sequence[Asked], reference: Profile, thresholds: DriftThresholds, calibration: Calibration | None = None
) -> dict[str, list[AlarmSlice]]:
    """The slices to name of each column, strongest evidence first, at most `NAMED`.

    A slice is named when its column changed by enough to matter, and by more than chance: of all named about a share of
    `thresholds.alpha` is false (Benjamini–Hochberg over every slice of every column asked; p-values of effects too
    small to matter count as 1). A slice that has nearly all rows explains nothing and is left out.
    """
    tested = _tested([pair for one in asked for pair in _pairs(one, reference)], thresholds, calibration)
    qvalues = benjamini_hochberg(np.array([item.p_value for _, item in tested])) if tested else np.empty(0)
    named: dict[str, list[AlarmSlice]] = {one.column: [] for one in asked}
    for (column, item), q in zip(tested, qvalues.tolist(), strict=True):
        if q <= thresholds.alpha:
            named[column].append(replace(item, q_value=q))
    # The statistic of a mean is an effect times √rows: a slice that holds a changed one, diluted, comes behind it.
    return {
        column: sorted(items, key=lambda item: -abs(item.effect) * math.sqrt(item.rows))[:NAMED]
        for column, items in named.items()
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """A slice of a column since the change, and what it is compared with."""

    column: str
    slice: str
    value: str
    base: Column
    now: Column
    against: Against


def _pairs(asked: Asked, reference: Profile) -> Iterator[_Pair]:
    """Every slice that has enough rows since the change."""
    name, whole = asked.column, reference.columns[asked.column]
    now, before = _columns(asked.since, name, whole), _columns(asked.before, name, whole)
    for by, parts in now.items():
        rows = sum(column.rows for column in parts.values())
        for value, column in parts.items():
            if by == name or column.rows < EVIDENCE_ROWS or rows - column.rows < EVIDENCE_ROWS:
                continue
            earlier = before.get(by, {}).get(value)
            if earlier is not None and earlier.rows >= EVIDENCE_ROWS:
                yield _Pair(name, by, value, earlier, column, "before")
            else:
                yield _Pair(name, by, value, whole, column, "reference")


def _tested(
    pairs: Sequence[_Pair], thresholds: DriftThresholds, calibration: Calibration | None
) -> list[tuple[str, AlarmSlice]]:
    """The slices that say something, by column, each with its p-value alone: all judged at once, as columns are."""
    limits = replace(thresholds, min_rows=EVIDENCE_ROWS)
    names = [str(place) for place in range(len(pairs))]
    known = calibration.columns if calibration else {}
    spread = {name: known[pair.column] for name, pair in zip(names, pairs, strict=True) if pair.column in known}
    verdicts = judge(
        Profile({name: pair.base for name, pair in zip(names, pairs, strict=True)}),
        Profile({name: pair.now for name, pair in zip(names, pairs, strict=True)}),
        limits,
        replace(calibration, columns=spread) if calibration else None,
    )
    found = []
    for name, pair in zip(names, pairs, strict=True):
        verdict = verdicts[name]
        p_values = p_values_of(verdict, limits)
        if not p_values:
            continue
        cause = cause_of(verdict, limits)
        effect = verdict.score if cause == "values" else verdict.missing_ratio - verdict.reference_missing_ratio
        threshold = verdict.threshold if math.isfinite(verdict.threshold) else None
        # Two looks at one slice count as one, at the price of both.
        p = min(1.0, len(p_values) * min(p_values.values()))
        score, rows = verdict.score, pair.now.rows
        item = AlarmSlice(pair.slice, pair.value, rows, cause, effect, score, threshold, p, p, pair.against)
        found.append((pair.column, item))
    return found


def _columns(panes: Sequence[Pane], name: str, whole: Column) -> dict[str, dict[str, Column]]:
    """One column of the slices of panes, by slice and value: the latest panes of the reference's layout, added up."""
    found: dict[str, dict[str, Column]] = {}
    for pane in panes[-MOST_PANES:]:
        for by, parts in pane.folded().slices.items():
            for value, part in parts.items():
                column = part.folded().profile
                if column is None or name not in column.columns:
                    continue
                one = column.columns[name]
                if not same_layout(Profile({name: whole}), Profile({name: one})):
                    continue
                known = found.setdefault(by, {})
                known[value] = known[value] + one if value in known else one  # type: ignore[operator]
    return found
