"""What a verdict on one column needs of both sides: integer counts over the same cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from collectors.drift.bins import Counts
from observability.columns import CategoricalColumn, Column, NumericColumn


@dataclass(frozen=True, slots=True)
class Cells:
    """Counts of both sides over the same cells, and how many rows had no value."""

    reference: Counts
    window: Counts
    ordered: bool
    reference_missing: int = 0
    window_missing: int = 0
    unseen: int | None = None
    """Categories: the cell of everything outside the reference's list, if there is one."""
    part: str | None = None
    """Of a column that is several (text): which of them these are."""


def cells_of(reference: Column, window: Column) -> tuple[Cells, ...]:
    """The cells of two columns of one layout: one item, or one a part.

    Infinite numbers lie in the tails.
    """
    if isinstance(reference, NumericColumn) and isinstance(window, NumericColumn):
        return (_numeric(reference, window),)
    unseen = len(reference.counts) - 2 if isinstance(reference, CategoricalColumn) and not reference.truncated else None
    return (Cells(reference.counts, window.counts, False, reference.missing, window.missing, unseen),)


def _numeric(reference: NumericColumn, window: NumericColumn, part: str | None = None) -> Cells:
    return Cells(
        _with_tails(reference),
        _with_tails(window),
        True,
        reference.missing + reference.nan,
        window.missing + window.nan,
        None,
        part,
    )


def _with_tails(column: NumericColumn) -> Counts:
    if not column.positive_infinite and not column.negative_infinite:
        return column.counts
    counts = np.array(column.counts)
    counts[0] += column.negative_infinite
    counts[-1] += column.positive_infinite
    return counts
