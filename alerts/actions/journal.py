"""The append-only journal of what was seen, decided and done, and why. Each row's hash covers the row before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from alerts.schema import JOURNAL

Kind = Literal["decided", "requested", "approved", "rejected", "intent", "retried", "result"]
_GENESIS = "0" * 64


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: `kind` of thing, `key` of the action it belongs to, `body` with what was known."""

    seq: int
    time: float
    kind: str
    key: str
    body: Mapping[str, Any]
    previous: str
    hash: str


class JournalBroken(RuntimeError):
    """A row of the journal was changed, removed or put in afterwards."""


def append(connection: sa.Connection, kind: Kind, key: str, body: Mapping[str, Any], now: float) -> Entry:
    """Add a row in the caller's transaction, so that it stands or falls with what it tells of."""
    last = connection.execute(sa.select(JOURNAL.c.seq, JOURNAL.c.hash).order_by(JOURNAL.c.seq.desc()).limit(1)).first()
    seq, previous = (last.seq + 1, last.hash) if last else (1, _GENESIS)
    text = json.dumps(body, sort_keys=True, ensure_ascii=False, default=str)
    digest = _digest(seq, now, kind, key, text, previous)
    connection.execute(
        JOURNAL.insert().values(seq=seq, time=now, kind=kind, key=key, body=text, previous=previous, hash=digest)
    )
    return Entry(seq, now, kind, key, json.loads(text), previous, digest)


def entries(connection: sa.Connection, *, key: str = "", limit: int = 1000) -> list[Entry]:
    """Rows in order, all or those of one action."""
    query = sa.select(JOURNAL).order_by(JOURNAL.c.seq).limit(limit)
    if key:
        query = query.where(JOURNAL.c.key == key)
    return [
        Entry(row.seq, row.time, row.kind, row.key, json.loads(row.body), row.previous, row.hash)
        for row in connection.execute(query)
    ]


def verify(connection: sa.Connection) -> int:
    """The number of rows, all of them as they were written; raises JournalBroken at the first that is not."""
    previous, count = _GENESIS, 0
    for row in connection.execute(sa.select(JOURNAL).order_by(JOURNAL.c.seq)):
        count += 1
        expected = _digest(row.seq, row.time, row.kind, row.key, row.body, previous)
        if row.seq != count or row.previous != previous or row.hash != expected:
            raise JournalBroken(f"journal row {row.seq} is not what was written: its hash or its place is wrong")
        previous = row.hash
    return count


def _digest(seq: int, time: float, kind: str, key: str, body: str, previous: str) -> str:
    return hashlib.sha256(json.dumps([seq, time, kind, key, body, previous]).encode()).hexdigest()
