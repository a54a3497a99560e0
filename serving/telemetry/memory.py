"""Memory for what is recorded: blocks that are used again when nobody looks at them any more.

New memory is given out page by page, which costs as much as writing it: under load the same few blocks go round.
"""

from __future__ import annotations

import weakref
from collections import defaultdict, deque
from collections.abc import Sequence
from functools import partial
from math import prod

import numpy as np
import numpy.typing as npt

from serving.protocol.tensors import Array

# Free blocks that are kept of each size.
_MOST_FREE = 4
Bytes = npt.NDArray[np.uint8]


class Memory:
    """Lends blocks of bytes; one comes back with the last array that looks at it. For any thread."""

    def __init__(self) -> None:
        self._free: defaultdict[int, deque[Bytes]] = defaultdict(partial(deque, maxlen=_MOST_FREE))
        # By the identity of the reference, which an array's has instead of a hash.
        self._lent: dict[int, tuple[weakref.ref[Bytes], Bytes]] = {}

    def take(self, size: int) -> Bytes:
        """A power of two of bytes, at least `size`, which hold anything. Slices and views keep them lent."""
        size = 1 << max(size - 1, 0).bit_length()
        try:
            block = self._free[size].pop()
        except IndexError:
            block = np.empty(size, np.uint8)
        # Arrays made of this one name it as their base, as it has no array below it.
        lent: Bytes = np.frombuffer(block.data, np.uint8)
        reference = weakref.ref(lent, self._back)
        self._lent[id(reference)] = reference, block
        return lent

    def _back(self, lent: weakref.ref[Bytes]) -> None:
        block = self._lent.pop(id(lent))[1]
        self._free[len(block)].append(block)


class Column:
    """Rows of one tensor, batch behind batch in one block that has room for so many; `rows` are taken in."""

    __slots__ = ("_block", "block", "rows", "shape")

    def __init__(self, memory: Memory, shape: Sequence[int], kind: np.dtype[np.generic], rows: int) -> None:
        self.shape = tuple(shape)
        self._block = memory.take(rows * prod(shape) * kind.itemsize)
        # Room for all rows, whatever is in those that are not taken in.
        self.block: Array = np.ndarray((rows, *shape), kind, self._block)
        self.rows = 0

    @property
    def nbytes(self) -> int:
        """Bytes of its block."""
        return int(self._block.nbytes)

    def free(self, rows: int) -> Array:
        """The next rows, whatever is in them; they are part of the column once `rows` counts them."""
        return self.block[self.rows : self.rows + rows]

    def add(self, values: Array) -> None:
        """Copies further rows."""
        end = self.rows + len(values)
        self.block[self.rows : end] = values
        self.rows = end

    def array(self) -> Array:
        """All rows, not copied unless they are few: those must not keep a whole block from being used again."""
        found = self.block[: self.rows]
        return found if 2 * found.nbytes >= self._block.nbytes else found.copy()
