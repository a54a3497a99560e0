"""The head: recent scrapes in memory, one matrix a layout, and the gathering of blocks from such matrices."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collectors.store.values import Block, Floats, Labels, Times


class Layout:
    """The series of a scrape, in order; finds the columns of series ids. Immutable."""

    __slots__ = ("_order", "_sorted", "id", "series_ids")

    def __init__(self, layout_id: int, series_ids: NDArray[np.int64]) -> None:
        self.id = layout_id
        self.series_ids = series_ids
        self._order = np.argsort(series_ids, kind="stable")
        self._sorted = series_ids[self._order]

    def columns(self, series_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The column of each id; every id must be in the layout."""
        return self._order[np.searchsorted(self._sorted, series_ids)]


class Rows:
    """Scrapes of one layout in time order: a matrix [time, series] that grows by doubling."""

    __slots__ = ("_t", "_used", "_v")

    def __init__(self, width: int) -> None:
        self._t = np.empty(8, dtype=np.int64)
        self._v = np.empty((8, width), dtype=np.float64)
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def append(self, t_ms: int, values: Floats) -> None:
        """Adds a row; its time must be later than the last one's."""
        if self._used == len(self._t):
            self._t = np.concatenate([self._t, np.empty_like(self._t)])
            self._v = np.concatenate([self._v, np.empty_like(self._v)])
        self._t[self._used] = t_ms
        self._v[self._used] = values
        self._used += 1

    def between(self, start_ms: int, end_ms: int) -> tuple[Times, Floats]:
        """Views of the rows with start <= t <= end."""
        low = int(np.searchsorted(self._t[: self._used], start_ms, side="left"))
        high = int(np.searchsorted(self._t[: self._used], end_ms, side="right"))
        return self._t[low:high], self._v[low:high]

    def trimmed(self, floor_ms: int) -> Rows | None:
        """The rows from the floor on in fresh arrays, or None when none is left."""
        t, v = self.between(floor_ms, np.iinfo(np.int64).max)
        if not len(t):
            return None
        rows = Rows(0)
        rows._t, rows._v, rows._used = t.copy(), v.copy(), len(t)
        return rows


class Head:
    """Rows by layout id, all with t >= `floor_ms`. Not thread-safe: the store holds its lock."""

    def __init__(self, floor_ms: int) -> None:
        self.floor_ms = floor_ms
        self.rows: dict[int, Rows] = {}

    def append(self, layout: Layout, t_ms: int, values: Floats) -> None:
        """Adds a scrape; one older than the floor stays in the database only."""
        if t_ms < self.floor_ms:
            return
        rows = self.rows.get(layout.id)
        if rows is None:
            rows = self.rows[layout.id] = Rows(len(layout.series_ids))
        rows.append(t_ms, values)

    def trim(self, floor_ms: int) -> None:
        """Forgets rows before the floor."""
        self.floor_ms = floor_ms
        kept = {layout_id: rows.trimmed(floor_ms) for layout_id, rows in self.rows.items()}
        self.rows = {layout_id: rows for layout_id, rows in kept.items() if rows is not None}

    def parts(self, start_ms: int, end_ms: int) -> dict[int, tuple[Times, Floats]]:
        """Non-empty row ranges (views) by layout id."""
        found = {layout_id: rows.between(start_ms, end_ms) for layout_id, rows in self.rows.items()}
        return {layout_id: part for layout_id, part in found.items() if len(part[0])}


@dataclass(frozen=True, slots=True)
class Group:
    """Series that are in the same layouts, hence share their times; for each layout, their columns."""

    labels: list[Labels]
    columns: tuple[tuple[int, slice | NDArray[np.int64]], ...]


def group_by_layouts(
    series_ids: Sequence[int],
    labels: Mapping[int, Labels],
    layouts: Mapping[int, Layout],
    layouts_of: Mapping[int, Sequence[int]],
    active: Container[int],
) -> list[Group]:
    """How to gather the series from the active layouts; series in none of them are left out."""
    members: dict[tuple[int, ...], list[int]] = {}
    for series_id in series_ids:
        key = tuple([layout_id for layout_id in layouts_of[series_id] if layout_id in active])
        if key:
            members.setdefault(key, []).append(series_id)
    return [
        Group(
            [labels[series_id] for series_id in ids],
            tuple((layout_id, _compact(layouts[layout_id].columns(np.array(ids)))) for layout_id in key),
        )
        for key, ids in members.items()
    ]


def _compact(columns: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Neighbouring columns as a slice, which reads them without a copy."""
    if np.array_equal(columns, np.arange(columns[0], columns[0] + len(columns))):
        return slice(int(columns[0]), int(columns[0]) + len(columns))
    return columns


def gather(groups: Sequence[Group], parts: Mapping[int, tuple[Times, Floats]]) -> list[Block]:
    """Blocks of the groups from row ranges; read-only, as they may be views of the head."""
    return [_block(group, parts) for group in groups]


def _block(group: Group, parts: Mapping[int, tuple[Times, Floats]]) -> Block:
    pieces = [(parts[layout_id][0], parts[layout_id][1][:, columns]) for layout_id, columns in group.columns]
    if len(pieces) == 1:
        t, v = pieces[0][0][:], pieces[0][1]
    else:
        t = np.concatenate([piece[0] for piece in pieces])
        order = np.argsort(t, kind="stable")
        t, v = t[order], np.concatenate([piece[1] for piece in pieces])[order]
    t.flags.writeable = v.flags.writeable = False
    return Block(group.labels, t, v)
