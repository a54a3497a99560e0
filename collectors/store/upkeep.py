"""Upkeep: compaction of closed hours, retention by time and size, and the forgetting of what nothing refers to."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from collectors.store import exemplars, retention
from collectors.store.archive import Archive
from collectors.store.catalog import Catalog
from collectors.store.compaction import HOUR_MS, Compactor
from collectors.store.directory import BlockInfo
from collectors.store.head import Head
from collectors.store.resolve import Resolver
from collectors.store.sources import Sources
from collectors.store.values import StoreCounts
from collectors.store.writer import Writer

# An hour is compacted no sooner than this after its end: scrapes of its last moments may be under way.
_SETTLED_MS = 60_000
_EVER = 2**62


@dataclass(frozen=True, slots=True)
class Retained:
    """How long samples are kept, how many bytes of them (None: no bound), and how late they are taken."""

    milliseconds: int
    nbytes: int | None
    late_ms: int


class Upkeep:
    """The steps that keep a store small, one thread at a time. `turn` keeps writers out during a transaction."""

    def __init__(
        self,
        engine: sa.Engine,
        catalog: Catalog,
        head: Head,
        archive: Archive,
        sources: Sources,
        resolver: Resolver,
        writer: Writer,
        compactor: Compactor,
        shelf: exemplars.ExemplarShelf,
        counts: StoreCounts,
        lock: threading.RLock,
        turn: AbstractContextManager[object],
        retained: Retained,
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._head = head
        self._archive = archive
        self._sources = sources
        self._resolver = resolver
        self._writer = writer
        self._compactor = compactor
        self._shelf = shelf
        self._counts = counts
        self._lock = lock
        self._turn = turn
        self._retained = retained
        self._has_unused = False
        self.alone = threading.Lock()
        # Counts the steps that deleted samples.
        self.deletions = 0

    def step(self, now: float) -> bool:
        """One small step of anything (`now` in unix seconds); says whether another is to follow."""
        with self.alone:
            return self._compact(now) > 0 or self._prune(now, 1000) > 0 or self._tidy(now)

    def compact(self, now: float) -> int:
        """Compacts some scrapes of the oldest closed hour; gives how many samples: 0 is done."""
        with self.alone:
            return self._compact(now)

    def prune(self, now: float, limit: int) -> int:
        """Deletes about `limit` scrapes or blocks past retention; gives how many went: 0 is done."""
        with self.alone:
            return self._prune(now, limit)

    def _compact(self, now: float) -> int:
        open_ms = max(_SETTLED_MS, min(self._retained.late_ms, HOUR_MS))
        compacted = self._compactor.step(int(now * 1000) - open_ms)
        with self._lock:
            self._counts.compacted += compacted
        self._has_unused = self._has_unused or compacted > 0
        return compacted

    def _prune(self, now: float, limit: int) -> int:
        cutoff_ms = int(now * 1000) - self._retained.milliseconds
        deleted = self._delete_blocks([b for b in self._oldest_blocks() if b.end_ms < cutoff_ms], limit, _EVER)
        with self._turn, self._engine.begin() as connection:
            deleted += retention.delete_scrapes(connection, cutoff_ms, limit)
        with self._lock:
            self._head.floor_ms = max(self._head.floor_ms, cutoff_ms)
        deleted = deleted or self._delete_surplus(limit)
        self.deletions += deleted > 0
        self._has_unused = self._has_unused or deleted > 0
        if self._has_unused and deleted < limit:
            self._forget_unused()
            self._has_unused = False
        return deleted

    def _oldest_blocks(self) -> list[BlockInfo]:
        with self._lock:
            return sorted(self._archive.directory.all(), key=lambda block: block.end_ms)

    def _delete_surplus(self, limit: int) -> int:
        if self._retained.nbytes is None:
            return 0
        surplus = self._archive.used_bytes() - self._retained.nbytes
        if surplus <= 0:
            return 0
        deleted = self._delete_blocks(self._oldest_blocks(), limit, surplus)
        if not deleted:
            with self._turn, self._engine.begin() as connection:
                deleted = retention.delete_surplus_scrapes(connection, surplus, limit)
        return deleted

    def _delete_blocks(self, blocks: Sequence[BlockInfo], limit: int, nbytes: int) -> int:
        chosen = [block.id for block in retention.some_of(blocks, limit, min(nbytes, retention.STEP_BYTES))]
        if chosen:
            with self._turn, self._engine.begin() as connection:
                retention.delete_blocks(connection, chosen)
            self._archive.forget(chosen)
        return len(chosen)

    def _tidy(self, now: float) -> bool:
        cutoff_ms = int(now * 1000) - self._retained.milliseconds
        with self._turn:
            with self._engine.begin() as connection:
                deleted = exemplars.delete(connection, cutoff_ms)
            with self._lock:
                self._shelf.prune(cutoff_ms)
            return deleted > 0 or retention.give_back(self._engine)

    def _forget_unused(self) -> None:
        """Drops sources, layouts and series that no sample is left of, from the database and from memory."""
        oldest_ms = self._archive.oldest_time()
        self._learn_newest()
        with self._turn:
            with self._lock:
                self._writer.oldest_ms = oldest_ms
                # What has left the database leaves the head, too.
                gone_until = (self._writer.newest_ms or 0) + 1 if oldest_ms is None else oldest_ms
                self._head.floor_ms = max(self._head.floor_ms, gone_until)
                for layout_id in list(self._head.rows):
                    self._head.trim(layout_id)
                bound = _EVER if oldest_ms is None else oldest_ms
                last_t = self._catalog.last_t
                quiet = [key for key, ids in self._sources.items() if not (last_t[ids] >= bound).any()]
            with self._engine.begin() as connection:
                retention.delete_sources(connection, quiet)
                layouts = [i for i in retention.unused_layouts(connection) if i not in self._head.rows]
                retention.delete_layouts(connection, layouts)
                with self._lock:
                    self._sources.drop(quiet)
                    sent = {self._catalog.layout(ids).id for _, ids in self._sources.items()}
                    unsaved = self._catalog.layouts.keys() - self._catalog.saved - self._head.rows.keys() - sent
                    series = self._catalog.unused_series({*layouts, *unsaved}, bound)
                retention.delete_series(connection, series)
            with self._lock:
                self._catalog.remove_layouts({*layouts, *unsaved})
                self._catalog.remove_series(series)
                self._resolver.forget_all()

    def _learn_newest(self) -> None:
        """Looks up the newest samples of the series of which the last start did not see any."""
        with self._lock:
            ids = np.flatnonzero(self._catalog.unknown)
        if len(ids):
            t, v = self._archive.newest(ids)
            with self._lock:
                still = self._catalog.unknown[ids]
                self._catalog.last_t[ids[still]], self._catalog.last_v[ids[still]] = t[still], v[still]
                self._catalog.unknown[ids[still]] = False
