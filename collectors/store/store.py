"""The time-series store: durable before it answers, recent data in memory as matrices, older data in the database.

One process writes to a database at a time; any number of its threads append and read.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from collectors.store import exemplars
from collectors.store.archive import Archive
from collectors.store.catalog import Catalog
from collectors.store.checkpoint import Checkpointer
from collectors.store.commit import GroupCommit
from collectors.store.compaction import Compactor
from collectors.store.grouping import Group, Piece, gather, group_parts, join
from collectors.store.head import Head
from collectors.store.limits import LimitExceeded, Limits
from collectors.store.matchers import Matcher
from collectors.store.resolve import Resolver
from collectors.store.restore import restore_bounds, restore_catalog, restore_head, restore_metadata
from collectors.store.schema import is_in_memory, metadata_table, open_database
from collectors.store.sources import Sources
from collectors.store.upkeep import Retained, Upkeep
from collectors.store.values import (
    Append,
    Block,
    Columns,
    Exemplar,
    Floats,
    Labels,
    MetricMetadata,
    Scrape,
    SeriesData,
    StoreCounts,
    Taken,
)
from collectors.store.writer import MarkStale, Request, Writer

# Answers to "which series share their times", kept until a series or layout comes or goes.
_GROUPINGS = 256
# An hour is compacted no sooner than this after its end: scrapes of its last moments may be under way.
_SETTLED_MS = 60_000
_EVER = 2**62


class Store:
    """Appends samples and answers selections.

    `url` is an SQLAlchemy URL (`sqlite:///file`, `sqlite://` for memory, `postgresql+psycopg://…`); `clock` gives unix
    seconds. The last `head_seconds` before the newest sample are kept in memory. A sample up to `late_seconds` older
    than its series' newest is taken, one older still is refused. `maintain` compacts closed hours, and removes what is
    older than `retention_seconds` and, oldest first, what is beyond `retention_bytes` (None: no bound).
    """

    def __init__(
        self,
        url: str = "sqlite://",
        *,
        clock: Callable[[], float] = time.time,
        head_seconds: float = 7200.0,
        retention_seconds: float = 30 * 86400.0,
        retention_bytes: int | None = None,
        late_seconds: float = 3600.0,
        limits: Limits | None = None,
        synchronous: str = "FULL",
    ) -> None:
        self._engine = open_database(url, synchronous)
        self._clock = clock
        self._head_ms = int(head_seconds * 1000)
        self._late_ms = int(late_seconds * 1000)
        self._lock = threading.RLock()
        self._catalog = Catalog()
        self._head = Head()
        self._sources = Sources()
        self._groups: dict[tuple[tuple[Matcher, ...], tuple[int, ...]], list[Group]] = {}
        self._layouts_with: dict[tuple[Matcher, ...], list[int]] = {}
        self._groups_generation = 0
        self._metadata: dict[str, MetricMetadata] = {}
        self._checkpointer = Checkpointer(self._engine)
        self._shelf = exemplars.ExemplarShelf()
        self._counts = StoreCounts()
        self._limits = limits or Limits()
        self._resolver = Resolver(self._catalog, self._sources, self._lock, self._limits)
        self._group: GroupCommit[Request, Taken] = GroupCommit(self._commit)
        # A database in memory has one connection, so its readers must not look into an open transaction.
        self._reading: contextlib.AbstractContextManager[object] = (
            self._group.turn if is_in_memory(self._engine.url) else contextlib.nullcontext()
        )
        self._archive = Archive(self._engine, self._catalog, self._lock, self._reading)
        self._writer = Writer(
            self._engine,
            self._catalog,
            self._head,
            self._archive,
            self._sources,
            self._resolver,
            self._lock,
            self._counts,
            self._late_ms,
        )
        self._compactor = Compactor(
            self._engine, self._catalog, self._archive, self._lock, self._group.turn, self._reading
        )
        self._upkeep = Upkeep(
            self._engine,
            self._catalog,
            self._head,
            self._archive,
            self._sources,
            self._resolver,
            self._writer,
            self._compactor,
            self._shelf,
            self._counts,
            self._lock,
            self._group.turn,
            Retained(int(retention_seconds * 1000), retention_bytes, self._late_ms),
        )
        self._load()

    @property
    def limits(self) -> Limits:
        """Bounds on sources and label sets."""
        return self._limits

    # --- writing ------------------------------------------------------------------------------------------------------
    def append(
        self, target: str, t_ms: int, samples: Sequence[tuple[Mapping[str, str], float]], *, stale: bool = True
    ) -> int:
        """Writes the samples of one source at `t_ms`; when it returns they are durable. Gives how many were taken.

        A sample of the time of another with another value, or too far behind its series' newest, is refused and counted
        (`counts`); the same time and value again is taken without effect. With `stale`, series that the target's last
        append had and this one has not get a stale marker; pass False for a source that sends parts. LimitExceeded when
        the source sends more than `limits` allow: then nothing was taken.
        """
        return self.write([Append(target, int(t_ms), samples, stale)]).taken

    def columns(self, target: str, labels: Sequence[Mapping[str, str]]) -> Columns:
        """Looks a source's series up once, for `append_values`, which costs a small part of `append`. LimitExceeded.

        The answer's `labels` are the store's own copies: comparing with these shows whether a page has changed.
        """
        try:
            return self._resolver.columns(target, list(labels), True)
        except LimitExceeded:
            self._count_limited(len(labels))
            raise

    def append_values(self, columns: Columns, t_ms: int, values: Floats, *, stale: bool = True) -> int:
        """`append` of one value for each of the columns, float64."""
        return self.write([Scrape(columns, int(t_ms), values, stale)]).taken

    def write(self, appends: Sequence[Append | Scrape]) -> Taken:
        """Writes several appends in one transaction, in this order, and says what became of their samples.

        For a remote write, or a backfill: samples of many times at once. Raises LimitExceeded, with nothing taken.
        """
        if not appends:
            return Taken()
        try:
            return self._group.submit(tuple([self._resolver.resolve(append) for append in appends]))
        except LimitExceeded:
            self._count_limited(sum(len(a.samples if isinstance(a, Append) else a.values) for a in appends))
            raise

    def _count_limited(self, samples: int) -> None:
        with self._lock:
            self._counts.limited += samples

    def mark_stale(self, target: str, t_ms: int) -> int:
        """Ends all series of a source that is gone; gives how many stale markers were written."""
        return self._group.submit(MarkStale(target, int(t_ms))).taken

    def set_metadata(self, metadata: Mapping[str, MetricMetadata]) -> None:
        """Records what metric families are; writes only what changed."""
        changed = {name: value for name, value in metadata.items() if self._metadata.get(name) != value}
        if not changed:
            return
        rows = [{"metric": n, "type": m.type, "help": m.help, "unit": m.unit} for n, m in changed.items()]
        gone = [{"old": name} for name in changed]
        with self._group.turn, self._engine.begin() as connection:
            connection.execute(metadata_table.delete().where(metadata_table.c.metric == sa.bindparam("old")), gone)
            connection.execute(metadata_table.insert(), rows)
        with self._lock:
            self._metadata |= changed

    def add_exemplar(self, series: Mapping[str, str], labels: Mapping[str, str], value: float, t_ms: int) -> None:
        """Keeps one exemplar. See `add_exemplars`."""
        self.add_exemplars([Exemplar(dict(series), dict(labels), value, int(t_ms))])

    def add_exemplars(self, items: Sequence[Exemplar]) -> int:
        """Keeps exemplars, durable when it returns; gives how many were new.

        As in Prometheus one is left out that its series has already, that is older than its series' last, or whose
        labels have more than 128 characters. The newest hundred thousand are held.
        """
        with self._group.turn:
            with self._lock:
                new = self._shelf.new_ones(items)
            if new:
                with self._engine.begin() as connection:
                    exemplars.write(connection, new)
                with self._lock:
                    for item in new:
                        self._shelf.add(item)
                    self._counts.exemplars += len(new)
        return len(new)

    # --- keeping house ------------------------------------------------------------------------------------------------
    def maintain(self, now: float | None = None) -> bool:
        """One small step of compaction or retention (`now` in unix seconds); says whether another is to follow.

        Appends wait for a step's transaction only, a few milliseconds of each.
        """
        return self._upkeep.step(self._now(now))

    def compact(self, now: float | None = None) -> int:
        """Compacts some scrapes of the oldest closed hour; gives how many samples: 0 is done."""
        return self._upkeep.compact(self._now(now))

    def prune(self, now: float | None = None, limit: int = 1000) -> int:
        """Deletes about `limit` scrapes or blocks past retention; gives how many went: 0 is done."""
        return self._upkeep.prune(self._now(now), limit)

    def close(self) -> None:
        """Waits for the commit under way and closes the database."""
        self._checkpointer.close()
        with self._upkeep.alone, self._group.turn:
            self._engine.dispose()

    # --- reading ------------------------------------------------------------------------------------------------------
    def select_blocks(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[Block]:
        """The samples with start <= t <= end of the series that meet all matchers, as matrices that share times."""
        with self._lock:
            ids = self._catalog.index.select(matchers)
            if not len(ids):
                return []
            floor_ms, oldest_ms = self._head.floor_ms, self._writer.oldest_ms
            if start_ms >= floor_ms or oldest_ms is None or oldest_ms >= floor_ms:
                return self._gather(matchers, ids, start_ms, end_ms)
            pieces = self._head_pieces(ids, max(start_ms, floor_ms), end_ms)
        pieces += self._archive.pieces(ids, start_ms, min(end_ms, floor_ms - 1))
        with self._lock:
            return join(pieces, self._catalog.index.labels_of)

    def select(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[SeriesData]:
        """The same, series by series."""
        blocks = self.select_blocks(matchers, start_ms, end_ms)
        return [
            SeriesData(labels, block.t, np.ascontiguousarray(block.v[:, column]))
            for block in blocks
            for column, labels in enumerate(block.labels)
        ]

    def series(
        self, matchers: Sequence[Matcher] = (), start_ms: int | None = None, end_ms: int | None = None
    ) -> list[Labels]:
        """Label sets that meet all matchers; with a range, those with samples in it, of blocks in their hour."""
        with self._lock:
            ids = self._catalog.index.select(matchers)
            if start_ms is None and end_ms is None:
                return self._catalog.index.labels_of(ids.tolist())
        active = self._active(ids, -_EVER if start_ms is None else start_ms, _EVER if end_ms is None else end_ms)
        with self._lock:
            index = self._catalog.index
            return [index.labels(i) for i in ids[active].tolist() if i in index]

    def label_names(
        self, matchers: Sequence[Matcher] = (), start_ms: int | None = None, end_ms: int | None = None
    ) -> list[str]:
        """Sorted names of the labels of the matching series."""
        if not matchers and start_ms is None and end_ms is None:
            with self._lock:
                return self._catalog.index.names()
        return sorted({name for labels in self.series(matchers, start_ms, end_ms) for name in labels})

    def label_values(
        self, name: str, matchers: Sequence[Matcher] = (), start_ms: int | None = None, end_ms: int | None = None
    ) -> list[str]:
        """Sorted values that a label has in the matching series."""
        if not matchers and start_ms is None and end_ms is None:
            with self._lock:
                return self._catalog.index.values(name)
        return sorted({labels[name] for labels in self.series(matchers, start_ms, end_ms) if name in labels})

    def metadata(self) -> dict[str, MetricMetadata]:
        """Type, help and unit by metric family."""
        with self._lock:
            return dict(self._metadata)

    def exemplars(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[Exemplar]:
        """Exemplars of the matching series with start <= t <= end, each series' in the order of arrival."""
        with self._lock:
            return self._shelf.select(matchers, start_ms, end_ms)

    def counts(self) -> StoreCounts:
        """A copy of the counts of samples taken and refused."""
        with self._lock:
            return replace(self._counts)

    def version(self) -> int:
        """A number that is another one after every change of the samples."""
        with self._lock:
            return self._counts.commits + self._catalog.generation + self._upkeep.deletions

    def span(self) -> tuple[int, int] | None:
        """The times of the oldest and of the newest sample, unix ms; None without samples."""
        with self._lock:
            oldest_ms, newest_ms = self._writer.oldest_ms, self._writer.newest_ms
            return None if oldest_ms is None or newest_ms is None else (oldest_ms, newest_ms)

    def num_series(self) -> int:
        """Series known, in memory or in the database."""
        with self._lock:
            return len(self._catalog.index)

    def size_bytes(self) -> int:
        """Bytes that the data takes in the database."""
        return self._archive.used_bytes()

    # --- inside: writing ----------------------------------------------------------------------------------------------
    def _commit(self, requests: Sequence[Request]) -> list[Taken | Exception]:
        taken = self._writer.commit(requests)
        self._checkpointer.wrote(self._writer.written_bytes)
        with self._lock:
            floor_ms = self._floor_ms()
            if floor_ms > self._head.floor_ms:
                self._head.floor_ms = floor_ms
        return taken

    def _now(self, now: float | None) -> float:
        return self._clock() if now is None else now

    def _floor_ms(self) -> int:
        newest = self._writer.newest_ms
        now_ms = int(self._clock() * 1000)
        return (now_ms if newest is None else min(now_ms, newest)) - self._head_ms

    def _load(self) -> None:
        with self._engine.connect() as connection:
            bounds = restore_bounds(connection, self._archive)
            self._writer.oldest_ms, self._writer.newest_ms = bounds.oldest_ms, bounds.newest_ms
            floor_ms = -_EVER if bounds.newest_ms is None else self._floor_ms()
            restore_catalog(connection, self._catalog, self._sources, floor_ms)
        self._compactor.resume()
        with self._engine.connect() as connection:
            restore_head(connection, self._catalog, self._archive, self._head, floor_ms)
            self._metadata = restore_metadata(connection)
            exemplars.load(connection, self._shelf)

    # --- inside: reading ----------------------------------------------------------------------------------------------
    def _gather(self, matchers: Sequence[Matcher], ids: NDArray[np.int64], start_ms: int, end_ms: int) -> list[Block]:
        catalog, asked = self._catalog, tuple(matchers)
        if self._groups_generation != catalog.generation or len(self._groups) >= _GROUPINGS:
            self._groups.clear()
            self._layouts_with.clear()
            self._groups_generation = catalog.generation
        layout_ids = self._layouts_with.get(asked)
        if layout_ids is None:
            layout_ids = self._layouts_with[asked] = sorted(catalog.layouts_with(ids))
        parts = self._head.parts(layout_ids, start_ms, end_ms)
        key = asked, tuple(parts)
        groups = self._groups.get(key)
        if groups is None:
            members = {i: (catalog.layouts[i].shared(ids), catalog.layouts[i].columns) for i in parts}
            groups = group_parts(members, catalog.index.labels_of)
            self._groups[key] = groups
        return gather(groups, parts)

    def _head_pieces(self, ids: NDArray[np.int64], start_ms: int, end_ms: int) -> list[Piece]:
        pieces = []
        for layout_id, (t, v) in self._head.parts(self._catalog.layouts_with(ids), start_ms, end_ms).items():
            layout = self._catalog.layouts[layout_id]
            shared = layout.shared(ids)
            pieces.append(Piece(shared, t[:], v[:, layout.columns(shared)]))
        return pieces

    def _active(self, ids: NDArray[np.int64], start_ms: int, end_ms: int) -> NDArray[np.bool_]:
        active = np.zeros(len(ids), dtype=np.bool_)
        with self._lock:
            floor_ms, oldest_ms = self._head.floor_ms, self._writer.oldest_ms
            layout_ids = self._catalog.layouts_with(ids)
            for layout_id in self._head.parts(layout_ids, max(start_ms, floor_ms), end_ms):
                active[np.searchsorted(ids, self._catalog.layouts[layout_id].shared(ids))] = True
        if start_ms < floor_ms and oldest_ms is not None and oldest_ms < floor_ms:
            active |= self._archive.active(ids, start_ms, min(end_ms, floor_ms - 1))
        return active
