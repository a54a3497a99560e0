"""The `auto` verdicts on the columns of one table: more than chance, large enough to matter, few of them false.

Ordered columns are scored by the root-mean-square difference of the distribution functions (`null.ordered_test`),
unordered ones by Cohen's w (`contingency.compare_categories`), and each column's missing share is a check of its own.
All checks of a table go through Benjamini–Hochberg together. A column's threshold is the larger of two scores: the one
that its p-value must have, and the one at which the score less chance is the smallest effect that matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from collectors.drift.calibration import Calibration
from collectors.drift.cells import Cells, cells_of
from collectors.drift.comparison import Sides
from collectors.drift.judged import AutoVerdict, Reason, judged
from collectors.drift.number_block import number_blocks
from collectors.drift.thresholds import DriftThresholds
from observability.profile import Profile

__all__ = ["MIN_ROWS", "AutoVerdict", "auto_verdicts", "judge_cells"]

# With fewer values on a side no verdict is given.
MIN_ROWS = 10


def auto_verdicts(
    reference: Profile,
    current: Profile,
    thresholds: DriftThresholds | None = None,
    calibration: Calibration | None = None,
    *,
    min_rows: int = MIN_ROWS,
) -> dict[str, AutoVerdict]:
    """The verdict on every column of either profile; both are of one layout.

    A column that only one side has is drift by itself, with the reason `new_column` or `gone_column`.
    """
    shared = {
        name: Sides(column, current.columns[name])
        for name, column in reference.columns.items()
        if name in current.columns
    }
    found: dict[str, AutoVerdict] = {}
    if shared:
        blocks, others = number_blocks(shared)
        cells = {name: cells_of(pair.reference, pair.current) for name, pair in others.items()}
        known = calibration.columns if calibration else {}
        judgement = judged(blocks, cells, thresholds or DriftThresholds(), known, min_rows)
        found = {name: judgement.verdict(place) for place, name in enumerate(judgement.names)}
    gone = {name: _one_sided(name, "gone_column") for name in reference.columns if name not in current.columns}
    new = {name: _one_sided(name, "new_column") for name in current.columns if name not in reference.columns}
    return {**{name: found.get(name) or gone[name] for name in reference.columns}, **new}


def judge_cells(
    columns: Mapping[str, Sequence[Cells]],
    thresholds: DriftThresholds | None = None,
    calibration: Calibration | None = None,
    *,
    min_rows: int = MIN_ROWS,
) -> dict[str, AutoVerdict]:
    """The verdicts on columns given as counts over cells, one item a column or one a part of it."""
    if not columns:
        return {}
    known = calibration.columns if calibration else {}
    found = judged((), columns, thresholds or DriftThresholds(), known, min_rows)
    return {name: found.verdict(place) for place, name in enumerate(columns)}


def _one_sided(name: str, reason: Reason) -> AutoVerdict:
    before, now = (1.0, 0.0) if reason == "new_column" else (0.0, 1.0)
    return AutoVerdict(name, "missing", 1.0, 1.0, 0.0, 1.0, before, now, 0.0, True, True, reason)
