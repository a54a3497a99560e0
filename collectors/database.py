"""The collector's own tables (event log, references, windows, spans, logs) and the engine that holds them.

They live beside the sample store, not in its file: a large event batch must not wait for a scrape's commit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

METADATA = sa.MetaData()

# A batch stays in the log until its rows are in the lake.
EVENT_LOG = sa.Table(
    "event_log",
    METADATA,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("signal", sa.String(16), nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sqlite_autoincrement=True,  # an id never comes back, so a segment's file name never does either
)

# The segment being written: the log up to `last_id`. A table of its own: to mark the rows would rewrite their bodies.
SEGMENTS = sa.Table(
    "event_segments",
    METADATA,
    sa.Column("last_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
)

# Profiles that left the log, until their windows are closed: what the lake is to events.
PROFILES = sa.Table(
    "posted_profiles",
    METADATA,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("time", sa.Float, nullable=False, index=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

# Sources whose rows are kept apart: events with this attribute.
QUARANTINE = sa.Table(
    "quarantine",
    METADATA,
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("attribute", sa.String(200), primary_key=True),
    sa.Column("value", sa.String(200), primary_key=True),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("key", sa.String(500), nullable=False),  # of the action that did it
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)

# Ids of accepted batches outlive their log rows: a retry may come after the compaction.
BATCHES = sa.Table(
    "event_batches",
    METADATA,
    sa.Column("batch_id", sa.String(200), primary_key=True),
    sa.Column("signal", sa.String(16), primary_key=True),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("accepted_at", sa.Float, nullable=False, index=True),
)

# Groups of pushed metrics as they stand.
PUSHES = sa.Table(
    "push_groups",
    METADATA,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

REFERENCES = sa.Table(
    "reference_profiles",
    METADATA,
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("version", sa.String(200), primary_key=True),
    sa.Column("profile", sa.LargeBinary, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
)

WINDOWS = sa.Table(
    "closed_windows",
    METADATA,
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("version", sa.String(200), primary_key=True),
    sa.Column("start", sa.Float, primary_key=True),
    sa.Column("end", sa.Float, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

# What was changed in a model's inferred schema.
SCHEMA_EDITS = sa.Table(
    "schema_edits",
    METADATA,
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
)

# Rows that broke a rule of their schema, kept aside to be shown; they are in the lake as well.
VIOLATIONS = sa.Table(
    "quality_violations",
    METADATA,
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("event_id", sa.String(300), primary_key=True),
    sa.Column("column", sa.String(200), primary_key=True),
    sa.Column("rule", sa.String(16), primary_key=True),
    sa.Column("version", sa.String(200), nullable=False),
    sa.Column("time", sa.Float, nullable=False, index=True),
    sa.Column("value", sa.Text),
)

# What measuring stood at when closed windows were last written: a row for each part, in their transaction.
MEASURED = sa.Table(
    "measured_state",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),  # JSON
)

# Labelled predictions of releases and shadows, in the order in which they were joined: each once, with its first label.
RELEASE_LABELS = sa.Table(
    "release_labels",
    METADATA,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("feed", sa.String(300), nullable=False),
    sa.Column("event_id", sa.String(300), nullable=False),
    sa.Column("version", sa.String(200), nullable=False),
    sa.Column("arm", sa.String(200), nullable=False),
    sa.Column("propensity", sa.Double),
    sa.Column("prediction", sa.Double, nullable=False),
    sa.Column("label", sa.Double, nullable=False),
    sa.Column("other", sa.Double),  # what the stable version answered to a shadow's request
    sa.Column("joined_at", sa.Float, nullable=False, index=True),
    sa.UniqueConstraint("model", "feed", "event_id"),
    sa.Index("release_labels_feed", "model", "feed", "number"),
    sqlite_autoincrement=True,  # a number never comes back: readers go on from the last that they have counted
)

SPANS = sa.Table(
    "spans",
    METADATA,
    sa.Column("trace_id", sa.String(32), primary_key=True),
    sa.Column("span_id", sa.String(16), primary_key=True),
    sa.Column("parent_id", sa.String(16), nullable=False),
    sa.Column("service", sa.String(200), nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("kind", sa.Integer, nullable=False),
    sa.Column("start_ns", sa.BigInteger, nullable=False, index=True),
    sa.Column("end_ns", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),  # JSON: attributes, events, links, status, resource
)

LOGS = sa.Table(
    "logs",
    METADATA,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("time_ns", sa.BigInteger, nullable=False, index=True),
    sa.Column("trace_id", sa.String(32), nullable=False, index=True),
    sa.Column("span_id", sa.String(16), nullable=False),
    sa.Column("service", sa.String(200), nullable=False),
    sa.Column("severity", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),  # JSON: message, attributes, resource
)

BUSY_SECONDS = 10.0


def open_database(url: str) -> sa.Engine:
    """An engine on `url` with the tables made; a SQLite file is put in WAL mode with an fsync at every commit."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        engine = sa.create_engine(parsed, pool_pre_ping=True)
    else:
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})
        sa.event.listen(engine, "connect", _prepare_sqlite)
    METADATA.create_all(engine)
    return engine


def insert_new(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    """Inserts rows; those whose primary key is there already are left out."""
    if not rows:
        return
    dialects: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
    connection.execute(dialects[connection.dialect.name](table).on_conflict_do_nothing(), rows)


def replace(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> None:
    """Writes a row, in the place of the one with its primary key where there is one."""
    key = sa.and_(*(column == row[column.name] for column in table.primary_key))
    connection.execute(table.delete().where(key))
    connection.execute(table.insert(), row)


def intake_url(store_url: str) -> str:
    """Where the collector's own tables live: beside a SQLite store's file, in the same database otherwise."""
    parsed = sa.make_url(store_url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return store_url
    file = Path(parsed.database)
    beside = file.with_name(f"{file.stem}-intake{file.suffix or '.db'}")
    return parsed.set(database=str(beside)).render_as_string(hide_password=False)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # in WAL mode NORMAL would not sync at a commit
    cursor.execute("PRAGMA wal_autocheckpoint = 4000")
    cursor.close()
