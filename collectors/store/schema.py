"""The tables: series, layouts (lists of series ids), scrapes (one vector a row), metadata; and how to open them.

A scrape is one row whatever the number of its series, so the database sees tens of rows a second, not tens of
thousands. Vectors are little-endian float64, layouts little-endian int64.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

tables = sa.MetaData()

series_table = sa.Table(
    "series",
    tables,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("labels", sa.Text, nullable=False),
)
layouts_table = sa.Table(
    "layouts",
    tables,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("series_ids", sa.LargeBinary, nullable=False),
)
scrapes_table = sa.Table(
    "scrapes",
    tables,
    sa.Column("layout_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("t_ms", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Index("scrapes_by_time", "t_ms"),
)
metadata_table = sa.Table(
    "metadata",
    tables,
    sa.Column("metric", sa.Text, primary_key=True),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("help", sa.Text, nullable=False),
    sa.Column("unit", sa.Text, nullable=False),
)


def is_in_memory(url: sa.URL) -> bool:
    """Whether the URL names an SQLite database that lives in this process only."""
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def open_database(url: str, synchronous: str = "FULL") -> sa.Engine:
    """An engine with the tables made. SQLite files are set to WAL and `PRAGMA synchronous` as given."""
    parsed = sa.make_url(url)
    if is_in_memory(parsed):
        engine = sa.create_engine(parsed, poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        engine = sa.create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
    if parsed.get_backend_name() == "sqlite":

        def prepare(connection: Any, _record: Any) -> None:
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute(f"PRAGMA synchronous={synchronous}")
            cursor.execute("PRAGMA busy_timeout=10000")
            cursor.close()

        sa.event.listen(engine, "connect", prepare)
    tables.create_all(engine)
    return engine
