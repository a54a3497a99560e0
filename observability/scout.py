"""What one pass over a column that is larger than memory finds out for its layout."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from observability.blocks import Mask, number_blocks
from observability.categorical import NUM_CATEGORIES, CategoricalColumn, add_texts
from observability.cells import Floats, Kind
from observability.columns import Column, NumericColumn, reference_column
from observability.frequent import FrequentTexts
from observability.numeric import NUM_BINS, closed_bin, quantile_edges

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
        # Numbers are drawn into one array: an Arrow array for each batch takes more room than what is drawn.
        self._numbers: Floats = np.empty(len(self._places) if kind == "numeric" else 0)
        self._filled = 0
        self._drawn: list[pa.Array] = []
        self._frequent = FrequentTexts()
        self._low, self._high = math.inf, -math.inf

    def add(self, values: pa.ChunkedArray | pa.Array, start: int) -> None:
        """Adds the values of rows from `start` on."""
        if self.kind == "categorical":
            add_texts(self._frequent, values)
        elif self.kind == "numeric":
            for block, valid in number_blocks(values):
                self._draw(block, valid, self._within(start, len(block)))
                self._widen(block if valid is None else block[valid])
                start += len(block)
        elif self.kind in ("datetime", "text", "embedding"):
            drawn = values.take(pa.array(self._within(start, len(values))))
            self._drawn += drawn.chunks if isinstance(drawn, pa.ChunkedArray) else [drawn]

    def sample(self, kind: pa.DataType) -> pa.ChunkedArray:
        """The rows that were drawn; of numbers as float64, NaN for what is missing."""
        if self.kind == "numeric":
            return pa.chunked_array([pa.array(self._numbers[: self._filled])])
        return pa.chunked_array(self._drawn) if self._drawn else pa.chunked_array([], kind)

    def column(self, kind: pa.DataType) -> Column:
        """The empty column of what was found."""
        if self.kind == "categorical":
            return CategoricalColumn.over(*self._frequent.most(NUM_CATEGORIES))
        if self.kind != "numeric":
            return reference_column(self.kind, self.sample(kind))
        drawn = self._numbers[: self._filled]
        return NumericColumn.over(widened(quantile_edges(drawn[np.isfinite(drawn)]), self._low, self._high))

    def _within(self, start: int, rows: int) -> NDArray[np.int64]:
        """Which of the rows from `start` on are drawn, counted from there."""
        first, last = np.searchsorted(self._places, [start, start + rows])
        return self._places[first:last] - start

    def _draw(self, block: NDArray[Any], valid: Mask | None, places: NDArray[np.int64]) -> None:
        drawn = self._numbers[self._filled : self._filled + len(places)]
        drawn[:] = block[places]
        if valid is not None:
            drawn[~valid[places]] = np.nan
        self._filled += len(places)

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
