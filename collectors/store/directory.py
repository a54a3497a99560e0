"""Which blocks there are: their bounds, in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """A block's bounds: times in ms, series ids, columns of a chunk, bytes in the database."""

    id: int
    start_ms: int
    end_ms: int
    first_series: int
    last_series: int
    width: int
    nbytes: int


class Directory:
    """All blocks' bounds, in memory. Not thread-safe: the store holds its lock."""

    def __init__(self) -> None:
        self._infos: dict[int, BlockInfo] = {}
        self._bounds: NDArray[np.int64] | None = None
        self.next_id = 0

    def __len__(self) -> int:
        return len(self._infos)

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._infos

    def add(self, info: BlockInfo) -> None:
        """Adds a block."""
        self._infos[info.id] = info
        self._bounds = None
        self.next_id = max(self.next_id, info.id + 1)

    def remove(self, block_ids: Iterable[int]) -> None:
        """Forgets blocks."""
        for block_id in block_ids:
            self._infos.pop(block_id, None)
        self._bounds = None

    def all(self) -> list[BlockInfo]:
        """All blocks."""
        return list(self._infos.values())

    def overlapping(self, ids: Ids, start_ms: int, end_ms: int) -> list[BlockInfo]:
        """Blocks with samples in start <= t <= end that may have some of the series (rising ids)."""
        if not self._infos or not len(ids):
            return []
        if self._bounds is None:
            rows = [(i.start_ms, i.end_ms, i.first_series, i.last_series, i.id) for i in self._infos.values()]
            self._bounds = np.array(rows, dtype=np.int64).T.copy()
        start, end, first, last, number = self._bounds
        places = np.searchsorted(ids, first)
        nearest = ids[np.minimum(places, len(ids) - 1)]
        inside = (start <= end_ms) & (end >= start_ms) & (nearest >= first) & (nearest <= last)
        return [self._infos[i] for i in number[inside].tolist()]
