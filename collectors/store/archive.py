"""The samples in the database: scrapes not compacted yet, and blocks of closed hours."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from collectors.store import retention
from collectors.store.catalog import NEVER, Catalog
from collectors.store.codec import Bools, unpack_integers, unpack_matrix
from collectors.store.directory import BlockInfo, Directory
from collectors.store.grouping import Piece
from collectors.store.schema import blocks_table, chunks_table, scrapes_table
from collectors.store.values import Floats, Times

Ids = NDArray[np.int64]
_IDS_IN_A_STATEMENT = 500
_CACHED_CHUNK_BYTES = 32 << 20
_CACHED_CONTENTS = 4096


@dataclass(frozen=True, slots=True)
class _Contents:
    """A block's times and series, rising."""

    t: Times
    ids: Ids


class Archive:
    """Reads samples from the database. Thread-safe; `reading` is held while a connection is in use."""

    def __init__(
        self, engine: sa.Engine, catalog: Catalog, lock: threading.RLock, reading: AbstractContextManager[object]
    ) -> None:
        self.directory = Directory()
        self._engine = engine
        self._catalog = catalog
        self._lock = lock
        self._reading = reading
        self._contents: OrderedDict[int, _Contents] = OrderedDict()
        self._chunks: OrderedDict[tuple[int, int], tuple[Floats, Bools | None]] = OrderedDict()
        self._chunk_bytes = 0

    # --- what the store asks ------------------------------------------------------------------------------------------
    def pieces(self, ids: Ids, start_ms: int, end_ms: int) -> list[Piece]:
        """The samples of the series (rising ids) with start <= t <= end. A sample may be in two of the pieces.

        Scrapes come before blocks: a compaction between the two is seen twice, never not at all.
        """
        if start_ms > end_ms:
            return []
        with self._reading, self._engine.connect() as connection:
            found = self._scrapes(connection, ids, start_ms, end_ms)
            with self._lock:
                blocks = self.directory.overlapping(ids, start_ms, end_ms)
            for block in blocks:
                found.extend(self._block(connection, block, ids, start_ms, end_ms))
        return found

    def newest(self, ids: Ids) -> tuple[Times, Floats]:
        """Time and value of the newest sample of each series (rising ids); NEVER where there is none."""
        t, v = np.full(len(ids), NEVER, dtype=np.int64), np.zeros(len(ids))
        with self._reading, self._engine.connect() as connection:
            for piece in self._newest_scrapes(connection, ids):
                _keep_newer(t, v, ids, piece)
            with self._lock:
                blocks = self.directory.overlapping(ids, -(2**62), 2**62)
            for block in sorted(blocks, key=lambda block: -block.end_ms):
                behind = ids[t < block.end_ms]
                if not len(behind):
                    break
                for piece in self._block(connection, block, behind, block.start_ms, block.end_ms):
                    _keep_newer(t, v, ids, piece)
        return t, v

    def active(self, ids: Ids, start_ms: int, end_ms: int) -> NDArray[np.bool_]:
        """Which of the series (rising ids) have samples in a scrape, or in a block that overlaps the range."""
        found = np.zeros(len(ids), dtype=np.bool_)
        columns = scrapes_table.c
        with self._reading, self._engine.connect() as connection:
            in_range = columns.t_ms.between(start_ms, end_ms)
            layouts = list(connection.scalars(sa.select(columns.layout_id).distinct().where(in_range)))
            with self._lock:
                known = [self._catalog.layouts[i] for i in layouts if i in self._catalog.layouts]
                blocks = self.directory.overlapping(ids, start_ms, end_ms)
            for layout in known:
                found[np.searchsorted(ids, layout.shared(ids))] = True
            for block in blocks:
                contents = self.contents(connection, block)
                if contents is not None and _any_between(contents.t, start_ms, end_ms):
                    found[np.searchsorted(ids, np.intersect1d(ids, contents.ids, assume_unique=True))] = True
        return found

    def used_bytes(self) -> int:
        """Bytes that the data takes in the database."""
        with self._reading, self._engine.connect() as connection:
            return retention.used_bytes(connection)

    def oldest_time(self) -> int | None:
        """The time of the oldest sample, or None."""
        with self._lock:
            starts = [block.start_ms for block in self.directory.all()]
        with self._reading, self._engine.connect() as connection:
            return retention.oldest_time(connection, starts)

    def whole(self, connection: sa.Connection, block: BlockInfo, start_ms: int) -> list[Piece]:
        """All series of a block from a time on, past the caches."""
        contents = self.contents(connection, block)
        if contents is None:
            return []
        low = int(np.searchsorted(contents.t, start_ms))
        columns = chunks_table.c
        query = sa.select(columns.data).where(columns.block_id == block.id).order_by(columns.number)
        whole: list[Floats] = []
        whole_ids: list[Ids] = []
        pieces: list[Piece] = []
        first = 0
        for data in connection.scalars(query):
            v, present = unpack_matrix(data)
            ids = contents.ids[first : first + v.shape[1]]
            first += v.shape[1]
            if present is None:
                whole.append(v[low:])
                whole_ids.append(ids)
            else:
                pieces.extend(split_gaps(ids, contents.t[low:], v[low:], present[low:]))
        if whole:
            pieces.append(Piece(np.concatenate(whole_ids), contents.t[low:], np.concatenate(whole, axis=1)))
        return pieces

    # --- scrapes ------------------------------------------------------------------------------------------------------
    def _scrapes(self, connection: sa.Connection, ids: Ids, start_ms: int, end_ms: int) -> list[Piece]:
        with self._lock:
            layouts = {i: self._catalog.layouts[i] for i in self._catalog.layouts_with(ids) & self._catalog.saved}
        columns = scrapes_table.c
        found: dict[int, tuple[list[int], list[bytes]]] = {}
        for some in _in_groups(sorted(layouts)):
            query = (
                sa.select(columns.layout_id, columns.t_ms, columns.data)
                .where(columns.layout_id.in_(some))
                .where(columns.t_ms.between(start_ms, end_ms))
                .order_by(columns.layout_id, columns.t_ms)
            )
            for layout_id, t_ms, data in connection.execute(query):
                times, rows = found.setdefault(layout_id, ([], []))
                times.append(t_ms)
                rows.append(data)
        pieces = []
        for layout_id, (times, rows) in found.items():
            wanted = layouts[layout_id].shared(ids)
            v = np.frombuffer(b"".join(rows), dtype="<f8").reshape(len(rows), -1)
            pieces.append(Piece(wanted, np.array(times, dtype=np.int64), v[:, layouts[layout_id].columns(wanted)]))
        return pieces

    def _newest_scrapes(self, connection: sa.Connection, ids: Ids) -> Iterator[Piece]:
        with self._lock:
            layouts = {i: self._catalog.layouts[i] for i in self._catalog.layouts_with(ids) & self._catalog.saved}
        columns = scrapes_table.c
        for layout_id, layout in layouts.items():
            row = connection.execute(
                sa.select(columns.t_ms, columns.data)
                .where(columns.layout_id == layout_id)
                .order_by(columns.t_ms.desc())
                .limit(1)
            ).first()
            if row is not None:
                wanted = layout.shared(ids)
                v = np.frombuffer(row.data, dtype="<f8")[None, layout.columns(wanted)]
                yield Piece(wanted, np.array([row.t_ms], dtype=np.int64), v)

    # --- blocks -------------------------------------------------------------------------------------------------------
    def contents(self, connection: sa.Connection, block: BlockInfo) -> _Contents | None:
        """A block's times and series, or None when it has gone."""
        with self._lock:
            found = self._contents.get(block.id)
            if found is not None:
                self._contents.move_to_end(block.id)
                return found
        columns = blocks_table.c
        row = connection.execute(sa.select(columns.times, columns.series_ids).where(columns.id == block.id)).first()
        if row is None:
            return None
        found = _Contents(unpack_integers(row.times), unpack_integers(row.series_ids))
        with self._lock:
            self._contents[block.id] = found
            while len(self._contents) > _CACHED_CONTENTS:
                self._contents.popitem(last=False)
        return found

    def _block(self, connection: sa.Connection, block: BlockInfo, ids: Ids, start_ms: int, end_ms: int) -> list[Piece]:
        contents = self.contents(connection, block)
        if contents is None:
            return []
        low, high = np.searchsorted(contents.t, start_ms), np.searchsorted(contents.t, end_ms, side="right")
        wanted = np.intersect1d(ids, contents.ids, assume_unique=True)
        if low == high or not len(wanted):
            return []
        places = np.searchsorted(contents.ids, wanted)
        numbers = places // block.width
        whole: list[Floats] = []
        whole_ids: list[Ids] = []
        pieces: list[Piece] = []
        chunks = self._read_chunks(connection, block.id, np.unique(numbers).tolist())
        for number, (v, present) in chunks.items():
            here = numbers == number
            columns = places[here] - number * block.width
            values = v[low:high, columns]
            if present is None:
                whole.append(values)
                whole_ids.append(wanted[here])
            else:
                pieces.extend(split_gaps(wanted[here], contents.t[low:high], values, present[low:high, columns]))
        if whole:
            v = whole[0] if len(whole) == 1 else np.concatenate(whole, axis=1)
            pieces.append(Piece(np.concatenate(whole_ids), contents.t[low:high], v))
        return pieces

    def _read_chunks(
        self, connection: sa.Connection, block_id: int, numbers: Sequence[int]
    ) -> dict[int, tuple[Floats, Bools | None]]:
        found: dict[int, tuple[Floats, Bools | None]] = {}
        with self._lock:
            for number in numbers:
                cached = self._chunks.get((block_id, number))
                if cached is not None:
                    self._chunks.move_to_end((block_id, number))
                    found[number] = cached
        columns = chunks_table.c
        for some in _in_groups([number for number in numbers if number not in found]):
            query = sa.select(columns.number, columns.data).where(
                columns.block_id == block_id, columns.number.in_(some)
            )
            for number, data in connection.execute(query):
                found[number] = unpack_matrix(data)
                self._cache((block_id, number), found[number])
        return dict(sorted(found.items()))

    def _cache(self, key: tuple[int, int], chunk: tuple[Floats, Bools | None]) -> None:
        with self._lock:
            self._chunks[key] = chunk
            self._chunk_bytes += chunk[0].nbytes
            while self._chunk_bytes > _CACHED_CHUNK_BYTES:
                _, dropped = self._chunks.popitem(last=False)
                self._chunk_bytes -= dropped[0].nbytes

    def forget(self, block_ids: Iterable[int]) -> None:
        """Drops blocks that have left the database."""
        gone = set(block_ids)
        with self._lock:
            self.directory.remove(gone)
            for block_id in gone:
                self._contents.pop(block_id, None)
            for key in [key for key in self._chunks if key[0] in gone]:
                self._chunk_bytes -= self._chunks.pop(key)[0].nbytes


def split_gaps(ids: Ids, t: Times, v: Floats, present: Bools) -> list[Piece]:
    """Pieces without gaps: one for each set of times that series have."""
    if not len(ids):
        return []
    patterns, which = np.unique(np.packbits(present, axis=0).T, axis=0, return_inverse=True)
    pieces = []
    for number in range(len(patterns)):
        columns = np.flatnonzero(which.ravel() == number)
        rows = np.flatnonzero(present[:, columns[0]])
        if len(rows):
            pieces.append(Piece(ids[columns], t[rows], v[np.ix_(rows, columns)]))
    return pieces


def _keep_newer(t: Times, v: Floats, ids: Ids, piece: Piece) -> None:
    places = np.searchsorted(ids, piece.ids)
    newer = t[places] < piece.t[-1]
    t[places[newer]] = piece.t[-1]
    v[places[newer]] = piece.v[-1][newer]


def _any_between(t: Times, start_ms: int, end_ms: int) -> bool:
    return bool(np.searchsorted(t, start_ms) < np.searchsorted(t, end_ms, side="right"))


def _in_groups(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(numbers), _IDS_IN_A_STATEMENT):
        yield numbers[first : first + _IDS_IN_A_STATEMENT]
