"""The judge's tables, and how its database is opened: SQLite in WAL mode by default, any SQLAlchemy URL else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

METADATA = sa.MetaData()

_Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")

# One row an alert that is pending, firing or lately resolved: what an evaluation starts from after a restart.
ALERT_STATES = sa.Table(
    "alert_states",
    METADATA,
    sa.Column("group_key", sa.String(500), primary_key=True),
    sa.Column("rule", sa.String(200), primary_key=True),
    sa.Column("fingerprint", sa.String(16), primary_key=True),
    sa.Column("body", sa.JSON, nullable=False),
)

# When a group was last evaluated, to the precision that restoring needs.
RULE_GROUPS = sa.Table(
    "rule_groups",
    METADATA,
    sa.Column("group_key", sa.String(500), primary_key=True),
    sa.Column("evaluated_at", sa.Float, nullable=False),
)

SILENCES = sa.Table(
    "silences",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("matchers", sa.JSON, nullable=False),
    sa.Column("starts_at", sa.Float, nullable=False),
    sa.Column("ends_at", sa.Float, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
)

RELEASES = sa.Table(
    "releases",
    METADATA,
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("release", sa.String(200), primary_key=True),
    sa.Column("candidate", sa.String(200), nullable=False),
    sa.Column("baseline", sa.String(200), nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
    sa.Column("verdict", sa.String(20), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("decided_at", sa.Float),
)

# Counters survive the restart of the process that counts: `total` goes on where `last` fell.
RELEASE_TOTALS = sa.Table(
    "release_totals",
    METADATA,
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("release", sa.String(200), primary_key=True),
    sa.Column("series", sa.String(1000), primary_key=True),
    sa.Column("arm", sa.String(20), nullable=False),
    sa.Column("propensity", sa.Float, nullable=False),
    sa.Column("outcome", sa.String(20), nullable=False),
    sa.Column("last", sa.Float, nullable=False),
    sa.Column("total", sa.Float, nullable=False),
)

# What the evidence of a release rests on, as its own JSON (the bits of its numbers matter), and why its verdict is so.
RELEASE_STATES = sa.Table(
    "release_states",
    METADATA,
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("release", sa.String(200), primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("histograms", sa.JSON, nullable=False),
    sa.Column("because", sa.String(20), nullable=False),
)

# A release on its way through its policy's steps; `revision` grows with each change, so that of two processes one makes
# it.
RELEASE_WALKS = sa.Table(
    "release_walks",
    METADATA,
    sa.Column("id", _Id, primary_key=True, autoincrement=True),
    sa.Column("model", sa.String(200), nullable=False, index=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("phase", sa.String(20), nullable=False, index=True),
    sa.Column("release", sa.String(200), nullable=False),
    sa.Column("began_at", sa.Double, nullable=False),
    sa.Column("ended_at", sa.Double),
    sa.Column("revision", _Id, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

ACTIONS = sa.Table(
    "actions",
    METADATA,
    sa.Column("id", _Id, primary_key=True, autoincrement=True),
    sa.Column("key", sa.String(500), nullable=False, unique=True),
    sa.Column("action", sa.String(50), nullable=False),
    sa.Column("model", sa.String(200), nullable=False, index=True),
    sa.Column("release", sa.String(200), nullable=False),
    sa.Column("mode", sa.String(20), nullable=False),
    sa.Column("state", sa.String(20), nullable=False, index=True),
    sa.Column("alert", sa.String(200), nullable=False),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("evidence", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("completed_at", sa.Float),
    sa.Column("result", sa.JSON),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("decided_at", sa.Float),  # when a person approved, rejected or asked for it
    sqlite_autoincrement=True,
)

# Append-only; each row's hash covers its content and the hash before it.
JOURNAL = sa.Table(
    "journal",
    METADATA,
    sa.Column("seq", _Id, primary_key=True, autoincrement=False),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("key", sa.String(500), nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)

# The journal's end: what a truncated tail is missed by, and the row that writers lock, so that they append in turn.
JOURNAL_HEAD = sa.Table(
    "journal_head",
    METADATA,
    sa.Column("name", sa.String(20), primary_key=True),
    sa.Column("seq", _Id, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("seal", sa.String(64), nullable=False),  # HMAC of seq and hash, "" without a secret
    sa.Column("told", _Id, nullable=False),  # the last row that receivers were told of
)

# Which process carries a running action out. The token grows with each holder: one that lost its claim is found out.
ACTION_CLAIMS = sa.Table(
    "action_claims",
    METADATA,
    sa.Column("key", sa.String(500), primary_key=True),
    sa.Column("holder", sa.String(300), nullable=False),
    sa.Column("token", _Id, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
)

# Episodes of drift or decay; one model has one open at a time, whatever number of services look.
EPISODES = sa.Table(
    "episodes",
    METADATA,
    sa.Column("id", _Id, primary_key=True, autoincrement=True),
    sa.Column("model", sa.String(200), nullable=False, index=True),
    sa.Column("cause", sa.String(200), nullable=False),
    sa.Column("version", sa.String(200), nullable=False),
    sa.Column("opened_at", sa.Double, nullable=False),
    sa.Column("asked_until", sa.Double, nullable=False),
    sa.Column("quiet_since", sa.Double),
    sa.Column("looked_at", sa.Double, nullable=False),
    sa.Column("ended_at", sa.Double),
    sa.Column("ended_because", sa.Text, nullable=False),
    sa.Column("follows", _Id),
    sa.Column("waits", sa.Text, nullable=False),
    sa.Column("alert", sa.JSON, nullable=False),
    sqlite_autoincrement=True,
)
sa.Index(
    "episodes_one_open", EPISODES.c.model, unique=True,
    sqlite_where=EPISODES.c.ended_at.is_(None), postgresql_where=EPISODES.c.ended_at.is_(None),
)  # fmt: skip

BUSY_SECONDS = 15.0
_CREATION_LOCK = 0x7472696D  # PostgreSQL's advisory lock: two services may start at once


def open_database(url: str) -> sa.Engine:
    """An engine on `url` with the tables made. SQLite writes wait for each other, and sync to disk at every commit."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        engine = sa.create_engine(parsed, pool_pre_ping=True)
    else:
        options: dict[str, Any] = {}
        if parsed.database in (None, "", ":memory:"):
            options["poolclass"] = sa.StaticPool
        else:
            Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False}, **options)
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATION_LOCK)))
        METADATA.create_all(connection)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin by itself: see _begin_sqlite
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # in WAL mode NORMAL would not sync at a commit
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A deferred transaction that reads and then writes fails at once when another wrote between; this one waits.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
