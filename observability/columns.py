"""The columns of a profile: fixed-size summaries of one column that merge by addition.

Each kind keeps a layout (bin edges or categories, taken from the reference) and integer counts over it. Two
summaries of one layout add up to the summary of both sets of rows, exactly on every count.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from observability.calendar_cells import DatetimeColumn
from observability.categorical import NUM_CATEGORIES, OTHER, UNSEEN, BooleanColumn, CategoricalColumn, tail_counts
from observability.cells import Kind, ProfileError
from observability.embedding import EmbeddingColumn
from observability.kinds import KINDS
from observability.loglinear import LogLinearColumn
from observability.numeric import NumericColumn
from observability.strangers import hashes_of
from observability.text_shape import Part, TextColumn, part_from_json

__all__ = [
    "KINDS",
    "NUM_CATEGORIES",
    "OTHER",
    "UNSEEN",
    "BooleanColumn",
    "CategoricalColumn",
    "Column",
    "DatetimeColumn",
    "EmbeddingColumn",
    "Kind",
    "LogLinearColumn",
    "NumericColumn",
    "ProfileError",
    "TextColumn",
    "as_reference",
    "column_from_json",
    "free_column",
    "missing_ratio",
    "missing_rows",
    "rebinned",
    "reference_column",
]

Column = (
    NumericColumn | LogLinearColumn | CategoricalColumn | BooleanColumn | DatetimeColumn | TextColumn | EmbeddingColumn
)

_LAYOUTS: dict[str, Any] = {
    "numeric": NumericColumn.layout,
    "categorical": CategoricalColumn.layout,
    "boolean": BooleanColumn.layout,
    "datetime": DatetimeColumn.layout,
    "text": TextColumn.layout,
    "embedding": EmbeddingColumn.layout,
}
_READERS: dict[str, Any] = {
    "numeric": part_from_json,
    "categorical": CategoricalColumn.from_json,
    "boolean": BooleanColumn.from_json,
    "datetime": DatetimeColumn.from_json,
    "text": TextColumn.from_json,
    "embedding": EmbeddingColumn.from_json,
}


def reference_column(kind: Kind, values: pa.ChunkedArray) -> Column:
    """An empty column whose bins or categories are those of `values`."""
    column: Column = _LAYOUTS[kind](values)
    return column


def free_column(kind: Kind, values: pa.ChunkedArray) -> Column:
    """An empty column of a layout that needs no reference: log-linear cells, no categories (all are strangers)."""
    if kind == "numeric":
        return LogLinearColumn.layout()
    if kind == "text":
        return TextColumn.without_layout()
    if kind == "embedding":
        return EmbeddingColumn.without_layout(values)
    if kind == "datetime":
        return DatetimeColumn.layout()
    return CategoricalColumn.over(()) if kind == "categorical" else reference_column(kind, values)


def column_from_json(value: dict[str, Any]) -> Column:
    """The column that its `to_json` wrote. ProfileError for an unknown kind."""
    if value["kind"] not in _READERS:
        raise ProfileError(f"there is no kind of column {value['kind']!r}: known are {', '.join(KINDS)}")
    column: Column = _READERS[value["kind"]](value)
    return column


def missing_rows(column: Column) -> int:
    """Rows without a value: null, NaN among numbers, and vectors with a NaN or of another length than the others."""
    if isinstance(column, EmbeddingColumn):
        return missing_rows(column.norm) + column.misshapen
    return column.missing + (column.nan if isinstance(column, NumericColumn | LogLinearColumn) else 0)


def missing_ratio(column: Column) -> float:
    """Their share in all rows; 0 without rows."""
    return missing_rows(column) / column.rows if column.rows else 0.0


def rebinned(column: Column, reference: Column, allowed: float) -> Column:
    """A column that was counted without a reference, over the reference's bins or categories.

    ProfileError where a bin's edge cuts a log-linear cell of more than the `allowed` share of the values, or where
    the column had more categories than were kept.
    """
    if isinstance(column, LogLinearColumn) and isinstance(reference, NumericColumn):
        return _rebinned(column, reference, allowed)
    if isinstance(column, TextColumn) and isinstance(reference, TextColumn):
        return TextColumn({name: _part(part, reference.parts[name], allowed) for name, part in column.parts.items()})
    if isinstance(column, EmbeddingColumn) and isinstance(reference, EmbeddingColumn) and column.fourier is None:
        raise ProfileError("the mean embedding of vectors needs the reference before it counts: profile them again")
    if isinstance(column, CategoricalColumn) and isinstance(reference, CategoricalColumn):
        # A list that no value was frequent enough for is empty, too, and truncated; that of a reference without values
        # is empty.
        known = column.categories or column.truncated or not (reference.categories or reference.truncated)
        return column if known else _named(column, reference)
    return column


def _part(part: Part, reference: Part, allowed: float) -> Part:
    if isinstance(part, LogLinearColumn) and isinstance(reference, NumericColumn):
        return _rebinned(part, reference, allowed)
    return part


def _rebinned(column: LogLinearColumn, reference: NumericColumn, allowed: float) -> NumericColumn:
    error = column.rebinning_error(reference.edges)
    if error > allowed:
        raise ProfileError(
            f"{error:.1%} of the values lie in one log-linear cell that a bin's edge cuts, allowed are {allowed:.1%}: "
            "profile the rows against the reference instead"
        )
    return column.rebinned(reference.edges)


def _named(column: CategoricalColumn, reference: CategoricalColumn) -> CategoricalColumn:
    if sum(column.strangers.values()) != column.count:
        raise ProfileError(
            f"it has more categories than the {len(column.strangers)} that are kept without a reference: "
            "profile the rows against the reference instead"
        )
    known = {category: place for place, category in enumerate(reference.categories)}
    counts = reference.empty().counts.copy()
    elsewhere = len(known) + (1 if reference.truncated else 0)
    strangers = {}
    for text, count in column.strangers.items():
        counts[known.get(text, elsewhere)] += count
        if text not in known:
            strangers[text] = count
    tail = tail_counts(hashes_of(strangers), np.array(list(strangers.values()), np.int64))
    given = (reference.categories, reference.truncated, counts, column.missing, strangers)
    return CategoricalColumn(*given, tail) if reference.truncated else CategoricalColumn(*given)


def as_reference(column: Column) -> Column:
    """A column that was counted without a reference as one of its own: every count stays exact."""
    if isinstance(column, LogLinearColumn):
        return column.binned()
    if isinstance(column, TextColumn):
        return column.rebuilt(lambda _, part: part.binned() if isinstance(part, LogLinearColumn) else part)
    if isinstance(column, EmbeddingColumn) and isinstance(column.norm, LogLinearColumn):
        return replace(column, norm=column.norm.binned())
    if isinstance(column, CategoricalColumn) and not column.categories and not column.truncated:
        categories = tuple(sorted(column.strangers, key=lambda text: (-column.strangers[text], text)))
        counts = np.array([*(column.strangers[text] for text in categories), 0, 0], np.int64)
        rest = column.count - int(counts.sum())
        counts[-1] = rest
        return CategoricalColumn(categories, rest > 0, counts, column.missing)
    return column
