"""Quality of a window's values against the reference: missing, out of range, unseen, volume."""

from __future__ import annotations

from dataclasses import dataclass

from collectors.drift.judge import missing_ratio
from observability.columns import CategoricalColumn, Column, NumericColumn


@dataclass(frozen=True, slots=True)
class ColumnQuality:
    """Shares of a column's rows. A share that the column's kind does not have is None."""

    missing_ratio: float
    out_of_range_ratio: float | None
    unseen_ratio: float | None


def column_quality(window: Column) -> ColumnQuality:
    """Quality of one column of a window's profile; out of range and unseen are shares of the rows with a value."""
    return ColumnQuality(missing_ratio(window), _out_of_range(window), _unseen(window))


def _out_of_range(window: Column) -> float | None:
    if not isinstance(window, NumericColumn):
        return None
    values = window.count + window.positive_infinite + window.negative_infinite
    return window.out_of_range / values if values else 0.0


def _unseen(window: Column) -> float | None:
    if not isinstance(window, CategoricalColumn):
        return None
    return window.unseen / window.count if window.count else 0.0
