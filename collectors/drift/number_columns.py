"""The comparisons of the numeric columns of a block, all made at once of what was found of them as arrays."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collectors.drift.bins import Floats
from collectors.drift.cells import Cells
from collectors.drift.column_scores import Scores, block_scores
from collectors.drift.comparison import ColumnComparison, Sides
from collectors.drift.judged import Judged
from collectors.drift.methods import named_verdict
from collectors.drift.number_block import NumberBlock
from collectors.drift.pairs import Asked
from collectors.drift.reasons import plain, told
from collectors.drift.verdict import Verdict

# Method, score, threshold, whether it drifted, p-value: of a column without values on both sides all None.
Found = tuple[str | None, float | None, float | None, bool | None, float | None]
_NOTHING: Found = (None, None, None, None, None)


def number_comparisons(
    block: NumberBlock,
    judged: Judged,
    start: int,
    asked: Asked,
    infinite_changed: Collection[str],
    notes: Mapping[str, str],
) -> list[ColumnComparison]:
    """A block's columns in its order; `judged` has its verdicts from the place `start` on.

    `notes` say what else there is to know of some columns.
    """
    rows = block.rows
    shares = block.missing / np.maximum(rows, 1)
    both = block.values.min(axis=1) > 0
    scores = block_scores(block)
    verdicts = _automatic(judged, start, both) if asked.method == "auto" else _named(block, scores, both, asked)
    changed = judged.missing_changed[start : start + len(both)]
    # A side without any value is a finding, however few its rows.
    emptied = (block.values > 0).any(axis=1) & ~both
    simple = _simple(judged, start, both) & ~changed & ~block.infinite.any(axis=1)
    methods, values, thresholds, drifted, p_values = zip(*verdicts, strict=True)
    reasons, findings = [], []
    each = zip(block.names, drifted, *(array.tolist() for array in (changed, emptied, simple)), strict=True)
    for place, (name, verdict, lost, empty, is_simple) in enumerate(each):
        findings.append((empty if verdict is None else verdict) or lost or name in infinite_changed)
        if is_simple and name not in notes:
            reasons.append(plain(verdict))
            continue
        counts, all_rows, infinite = (Sides(*table[place].tolist()) for table in (block.values, rows, block.infinite))
        reasons.append(
            told(
                judged.verdict(start + place), verdict, counts, all_rows, infinite, name in infinite_changed,
                [notes[name]] if name in notes else (),
            )
        )  # fmt: skip
    missing, missing_share, infinite_rows = (
        list(map(Sides, *table.T.tolist())) for table in (block.missing, shares, block.infinite)
    )
    return ColumnComparison.of_many(
        len(block.names),
        type=["numeric"] * len(block.names),
        missing=missing,
        missing_share=missing_share,
        infinite=infinite_rows,
        **{name: _held(array, both) for name, array in scores.items()},
        method=methods,
        score=values,
        threshold=thresholds,
        p_value=p_values,
        missing_changed=changed.tolist(),
        drifted=findings,
        reason=reasons,
        cells=list(map(Sides, block.columns.reference, block.columns.current)),
    )


def _held(values: Floats, both: NDArray[np.bool_]) -> list[float | None]:
    """A statistic of every column; None where a side has no values."""
    found: list[float | None] = values.tolist()
    return found if both.all() else [one if held else None for one, held in zip(found, both.tolist(), strict=True)]


def finite_or_not(block: NumberBlock, row: int) -> Cells:
    """The infinite values as if they were missing ones: what is true of a changed missing share is true of theirs."""
    before, now = (block.values[row] + block.missing[row]).tolist()
    infinite = block.infinite[row].tolist()
    return Cells(np.array([before]), np.array([now]), True, *infinite)


def _simple(judged: Judged, start: int, both: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Columns of which nothing is to be said but whether they drifted."""
    here = slice(start, start + len(both))
    enough = np.minimum(judged.before[here], judged.now[here]) >= judged.min_rows
    return both & enough & judged.testable[here]


def _automatic(judged: Judged, start: int, both: NDArray[np.bool_]) -> list[Found]:
    here = slice(start, start + len(both))
    scores, thresholds, p_values = judged.scores[here], judged.thresholds[here], judged.p_values[here]
    drifted = (scores >= thresholds).tolist()
    numbers = (scores, thresholds, p_values)
    if both.all() and all(np.isfinite(array).all() for array in numbers):
        lists: Any = [array.tolist() for array in numbers]
    else:
        lists = [[value if math.isfinite(value) else None for value in array.tolist()] for array in numbers]
    methods = judged.methods(start, len(both))
    found = list(zip(methods, lists[0], lists[1], drifted, lists[2], strict=True))
    return [one if held else _NOTHING for one, held in zip(found, both.tolist(), strict=True)]


def _named(block: NumberBlock, scores: dict[str, Floats], both: NDArray[np.bool_], asked: Asked) -> list[Found]:
    found: list[Found] = []
    for place, (held, statistics) in enumerate(zip(both.tolist(), _each(scores, both), strict=True)):
        if not held:
            found.append(_NOTHING)
            continue
        counts = Sides(block.counts.reference[place], block.counts.current[place])
        found.append(_plainly(named_verdict(
            asked.method, statistics, counts, ordered=True, threshold=asked.threshold, alpha=asked.alpha
        )))  # fmt: skip
    return found


def _plainly(verdict: Verdict) -> Found:
    numbers = (verdict.score, verdict.threshold, verdict.p_value)
    score, threshold, p_value = (value if value is not None and math.isfinite(value) else None for value in numbers)
    return verdict.method, score, threshold, verdict.drifted, p_value


def _each(scores: dict[str, Floats], both: NDArray[np.bool_]) -> list[Scores]:
    """The statistics of every column as arguments; none where a side has no values."""
    if not scores:
        return [{} for _ in range(len(both))]
    rows = zip(*(values.tolist() for values in scores.values()), strict=True)
    found: Any = [dict(zip(scores, row, strict=True)) for row in rows]
    return found if both.all() else [one if held else {} for one, held in zip(found, both.tolist(), strict=True)]
