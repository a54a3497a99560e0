"""Brings an SQLite write-ahead log into the file beside the commits, which otherwise wait for it now and then."""

from __future__ import annotations

import threading

import sqlalchemy as sa

_LOG_BYTES = 8 << 20
_LONGEST_WAIT = 30.0


class Checkpointer:
    """A thread that checkpoints when so much has been written. Without effect on any database but an SQLite file."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._written = 0
        self._wanted = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None
        if engine.dialect.name == "sqlite" and engine.url.database not in (None, "", ":memory:"):
            self._thread = threading.Thread(target=self._run, name="store-checkpoint", daemon=True)
            self._thread.start()

    def wrote(self, nbytes: int) -> None:
        """Counts what a commit wrote."""
        self._written += nbytes
        if self._written >= _LOG_BYTES:
            self._wanted.set()

    def close(self) -> None:
        """Ends the thread."""
        self._stopped = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._wanted.wait(_LONGEST_WAIT)
            self._wanted.clear()
            if self._stopped:
                return
            if self._written:
                self._written = 0
                self._checkpoint()

    def _checkpoint(self) -> None:
        try:
            with self._engine.connect() as connection:
                # Passive: it neither waits for readers nor keeps writers waiting.
                connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sa.exc.OperationalError:
            pass  # somebody else is at it, or the file has gone: the log is brought in with a later commit
