"""Retention: what is too old or too much leaves the database in small steps, and then what nothing refers to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from collectors.store.directory import BlockInfo
from collectors.store.schema import (
    blocks_table,
    chunks_table,
    exemplars_table,
    layouts_table,
    scrapes_table,
    series_table,
    targets_table,
)

_IDS_IN_A_STATEMENT = 500
STEP_BYTES = 2 << 20
"""About as much leaves in a step."""
# What a row costs besides its data, where the database does not say.
_ROW_BYTES = 80
_FREE_PAGES = 4096
_FREE_SHARE = 0.2
_VACUUMED_AT_ONCE = 256


def delete_scrapes(connection: sa.Connection, cutoff_ms: int, limit: int) -> int:
    """Deletes about `limit` scrapes older than the cutoff, oldest first; gives how many went."""
    times = scrapes_table.c.t_ms
    boundary = connection.scalar(
        sa.select(times).where(times < cutoff_ms).order_by(times).offset(max(limit - 1, 0)).limit(1)
    )
    upper = cutoff_ms if boundary is None else min(cutoff_ms, boundary + 1)
    return connection.execute(scrapes_table.delete().where(times < upper)).rowcount


def delete_surplus_scrapes(connection: sa.Connection, surplus: int, limit: int) -> int:
    """Deletes the oldest scrapes: at most `limit` moments of them, and no more than make up the bytes."""
    columns = scrapes_table.c
    query = sa.select(columns.t_ms, sa.func.sum(_ROW_BYTES + sa.func.length(columns.data))).group_by(columns.t_ms)
    upper = None
    surplus = min(surplus, STEP_BYTES)
    for t_ms, nbytes in connection.execute(query.order_by(columns.t_ms).limit(limit)):
        if surplus <= 0:
            break
        upper = t_ms
        surplus -= int(nbytes)
    return 0 if upper is None else connection.execute(scrapes_table.delete().where(columns.t_ms <= upper)).rowcount


def oldest_time(connection: sa.Connection, blocks: Sequence[int]) -> int | None:
    """The time of the oldest sample, given those of the blocks; None when there is none."""
    first = connection.scalar(sa.select(sa.func.min(scrapes_table.c.t_ms)))
    return min([*blocks, *([] if first is None else [int(first)])], default=None)


def some_of(blocks: Sequence[BlockInfo], limit: int, nbytes: int) -> list[BlockInfo]:
    """The first blocks: at most `limit` of them, and no more than make up the bytes."""
    chosen: list[BlockInfo] = []
    for block in blocks[:limit]:
        if nbytes <= 0:
            break
        chosen.append(block)
        nbytes -= block.nbytes
    return chosen


def delete_blocks(connection: sa.Connection, block_ids: Sequence[int]) -> None:
    """Deletes blocks by id."""
    for some in _groups(block_ids):
        connection.execute(chunks_table.delete().where(chunks_table.c.block_id.in_(some)))
        connection.execute(blocks_table.delete().where(blocks_table.c.id.in_(some)))


def unused_layouts(connection: sa.Connection) -> list[int]:
    """Ids of the layouts that no scrape has and that are no source's."""
    scrape = sa.select(scrapes_table.c.layout_id).where(scrapes_table.c.layout_id == layouts_table.c.id)
    sent = set(connection.scalars(sa.select(targets_table.c.layout_id)))
    found = connection.scalars(sa.select(layouts_table.c.id).where(~sa.exists(scrape)))
    return [layout_id for layout_id in found if layout_id not in sent]


def delete_layouts(connection: sa.Connection, layout_ids: Sequence[int]) -> None:
    """Deletes layouts by id."""
    for some in _groups(layout_ids):
        connection.execute(layouts_table.delete().where(layouts_table.c.id.in_(some)))


def delete_sources(connection: sa.Connection, keys: Sequence[str]) -> None:
    """Deletes sources by key."""
    for some in _groups(keys):
        connection.execute(targets_table.delete().where(targets_table.c.key.in_(some)))


def delete_series(connection: sa.Connection, series_ids: Sequence[int]) -> None:
    """Deletes series by id."""
    for some in _groups(series_ids):
        connection.execute(series_table.delete().where(series_table.c.id.in_(some)))


def used_bytes(connection: sa.Connection) -> int:
    """Bytes that the store's data takes: of SQLite the pages in use, of another database the rows' own."""
    if connection.dialect.name == "sqlite":
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        free = connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
        return int((pages - free) * connection.exec_driver_sql("PRAGMA page_size").scalar_one())
    rows = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(sa.func.octet_length(scrapes_table.c.data)), 0))
    num_scrapes, scrapes = connection.execute(rows.select_from(scrapes_table)).one()
    blocks = connection.scalar(sa.select(sa.func.coalesce(sa.func.sum(blocks_table.c.bytes), 0)))
    num_series, series = connection.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(sa.func.octet_length(series_table.c.labels)), 0))
    ).one()
    exemplars = connection.scalar(sa.select(sa.func.count()).select_from(exemplars_table)) or 0
    own = int(scrapes) + int(blocks or 0) + int(series)
    return own + _ROW_BYTES * (int(num_scrapes) + int(num_series) + 3 * int(exemplars))


def give_back(engine: sa.Engine) -> bool:
    """Gives some of an SQLite file's free pages back to the disk when many are free; says whether it did."""
    if engine.dialect.name != "sqlite":
        return False
    with engine.begin() as connection:
        free = connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        if free < _FREE_PAGES or free < pages * _FREE_SHARE:
            return False
        if connection.exec_driver_sql("PRAGMA auto_vacuum").scalar_one() != 2:  # a file of before: pages are reused
            return False
        driver: Any = connection.connection.driver_connection
        driver.executescript(f"PRAGMA incremental_vacuum({_VACUUMED_AT_ONCE})")  # `execute` would free a single page
    return True


def _groups(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[first : first + _IDS_IN_A_STATEMENT] for first in range(0, len(items), _IDS_IN_A_STATEMENT)]
