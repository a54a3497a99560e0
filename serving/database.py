"""The SQL of serving: its tables, and one way to speak to SQLite and to PostgreSQL.

SQLite is spoken to by Python's own driver, so that a server need not load SQLAlchemy at its start: that takes a
quarter of a second and 12 MB. Statements name their values (`:model`), as both understand them.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from serving.errors import RegistryError, RegistryUnavailable

if TYPE_CHECKING:
    import sqlalchemy as sa

# What the dialects call the types that differ.
_TYPES = {
    "sqlite": {"bytes": "BLOB", "number": "INTEGER", "float": "FLOAT"},
    "postgresql": {"bytes": "BYTEA", "number": "SERIAL", "float": "DOUBLE PRECISION"},
}
_TABLES = (
    """CREATE TABLE IF NOT EXISTS model_versions (
        model VARCHAR(200) NOT NULL, version INTEGER NOT NULL, digest VARCHAR(64) NOT NULL, created_at {float} NOT NULL,
        lineage JSON NOT NULL, metrics JSON NOT NULL, profile {bytes},
        PRIMARY KEY (model, version), UNIQUE (model, digest))""",
    """CREATE TABLE IF NOT EXISTS model_aliases (
        model VARCHAR(200) NOT NULL, name VARCHAR(100) NOT NULL, version INTEGER NOT NULL,
        PRIMARY KEY (model, name))""",
    """CREATE TABLE IF NOT EXISTS registry_history (
        id {number} NOT NULL, time {float} NOT NULL, model VARCHAR(200) NOT NULL, event VARCHAR(40) NOT NULL,
        version INTEGER NOT NULL, detail JSON NOT NULL,
        PRIMARY KEY (id))""",
    """CREATE TABLE IF NOT EXISTS traffic_policies (
        model VARCHAR(200) NOT NULL, generation INTEGER NOT NULL, body JSON NOT NULL,
        PRIMARY KEY (model))""",
    """CREATE TABLE IF NOT EXISTS traffic_history (
        model VARCHAR(200) NOT NULL, generation INTEGER NOT NULL, time {float} NOT NULL, event VARCHAR(40) NOT NULL,
        release VARCHAR(220), version INTEGER, reason TEXT NOT NULL, actor VARCHAR(200) NOT NULL,
        PRIMARY KEY (model, generation))""",
    """CREATE TABLE IF NOT EXISTS control_answers (
        key VARCHAR(300) NOT NULL, request VARCHAR(64) NOT NULL, status INTEGER NOT NULL, body JSON NOT NULL,
        time {float} NOT NULL,
        PRIMARY KEY (key))""",
)
# How long a writer waits for those of other processes, in seconds.
_BUSY_SECONDS = 10.0

Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Json:
    """A value for a column of JSON."""

    value: Mapping[str, Any]


def json_of(stored: Any) -> Any:
    """What a column of JSON gives: the drivers of some databases have read it already."""
    return json.loads(stored) if isinstance(stored, str | bytes) else stored


class Transaction(Protocol):
    """Statements that take effect together."""

    def rows(self, statement: str, **values: Any) -> Sequence[Row]:
        """The rows that a query finds."""
        ...

    def run(self, statement: str, **values: Any) -> int:
        """How many rows a statement has changed."""
        ...


class Database(Protocol):
    """A database with the tables of serving; threads may share it."""

    def begin(self) -> AbstractContextManager[Transaction]:
        """A transaction: committed at the end of the block, rolled back when it raises.

        Raises RegistryUnavailable where the database cannot be read or written now.
        """
        ...

    def close(self) -> None:
        """Closes the connections."""
        ...


def read(database: Database, query: str, **values: Any) -> Sequence[Row]:
    """The rows that a query by itself finds."""
    with database.begin() as transaction:
        return transaction.rows(query, **values)


def open_database(url: str) -> Database:
    """The database at a SQLAlchemy URL, its tables made. Raises RegistryError where it cannot be opened."""
    driver, separator, place = url.partition("://")
    database: Database
    if separator and driver in ("sqlite", "sqlite+pysqlite"):
        database, types = Sqlite(place.removeprefix("/")), _TYPES["sqlite"]
    else:
        database, types = _Server(url), _TYPES["postgresql"]
    with database.begin() as transaction:
        for table in _TABLES:
            transaction.run(table.format_map(types))
    return database


class Sqlite:
    """SQLite in WAL mode with full durability: one connection, whose transactions exclude each other.

    `path` is a file, `file:…` with SQLite's own options, or empty for a database in memory. Raises RegistryError where
    it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        if "?" in path and not path.startswith("file:"):
            raise RegistryError(f"SQLite takes options after file: only, as in sqlite:///file:{path}")
        self._lock = threading.Lock()
        try:
            # Without the driver's own transactions: they begin too late to keep read-then-write atomic.
            self._connection = sqlite3.connect(
                path or ":memory:", timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False,
                uri=path.startswith("file:"),
            )  # fmt: skip
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
        except sqlite3.Error as error:
            raise RegistryError(f"the registry's database {path!r} cannot be opened: {error}") from error

    @contextmanager
    def begin(self) -> Iterator[Transaction]:
        """Takes the file's lock for writing at once: nobody writes between what is read and what is written."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield _SqliteTransaction(self._connection)
                self._connection.execute("COMMIT")
            except sqlite3.OperationalError as error:
                self._roll_back()
                raise _unavailable(error) from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def _unavailable(error: BaseException) -> RegistryUnavailable:
    # PostgreSQL's driver says it in several lines.
    said = " ".join(str(error).split())
    return RegistryUnavailable(f"the registry's database cannot be used now: {said}; call again")


class _SqliteTransaction:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, statement: str, **values: Any) -> Sequence[Row]:
        return self._connection.execute(statement, _written(values)).fetchall()

    def run(self, statement: str, **values: Any) -> int:
        return self._connection.execute(statement, _written(values)).rowcount


def _written(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: json.dumps(dict(value.value)) if isinstance(value, Json) else value for name, value in values.items()}


class _Server:
    """PostgreSQL, by SQLAlchemy."""

    def __init__(self, url: str) -> None:
        import sqlalchemy

        self._engine = sqlalchemy.create_engine(url)

    @contextmanager
    def begin(self) -> Iterator[Transaction]:
        import sqlalchemy.exc

        try:
            with self._engine.begin() as connection:
                yield _ServerTransaction(connection)
        except sqlalchemy.exc.OperationalError as error:
            raise _unavailable(error.orig or error) from error

    def close(self) -> None:
        self._engine.dispose()


class _ServerTransaction:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def rows(self, statement: str, **values: Any) -> Sequence[Row]:
        return self._execute(statement, values).all()

    def run(self, statement: str, **values: Any) -> int:
        return self._execute(statement, values).rowcount

    def _execute(self, statement: str, values: Mapping[str, Any]) -> sa.CursorResult[Any]:
        import sqlalchemy

        text = sqlalchemy.text(statement).bindparams(
            *(sqlalchemy.bindparam(name, type_=sqlalchemy.JSON) for name, value in values.items()
              if isinstance(value, Json))
        )  # fmt: skip
        plain = {name: dict(value.value) if isinstance(value, Json) else value for name, value in values.items()}
        return self._connection.execute(text, plain)
