"""Quality of a window's values against the reference: missing, non-finite, out of range, unseen, constant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from collectors.drift.judge import missing_ratio
from observability.columns import CategoricalColumn, Column, NumericColumn, TextColumn

# A window of fewer values may well be all alike.
CONSTANT_ROWS = 50
# A reference column in which one cell holds more than this hardly varies itself.
CONSTANT_SHARE = 0.9
# So seldom may rows drawn from the reference be all alike: windows come by the minute, and of each column.
BY_CHANCE = 1e-6


@dataclass(frozen=True, slots=True)
class ColumnQuality:
    """Shares of a column's rows. A share that the column's kind does not have is None."""

    missing_ratio: float
    out_of_range_ratio: float | None
    unseen_ratio: float | None
    non_finite_ratio: float | None


def column_quality(window: Column) -> ColumnQuality:
    """Quality of one column of a window's profile; out of range and unseen are shares of the rows with a value."""
    return ColumnQuality(missing_ratio(window), _out_of_range(window), _unseen(window), _non_finite(window))


def became_constant(reference: Column, window: Column) -> bool:
    """Whether a column that varied in the reference has one value in all rows of the window (at least fifty).

    Not where so few rows of the reference would be alike by chance: of 89 % zeros fifty are in 3 windows of 1,000.
    """
    if window.count < CONSTANT_ROWS or not reference.count:
        return False
    share = reference.counts.max() / reference.count
    if share > CONSTANT_SHARE or share**window.count > BY_CHANCE:
        return False
    if isinstance(window, NumericColumn):
        return window.minimum == window.maximum and not (window.positive_infinite or window.negative_infinite)
    if isinstance(window, TextColumn):  # texts of one length need not be one text
        return all(part.minimum == part.maximum for part in window.parts.values())
    if isinstance(window, CategoricalColumn) and not window.counts[: len(window.categories)].any():
        return len(window.strangers) == 1  # what is outside the list shares a cell
    return int(np.count_nonzero(window.counts)) == 1


def _out_of_range(window: Column) -> float | None:
    if not isinstance(window, NumericColumn):
        return None
    values = window.count + window.positive_infinite + window.negative_infinite
    return window.out_of_range / values if values else 0.0


def _unseen(window: Column) -> float | None:
    if not isinstance(window, CategoricalColumn):
        return None
    return window.unseen / window.count if window.count else 0.0


def _non_finite(window: Column) -> float | None:
    if not isinstance(window, NumericColumn):
        return None
    return (window.positive_infinite + window.negative_infinite) / window.rows if window.rows else 0.0
