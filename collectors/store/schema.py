"""The tables: series, layouts (lists of series ids), scrapes (one vector a row), blocks of closed hours; opening them.

A scrape is one row whatever the number of its series, so the database sees tens of rows a second, not tens of
thousands. Vectors are little-endian float64, layouts little-endian int64. A block is a matrix of samples that share
their times, kept as chunks of some columns (`codec.py`), so that one series is read without the others.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

tables = sa.MetaData()
_PAGE_BYTES = 8192
_BUSY_MS = 10_000
# A commit brings the write-ahead log into the file when it has so many pages: see checkpoint.py, which does it sooner.
_CHECKPOINT_PAGES = 16_000

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
blocks_table = sa.Table(
    "blocks",
    tables,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("start_ms", sa.BigInteger, nullable=False),
    sa.Column("end_ms", sa.BigInteger, nullable=False),
    sa.Column("first_series", sa.BigInteger, nullable=False),
    sa.Column("last_series", sa.BigInteger, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),  # columns of a chunk; the last one may have fewer
    sa.Column("bytes", sa.BigInteger, nullable=False),  # of the block and its chunks
    sa.Column("times", sa.LargeBinary, nullable=False),
    sa.Column("series_ids", sa.LargeBinary, nullable=False),  # rising
    sa.Index("blocks_by_end", "end_ms"),
)
chunks_table = sa.Table(
    "chunks",
    tables,
    sa.Column("block_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)
# Blocks whose scrapes are still being deleted.
clearing_table = sa.Table(
    "clearing",
    tables,
    sa.Column("block_id", sa.BigInteger, primary_key=True, autoincrement=False),
)
# The series of each source's last append, so that what vanishes while the process is away is ended, too.
targets_table = sa.Table(
    "targets",
    tables,
    sa.Column("key", sa.String(64), primary_key=True),  # SHA-256 of the name: a name may be longer than a key can be
    sa.Column("layout_id", sa.BigInteger, nullable=False),
)
exemplars_table = sa.Table(
    "exemplars",
    tables,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("t_ms", sa.BigInteger, nullable=False),
    sa.Column("series", sa.Text, nullable=False),
    sa.Column("labels", sa.Text, nullable=False),
    sa.Column("value", sa.LargeBinary(8), nullable=False),
    sa.Index("exemplars_by_time", "t_ms"),
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
            cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
            # These two hold for a file that is made now; with them, deleting gives the disk its space back in steps.
            cursor.execute(f"PRAGMA page_size={_PAGE_BYTES}")
            cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute(f"PRAGMA synchronous={synchronous}")
            cursor.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
            cursor.close()

        sa.event.listen(engine, "connect", prepare)
    tables.create_all(engine)
    return engine
