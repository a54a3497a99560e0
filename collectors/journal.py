"""Group commit: many small writes, one transaction and one fsync, in the order they came."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa

Write = Callable[[sa.Connection], Any]
Then = Callable[[Any], None]

GROUP_LIMIT = 512


class JournalClosed(RuntimeError):
    """The journal takes no more writes: the collector is shutting down."""


@dataclass(frozen=True, slots=True)
class _Entry:
    write: Write
    then: Then | None
    done: Future[Any]


class Journal:
    """One writer thread over one database.

    `submit(write)` gives a future that resolves when the write is committed, or carries the database's error. `then` is
    called with the write's result after the commit, in commit order, before the future resolves.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="collector-journal", daemon=True)
        self._thread.start()

    def submit(self, write: Write, then: Then | None = None) -> Future[Any]:
        entry = _Entry(write, then, Future())
        with self._lock:
            if self._closed:
                raise JournalClosed("the collector is shutting down: send the batch again after its restart")
            self._queue.put(entry)
        return entry.done

    def keep_latest(self, table: sa.Table, groups: Sequence[str], time: str, keep: int) -> None:
        """Keeps the last `keep` rows by the column `time` of each group of equal values in the columns `groups`."""
        columns = [table.c[name] for name in groups]
        with self.engine.connect() as connection:
            found = connection.execute(sa.select(*columns).distinct()).all()
        for values in found:
            own = sa.and_(*(column == value for column, value in zip(columns, values, strict=True)))
            oldest = sa.select(table.c[time]).where(own).order_by(table.c[time].desc()).offset(keep).limit(1)
            statement = table.delete().where(own & (table.c[time] <= oldest.scalar_subquery()))
            self.submit(partial(_execute, statement)).result()

    def waiting(self) -> int:
        """Writes not yet committed."""
        return self._queue.qsize()

    def close(self) -> None:
        """Commits what was submitted, then ends the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            group, last = self._gather(first)
            self._commit(group)
            if last:
                return

    def _gather(self, first: _Entry) -> tuple[list[_Entry], bool]:
        group = [first]
        while len(group) < GROUP_LIMIT:
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                break
            if entry is None:
                return group, True
            group.append(entry)
        return group, False

    def _commit(self, group: list[_Entry]) -> None:
        try:
            with self.engine.begin() as connection:
                results = [entry.write(connection) for entry in group]
        except Exception as error:
            if len(group) == 1:
                group[0].done.set_exception(error)
                return
            # One write may have spoilt the others' transaction: each gets its own.
            for entry in group:
                self._commit([entry])
            return
        for entry, result in zip(group, results, strict=True):
            self._finish(entry, result)

    def _finish(self, entry: _Entry, result: Any) -> None:
        try:
            if entry.then is not None:
                entry.then(result)
        except Exception as error:  # it is committed, but what follows the commit failed: the sender must know
            entry.done.set_exception(error)
            return
        entry.done.set_result(result)


def _execute(statement: sa.Delete, connection: sa.Connection) -> None:
    connection.execute(statement)
