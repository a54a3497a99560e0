"""One pass over numbers for all that a numeric column keeps: a block is sorted once, and the rest is read off it.

Looking 130 edges up in sorted values costs far less than looking the values up among the edges. A block whose
values are all finite is sorted as float32, which takes half the time: rounding keeps the order, so only an edge that
some value rounds to needs a second look at the block.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from observability.blocks import BLOCK, Block
from observability.cells import Counts, Floats
from observability.moments import Moments, sums_of

_LOWEST = np.array([-np.finfo(np.float64).max])
_HIGHEST_AND_ZEROS = np.array([np.inf, 0.0, 5e-324])
# So many edges are looked at again before the block is sorted as float64 instead.
_AMBIGUOUS = 12
_EXACT_IN_FLOAT32 = frozenset(np.dtype(name) for name in ("f4", "f2", "i2", "i1", "u2", "u1"))


class Tally:
    """Counts and moments of numbers over given edges; `add` takes blocks, the rest reads what was counted."""

    def __init__(self, edges: Floats) -> None:
        self.moments = Moments()
        self.rows = self.missing = self.nan = 0
        # What is asked of a sorted block is how many values lie below each of these. Below the first are the negative
        # infinities; a cell lies between each two up to +∞; the zeros lie between the last two.
        self._queries = np.concatenate([_LOWEST, bounds_of(edges), _HIGHEST_AND_ZEROS])
        self._below = np.zeros(len(self._queries), np.int64)
        self._rounded: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        self._single_sort = True

    def add_all(self, blocks: Iterable[Block]) -> None:
        """Adds every block."""
        with np.errstate(over="ignore", invalid="ignore"):
            for block, valid in blocks:
                self.add(block, valid)

    def add(self, block: NDArray[np.generic], valid: NDArray[np.bool_] | None = None) -> None:
        """Adds at most `BLOCK` numbers of any real type; rows that are not `valid` are missing."""
        size = len(block)
        if not size:
            return
        self.rows += size
        if valid is None and self._single_sort and size >= 512 and self._add_single(block):
            return
        values = scratch.double()[:size]
        np.copyto(values, block, casting="unsafe")
        missing = 0
        if valid is not None:
            missing = size - int(np.count_nonzero(valid))
            np.copyto(values, np.nan, where=~valid)
        values.sort()
        below = values.searchsorted(self._queries)
        self._below += below
        first, last = int(below[0]), int(below[-3])
        present = size if values[-1] <= np.inf else int(values.searchsorted(np.nan))
        self.missing += missing
        self.nan += size - present - missing
        self._add_moments(values[first:last])

    @property
    def zeros(self) -> int:
        return int(self._below[-1] - self._below[-2])

    @property
    def negative_infinite(self) -> int:
        return int(self._below[0])

    @property
    def positive_infinite(self) -> int:
        return self.rows - self.missing - self.nan - int(self._below[-3])

    def counts(self) -> Counts:
        """The finite values by cell: below the first edge, between each two, above the last."""
        return self._below[1:-2] - self._below[:-3]

    def _add_single(self, block: NDArray[np.generic]) -> bool:
        """Adds a block by its float32 roundings; False if it has NaN or infinities, or too many values on edges."""
        exact = block.dtype in _EXACT_IN_FLOAT32
        if not exact and block.dtype != np.float64:
            return False
        floats = np.asarray(block, np.float64)
        values = scratch.single()[: len(block)]
        # Summed and rounded a piece at a time, while the piece is in the nearest cache.
        sums = sums_of(floats, values)
        if not math.isfinite(sums[0]):
            return False
        values.sort()
        if not (values[0] > -np.inf and values[-1] < np.inf):
            return False
        rounded, above = self._keys()
        below = values.searchsorted(above if exact else rounded)
        if not exact:
            # Where a value equals the rounding of what is asked, it may lie on either side of it.
            unsure = np.flatnonzero(values.take(below, mode="clip") == rounded)
            if len(unsure) > _AMBIGUOUS:
                self._single_sort = False
                return False
            for place in unsure:
                below[place] = np.count_nonzero(block < self._queries[place])
        self._below += below
        totals = self.moments
        # Rounding is monotone: only a block that reaches the old extreme in float32 can have a new one.
        if values[0] <= totals.minimum:
            totals.minimum = min(totals.minimum, float(floats.min()))
        if values[-1] >= totals.maximum:
            totals.maximum = max(totals.maximum, float(floats.max()))
        totals.add(floats, sums)
        return True

    def _add_moments(self, finite: Floats) -> None:
        if len(finite):
            totals = self.moments
            totals.minimum = min(totals.minimum, float(finite[0]))
            totals.maximum = max(totals.maximum, float(finite[-1]))
            totals.add(finite)

    def _keys(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What is asked in float32: (rounded, the smallest float32 that is not below)."""
        if self._rounded is None:
            self._rounded = single_bounds(self._queries)
        return self._rounded


def bounds_of(edges: Floats) -> Floats:
    """Where cells begin: the edges, but what equals the last of them still belongs to the last closed cell."""
    with np.errstate(over="ignore"):
        return np.concatenate([edges[:-1], np.nextafter(edges[-1:], np.inf)])


def single_bounds(bounds: Floats) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Bounds in float32: (rounded, the smallest float32 that is not below)."""
    with np.errstate(over="ignore"):
        rounded = bounds.astype(np.float32)
        above = np.where(rounded < bounds, np.nextafter(rounded, np.float32(np.inf)), rounded)
    return rounded, above.astype(np.float32)


class _Scratch(threading.local):
    """A thread's buffers for blocks: fresh memory for each column would cost more than the sort of a small one."""

    def __init__(self) -> None:
        self._double: Floats | None = None
        self._single: NDArray[np.float32] | None = None

    def double(self) -> Floats:
        if self._double is None:
            self._double = np.empty(BLOCK)
        return self._double

    def single(self) -> NDArray[np.float32]:
        if self._single is None:
            self._single = np.empty(BLOCK, np.float32)
        return self._single


scratch = _Scratch()
