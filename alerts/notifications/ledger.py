"""What receivers were told and what they are still to be told, in SQL: a restart neither loses nor repeats anything.

A decision is committed to the outbox before the first try; a delivery is committed to the log, and leaves the outbox,
in one transaction. A process that dies while a request is under way cannot know whether it arrived: it sends the same
message again, with the same id. That window, and no other, can repeat one (with a database that is no file, the window
lasts until the commit).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from alerts.notifications.message import Message
from alerts.notifications.receipts import Receipts
from alerts.notifications.tables import GROUPS, NOTIFICATION_LOG, OUTBOX

RETENTION_SECONDS = 120 * 3600.0

Key = tuple[str, str]
"""An integration's id and a group's key."""


@dataclass(frozen=True, slots=True)
class Told:
    """What an integration was last told of a group: fingerprints, and when (unix seconds)."""

    firing: frozenset[str]
    resolved: frozenset[str]
    sent_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A notification to be delivered by `deadline`; then the group is looked at anew. Times are unix seconds."""

    integration: str
    group: str
    message: Message
    firing: frozenset[str]
    resolved: frozenset[str]
    repeat_seconds: float
    created_at: float
    deadline: float

    @property
    def id(self) -> str:
        """The message's id."""
        return self.message.id

    @property
    def key(self) -> Key:
        """What it is about, in the log."""
        return self.integration, self.message.group_key


@dataclass(frozen=True, slots=True)
class Timer:
    """When a group is looked at next, and whether it was before."""

    next_flush: float
    flushed: bool


def needs_update(
    told: Told | None,
    firing: frozenset[str],
    resolved: frozenset[str],
    *,
    send_resolved: bool,
    repeat_seconds: float,
    now: float,
) -> bool:
    """Whether a receiver is to be told. Source: Alertmanager, notify/notify.go, DedupStage.needsUpdate."""
    if told is None:
        return bool(firing)
    if not firing <= told.firing:
        return True
    if not firing:
        return bool(told.firing)
    if send_resolved and not resolved <= told.resolved:
        return True
    return told.sent_at < now - repeat_seconds


class Ledger:
    """The log and the outbox. The log is read at once, and kept in memory by the process that tells."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._receipts = Receipts.beside(engine)
        self._told: dict[Key, Told] = {}
        self._lock = threading.Lock()

    def load(self) -> tuple[list[Outgoing], dict[str, Timer]]:
        """Read all of it; what waits in the outbox, and the timers of groups."""
        with self._engine.begin() as connection:
            told = {
                (row.integration, row.group_key): Told(frozenset(row.firing), frozenset(row.resolved), row.sent_at)
                for row in connection.execute(sa.select(NOTIFICATION_LOG))
            }
            timers = {row.id: Timer(row.next_flush, bool(row.flushed)) for row in connection.execute(sa.select(GROUPS))}
        with self._lock:
            self._told = told
        waiting, receipts = self.waiting(), self._receipts.read()
        for item in waiting:
            if item.id in receipts:
                self._commit(item, item.created_at)
        return [item for item in waiting if item.id not in receipts], timers

    def waiting(self) -> list[Outgoing]:
        """What is in the outbox, the oldest first."""
        with self._engine.begin() as connection:
            return [_outgoing(row) for row in connection.execute(sa.select(OUTBOX).order_by(OUTBOX.c.created_at))]

    def told(self, key: Key) -> Told | None:
        """What an integration was last told of a group."""
        with self._lock:
            return self._told.get(key)

    def decide(
        self,
        timers: Mapping[str, Timer],
        outgoing: Sequence[Outgoing],
        silently: Mapping[Key, tuple[Told, float]],
    ) -> None:
        """Commit looks at groups: the next looks, what is to be sent, and what counts as told without sending."""
        with self._engine.begin() as connection:
            for group, timer in timers.items():
                _put_timer(connection, group, timer)
            if outgoing:
                connection.execute(OUTBOX.insert(), [_row(item) for item in outgoing])
            for key, (told, expires_at) in silently.items():
                _put_told(connection, key, told, expires_at)
        with self._lock:
            self._told.update({key: told for key, (told, _) in silently.items()})

    def delivered(self, item: Outgoing, now: float) -> None:
        """Commit a delivery."""
        self._receipts.add(item.id)
        self._commit(item, now)
        self._receipts.settle(item.id)

    def close(self) -> None:
        """Let go of files."""
        self._receipts.close()

    def _commit(self, item: Outgoing, now: float) -> None:
        told = Told(item.firing, item.resolved, now)
        with self._engine.begin() as connection:
            connection.execute(OUTBOX.delete().where(OUTBOX.c.id == item.id))
            _put_told(connection, item.key, told, expiry(item.repeat_seconds, now))
        with self._lock:
            self._told[item.key] = told

    def dropped(self, item: Outgoing) -> None:
        """Take a notification out of the outbox that will not be delivered."""
        with self._engine.begin() as connection:
            connection.execute(OUTBOX.delete().where(OUTBOX.c.id == item.id))

    def forget(self, groups: Iterable[str], now: float) -> None:
        """Delete the timers of groups that are gone, and entries of the log that nobody needs any more."""
        gone = list(groups)
        with self._engine.begin() as connection:
            if gone:
                connection.execute(GROUPS.delete().where(GROUPS.c.id.in_(gone)))
            old = list(connection.execute(sa.select(NOTIFICATION_LOG).where(NOTIFICATION_LOG.c.expires_at < now)))
            if old:
                connection.execute(NOTIFICATION_LOG.delete().where(NOTIFICATION_LOG.c.expires_at < now))
        with self._lock:
            for row in old:
                self._told.pop((row.integration, row.group_key), None)


def expiry(repeat_seconds: float, now: float) -> float:
    """When an entry of the log is of no use any more."""
    return now + min(RETENTION_SECONDS, 2 * repeat_seconds)


def digest(text: str) -> str:
    """A key short enough for an index."""
    return hashlib.sha256(text.encode()).hexdigest()


def _put_timer(connection: sa.Connection, group: str, timer: Timer) -> None:
    connection.execute(GROUPS.delete().where(GROUPS.c.id == group))
    connection.execute(GROUPS.insert().values(id=group, next_flush=timer.next_flush, flushed=timer.flushed))


def _put_told(connection: sa.Connection, key: Key, told: Told, expires_at: float) -> None:
    table, (integration, group_key) = NOTIFICATION_LOG, key
    same = (table.c.integration == integration, table.c.group_hash == digest(group_key))
    connection.execute(table.delete().where(*same))
    connection.execute(
        table.insert().values(
            integration=integration,
            group_hash=digest(group_key),
            group_key=group_key,
            firing=sorted(told.firing),
            resolved=sorted(told.resolved),
            sent_at=told.sent_at,
            expires_at=expires_at,
        )
    )


def _row(item: Outgoing) -> dict[str, Any]:
    return {
        "id": item.id,
        "integration": item.integration,
        "group_id": item.group,
        "body": msgspec.to_builtins(item.message),
        "firing": sorted(item.firing),
        "resolved": sorted(item.resolved),
        "repeat_seconds": item.repeat_seconds,
        "created_at": item.created_at,
        "deadline": item.deadline,
    }


def _outgoing(row: Any) -> Outgoing:
    return Outgoing(
        integration=row.integration,
        group=row.group_id,
        message=msgspec.convert(row.body, Message),
        firing=frozenset(row.firing),
        resolved=frozenset(row.resolved),
        repeat_seconds=row.repeat_seconds,
        created_at=row.created_at,
        deadline=row.deadline,
    )
