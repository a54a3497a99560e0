"""What a verdict on one column needs of both sides: integer counts over the same cells."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from collectors.drift.bins import Counts
from collectors.drift.outside_list import with_newly_frequent
from observability.columns import (
    CategoricalColumn,
    Column,
    EmbeddingColumn,
    NumericColumn,
    ProfileError,
    TextColumn,
    as_reference,
    missing_rows,
    rebinned,
)

# Columns that were counted without a reference are put over one's bins; a cell that an edge cuts may hold this share.
CUT_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Cells:
    """Counts of both sides over the same cells, and how many rows had no value."""

    reference: Counts
    window: Counts
    ordered: bool
    reference_missing: int = 0
    window_missing: int = 0
    rest: int | None = None
    """Categories: the cell of everything outside the reference's list, if there is one."""
    part: str | None = None
    """Of a column that is several (text, embedding): which of them these are."""
    discrepancy: float | None = None
    """Instead of the counts: the squared distance of two mean embeddings, for a kernel that is 1 at equal vectors."""
    spread: float = 1.0
    """With it: the kernel's variance, 1 less the squared length of the mean embedding."""


def cells_of(reference: Column, window: Column) -> tuple[Cells, ...]:
    """The cells of two columns of one kind: one item, or one a part. Infinite numbers lie in the tails.

    ProfileError when the columns have different layouts that cannot be brought together.
    """
    if type(reference) is NumericColumn and type(window) is NumericColumn:
        return (_numeric(reference, window),)
    reference = as_reference(reference)
    window = rebinned(window, reference, CUT_SHARE)
    if isinstance(reference, NumericColumn) and isinstance(window, NumericColumn):
        return (_numeric(reference, window),)
    if isinstance(reference, TextColumn) and isinstance(window, TextColumn):
        return tuple(_part(part, window.parts[name], name) for name, part in reference.parts.items())
    if isinstance(reference, EmbeddingColumn) and isinstance(window, EmbeddingColumn):
        return _embedding(reference, window)
    if type(reference) is not type(window) or len(reference.counts) != len(window.counts):
        raise ProfileError(f"a {reference.kind} column of another layout cannot be compared with a {window.kind} one")
    rest = None
    if isinstance(reference, CategoricalColumn) and isinstance(window, CategoricalColumn):
        if (found := with_newly_frequent(reference, window)) is not None:
            return (Cells(*found, False, reference.missing, window.missing, len(found[0]) - 1),)
        rest = len(reference.counts) - (1 if reference.truncated else 2)
    return (Cells(reference.counts, window.counts, False, reference.missing, window.missing, rest),)


def _part(reference: Column, window: Column, part: str) -> Cells:
    if not isinstance(reference, NumericColumn) or not isinstance(window, NumericColumn):
        raise ProfileError(f"its part {part!r} has no bins")
    return _numeric(reference, window, part)


def _embedding(reference: EmbeddingColumn, window: EmbeddingColumn) -> tuple[Cells, ...]:
    norm = replace(
        _part(reference.norm, window.norm, "norm"),
        reference_missing=missing_rows(reference),
        window_missing=missing_rows(window),
    )
    if reference.fourier is None or window.fourier is None or not reference.count or not window.count:
        return (norm,)
    before, now = reference.fourier.mean, window.fourier.mean
    share = window.count / (reference.count + window.count)
    pooled = before * (1 - share) + now * share
    gap = now - before
    discrepancy, spread = float(gap @ gap), max(1.0 - float(pooled @ pooled), 0.0)
    return norm, Cells(norm.reference, norm.window, False, 0, 0, None, "direction", discrepancy, spread)


def _numeric(reference: NumericColumn, window: NumericColumn, part: str | None = None) -> Cells:
    if len(reference.counts) != len(window.counts):
        raise ProfileError("the bins differ: a window is counted over the bins of its reference")
    return Cells(
        _with_tails(reference),
        _with_tails(window),
        True,
        missing_rows(reference),
        missing_rows(window),
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
