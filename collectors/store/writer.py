"""The writing half: which samples of an append are taken, stale markers for what vanished, one transaction a group."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from collectors.store.catalog import Catalog
from collectors.store.head import Head, Layout
from collectors.store.schema import layouts_table, scrapes_table, series_table
from collectors.store.values import STALE_NAN, Floats, LabelKey, Labels, StoreCounts, is_stale

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Append:
    """Samples of one source at one time; `replaces` says that series it no longer sends have ended."""

    target: str
    t_ms: int
    samples: Sequence[tuple[Labels, float]]
    replaces: bool


@dataclass(frozen=True, slots=True)
class MarkStale:
    """A source that is gone: all its series end."""

    target: str
    t_ms: int


@dataclass(frozen=True, slots=True)
class _Row:
    layout: Layout
    t_ms: int
    values: Floats


class _Undo:
    """What a group changed in the catalog before its transaction, newest last."""

    def __init__(self) -> None:
        self.newest: list[tuple[Ids, Ids, Floats]] = []
        self.targets: list[tuple[str, Ids | None]] = []


class Writer:
    """Admits appends and writes them. `commit` must not run in two threads at once; `lock` guards catalog and head."""

    def __init__(
        self, engine: sa.Engine, catalog: Catalog, head: Head, lock: threading.RLock, counts: StoreCounts
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._head = head
        self._lock = lock
        self._counts = counts
        self._targets: dict[str, Ids] = {}

    def commit(self, requests: Sequence[Append | MarkStale]) -> list[int]:
        """Writes a group in one transaction, all or nothing; gives the number of samples taken for each."""
        rows: list[_Row] = []
        undo = _Undo()
        with self._lock:
            taken = [self._admit(request, rows, undo) for request in requests]
            new_series = list(self._catalog.unsaved_series.items())
            new_layouts = list(self._catalog.unsaved_layouts.values())
        try:
            if rows:
                self._write(rows, new_series, new_layouts)
        except BaseException:
            with self._lock:
                self._revert(undo)
            raise
        with self._lock:
            if rows:
                self._catalog.unsaved_series.clear()
                self._catalog.unsaved_layouts.clear()
                self._counts.commits += 1
            for row in rows:
                self._head.append(row.layout, row.t_ms, row.values)
            self._counts.appended += sum(len(row.values) for row in rows)
        return taken

    def _admit(self, request: Append | MarkStale, rows: list[_Row], undo: _Undo) -> int:
        before = self._targets.get(request.target)
        undo.targets.append((request.target, before))
        if isinstance(request, MarkStale):
            self._targets.pop(request.target, None)
            return self._end(before, request.t_ms, rows, undo)
        ids, values = self._resolve(request.samples)
        taken = self._take(ids, values, request.t_ms, rows, undo)
        if before is None:
            self._targets[request.target] = ids
        elif request.replaces:
            if not np.array_equal(before, ids):
                self._end(np.setdiff1d(before, ids), request.t_ms, rows, undo)
            self._targets[request.target] = ids
        else:
            self._targets[request.target] = np.union1d(before, ids)
        return taken

    def _resolve(self, samples: Sequence[tuple[Labels, float]]) -> tuple[Ids, Floats]:
        count = len(samples)
        ids = np.fromiter((self._catalog.series_id(labels) for labels, _ in samples), np.int64, count)
        values = np.fromiter((value for _, value in samples), np.float64, count)
        unique, first = np.unique(ids, return_index=True)
        if len(unique) == count:
            return ids, values
        kept = np.sort(first)
        self._counts.conflicting += count - len(kept)
        return ids[kept], values[kept]

    def _take(self, ids: Ids, values: Floats, t_ms: int, rows: list[_Row], undo: _Undo) -> int:
        newest = self._catalog.last_t[ids]
        fresh = newest < t_ms
        if fresh.all():
            self._stage(ids, values, t_ms, rows, undo)
            return len(ids)
        same_time = newest == t_ms
        same_value = self._catalog.last_v[ids].view(np.uint64) == values.view(np.uint64)
        duplicates = int((same_time & same_value).sum())
        self._counts.duplicates += duplicates
        self._counts.conflicting += int((same_time & ~same_value).sum())
        self._counts.out_of_order += int((newest > t_ms).sum())
        self._stage(ids[fresh], values[fresh], t_ms, rows, undo)
        return int(fresh.sum()) + duplicates

    def _end(self, ids: Ids | None, t_ms: int, rows: list[_Row], undo: _Undo) -> int:
        if ids is None or not len(ids):
            return 0
        known = np.fromiter((i in self._catalog.index.labels for i in ids.tolist()), np.bool_, len(ids))
        alive = known & (self._catalog.last_t[ids] < t_ms) & ~is_stale(self._catalog.last_v[ids])
        ended = ids[alive]
        self._stage(ended, np.full(len(ended), STALE_NAN), t_ms, rows, undo)
        return len(ended)

    def _stage(self, ids: Ids, values: Floats, t_ms: int, rows: list[_Row], undo: _Undo) -> None:
        if not len(ids):
            return
        undo.newest.append((ids, self._catalog.last_t[ids], self._catalog.last_v[ids]))
        self._catalog.last_t[ids] = t_ms
        self._catalog.last_v[ids] = values
        rows.append(_Row(self._catalog.layout(ids), t_ms, values))

    def _revert(self, undo: _Undo) -> None:
        for ids, t_ms, values in reversed(undo.newest):
            self._catalog.last_t[ids] = t_ms
            self._catalog.last_v[ids] = values
        for target, before in reversed(undo.targets):
            if before is None:
                self._targets.pop(target, None)
            else:
                self._targets[target] = before

    def _write(self, rows: list[_Row], series: list[tuple[int, LabelKey]], layouts: list[Layout]) -> None:
        with self._engine.begin() as connection:
            if series:
                texts = [{"id": i, "labels": json.dumps(dict(key), ensure_ascii=False)} for i, key in series]
                connection.execute(series_table.insert(), texts)
            if layouts:
                vectors = [{"id": item.id, "series_ids": item.series_ids.astype("<i8").tobytes()} for item in layouts]
                connection.execute(layouts_table.insert(), vectors)
            scrapes = [
                {"layout_id": row.layout.id, "t_ms": row.t_ms, "data": row.values.astype("<f8").tobytes()}
                for row in rows
            ]
            connection.execute(scrapes_table.insert(), scrapes)
