"""The verdicts on all columns of two tables together: the calibrated one or the method's own, and on missing values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from collectors.drift.auto import MIN_ROWS, AutoVerdict
from collectors.drift.cells import Cells, cells_of
from collectors.drift.comparison import ColumnComparison, Sides, share_of
from collectors.drift.judged import judged
from collectors.drift.moved_times import time_cells
from collectors.drift.number_columns import finite_or_not, number_comparisons
from collectors.drift.pairs import ColumnPair, Pairs
from collectors.drift.reasons import told
from collectors.drift.thresholds import DriftThresholds
from collectors.drift.verdict import Verdict
from observability.columns import Column, DatetimeColumn

# Behind a column's name: the check of its infinite values.
_INFINITE = "\0infinite"


class JudgedColumns(Mapping[str, ColumnComparison]):
    """Every column with its verdict; a column's object is made when it is asked for.

    With "evidently" a change of the missing share is told, but does not decide.
    """

    def __init__(self, pairs: Pairs, method: str, thresholds: DriftThresholds) -> None:
        self._pairs, self._method = pairs, method
        cells = {
            name: (pair.all_cells,) if pair.all_cells else _cells(pair.cells.reference, pair.cells.current)
            for name, pair in pairs.others.items()
        }
        checks = {name: (_finite_or_not(pair),) for name, pair in pairs.others.items() if any(_both(pair.infinite))}
        for block in pairs.blocks:
            infinite = np.flatnonzero(block.infinite.any(axis=1)).tolist()
            checks |= {block.names[row]: (finite_or_not(block, row),) for row in infinite}
        asked = cells | {name + _INFINITE: check for name, check in checks.items()}
        self._found = judged(pairs.blocks, asked, thresholds, {}, MIN_ROWS) if pairs.names else None
        self._places = dict(zip(self._found.names, range(len(self._found.names)), strict=True)) if self._found else {}
        changed = self._found.missing_changed if self._found else ()
        self._infinite_changed = {name for name in checks if changed[self._places[name + _INFINITE]]}
        self._made: dict[str, ColumnComparison] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs.names)

    def __len__(self) -> int:
        return len(self._pairs.names)

    def __getitem__(self, name: str) -> ColumnComparison:
        if name not in self._made:
            self._made.update(self._make(name))
        return self._made[name]

    @np.errstate(over="ignore", invalid="ignore")
    def _make(self, name: str) -> Mapping[str, ColumnComparison]:
        """One column, or, of numbers, all that are measured together with it. KeyError for one that is not there."""
        place, found = self._places[name], self._found
        assert found is not None
        start = 0
        for block in self._pairs.blocks:
            if place < start + len(block.names):
                made = number_comparisons(
                    block, found, start, self._pairs.asked, self._infinite_changed, self._pairs.notes
                )
                return dict(zip(block.names, made, strict=True))
            start += len(block.names)
        pair = self._pairs.others[name]
        return {name: _column(pair, found.verdict(place), self._method, name in self._infinite_changed)}

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __repr__(self) -> str:
        return repr(dict(self))

    def decided(self) -> tuple[int, int]:
        """How many columns could be judged, and how many of them drifted."""
        if self._method != "auto" or self._found is None:
            columns = [column for column in self.values() if column.judged]
            return len(columns), sum(column.drifted for column in columns)
        # What `_column` and `ColumnComparison.judged` say of one column, of all at once.
        count = len(self)
        found = self._found
        counts = [block.values for block in self._pairs.blocks]
        counts += [np.array([_both(pair.count)]) for pair in self._pairs.others.values()]
        held = np.concatenate(counts) > 0
        scores, thresholds = found.scores[:count], found.thresholds[:count]
        both = held.all(axis=1)
        drifted = np.where(both, scores >= thresholds, held.any(axis=1)) | found.missing_changed[:count]
        drifted[[self._places[name] for name in self._infinite_changed]] = True
        return int(np.count_nonzero(drifted | (both & np.isfinite(scores)))), int(np.count_nonzero(drifted))


def with_threshold(thresholds: DriftThresholds, threshold: float | None, alpha: float | None) -> DriftThresholds:
    """The thresholds with another smallest effect and false discovery rate."""
    if threshold is not None:
        thresholds = replace(thresholds, distance=threshold, association=threshold)
    return thresholds if alpha is None else replace(thresholds, alpha=alpha)


def _cells(before: Column, now: Column) -> tuple[Cells, ...]:
    """What a column is judged by: times of two tables also by when they were, beside their hours."""
    found = cells_of(before, now)
    if not isinstance(before, DatetimeColumn) or not isinstance(now, DatetimeColumn):
        return found
    hours = replace(found[0], part=None if before.span is None or now.span is None else "hour of the week")
    times = time_cells(before, now)
    return (hours,) if times is None else (hours, times)


def _finite_or_not(pair: ColumnPair) -> Cells:
    """The infinite values as if they were missing ones: what is true of a changed missing share is true of theirs."""
    rows, infinite = pair.rows, pair.infinite
    counts = [np.array([rows.reference - infinite.reference]), np.array([rows.current - infinite.current])]
    return Cells(counts[0], counts[1], True, infinite.reference, infinite.current)


def _both(pair: Sides[int]) -> tuple[int, int]:
    return pair.reference, pair.current


def _column(pair: ColumnPair, automatic: AutoVerdict, method: str, infinite_changed: bool) -> ColumnComparison:
    count, missing, rows = pair.count, pair.missing, pair.rows
    both = count.reference > 0 and count.current > 0
    verdict = pair.verdict if method != "auto" else _of_auto(automatic) if both else None
    changed = automatic.missing_changed
    # A side without any value is a finding, however few its rows.
    emptied = (count.reference > 0) != (count.current > 0)
    drifted = verdict.drifted if verdict is not None else emptied
    if method != "evidently":
        drifted = drifted or changed or infinite_changed
    shares = Sides(share_of(missing.reference, rows.reference), share_of(missing.current, rows.current))
    return ColumnComparison(
        type=pair.kind,
        missing=missing,
        missing_share=shares,
        infinite=pair.infinite if pair.kind == "numeric" else None,
        distinct=pair.distinct,
        **pair.scores,
        method=verdict.method if verdict else None,
        score=_finite(verdict.score) if verdict else None,
        threshold=_finite(verdict.threshold) if verdict else None,
        p_value=_finite(verdict.p_value) if verdict and verdict.p_value is not None else None,
        missing_changed=changed,
        drifted=drifted,
        reason=told(
            automatic,
            None if verdict is None else verdict.drifted,
            count,
            rows,
            pair.infinite,
            infinite_changed,
            pair.notes,
        ),
        cells=pair.cells,
    )


def _of_auto(found: AutoVerdict) -> Verdict:
    return Verdict(found.method, found.score, found.threshold, found.score >= found.threshold, found.p_value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
