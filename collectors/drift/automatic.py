"""The verdicts on all columns of two tables together: the calibrated one or the method's own, and on missing values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from collectors.drift.auto import AutoVerdict, judge_cells
from collectors.drift.cells import Cells, cells_of
from collectors.drift.comparison import ColumnComparison, Sides, share_of
from collectors.drift.pairs import ColumnPair
from collectors.drift.thresholds import DriftThresholds
from collectors.drift.verdict import Verdict

# Behind a column's name: the check of its infinite values.
_INFINITE = "\0infinite"
_SAID = {
    "no_values": "the current table has no values",
    "no_reference_values": "the reference has no values",
    "too_few_rows": "too few rows to judge",
    "within_threshold": "within threshold",
    "constant": "one value in both tables",
    "missing_changed": "",
    "drifted": "drifted",
}


def judged_columns(
    pairs: Mapping[str, ColumnPair], method: str, thresholds: DriftThresholds
) -> dict[str, ColumnComparison]:
    """Every column with its verdict. With "evidently" a change of the missing share is told, but does not decide."""
    cells = {
        name: (pair.all_cells,) if pair.all_cells else cells_of(pair.cells.reference, pair.cells.current)
        for name, pair in pairs.items()
    }
    infinite = {name + _INFINITE: (_finite_or_not(pair),) for name, pair in pairs.items() if any(_both(pair.infinite))}
    automatic = judge_cells({**cells, **infinite}, thresholds) if cells else {}
    changed = {name for name in pairs if name + _INFINITE in infinite and automatic[name + _INFINITE].missing_changed}
    return {name: _column(pair, automatic[name], method, name in changed) for name, pair in pairs.items()}


def with_threshold(thresholds: DriftThresholds, threshold: float | None, alpha: float | None) -> DriftThresholds:
    """The thresholds with another smallest effect and false discovery rate."""
    if threshold is not None:
        thresholds = replace(thresholds, distance=threshold, association=threshold)
    return thresholds if alpha is None else replace(thresholds, alpha=alpha)


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
        reason=_reason(pair, automatic, verdict, changed, infinite_changed, shares),
        cells=pair.cells,
    )


def _of_auto(found: AutoVerdict) -> Verdict:
    return Verdict(found.method, found.score, found.threshold, found.score >= found.threshold, found.p_value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _reason(
    pair: ColumnPair,
    automatic: AutoVerdict,
    verdict: Verdict | None,
    changed: bool,
    infinite_changed: bool,
    shares: Sides[float],
) -> str:
    if not pair.count.reference and not pair.count.current:
        said = ["neither table has a value"]
    elif verdict is None or automatic.reason in ("too_few_rows", "constant"):
        said = [_SAID[automatic.reason]]
        if verdict is not None and verdict.drifted:
            said = ["drifted"]
    else:
        said = ["drifted" if verdict.drifted else "within threshold"]
    if automatic.part is not None and verdict is not None:
        said[0] += f" (by its {automatic.part})"
    if changed:
        said.append(f"missing went from {shares.reference:.1%} to {shares.current:.1%}")
    if any(_both(pair.infinite)):
        before, now = (
            share_of(pair.infinite.reference, pair.rows.reference), share_of(pair.infinite.current, pair.rows.current)
        )  # fmt: skip
        told = f"went from {before:.2%} to {now:.2%}" if infinite_changed else f"{before:.2%} and {now:.2%}"
        said.append(f"infinite {told}")
    return "; ".join([*(word for word in said if word), *pair.notes])
