"""Which series and layouts there are, and what still has to be written of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from collectors.store.head import Layout
from collectors.store.index import LabelIndex
from collectors.store.values import LabelKey, Labels, label_key

_NEVER = np.iinfo(np.int64).min


class Catalog:
    """Series and layouts in memory, with the newest sample of each series. Not thread-safe: the store holds its lock.

    A series or layout that a failed transaction did not write stays in `unsaved_*`, for the next one.
    """

    def __init__(self) -> None:
        self.index = LabelIndex()
        # Counts changes of series and layouts.
        self.generation = 0
        self.layouts: dict[int, Layout] = {}
        self.layouts_of: dict[int, list[int]] = {}
        self.unsaved_series: dict[int, LabelKey] = {}
        self.unsaved_layouts: dict[int, Layout] = {}
        self.last_t: NDArray[np.int64] = np.full(1024, _NEVER, dtype=np.int64)
        self.last_v: NDArray[np.float64] = np.zeros(1024, dtype=np.float64)
        self._layout_ids: dict[bytes, int] = {}
        self._next_layout = 0

    def restore_series(self, series_id: int, labels: Labels, floor_ms: int) -> None:
        """Adds a series that is in the database; samples of it before the floor will be refused."""
        self.index.add(label_key(labels), series_id)
        self._register(series_id)
        self.last_t[series_id] = floor_ms

    def restore_layout(self, layout_id: int, series_ids: NDArray[np.int64]) -> None:
        """Adds a layout that is in the database."""
        self._keep(Layout(layout_id, series_ids))

    def series_id(self, labels: Labels) -> int:
        """The id of a label set, which is added if it is new."""
        key = label_key(labels)
        found = self.index.find(key)
        if found is None:
            found = self.index.add(key)
            self._register(found)
            self.unsaved_series[found] = key
        return found

    def layout(self, series_ids: NDArray[np.int64]) -> Layout:
        """The layout of these series in this order, which is added if it is new."""
        found = self._layout_ids.get(series_ids.tobytes())
        if found is not None:
            return self.layouts[found]
        layout = Layout(self._next_layout, series_ids)
        self._keep(layout)
        self.unsaved_layouts[layout.id] = layout
        return layout

    def only_in(self, layout_ids: Sequence[int]) -> list[int]:
        """Ids of the series that are in these layouts and in no other."""
        leaving = set(layout_ids)
        touched = {i for layout_id in leaving for i in self.layouts[layout_id].series_ids.tolist()}
        return sorted(series_id for series_id in touched if leaving.issuperset(self.layouts_of[series_id]))

    def remove(self, layout_ids: Sequence[int], series_ids: Sequence[int]) -> None:
        """Forgets layouts and series; every series that stays is in another layout."""
        self.generation += 1
        for layout_id in layout_ids:
            layout = self.layouts.pop(layout_id)
            del self._layout_ids[layout.series_ids.tobytes()]
            for series_id in layout.series_ids.tolist():
                self.layouts_of[series_id].remove(layout_id)
        for series_id in series_ids:
            del self.layouts_of[series_id]
        self.index.remove(series_ids)

    def _keep(self, layout: Layout) -> None:
        self.generation += 1
        self.layouts[layout.id] = layout
        self._layout_ids[layout.series_ids.tobytes()] = layout.id
        self._next_layout = max(self._next_layout, layout.id + 1)
        for series_id in layout.series_ids.tolist():
            self.layouts_of[series_id].append(layout.id)

    def _register(self, series_id: int) -> None:
        self.generation += 1
        self.layouts_of[series_id] = []
        if series_id >= len(self.last_t):
            size = max(2 * len(self.last_t), series_id + 1)
            grown = np.full(size, _NEVER, dtype=np.int64)
            grown[: len(self.last_t)] = self.last_t
            self.last_t = grown
            self.last_v = np.concatenate([self.last_v, np.zeros(size - len(self.last_v))])
