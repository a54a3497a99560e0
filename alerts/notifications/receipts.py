"""Ids of messages that were delivered and whose delivery is not committed yet, in a file beside the database.

A commit waits for the disk and for other writers; a line of a file does not. A process that is killed between a
receiver's answer and the commit finds the line at its next start, and does not send the message again.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import sqlalchemy as sa


class Receipts:
    """Without a path (a database that is no file) it keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file = -1
        self._open: set[str] = set()
        self._lock = threading.Lock()

    @classmethod
    def beside(cls, engine: sa.Engine) -> Receipts:
        """The file beside a SQLite database."""
        name = engine.url.database if engine.url.get_backend_name() == "sqlite" else None
        return cls(Path(f"{name}-delivered") if name and name != ":memory:" else None)

    def read(self) -> set[str]:
        """The ids in the file; lines that are not whole are none."""
        try:
            text = self._path.read_text() if self._path is not None else ""
        except FileNotFoundError:
            return set()
        return {line for line in text.split("\n")[:-1] if line}

    def add(self, id: str) -> None:
        """The message was delivered."""
        if self._path is None:
            return
        with self._lock:
            if self._file < 0:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            self._open.add(id)
            os.write(self._file, f"{id}\n".encode())

    def settle(self, id: str) -> None:
        """The delivery is committed; once all are, the file is emptied."""
        with self._lock:
            self._open.discard(id)
            if not self._open and self._file >= 0:
                os.ftruncate(self._file, 0)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1
