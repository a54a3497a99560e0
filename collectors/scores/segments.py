"""Segments: the columns of a table as small whole numbers, categories and quantile bins, with the words for each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from collectors.scores.cells import Counts, ScoreError

Rows: TypeAlias = pa.Table | Mapping[str, Any]
Kind = Literal["categorical", "numeric"]

MISSING = "missing"
OTHER = "other"
# Whole numbers with at most this many different values are categories.
_FEW = 12


@dataclass(frozen=True, slots=True, eq=False)
class Segmented:
    """One column: the segment of each row, shape (rows,), and what each segment is called. -1 is never reported."""

    name: str
    codes: Counts
    words: tuple[str, ...]
    edges: tuple[float, ...] = ()
    """Inner edges of the bins of numbers, in order; none of categories."""

    def words_of(self, first: int, last: int) -> str:
        """What one segment is called, or a run of bins."""
        if first == last:
            return self.words[first]
        if first == 0:
            return f"{self.name} < {self.edges[last]:.6g}"
        low = self.edges[first - 1]
        if last == len(self.edges):
            return f"{self.name} >= {low:.6g}"
        return f"{low:.6g} <= {self.name} < {self.edges[last]:.6g}"


def segmented(
    rows: Rows,
    *,
    bins: int = 8,
    categories: int = 40,
    kinds: Mapping[str, Kind] | None = None,
) -> list[Segmented]:
    """Every column in segments: its most frequent `categories`, or `bins` of equal mass and the missing values.

    Text, booleans and whole numbers of few values are categories, other numbers are binned, all else is left out;
    `kinds` overrides that. Raises ScoreError for columns of unequal length or without rows.
    """
    table = table_of(rows)
    if not table.num_rows:
        raise ScoreError("there are no rows to look for segments in")
    found = []
    for name in table.column_names:
        column = _plain(table.column(name))
        kind = (kinds or {}).get(name) or _kind(column.type, column)
        if kind == "numeric":
            found.append(_binned(name, column, bins))
        elif kind == "categorical":
            found.append(_categories(name, column, categories))
    return found


def table_of(rows: Rows) -> pa.Table:
    """The rows as Arrow. ScoreError for names that occur twice and for columns of unequal length."""
    if isinstance(rows, pa.Table):
        names = rows.column_names
        if len(set(names)) < len(names):
            raise ScoreError(f"column names occur twice: {sorted({n for n in names if names.count(n) > 1})}")
        return rows
    columns = {name: np.asarray(values) if not isinstance(values, list) else values for name, values in rows.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ScoreError(f"columns of unequal length: {lengths}")
    try:
        return pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})
    except (pa.ArrowException, TypeError) as wrong:
        raise ScoreError(f"a column cannot be read: {wrong}") from wrong


def _plain(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # several chunks that pyarrow keeps apart
        whole = pa.concat_arrays(whole.chunks)
    whole = whole.dictionary_decode() if pa.types.is_dictionary(whole.type) else whole
    return whole.cast(pa.large_string()) if pa.types.is_string_view(whole.type) else whole


def _kind(kind: pa.DataType, column: pa.Array) -> Kind | None:
    if pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "categorical"
    if pa.types.is_integer(kind):
        return "categorical" if pc.count_distinct(column).as_py() <= _FEW else "numeric"
    return "numeric" if pa.types.is_floating(kind) or pa.types.is_decimal(kind) else None


def _binned(name: str, column: pa.Array, bins: int) -> Segmented:
    values = np.asarray(column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False))
    known = values[~np.isnan(values)]
    if not len(known):
        return Segmented(name, np.zeros(len(values), np.int64), (f"{name} is {MISSING}",))
    inner = np.unique(np.quantile(known, np.arange(1, bins) / bins, method="inverted_cdf"))
    inner = inner[inner > known.min()]
    codes = np.searchsorted(inner, values, side="right").astype(np.int64)
    words = [f"{name} < {inner[0]:.6g}"] if len(inner) else [f"{name} is known"]
    words += [f"{low:.6g} <= {name} < {high:.6g}" for low, high in itertools.pairwise(inner.tolist())]
    words += [f"{name} >= {inner[-1]:.6g}"] if len(inner) else []
    codes[np.isnan(values)] = len(words)
    return Segmented(name, codes, (*words, f"{name} is {MISSING}"), tuple(inner.tolist()))


def _categories(name: str, column: pa.Array, categories: int) -> Segmented:
    encoded = column.dictionary_encode()
    codes = np.asarray(encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False), np.int64)
    words = [f"{name} = {value}" for value in encoded.dictionary.to_pylist()] + [f"{name} is {MISSING}"]
    counts = np.bincount(codes, minlength=len(words))
    kept = np.argsort(-counts, kind="stable")[: categories + 1]
    kept = kept[counts[kept] > 0]
    place = np.full(len(words), -1, np.int64)
    place[kept] = np.arange(len(kept))
    return Segmented(name, place[codes], tuple(words[cell] for cell in kept))


def together(left: Segmented, right: Segmented) -> tuple[npt.NDArray[np.int64], int]:
    """The pair of segments that each row is in, as one number below the returned one; -1 outside."""
    size = len(right.words)
    both = left.codes * size + right.codes
    if left.codes.min(initial=0) < 0 or right.codes.min(initial=0) < 0:
        both = np.where((left.codes < 0) | (right.codes < 0), -1, both)
    return both, len(left.words) * size
