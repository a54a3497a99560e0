"""The labelled events of a lake as a stream: in event-time order, each once, from a position that can be kept.

An event comes when its label is there. One whose label came after later events were taken still comes, as long as it is
at most `lateness` older than the newest that was taken: the position knows which of those were taken already.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from observability.events import FEATURE
from observability.lake import read_labelled
from training.data import DataError, TabularTask, labelled
from training.retrain import attribute

ID, TIME = "_id", "_time"
Hashes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Position:
    """Where a reader stands: the newest event time taken (nanoseconds), and what was taken of the time before it.

    `taken` and `times` are hashes of ids and event times (int64 `[events]`) of those that could come again.
    """

    newest: int = 0
    taken: Hashes = field(default_factory=lambda: np.empty(0, np.int64))
    times: Hashes = field(default_factory=lambda: np.empty(0, np.int64))

    def after(self, ids: Hashes, times: Hashes, lateness: int) -> Position:
        """The position when these were taken, too; what is more than `lateness` nanoseconds old is forgotten."""
        newest = max(self.newest, int(times.max())) if len(times) else self.newest
        taken, when = np.concatenate([self.taken, ids]), np.concatenate([self.times, times])
        kept = when >= newest - lateness
        return Position(newest, taken[kept], when[kept])


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledStream:
    """The labelled events of a task's model in a lake; times are in seconds."""

    task: TabularTask
    lake: Path
    lateness: float = 7 * 86_400.0
    """How much older than the newest taken an event may be whose label comes late; older ones are left."""
    delay: float = 0.0
    """Events within so long of the newest labelled one wait for the labels of their neighbours."""
    since: float | None = None
    """Event time (unix seconds) from which events are wanted at all."""
    ahead: float = 300.0
    """How far an event's time may lie beyond the clock; later ones wait until then: a sender whose clock is wrong must
    not make all others' events too late."""
    clock: Callable[[], float] = time.time

    def read(self, position: Position) -> pa.Table:
        """What is there now beyond a position: the task's columns, ID and TIME (nanoseconds), in order of time.

        DataError where the events lack a column of the task.
        """
        oldest = (position.newest - self._lateness) / 1e9 if position.newest else None
        bounds = [bound for bound in (oldest, self.since) if bound is not None]
        events = read_labelled(self.lake, self.task.model, since=max(bounds, default=None))
        missing = [name for name in self.task.features if FEATURE + name not in events.column_names]
        if missing and len(events):
            raise DataError(
                f"the events of {self.task.model} have no {FEATURE + missing[0]}: was another signature served?"
            )
        if not len(events):
            return pa.table({ID: pa.array([], pa.int64()), TIME: pa.array([], pa.int64())})
        columns = {name: events.column(FEATURE + name) for name in self.task.features}
        columns[self.task.label] = events.column("label")
        columns[self.task.group] = attribute(events.column("attributes"), self.task.group)
        if self.task.time is not None:
            columns.setdefault(self.task.time, events.column("time"))
        columns[ID] = pa.chunked_array([hashes(events.column("id").to_pylist())])
        columns[TIME] = events.column("time").cast(pa.int64())
        rows = pa.table(columns)
        rows = labelled(self.task, rows.filter(pc.is_valid(rows.column(self.task.group))))
        times = rows.column(TIME).to_numpy()
        # To the nanosecond: what the position has forgotten must not come again by a rounding of seconds.
        wanted = (times >= position.newest - self._lateness) & (times <= round((self.clock() + self.ahead) * 1e9))
        if wanted.any() and self.delay:
            wanted &= times <= times[wanted].max() - round(self.delay * 1e9)
        wanted &= ~np.isin(rows.column(ID).to_numpy(), position.taken)
        return rows.filter(pa.array(wanted))

    def after(self, position: Position, rows: pa.Table) -> Position:
        """The position when the rows were taken."""
        return position.after(rows.column(ID).to_numpy(), rows.column(TIME).to_numpy(), self._lateness)

    @property
    def _lateness(self) -> int:
        return round(self.lateness * 1e9)


def hashes(ids: Iterable[str]) -> Hashes:
    """64 bits of BLAKE2b of each id: two of a million are the same with a chance of 3 in 100 million."""
    raw = b"".join(hashlib.blake2b(one.encode(), digest_size=8).digest() for one in ids)
    return np.frombuffer(raw, np.int64)
