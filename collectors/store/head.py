"""The head: recent scrapes in memory, one matrix a layout."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from collectors.store.values import Floats, Times

Ids = NDArray[np.int64]
# What a matrix of rows grows by when it is full.
_GROWTH = 1.5
# Rows before the floor go when they are one in so many.
_DROPPED = 8


class Layout:
    """The series of a scrape, in order; finds the columns of series ids. Immutable."""

    __slots__ = ("_order", "_sorted", "id", "series_ids")

    def __init__(self, layout_id: int, series_ids: Ids) -> None:
        self.id = layout_id
        self.series_ids = series_ids
        rising = len(series_ids) < 2 or bool((series_ids[1:] > series_ids[:-1]).all())
        # The usual layout is in order already, and needs no second array.
        self._order: Ids | None = None if rising else np.argsort(series_ids, kind="stable")
        self._sorted = series_ids if self._order is None else series_ids[self._order]

    def columns(self, series_ids: Ids) -> Ids:
        """The column of each id; every id must be in the layout."""
        places = np.searchsorted(self._sorted, series_ids)
        return places if self._order is None else self._order[places]

    def shared(self, series_ids: Ids) -> Ids:
        """Those of the rising ids that are in the layout."""
        if not len(series_ids) or not len(self._sorted):
            return series_ids[:0]
        # The ids between the layout's first and last; usually few more than the layout has.
        low, high = np.searchsorted(series_ids, self._sorted[0]), np.searchsorted(series_ids, self._sorted[-1], "right")
        near = series_ids[low:high]
        places = np.searchsorted(self._sorted, near)
        shared: Ids = near[self._sorted[places] == near]
        return shared


class Rows:
    """Scrapes of one layout in time order: a matrix [time, series] that grows as it fills.

    A late row is put at the end and into its place when rows are next read.
    """

    __slots__ = ("_sorted", "_t", "_used", "_v")

    def __init__(self, width: int) -> None:
        self._t = np.empty(8, dtype=np.int64)
        self._v = np.empty((8, width), dtype=np.float64)
        self._used = 0
        self._sorted = True

    @classmethod
    def of(cls, t: Times, v: Floats) -> Rows:
        """Rows of the arrays themselves; the times must rise."""
        rows = cls(0)
        rows._t, rows._v, rows._used = t, v, len(t)
        return rows

    def __len__(self) -> int:
        return self._used

    @property
    def nbytes(self) -> int:
        """Bytes of the rows there are."""
        return self._used * (8 + 8 * self._v.shape[1])

    def append(self, t_ms: int, values: Floats, floor_ms: int) -> None:
        """Adds a row; its time must not be there yet. When they are full, rows before the floor make room."""
        if self._used == len(self._t):
            self.trim(floor_ms, self._used // _DROPPED)
        if self._used == len(self._t):
            self._resize(max(8, int(self._used * _GROWTH)))
        if self._used and t_ms < self._t[self._used - 1]:
            self._sorted = False
        self._t[self._used] = t_ms
        self._v[self._used] = values
        self._used += 1

    def trim(self, floor_ms: int, at_least: int = 1) -> int:
        """Forgets the rows before the floor where there are at least so many; gives how many went."""
        t, v = self.between(floor_ms, np.iinfo(np.int64).max)
        dropped = self._used - len(t)
        if dropped and dropped >= at_least:
            self._t, self._v, self._used = t, v, len(t)
            self._resize(len(t) + max(dropped, 8))
            return dropped
        return 0

    def _resize(self, size: int) -> None:
        """Moves to fresh arrays: readers may hold views of these."""
        t, v = np.empty(size, dtype=np.int64), np.empty((size, self._v.shape[1]), dtype=np.float64)
        t[: self._used], v[: self._used] = self._t[: self._used], self._v[: self._used]
        self._t, self._v = t, v

    def between(self, start_ms: int, end_ms: int) -> tuple[Times, Floats]:
        """Views of the rows with start <= t <= end."""
        if not self._sorted:
            order = np.argsort(self._t[: self._used], kind="stable")
            self._t, self._v, self._sorted = self._t[: self._used][order], self._v[: self._used][order], True
        low = int(np.searchsorted(self._t[: self._used], start_ms, side="left"))
        high = int(np.searchsorted(self._t[: self._used], end_ms, side="right"))
        return self._t[low:high], self._v[low:high]


class Head:
    """Rows by layout id; it has all with t >= `floor_ms`. Not thread-safe: the store holds its lock."""

    def __init__(self) -> None:
        # No row is too old until the first ones come.
        self.floor_ms = -(2**62)
        self.rows: dict[int, Rows] = {}

    def append(self, layout: Layout, t_ms: int, values: Floats) -> None:
        """Adds a scrape; one older than the floor stays in the database only."""
        if t_ms < self.floor_ms:
            return
        rows = self.rows.get(layout.id)
        if rows is None:
            rows = self.rows[layout.id] = Rows(len(layout.series_ids))
        rows.append(t_ms, values, self.floor_ms)

    def trim(self, layout_id: int) -> None:
        """Forgets a layout's rows before the floor."""
        rows = self.rows.get(layout_id)
        if rows is not None:
            rows.trim(self.floor_ms)
            if not len(rows):
                del self.rows[layout_id]

    def parts(self, layout_ids: Iterable[int], start_ms: int, end_ms: int) -> dict[int, tuple[Times, Floats]]:
        """Non-empty row ranges (views) by layout id, of these layouts."""
        found = {i: self.rows[i].between(start_ms, end_ms) for i in layout_ids if i in self.rows}
        return {layout_id: part for layout_id, part in found.items() if len(part[0])}
