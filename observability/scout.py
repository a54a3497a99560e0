"""What one pass over a column that is larger than memory finds out for its layout."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from observability.blocks import number_blocks
from observability.categorical import NUM_CATEGORIES, CategoricalColumn, add_texts
from observability.cells import Floats, Kind
from observability.columns import Column, NumericColumn, reference_column
from observability.frequent import FrequentTexts
from observability.numeric import NUM_BINS, closed_bin

# Rows drawn for bins: so many numbers, but no more bytes for all columns together, nor fewer rows than that.
_ROWS, _BYTES, _FLOOR = 262_144, 16 << 20, 16_384
_SAMPLED: dict[Kind, int] = {"text": 16_384, "embedding": 4_096}
_SEED = 7


class Scout:
    """What one pass over a column finds out for its layout: rows drawn evenly, the range, the frequent texts."""

    def __init__(self, kind: Kind, rows: int, together: int) -> None:
        """Of a column with so many rows, held in memory together with so many columns (itself among them)."""
        self.kind = kind
        budget = max(_FLOOR, _BYTES // (8 * max(together, 1)))
        self._places = stretch_places(rows, min(_SAMPLED.get(kind, _ROWS), budget))
        self._drawn: list[pa.Array] = []
        self._frequent = FrequentTexts()
        self._low, self._high = math.inf, -math.inf

    def add(self, values: pa.ChunkedArray, start: int) -> None:
        """Adds the values of rows from `start` on."""
        if self.kind == "categorical":
            add_texts(self._frequent, values)
        elif self.kind in ("numeric", "text", "embedding"):
            first, last = np.searchsorted(self._places, [start, start + len(values)])
            self._drawn += values.take(pa.array(self._places[first:last] - start)).chunks
        if self.kind == "numeric":
            for block, valid in number_blocks(values):
                self._widen(block if valid is None else block[valid])

    def sample(self, kind: pa.DataType) -> pa.ChunkedArray:
        """The rows that were drawn."""
        return pa.chunked_array(self._drawn) if self._drawn else pa.chunked_array([], kind)

    def column(self, kind: pa.DataType) -> Column:
        """The empty column of what was found."""
        if self.kind == "categorical":
            return CategoricalColumn.over(*self._frequent.most(NUM_CATEGORIES))
        column = reference_column(self.kind, self.sample(kind))
        if not isinstance(column, NumericColumn):
            return column
        return NumericColumn.over(widened(column.edges, self._low, self._high))

    def _widen(self, values: NDArray[Any]) -> None:
        if not len(values):
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = values[np.isfinite(values)]
            if not len(finite):
                return
            low, high = float(finite.min()), float(finite.max())
        self._low, self._high = min(self._low, low), max(self._high, high)


def widened(edges: Floats, low: float, high: float) -> Floats:
    """The edges of a sample with the range of all values for its own, so that nothing of them lies in a tail."""
    if low > high:
        return edges
    if len(edges) > 1 and edges[-1] == math.nextafter(edges[-2], math.inf):
        # Few values: each is a cell of its own, the greatest, too.
        values = np.unique([low, *edges[:-1], high])
        if len(values) <= NUM_BINS:
            return np.unique([*values, *closed_bin(float(values[-1]))])
    inner = edges[1:-1] if len(edges) > 2 else edges
    found = np.unique(np.concatenate([[low], inner[(inner > low) & (inner < high)], [high]]))
    return found if len(found) > 1 else closed_bin(float(found[0]))


# The columns of a table draw the same rows.
@lru_cache(maxsize=4)
def stretch_places(rows: int, number: int) -> NDArray[np.int64]:
    """Ascending row numbers: one drawn from each of `number` equal stretches, always the same; all if there are fewer.

    Drawn, not every so-many-th row, which would see only one phase of what repeats.
    """
    if rows <= number:
        places = np.arange(rows)
    else:
        bounds = np.linspace(0, rows, number + 1).astype(np.int64)
        drawn = np.random.RandomState(_SEED).random_sample(number)
        places = bounds[:-1] + (drawn * np.diff(bounds)).astype(np.int64)
    places.setflags(write=False)
    return places
