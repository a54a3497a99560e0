"""Event, label and profile intake: a batch is committed to the log before it is acknowledged, then compacted.

The way of a batch: `accept` commits its body and its id in one group transaction; `compact` names a run of log rows a
segment, writes their lake files under the segment's name, and removes the rows. A crash at any point repeats the
segment into files of the same names, so every row reaches the lake exactly once. A batch's position is the id of its
log row. It leaves the log when what was measured of it is durable: the log is what a restart has to measure again.
Profiles do not go to the lake but to a table of their own, until their windows are closed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

import msgspec
import numpy as np
import pyarrow as pa
import sqlalchemy as sa

from collectors.database import BATCHES, EVENT_LOG, PROFILES, SEGMENTS
from collectors.journal import Journal
from collectors.profiles import MOST_SECONDS, ProfileBatch
from observability.events import BadBatch, from_ipc, label_batch, to_ipc, validate_events, validate_labels
from observability.lake import write_events, write_labels

Signal = Literal["events", "labels", "profiles"]
# Rows of sources in quarantine: they go to a lake of their own, and nothing is measured of them.
APART = "apart"
Content: TypeAlias = pa.Table | ProfileBatch
Clock = Callable[[], float]
Measured = Callable[[Signal, Content, int], None]

# Rows of one segment: bounds the memory of a compaction.
SEGMENT_ROWS = 250_000
SEGMENT_BATCHES = 5_000
# A folder is `version=` and the name, and file systems allow 255 bytes.
MAX_NAME_BYTES = 240


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to a batch: its rows, and whether it had been accepted before."""

    accepted_rows: int
    duplicate: bool
    position: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """A readable batch: the bytes for the log and the table, or the profile, for the windows."""

    signal: Signal
    body: bytes
    table: Content


class _JsonLabel(msgspec.Struct):
    id: str
    model: str
    label: float | None
    time: float | datetime | None = None


def read_batch(signal: Signal, body: bytes) -> Batch:
    """Reads and checks an Arrow IPC stream of events or labels. BadBatch says what is wrong with it."""
    table = from_ipc(body)
    if signal == "events":
        validate_events(table)
    else:
        validate_labels(table)
    _check_names(table, "model", *(["version"] if signal == "events" else []))
    return Batch(signal, body, table)


def read_json_labels(body: bytes, now: float) -> Batch:
    """Reads `[{"id", "model", "label", "time"?}]`; a label of null takes back the one before. BadBatch.

    Time is unix seconds or RFC 3339; left out, `now`.
    """
    try:
        rows = msgspec.json.decode(body, type=list[_JsonLabel])
    except msgspec.DecodeError as error:
        raise BadBatch(f"the body is not a JSON list of labels: {error}") from error
    if not rows:
        raise BadBatch("the list of labels is empty: send at least one")
    times = np.array([_nanoseconds(row, now) for row in rows], dtype=np.int64)
    ids, models, labels = [row.id for row in rows], [row.model for row in rows], [row.label for row in rows]
    table = pa.Table.from_batches([label_batch(ids, models, labels, times)])
    _check_names(table, "model")
    return Batch("labels", to_ipc(table.to_batches()), table)


def _check_names(table: pa.Table, *columns: str) -> None:
    """Raises BadBatch for a name that no folder of the lake can have: it would hold up all that comes behind it."""
    for column in columns:
        for name in table.column(column).unique().to_pylist():
            size = len(quote(name, safe=""))
            if not 0 < size <= MAX_NAME_BYTES:
                raise BadBatch(
                    f"column {column!r} has a name of {size} bytes (percent-encoded), {name[:40]!r}: "
                    f"it names a folder, which takes 1 to {MAX_NAME_BYTES}"
                )


def _nanoseconds(row: _JsonLabel, now: float) -> int:
    seconds = _unix_seconds(row.time, now)
    if not abs(seconds) <= MOST_SECONDS:
        raise BadBatch(f"label {row.id!r} has the time {row.time}: times reach from the year 1678 to 2261")
    return round(seconds * 1e9)


def _unix_seconds(time: float | datetime | None, now: float) -> float:
    if time is None:
        return now
    if isinstance(time, datetime):
        # A time that names no zone is taken for UTC, as all times here are.
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return time


class EventLog:
    """The durable log of accepted batches.

    `measured(signal, table, position)` is called in commit order, before the answer. `settled()` says up to which
    position batches may leave the log; None means all of them.
    """

    def __init__(
        self,
        journal: Journal,
        lake: Path,
        clock: Clock,
        measured: Measured,
        settled: Callable[[], int | None] = lambda: None,
        divide: Callable[[pa.Table], tuple[pa.Table, pa.Table | None]] = lambda table: (table, None),
    ) -> None:
        self._journal = journal
        self._lake = lake
        self._clock = clock
        self._measured = measured
        self._settled = settled
        self._divide = divide
        self._compacting = threading.Lock()

    def accept(self, batch: Batch, batch_id: str) -> Future[Accepted]:
        """Commits the batch; a known id is acknowledged with no second effect. The future carries a database error."""

        rows = batch.table.num_rows
        batch, apart = self._divided(batch)

        def write(connection: sa.Connection) -> Accepted:
            key = (BATCHES.c.batch_id == batch_id) & (BATCHES.c.signal == batch.signal)
            known = connection.execute(sa.select(BATCHES.c.rows).where(key)).first()
            if known is not None:
                return Accepted(known.rows, duplicate=True)
            connection.execute(
                BATCHES.insert(),
                {"batch_id": batch_id, "signal": batch.signal, "rows": rows, "accepted_at": self._clock()},
            )
            if apart is not None:
                row = {"signal": APART, "rows": apart.num_rows, "body": to_ipc(apart.to_batches())}
                connection.execute(EVENT_LOG.insert(), row)
                if batch.table.num_rows == 0:
                    return Accepted(rows, duplicate=False)
            logged: Any = connection.execute(
                EVENT_LOG.insert(), {"signal": batch.signal, "rows": batch.table.num_rows, "body": batch.body}
            )
            return Accepted(rows, duplicate=False, position=logged.inserted_primary_key[0])

        def then(answer: Accepted) -> None:
            if not answer.duplicate and answer.position:
                self._measured(batch.signal, batch.table, answer.position)

        return self._journal.submit(write, then)

    def _divided(self, batch: Batch) -> tuple[Batch, pa.Table | None]:
        """A batch without the rows of sources in quarantine, and those."""
        if batch.signal != "events":
            return batch, None
        good, apart = self._divide(batch.table)
        return (batch, None) if apart is None else (Batch(batch.signal, _body(good), good), apart)

    def waiting_rows(self) -> int:
        """Rows in the log that are not in the lake yet."""
        with self._journal.engine.connect() as connection:
            return int(connection.execute(sa.select(sa.func.coalesce(sa.func.sum(EVENT_LOG.c.rows), 0))).scalar_one())

    def tail(self) -> Iterator[tuple[Signal, Content, int]]:
        """The batches in the log, in the order of their positions."""
        with self._journal.engine.connect() as connection:
            positions = connection.execute(sa.select(EVENT_LOG.c.id).order_by(EVENT_LOG.c.id)).scalars().all()
            for position in positions:
                row = connection.execute(sa.select(EVENT_LOG).where(EVENT_LOG.c.id == position)).one()
                if row.signal == APART:
                    continue
                read = ProfileBatch.from_bytes if row.signal == "profiles" else from_ipc
                yield row.signal, read(row.body), position

    def profiles(self, since: float) -> Iterator[ProfileBatch]:
        """The profiles that left the log, whose time is at or after the unix time `since`."""
        with self._journal.engine.connect() as connection:
            chosen = sa.select(PROFILES.c.id).where(PROFILES.c.time >= since).order_by(PROFILES.c.id)
            for position in connection.execute(chosen).scalars().all():
                body = sa.select(PROFILES.c.body).where(PROFILES.c.id == position)
                yield ProfileBatch.from_bytes(connection.execute(body).scalar_one())

    def last_position(self) -> int:
        """The highest position in the log; 0 when it is empty."""
        with self._journal.engine.connect() as connection:
            return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(EVENT_LOG.c.id), 0))).scalar_one())

    def compact(self) -> int:
        """Moves what is settled from the log into the lake; returns the rows moved."""
        moved = 0
        with self._compacting:
            until = self._settled()
            while (segment := self._open_segment(until)) is not None:
                moved += self._write_segment(segment)
        return moved

    def forget_batches(self, before: float) -> int:
        """Drops ids accepted before the unix time `before`: a retry that old would be taken as new."""

        def write(connection: sa.Connection) -> int:
            return connection.execute(BATCHES.delete().where(BATCHES.c.accepted_at < before)).rowcount

        return int(self._journal.submit(write).result())

    def forget_profiles(self, closed_until: Mapping[str, float]) -> None:
        """Drops the profiles of windows that are closed and kept, by model."""

        def write(connection: sa.Connection) -> None:
            for model, end in closed_until.items():
                connection.execute(PROFILES.delete().where((PROFILES.c.model == model) & (PROFILES.c.time < end)))

        self._journal.submit(write).result()

    def _open_segment(self, until: int | None) -> int | None:
        """The segment to write: one that a crash left behind, else a new one over the oldest rows."""

        def write(connection: sa.Connection) -> int | None:
            left = connection.execute(sa.select(sa.func.min(SEGMENTS.c.last_id))).scalar()
            if left is not None:
                return int(left)
            oldest = sa.select(EVENT_LOG.c.id, EVENT_LOG.c.rows).order_by(EVENT_LOG.c.id).limit(SEGMENT_BATCHES)
            if until is not None:
                oldest = oldest.where(EVENT_LOG.c.id <= until)
            last, rows = None, 0
            for row in connection.execute(oldest):
                last, rows = row.id, rows + row.rows
                if rows >= SEGMENT_ROWS:
                    break
            if last is not None:
                connection.execute(SEGMENTS.insert(), {"last_id": last})
            return last

        segment: int | None = self._journal.submit(write).result()
        return segment

    def _write_segment(self, segment: int) -> int:
        chosen = EVENT_LOG.c.id <= segment  # one writer: no id at or below it can still come
        with self._journal.engine.connect() as connection:
            rows = connection.execute(
                sa.select(EVENT_LOG.c.id, EVENT_LOG.c.signal, EVENT_LOG.c.body).where(chosen).order_by(EVENT_LOG.c.id)
            ).all()
        moved = 0
        ways = (("events", write_events, self._lake), ("labels", write_labels, self._lake),
                (APART, write_events, self._lake / "quarantined"))  # fmt: skip
        for signal, write_rows, lake in ways:
            tables = [from_ipc(row.body) for row in rows if row.signal == signal]
            for number, table in enumerate(merged(tables)):
                moved += table.num_rows
                write_rows(lake, table, f"segment-{segment:012d}-{number}")

        profiles = [_kept(row.id, row.body) for row in rows if row.signal == "profiles"]
        moved += sum(int(row.pop("rows")) for row in profiles)

        def forget(connection: sa.Connection) -> None:
            if profiles:
                connection.execute(PROFILES.insert(), profiles)
            connection.execute(EVENT_LOG.delete().where(chosen))
            connection.execute(SEGMENTS.delete().where(SEGMENTS.c.last_id == segment))

        self._journal.submit(forget).result()
        return moved


def _body(table: pa.Table) -> bytes:
    return to_ipc(table.to_batches()) if table.num_rows else b""


def _kept(position: int, body: bytes) -> dict[str, Any]:
    batch = ProfileBatch.from_bytes(body)
    return {"id": position, "model": batch.model, "time": batch.time, "body": body, "rows": batch.num_rows}


def merged(tables: list[pa.Table]) -> list[pa.Table]:
    """The tables in as few as their types allow; models with other columns of the same name stay apart.

    Grouped by model, so that one model's columns do not become null columns of another.
    """
    groups: dict[tuple[object, ...], list[pa.Table]] = {}
    for table in tables:
        schema = table.schema.remove_metadata()
        groups.setdefault(tuple(zip(schema.names, map(str, schema.types), strict=True)), []).append(
            table.replace_schema_metadata(None)
        )
    return [pa.concat_tables(group) for group in groups.values()]
