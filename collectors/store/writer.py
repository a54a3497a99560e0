"""The writing half: which samples of an append are taken, stale markers for what vanished, one transaction a group."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from collectors.store.archive import Archive
from collectors.store.catalog import NEVER, Catalog
from collectors.store.grouping import Piece
from collectors.store.head import Head, Layout
from collectors.store.limits import LimitExceeded
from collectors.store.resolve import Resolved, Resolver
from collectors.store.schema import layouts_table, scrapes_table, series_table, targets_table
from collectors.store.sources import Sources, source_key
from collectors.store.values import STALE_NAN, Floats, Labels, StoreCounts, Taken, Times, is_stale

Ids = NDArray[np.int64]

# What a row costs in the log besides its values.
_ROW_BYTES = 200


@dataclass(frozen=True, slots=True)
class MarkStale:
    """A source that is gone: all its series end."""

    target: str
    t_ms: int


Request = MarkStale | tuple[Resolved, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    layout: Layout
    t_ms: int
    values: Floats


@dataclass(slots=True)
class _Group:
    """What a group of requests is going to write, and what it changed in memory before its transaction."""

    rows: list[_Row] = field(default_factory=list)
    sources: dict[str, Layout | None] = field(default_factory=dict)
    newest: list[tuple[Ids, Times, Floats, NDArray[np.bool_]]] = field(default_factory=list)
    sources_before: dict[str, Ids | None] = field(default_factory=dict)
    counts: StoreCounts = field(default_factory=StoreCounts)


class Writer:
    """Admits appends and writes them. `commit` must not run in two threads at once; `lock` guards what is in memory."""

    def __init__(
        self,
        engine: sa.Engine,
        catalog: Catalog,
        head: Head,
        archive: Archive,
        sources: Sources,
        resolver: Resolver,
        lock: threading.RLock,
        counts: StoreCounts,
        window_ms: int,
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._head = head
        self._archive = archive
        self._sources = sources
        self._resolver = resolver
        self._lock = lock
        self._counts = counts
        self._window_ms = window_ms
        # Bounds of the times that there are samples of.
        self.newest_ms: int | None = None
        self.oldest_ms: int | None = None
        # Of the last commit, about.
        self.written_bytes = 0

    def commit(self, requests: Sequence[Request]) -> list[Taken | Exception]:
        """Writes a group in one transaction, all or nothing; says what was taken of each."""
        group = _Group()
        with self._lock:
            try:
                taken = [self._admit(request, group) for request in requests]
            except BaseException:
                self._revert(group)
                raise
            series = dict(self._catalog.unsaved_series) if group.rows or group.sources else {}
            layouts = self._unsaved_layouts(group)
        try:
            if group.rows or group.sources:
                self._write(group, series, layouts)
        except BaseException:
            with self._lock:
                self._revert(group)
            raise
        with self._lock:
            self._publish(group, series, layouts)
        return taken

    # --- what is taken ------------------------------------------------------------------------------------------------
    def _admit(self, request: Request, group: _Group) -> Taken | Exception:
        if isinstance(request, MarkStale):
            before = self._sources.ids(request.target)
            self._resolver.forget(request.target)
            self._set_source(request.target, None, group)
            return Taken(self._end(before, request.t_ms, group))
        # Series may have left the catalog since they were looked up.
        removals = self._catalog.removals
        try:
            current = [r if r.removals == removals else self._resolver.resolve(r.append) for r in request]
        except LimitExceeded as error:
            return error
        total = Taken()
        for resolved in current:
            total += self._admit_append(resolved, group)
        return total

    def _admit_append(self, resolved: Resolved, group: _Group) -> Taken:
        append, ids = resolved.append, resolved.ids
        before = self._sources.ids(append.target)
        taken = self._take(ids, resolved.values, append.t_ms, group)
        if resolved.repeated:
            group.counts.conflicting += resolved.repeated
            refusal = "a series is in the append twice: its first sample was taken"
            taken += Taken(conflicting=resolved.repeated, refusal=refusal)
        if not append.target:  # who sent it says itself when a series ends
            return taken
        if before is ids or (before is not None and np.array_equal(before, ids)):
            return taken
        if append.replaces or before is None:
            if before is not None:
                self._end(np.setdiff1d(before, ids), append.t_ms, group)
            self._set_source(append.target, ids, group)
        else:
            union = np.union1d(before, ids)
            if len(union) > len(before):
                self._set_source(append.target, union, group)
        return taken

    def _take(self, ids: Ids, values: Floats, t_ms: int, group: _Group) -> Taken:
        fresh = self._catalog.last_t[ids] < t_ms
        if fresh.all():
            self._stage(ids, values, t_ms, group)
            return Taken(len(ids))
        self._learn(ids[~fresh])
        newest = self._catalog.last_t[ids]
        fresh = newest < t_ms
        there = newest == t_ms
        known = self._catalog.last_v[ids].copy()
        behind = ~fresh & ~there
        late = behind & (newest - self._window_ms <= t_ms)
        if late.any():
            found, found_v = self._existing(ids[late], t_ms, group)
            there[late], known[late] = found, found_v
            late &= ~there
        equal = known.view(np.uint64) == values.view(np.uint64)
        duplicate, conflicting = there & equal, there & ~equal
        too_old = behind & ~late & ~there
        chosen = fresh | late
        self._stage(ids[chosen], values[chosen], t_ms, group, fresh[chosen])
        outcome = Taken(
            int(chosen.sum() + duplicate.sum()),
            int(duplicate.sum()),
            int(conflicting.sum()),
            int(late.sum() + too_old.sum()),
            int(too_old.sum()),
            self._refusal(ids, values, t_ms, known, newest, conflicting, too_old),
        )
        group.counts.duplicates += outcome.duplicates
        group.counts.conflicting += outcome.conflicting
        group.counts.out_of_order += outcome.out_of_order
        group.counts.too_old += outcome.too_old
        return outcome

    def _refusal(
        self,
        ids: Ids,
        values: Floats,
        t_ms: int,
        known: Floats,
        newest: Times,
        conflicting: NDArray[np.bool_],
        too_old: NDArray[np.bool_],
    ) -> str:
        if too_old.any():
            k = int(np.argmax(too_old))
            return (
                f"out of order: the sample of {_named(self._catalog.index.labels(int(ids[k])))} at {t_ms} ms is "
                f"{(int(newest[k]) - t_ms) / 1000:g} s older than the series' newest; "
                f"late samples are taken for {self._window_ms / 1000:g} s"
            )
        if conflicting.any():
            k = int(np.argmax(conflicting))
            return (
                f"duplicate sample for timestamp: {_named(self._catalog.index.labels(int(ids[k])))} has "
                f"{float(known[k])!r} at {t_ms} ms, and {float(values[k])!r} was sent"
            )
        return ""

    def _learn(self, ids: Ids) -> None:
        """Looks up the newest samples of series that were last seen before the head."""
        ids = np.sort(ids[self._catalog.unknown[ids]])
        if len(ids):
            t, v = self._archive.newest(ids)
            self._catalog.last_t[ids], self._catalog.last_v[ids] = t, v
            self._catalog.unknown[ids] = False

    def _existing(self, ids: Ids, t_ms: int, group: _Group) -> tuple[NDArray[np.bool_], Floats]:
        """Which of the series have a sample at a time, and its value."""
        order = np.argsort(ids)
        rising = ids[order]
        found, values = np.zeros(len(ids), dtype=np.bool_), np.zeros(len(ids))
        pieces = [_piece(row.layout, rising, row.t_ms, row.values) for row in group.rows if row.t_ms == t_ms]
        if t_ms >= self._head.floor_ms:
            for layout_id in self._catalog.layouts_with(rising) & self._head.rows.keys():
                t, v = self._head.rows[layout_id].between(t_ms, t_ms)
                if len(t):
                    pieces.append(_piece(self._catalog.layouts[layout_id], rising, t_ms, v[0]))
        else:
            pieces.extend(self._archive.pieces(rising, t_ms, t_ms))
        for piece in pieces:
            places = order[np.searchsorted(rising, piece.ids)]
            found[places], values[places] = True, piece.v[0]
        return found, values

    def _end(self, ids: Ids | None, t_ms: int, group: _Group) -> int:
        if ids is None or not len(ids):
            return 0
        known = np.fromiter((i in self._catalog.index for i in ids.tolist()), np.bool_, len(ids))
        alive = known & (self._catalog.last_t[ids] < t_ms) & ~is_stale(self._catalog.last_v[ids])
        alive &= self._catalog.last_t[ids] > NEVER
        ended = ids[alive]
        self._stage(ended, np.full(len(ended), STALE_NAN), t_ms, group)
        return len(ended)

    def _stage(
        self, ids: Ids, values: Floats, t_ms: int, group: _Group, fresh: NDArray[np.bool_] | None = None
    ) -> None:
        if not len(ids):
            return
        group.rows.append(_Row(self._catalog.layout(ids), t_ms, values))
        if fresh is not None:
            ids, values = ids[fresh], values[fresh]
        catalog = self._catalog
        group.newest.append((ids, catalog.last_t[ids], catalog.last_v[ids], catalog.unknown[ids]))
        catalog.seen(ids, t_ms, values)

    def _set_source(self, name: str, ids: Ids | None, group: _Group) -> None:
        group.sources_before.setdefault(name, self._sources.ids(name))
        # The layout most often is that of the row: one copy of the ids for both.
        layout = None if ids is None else self._catalog.layout(ids)
        group.sources[name] = layout
        self._sources.set(name, None if layout is None else layout.series_ids)

    # --- the transaction ----------------------------------------------------------------------------------------------
    def _unsaved_layouts(self, group: _Group) -> dict[int, Layout]:
        used = {row.layout.id: row.layout for row in group.rows}
        used |= {layout.id: layout for layout in group.sources.values() if layout is not None}
        return {layout_id: layout for layout_id, layout in used.items() if layout_id not in self._catalog.saved}

    def _write(self, group: _Group, series: dict[int, Labels], layouts: dict[int, Layout]) -> None:
        with self._engine.begin() as connection:
            if series:
                texts = [{"id": i, "labels": json.dumps(dict(key), ensure_ascii=False)} for i, key in series.items()]
                connection.execute(series_table.insert(), texts)
            if layouts:
                vectors = [
                    {"id": item.id, "series_ids": item.series_ids.astype("<i8").tobytes()} for item in layouts.values()
                ]
                connection.execute(layouts_table.insert(), vectors)
            if group.rows:
                scrapes = [
                    {"layout_id": row.layout.id, "t_ms": row.t_ms, "data": row.values.astype("<f8").tobytes()}
                    for row in group.rows
                ]
                connection.execute(scrapes_table.insert(), scrapes)
            if group.sources:
                self._write_sources(connection, group.sources)

    def _write_sources(self, connection: sa.Connection, sources: dict[str, Layout | None]) -> None:
        keys = [{"gone": source_key(name)} for name in sources]
        connection.execute(targets_table.delete().where(targets_table.c.key == sa.bindparam("gone")), keys)
        rows = [
            {"key": source_key(name), "layout_id": layout.id} for name, layout in sources.items() if layout is not None
        ]
        if rows:
            connection.execute(targets_table.insert(), rows)

    def _publish(self, group: _Group, series: dict[int, Labels], layouts: dict[int, Layout]) -> None:
        for series_id in series:
            self._catalog.unsaved_series.pop(series_id, None)
        self._catalog.saved.update(layouts)
        for row in group.rows:
            self._head.append(row.layout, row.t_ms, row.values)
            self.newest_ms = row.t_ms if self.newest_ms is None else max(self.newest_ms, row.t_ms)
            self.oldest_ms = row.t_ms if self.oldest_ms is None else min(self.oldest_ms, row.t_ms)
        self.written_bytes = sum(8 * len(row.values) + _ROW_BYTES for row in group.rows)
        counts = self._counts
        counts.commits += bool(group.rows)
        counts.appended += sum(len(row.values) for row in group.rows)
        counts.duplicates += group.counts.duplicates
        counts.conflicting += group.counts.conflicting
        counts.out_of_order += group.counts.out_of_order
        counts.too_old += group.counts.too_old

    def _revert(self, group: _Group) -> None:
        for ids, t_ms, values, unknown in reversed(group.newest):
            self._catalog.last_t[ids] = t_ms
            self._catalog.last_v[ids] = values
            self._catalog.unknown[ids] = unknown
        for name, before in group.sources_before.items():
            self._sources.set(name, before)


def _piece(layout: Layout, rising: Ids, t_ms: int, values: Floats) -> Piece:
    shared = layout.shared(rising)
    return Piece(shared, np.array([t_ms], dtype=np.int64), values[None, layout.columns(shared)])


def _named(labels: Labels) -> str:
    inside = ", ".join(f'{name}="{value}"' for name, value in labels.items() if name != "__name__")
    return f"{labels.get('__name__', '')}{{{inside}}}"
