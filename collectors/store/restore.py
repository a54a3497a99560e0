"""The start: series, layouts and sources from the database, and the newest samples into the head."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from collectors.store.archive import Archive
from collectors.store.catalog import Catalog
from collectors.store.directory import BlockInfo
from collectors.store.grouping import Piece
from collectors.store.head import Head, Layout, Rows
from collectors.store.schema import (
    blocks_table,
    layouts_table,
    metadata_table,
    scrapes_table,
    series_table,
    targets_table,
)
from collectors.store.sources import Sources
from collectors.store.values import Floats, MetricMetadata, Times

_ROWS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Bounds:
    """Times of the oldest and the newest sample, or None."""

    oldest_ms: int | None
    newest_ms: int | None


def restore_bounds(connection: sa.Connection, archive: Archive) -> Bounds:
    """Fills the directory of blocks and gives the bounds of all samples."""
    columns = blocks_table.c
    chosen = (
        columns.id, columns.start_ms, columns.end_ms, columns.first_series, columns.last_series, columns.width,
        columns.bytes,
    )  # fmt: skip
    times: list[int] = []
    for row in connection.execute(sa.select(*chosen)):
        info = BlockInfo(*row)
        archive.directory.add(info)
        times += (info.start_ms, info.end_ms)
    first = sa.select(sa.func.min(scrapes_table.c.t_ms), sa.func.max(scrapes_table.c.t_ms))
    times += [t for t in connection.execute(first).one() if t is not None]
    return Bounds(min(times), max(times)) if times else Bounds(None, None)


def restore_catalog(connection: sa.Connection, catalog: Catalog, sources: Sources, floor_ms: int) -> None:
    """Fills the catalog and what each source sent last."""
    for series_id, text in connection.execute(sa.select(series_table.c.id, series_table.c.labels)):
        catalog.restore_series(series_id, json.loads(text), floor_ms)
    for layout_id, data in connection.execute(sa.select(layouts_table.c.id, layouts_table.c.series_ids)):
        catalog.restore_layout(layout_id, np.frombuffer(data, dtype="<i8").astype(np.int64))
    for key, layout_id in connection.execute(sa.select(targets_table.c.key, targets_table.c.layout_id)):
        if layout_id in catalog.layouts:
            sources.restore(key, catalog.layouts[layout_id].series_ids)


def restore_metadata(connection: sa.Connection) -> dict[str, MetricMetadata]:
    """Type, help and unit by metric family."""
    found = connection.execute(sa.select(metadata_table))
    return {metric: MetricMetadata(kind, text, unit) for metric, kind, text, unit in found}


def restore_head(connection: sa.Connection, catalog: Catalog, archive: Archive, head: Head, floor_ms: int) -> None:
    """Reads all samples from the floor on, from blocks and scrapes, into the head."""
    head.floor_ms = floor_ms
    found: dict[int, list[tuple[Times, Floats]]] = {}
    for block in archive.directory.all():
        if block.end_ms >= floor_ms:
            for piece in archive.whole(connection, block, floor_ms):
                layout = catalog.layout(piece.ids)
                found.setdefault(layout.id, []).append((piece.t, piece.v))
    for layout, piece in _recent_scrapes(connection, catalog, floor_ms):
        found.setdefault(layout.id, []).append((piece.t, piece.v))
    newest: list[tuple[int, Layout, Floats]] = []
    for layout_id, parts in found.items():
        t, v = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
        parts.clear()
        if not (t[1:] > t[:-1]).all():
            order = np.argsort(t, kind="stable")
            t, v = t[order], v[order]
        head.rows[layout_id] = Rows.of(t, v)
        newest.append((int(t[-1]), catalog.layouts[layout_id], v[-1]))
    newest.sort(key=lambda item: item[0])
    for t_ms, layout, values in newest:
        catalog.seen(layout.series_ids, t_ms, values)


def _recent_scrapes(connection: sa.Connection, catalog: Catalog, floor_ms: int) -> Iterator[tuple[Layout, Piece]]:
    columns = scrapes_table.c
    layouts = list(connection.scalars(sa.select(columns.layout_id).distinct().where(columns.t_ms >= floor_ms)))
    for layout_id in layouts:
        layout = catalog.layouts[layout_id]
        query = (
            sa.select(columns.t_ms, columns.data)
            .where(columns.layout_id == layout_id, columns.t_ms >= floor_ms)
            .order_by(columns.t_ms)
        )
        times: list[int] = []
        parts: list[Floats] = []
        for rows in connection.execute(query).partitions(_ROWS_AT_ONCE):
            times += [row.t_ms for row in rows]
            joined = b"".join(row.data for row in rows)
            parts.append(np.frombuffer(joined, dtype="<f8").reshape(len(rows), -1))
        v = parts[0] if len(parts) == 1 else np.concatenate(parts)
        yield layout, Piece(layout.series_ids, np.array(times, dtype=np.int64), v)
