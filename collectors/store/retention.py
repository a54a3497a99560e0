"""Retention: old scrapes leave the database in small steps, then the layouts and series that nothing refers to."""

from __future__ import annotations

import sqlalchemy as sa

from collectors.store.schema import layouts_table, scrapes_table, series_table

_IDS_IN_A_STATEMENT = 500


def delete_scrapes(connection: sa.Connection, cutoff_ms: int, limit: int) -> int:
    """Deletes about `limit` scrapes older than the cutoff, oldest first; gives how many went."""
    times = scrapes_table.c.t_ms
    boundary = connection.scalar(
        sa.select(times).where(times < cutoff_ms).order_by(times).offset(max(limit - 1, 0)).limit(1)
    )
    upper = cutoff_ms if boundary is None else min(cutoff_ms, boundary + 1)
    return connection.execute(scrapes_table.delete().where(times < upper)).rowcount


def unused_layouts(connection: sa.Connection) -> list[int]:
    """Ids of the layouts that no scrape has."""
    scrape = sa.select(scrapes_table.c.layout_id).where(scrapes_table.c.layout_id == layouts_table.c.id)
    return list(connection.scalars(sa.select(layouts_table.c.id).where(~sa.exists(scrape))))


def delete_layouts(connection: sa.Connection, layout_ids: list[int]) -> None:
    """Deletes layouts by id."""
    for start in range(0, len(layout_ids), _IDS_IN_A_STATEMENT):
        some = layout_ids[start : start + _IDS_IN_A_STATEMENT]
        connection.execute(layouts_table.delete().where(layouts_table.c.id.in_(some)))


def delete_series(connection: sa.Connection, series_ids: list[int]) -> None:
    """Deletes series by id."""
    for start in range(0, len(series_ids), _IDS_IN_A_STATEMENT):
        some = series_ids[start : start + _IDS_IN_A_STATEMENT]
        connection.execute(series_table.delete().where(series_table.c.id.in_(some)))
