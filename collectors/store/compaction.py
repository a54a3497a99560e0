"""Compaction: the scrapes of a closed hour become blocks, some at a time, in small transactions.

First a block is written, then its scrapes are deleted; between the two a reader finds samples twice, and takes them
once. What a crash leaves of a step is done when the store is next opened.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from collectors.store.archive import Archive
from collectors.store.catalog import Catalog
from collectors.store.codec import Bools, pack_integers, pack_matrix
from collectors.store.directory import BlockInfo
from collectors.store.grouping import partition
from collectors.store.head import Layout
from collectors.store.schema import blocks_table, chunks_table, clearing_table, scrapes_table
from collectors.store.values import Floats, Times

Ids = NDArray[np.int64]
HOUR_MS = 3_600_000
# A step reads about this much, and at least so many scrapes of a layout.
_STEP_BYTES = 2 << 20
_STEP_ROWS = 48
_CHUNK_CELLS = 16_384
_CHUNK_WIDTHS = 16, 1024
# A transaction deletes or writes about this much.
_TRANSACTION_BYTES = 256 << 10
_ROW_BYTES = 100
_LONGEST_PAUSE = 0.05
# Series whose times no other series has go into blocks with gaps, so many at a time.
_GAPPED_WIDTH = 64
_FEW = 16


@dataclass(frozen=True, slots=True)
class _Scrapes:
    """Scrapes of one layout: `t` [n], rising, and `v` [n, series]."""

    layout: Layout
    t: Times
    v: Floats


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A block to be: rising ids, rising times, `v` [n, series], and which cells are present, or None if all are."""

    ids: Ids
    t: Times
    v: Floats
    present: Bools | None


class Compactor:
    """Compacts hours that have closed. `turn` keeps writers out during its transactions."""

    def __init__(
        self,
        engine: sa.Engine,
        catalog: Catalog,
        archive: Archive,
        lock: threading.RLock,
        turn: AbstractContextManager[object],
        reading: AbstractContextManager[object],
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._archive = archive
        self._lock = lock
        self._turn = turn
        self._reading = reading

    def step(self, closed_ms: int) -> int:
        """Compacts some of the oldest hour that ended by `closed_ms`; gives how many samples: 0 is done."""
        with self._reading, self._engine.connect() as connection:
            oldest = connection.scalar(sa.select(sa.func.min(scrapes_table.c.t_ms)))
            if oldest is None or (oldest // HOUR_MS + 1) * HOUR_MS > closed_ms:
                return 0
            start_ms = oldest // HOUR_MS * HOUR_MS
            scrapes = self._read(connection, start_ms, start_ms + HOUR_MS - 1)
        blocks = [self._add(*_encoded(matrix)) for matrix in _matrices(scrapes)]
        for some in scrapes:
            self._clear(some.layout, some.t)
        self._cleared(blocks)
        return sum(some.v.size for some in scrapes)

    def resume(self) -> None:
        """Does the rest of a step that was cut off: deletes chunks without a block, and scrapes that a block has."""
        with self._engine.begin() as connection:
            known = sa.select(blocks_table.c.id)
            connection.execute(chunks_table.delete().where(chunks_table.c.block_id.not_in(known)))
            waiting = list(connection.scalars(sa.select(clearing_table.c.block_id)))
        for block_id in waiting:
            for block in self._archive.directory.all():
                if block.id == block_id:
                    self._clear_again(block)
        self._cleared(waiting)

    def _clear_again(self, block: BlockInfo) -> None:
        with self._engine.connect() as connection:
            pieces = self._archive.whole(connection, block, block.start_ms)
            columns = scrapes_table.c
            in_range = columns.t_ms.between(block.start_ms, block.end_ms)
            keys = connection.execute(sa.select(columns.layout_id, columns.t_ms).where(in_range)).all()
        times: dict[int, list[int]] = {}
        for layout_id, t_ms in keys:
            times.setdefault(layout_id, []).append(t_ms)
        for layout_id, some in times.items():
            layout = self._catalog.layouts[layout_id]
            counted: Counter[int] = Counter()
            for piece in pieces:
                shared = layout.shared(piece.ids)
                if len(shared):
                    counted.update({t_ms: len(shared) for t_ms in set(some) & set(piece.t.tolist())})
            # A scrape of which a sample is not in the block came later.
            there = [t_ms for t_ms in some if counted[t_ms] == len(layout.series_ids)]
            self._clear(layout, np.array(sorted(there), dtype=np.int64))

    def _read(self, connection: sa.Connection, start_ms: int, end_ms: int) -> list[_Scrapes]:
        columns = scrapes_table.c
        in_hour = columns.t_ms.between(start_ms, end_ms)
        counted = connection.execute(
            sa.select(columns.layout_id, sa.func.count()).where(in_hour).group_by(columns.layout_id)
        )
        with self._lock:
            # Layouts of one source have nearly the same series: they are read together.
            waiting = sorted(
                ((self._catalog.layouts[layout_id], count) for layout_id, count in counted),
                key=lambda item: int(item[0].series_ids[0]),
            )
        found: list[_Scrapes] = []
        left = _STEP_BYTES
        for layout, count in waiting:
            row_bytes = 8 * len(layout.series_ids)
            rows = count
            if count * row_bytes > left:
                if found:
                    break
                rows = max(_STEP_ROWS, left // row_bytes)
            query = (
                sa.select(columns.t_ms, columns.data)
                .where(columns.layout_id == layout.id, in_hour)
                .order_by(columns.t_ms)
                .limit(rows)
            )
            read = connection.execute(query).all()
            if read:
                v = np.frombuffer(b"".join(row.data for row in read), dtype="<f8").reshape(len(read), -1)
                found.append(_Scrapes(layout, np.array([row.t_ms for row in read], dtype=np.int64), v))
            left -= rows * row_bytes
            if left <= 0:
                break
        return found

    # Each of the following is a transaction of its own, or several: appends go between them.
    def _add(self, row: dict[str, object], chunks: Sequence[bytes]) -> int:
        """Writes a block; from its last transaction on its samples are found in it as well as in their scrapes."""
        with self._lock:
            block_id = self._archive.directory.next_id
            self._archive.directory.next_id += 1
        first = 0
        while first < len(chunks):
            last, size = first, 0
            while last < len(chunks) and (size == 0 or size + len(chunks[last]) <= _TRANSACTION_BYTES):
                size += len(chunks[last])
                last += 1
            parts = [{"block_id": block_id, "number": k, "data": chunks[k]} for k in range(first, last)]
            with self._transaction() as connection:
                connection.execute(chunks_table.insert(), parts)
            first = last
        try:
            with self._transaction() as connection:
                connection.execute(blocks_table.insert(), {"id": block_id, **row})
                connection.execute(clearing_table.insert(), {"block_id": block_id})
                with self._lock:
                    # Known before the first of its scrapes goes: who finds them gone must look for the block.
                    self._archive.directory.add(_info(block_id, row))
        except BaseException:
            self._archive.forget([block_id])
            raise
        return block_id

    def _clear(self, layout: Layout, t: Times) -> None:
        """Deletes the scrapes of a layout at these times, of which a block has all samples."""
        columns = scrapes_table.c
        at_once = max(1, _TRANSACTION_BYTES // (8 * len(layout.series_ids) + _ROW_BYTES))
        gone = scrapes_table.delete().where(columns.layout_id == layout.id, columns.t_ms == sa.bindparam("at"))
        times = t.tolist()
        for first in range(0, len(times), at_once):
            with self._transaction() as connection:
                connection.execute(gone, [{"at": t_ms} for t_ms in times[first : first + at_once]])

    def _cleared(self, block_ids: Sequence[int]) -> None:
        if block_ids:
            with self._transaction() as connection:
                connection.execute(clearing_table.delete().where(clearing_table.c.block_id.in_(block_ids)))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """A transaction while writers wait, and then as long a pause for them."""
        with self._turn:
            begin = time.perf_counter()
            with self._engine.begin() as connection:
                yield connection
            took = time.perf_counter() - begin
        time.sleep(min(took, _LONGEST_PAUSE))


def _encoded(matrix: _Matrix) -> tuple[dict[str, object], list[bytes]]:
    """A block's row but for its id, and its chunks."""
    low, high = _CHUNK_WIDTHS
    width = min(high, max(low, _CHUNK_CELLS // len(matrix.t)))
    chunks = [
        pack_matrix(
            matrix.v[:, first : first + width],
            None if matrix.present is None else matrix.present[:, first : first + width],
        )
        for first in range(0, len(matrix.ids), width)
    ]
    times, ids = pack_integers(matrix.t), pack_integers(matrix.ids)
    row: dict[str, object] = {
        "start_ms": int(matrix.t[0]),
        "end_ms": int(matrix.t[-1]),
        "first_series": int(matrix.ids[0]),
        "last_series": int(matrix.ids[-1]),
        "width": width,
        "bytes": sum(map(len, chunks)) + len(times) + len(ids),
        "times": times,
        "series_ids": ids,
    }
    return row, chunks


def _info(block_id: int, row: dict[str, object]) -> BlockInfo:
    names = ("start_ms", "end_ms", "first_series", "last_series", "width", "bytes")
    return BlockInfo(block_id, *(int(str(row[name])) for name in names))


def _matrices(scrapes: Sequence[_Scrapes]) -> list[_Matrix]:
    """The samples regrouped: series with equal times together, the others in matrices with gaps."""
    groups: dict[bytes, list[tuple[Ids, Times, list[int]]]] = {}
    for ids, positions in partition([np.sort(some.layout.series_ids) for some in scrapes]):
        t = (
            scrapes[positions[0]].t
            if len(positions) == 1
            else np.unique(np.concatenate([scrapes[k].t for k in positions]))
        )
        groups.setdefault(t.tobytes(), []).append((ids, t, positions))
    matrices, few = [], []
    for group in groups.values():
        if sum(len(ids) for ids, _, _ in group) >= _FEW or len(groups) == 1:
            matrices.append(_matrix(group, scrapes))
        else:
            few.extend(group)
    few.sort(key=lambda item: (int(item[1][0]), int(item[0][0])))
    gathered: list[tuple[Ids, Times, list[int]]] = []
    width = 0
    for item in few:
        if width + len(item[0]) > _GAPPED_WIDTH and gathered:
            matrices.append(_matrix(gathered, scrapes))
            gathered, width = [], 0
        gathered.append(item)
        width += len(item[0])
    if gathered:
        matrices.append(_matrix(gathered, scrapes))
    return matrices


def _matrix(group: Sequence[tuple[Ids, Times, list[int]]], scrapes: Sequence[_Scrapes]) -> _Matrix:
    t = np.unique(np.concatenate([times for _, times, _ in group]))
    ids = np.concatenate([ids for ids, _, _ in group])
    v = np.zeros((len(t), len(ids)))
    present = np.zeros(v.shape, dtype=np.bool_)
    column = 0
    for some, _, positions in group:
        for position in positions:
            source = scrapes[position]
            rows = np.searchsorted(t, source.t)
            columns = slice(column, column + len(some))
            v[rows, columns] = source.v[:, source.layout.columns(some)]
            present[rows, columns] = True
        column += len(some)
    order = np.argsort(ids)
    if not (ids[1:] > ids[:-1]).all():
        ids, v, present = ids[order], v[:, order], present[:, order]
    return _Matrix(ids, t, v, None if present.all() else present)
