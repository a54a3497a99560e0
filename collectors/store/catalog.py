"""Which series and layouts there are, which sources send them, and what still has to be written of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from collectors.store.head import Layout
from collectors.store.index import LabelIndex
from collectors.store.values import Floats, Labels, Times

Ids = NDArray[np.int64]
NEVER = int(np.iinfo(np.int64).min)
_NO_LAYOUT = -1


class Catalog:
    """Series and layouts in memory, with the newest sample of each series. Not thread-safe: the store holds its lock.

    A series or layout that a failed transaction did not write stays unsaved, for the next one.
    """

    def __init__(self) -> None:
        self.index = LabelIndex()
        # Counts changes of series and layouts; and changes by which an id may have gone.
        self.generation = 0
        self.removals = 0
        self.layouts: dict[int, Layout] = {}
        self.saved: set[int] = set()
        self.unsaved_series: dict[int, Labels] = {}
        # The newest sample of each series. Of one that was last seen before the head, only that: see `unknown`.
        self.last_t: Times = np.full(1024, NEVER, dtype=np.int64)
        self.last_v: Floats = np.zeros(1024, dtype=np.float64)
        self.unknown: NDArray[np.bool_] = np.zeros(1024, dtype=np.bool_)
        # A series' first layout, and the others of the few that have several.
        self._home: NDArray[np.int32] = np.full(1024, _NO_LAYOUT, dtype=np.int32)
        self._further: dict[int, list[int]] = {}
        self._layout_ids: dict[bytes, int] = {}
        self._next_layout = 0

    # --- series -------------------------------------------------------------------------------------------------------
    def restore_series(self, series_id: int, labels: Labels, floor_ms: int) -> None:
        """Adds a series that is in the database, all of whose samples may be before the floor."""
        self.index.add(labels, series_id)
        self._register(series_id)
        self.last_t[series_id] = floor_ms - 1
        self.unknown[series_id] = True

    def series_id(self, labels: Labels) -> int:
        """The id of a label set, which is added if it is new."""
        found = self.index.find(labels)
        if found is None:
            found = self.index.add(labels)
            self._register(found)
            self.unsaved_series[found] = self.index.labels(found)
        return found

    def seen(self, series_ids: Ids, t_ms: int, values: Floats) -> None:
        """Takes these as the newest samples of the series."""
        self.last_t[series_ids] = t_ms
        self.last_v[series_ids] = values
        self.unknown[series_ids] = False

    def remove_series(self, series_ids: Sequence[int]) -> None:
        """Forgets series that are in no layout."""
        self.generation += 1
        self.removals += 1
        self.index.remove(series_ids)
        for series_id in series_ids:
            self.unsaved_series.pop(series_id, None)
        self.last_t[list(series_ids)] = NEVER

    # --- layouts ------------------------------------------------------------------------------------------------------
    def restore_layout(self, layout_id: int, series_ids: Ids) -> None:
        """Adds a layout that is in the database."""
        self._keep(Layout(layout_id, series_ids))
        self.saved.add(layout_id)

    def layout(self, series_ids: Ids) -> Layout:
        """The layout of these series in this order, which is added if it is new."""
        found = self._layout_ids.get(series_ids.tobytes())
        if found is not None:
            return self.layouts[found]
        layout = Layout(self._next_layout, series_ids)
        self._keep(layout)
        return layout

    def layouts_with(self, series_ids: Ids) -> set[int]:
        """Ids of the layouts that have any of the series."""
        found = set(np.unique(self._home[series_ids]).tolist())
        found.discard(_NO_LAYOUT)
        if self._further:
            for series_id in self._further.keys() & set(series_ids.tolist()):
                found.update(self._further[series_id])
        return found

    def unused_series(self, leaving: set[int], bound_ms: int) -> list[int]:
        """Series that only the leaving layouts have, if any, and whose newest sample is before the bound."""
        old = np.flatnonzero((self.last_t < bound_ms) & ~self.unknown)
        found = []
        for series_id in old.tolist():
            if series_id in self.index and series_id not in self.unsaved_series:
                home = int(self._home[series_id])
                layouts = {home, *self._further.get(series_id, ())} - {_NO_LAYOUT}
                if layouts <= leaving:
                    found.append(series_id)
        return found

    def remove_layouts(self, layout_ids: Iterable[int]) -> None:
        """Forgets layouts."""
        gone = {layout_id: self.layouts.pop(layout_id) for layout_id in layout_ids}
        if not gone:
            return
        self.generation += 1
        for layout_id, layout in gone.items():
            self.saved.discard(layout_id)
            del self._layout_ids[layout.series_ids.tobytes()]
            homeless = layout.series_ids[self._home[layout.series_ids] == layout_id]
            self._home[homeless] = _NO_LAYOUT
            if self._further:
                for series_id in self._further.keys() & set(layout.series_ids.tolist()):
                    self._leave(series_id, layout_id)

    def _leave(self, series_id: int, layout_id: int) -> None:
        others = self._further[series_id]
        if layout_id in others:
            others.remove(layout_id)
        if self._home[series_id] == _NO_LAYOUT and others:
            self._home[series_id] = others.pop(0)
        if not others:
            del self._further[series_id]

    def _keep(self, layout: Layout) -> None:
        self.generation += 1
        self.layouts[layout.id] = layout
        self._layout_ids[layout.series_ids.tobytes()] = layout.id
        self._next_layout = max(self._next_layout, layout.id + 1)
        housed = self._home[layout.series_ids] != _NO_LAYOUT
        self._home[layout.series_ids[~housed]] = layout.id
        for series_id in layout.series_ids[housed].tolist():
            self._further.setdefault(series_id, []).append(layout.id)

    def _register(self, series_id: int) -> None:
        self.generation += 1
        size = len(self.last_t)
        if series_id >= size:
            more = max(size // 2, series_id + 1 - size)
            self.last_t = np.concatenate([self.last_t, np.full(more, NEVER, dtype=np.int64)])
            self.last_v = np.concatenate([self.last_v, np.zeros(more)])
            self.unknown = np.concatenate([self.unknown, np.zeros(more, dtype=np.bool_)])
            self._home = np.concatenate([self._home, np.full(more, _NO_LAYOUT, dtype=np.int32)])
        self._home[series_id] = _NO_LAYOUT
        self.unknown[series_id] = False
