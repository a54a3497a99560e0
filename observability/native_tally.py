"""One pass over numbers in compiled code, where there is a compiler: the same counts as `tally.py` in less time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from observability.blocks import Block
from observability.cells import Counts, Floats
from observability.moments import Moments, deviations_corrected
from observability.native import library
from observability.tally import Tally, bounds_of, scratch, single_bounds

# What `tally.c` looks edges up in is no longer.
MOST_EDGES = 136


def tally_over(edges: Floats) -> Tally | NativeTally:
    """An empty tally over the cells between `edges`, compiled if that can be had."""
    return Tally(edges) if library("tally") is None or len(edges) > MOST_EDGES else NativeTally(edges)


class NativeTally:
    """Counts and moments of numbers over given edges; `add` takes blocks, the rest reads what was counted."""

    __slots__ = ("_at", "_bounds", "_counts", "_last", "_single", "_special", "_sums", "missing", "moments", "rows")

    def __init__(self, edges: Floats) -> None:
        self.moments = Moments()
        self.rows = self.missing = 0
        self._bounds = bounds_of(edges)
        self._single: NDArray[np.float32] | None = None
        self._counts = np.zeros(len(edges) + 1, np.int64)
        # NaN (missing ones among them), +∞, −∞, zeros: of the last block, and of all.
        self._last, self._special = np.zeros(4, np.int64), [0, 0, 0, 0]
        self._sums = np.zeros(5)
        self._at = [array.ctypes.data for array in (self._counts, self._last, self._sums)]

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
        native, bounds = library("tally"), self._bounds
        assert native is not None
        function = native.trimtab_tally_double
        if valid is not None or block.dtype not in (np.float64, np.float32) or not block.flags.c_contiguous:
            values = scratch.double()[:size]
            np.copyto(values, block, casting="unsafe")
            if valid is not None:
                self.missing += size - int(np.count_nonzero(valid))
                np.copyto(values, np.nan, where=~valid)
            block = values
        elif block.dtype == np.float32:
            if self._single is None:
                self._single = single_bounds(bounds)[1]
            function, bounds = native.trimtab_tally_float, self._single  # type: ignore[assignment]
        function(block.ctypes.data, size, bounds.ctypes.data, len(bounds), *self._at)
        last = self._last.tolist()
        self._special = [number + new for number, new in zip(self._special, last, strict=True)]
        finite = size - sum(last[:3])
        if finite:
            mean, rest, squares, least, greatest = self._sums.tolist()
            found = self.moments
            found.minimum, found.maximum = min(found.minimum, least), max(found.maximum, greatest)
            found.merge(finite, *deviations_corrected(finite, mean, rest, squares))

    @property
    def nan(self) -> int:
        return self._special[0] - self.missing

    @property
    def positive_infinite(self) -> int:
        return self._special[1]

    @property
    def negative_infinite(self) -> int:
        return self._special[2]

    @property
    def zeros(self) -> int:
        return self._special[3]

    def counts(self) -> Counts:
        """The finite values by cell: below the first edge, between each two, above the last."""
        return self._counts
