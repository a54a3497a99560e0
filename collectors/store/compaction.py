"""Compaction: the scrapes of a closed hour become blocks, some at a time, each step in one transaction."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from collectors.store.archive import Archive, BlockInfo
from collectors.store.catalog import Catalog
from collectors.store.codec import Bools, pack_integers, pack_matrix
from collectors.store.grouping import partition
from collectors.store.head import Layout
from collectors.store.schema import blocks_table, chunks_table, scrapes_table
from collectors.store.values import Floats, Times

Ids = NDArray[np.int64]
HOUR_MS = 3_600_000
# A step reads about this much, and at least so many scrapes of a layout.
_STEP_BYTES = 2 << 20
_STEP_ROWS = 48
_CHUNK_CELLS = 16_384
_CHUNK_WIDTHS = 16, 1024
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
    """Compacts hours that have closed. `turn` keeps writers out while a step's result is put in place."""

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
        with self._reading:  # without effect but for a database in memory, whose one connection a step keeps
            with self._engine.connect() as connection:
                oldest = connection.scalar(sa.select(sa.func.min(scrapes_table.c.t_ms)))
                if oldest is None or (oldest // HOUR_MS + 1) * HOUR_MS > closed_ms:
                    return 0
                start_ms = oldest // HOUR_MS * HOUR_MS
                scrapes = self._read(connection, start_ms, start_ms + HOUR_MS - 1)
            blocks = [self._encoded(matrix) for matrix in _matrices(scrapes)]
            return self._replace(scrapes, blocks)

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

    def _encoded(self, matrix: _Matrix) -> tuple[dict[str, object], list[bytes]]:
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

    def _replace(self, scrapes: Sequence[_Scrapes], blocks: Sequence[tuple[dict[str, object], list[bytes]]]) -> int:
        """Writes the blocks in the place of the scrapes; gives 0 samples if more scrapes came meanwhile."""
        directory = self._archive.directory
        added: list[int] = []
        columns = scrapes_table.c
        try:
            with self._turn, self._engine.begin() as connection:
                for row, chunks in blocks:
                    with self._lock:
                        # Known before it is there: a reader that finds the scrapes gone must look for the block.
                        info = _info(directory.next_id, row)
                        directory.add(info)
                    added.append(info.id)
                    connection.execute(blocks_table.insert(), {"id": info.id, **row})
                    parts = [{"block_id": info.id, "number": k, "data": data} for k, data in enumerate(chunks)]
                    connection.execute(chunks_table.insert(), parts)
                for some in scrapes:
                    deleted = connection.execute(
                        scrapes_table.delete()
                        .where(columns.layout_id == some.layout.id)
                        .where(columns.t_ms.between(int(some.t[0]), int(some.t[-1])))
                    ).rowcount
                    if deleted != len(some.t):
                        raise _MoreCame
        except BaseException as error:
            self._archive.forget(added)
            if isinstance(error, _MoreCame):
                return 0
            raise
        return sum(some.v.size for some in scrapes)


class _MoreCame(Exception):
    """A late scrape came into the hour while it was being compacted."""


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
