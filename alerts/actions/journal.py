"""The append-only journal of what was seen, decided and done, and why. Each row's hash covers the row before it.

The chain shows that a row was changed, removed, put in or moved. Rows cut off its end leave a sound chain: for them the
head, a row of its own, says where the journal ended. With a secret the head is sealed (HMAC-SHA256), so that whoever
may write the database but lacks the secret can neither cut rows off nor write the chain anew; putting back an old head
with its old seal is found by an anchor that was kept elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from alerts.schema import JOURNAL, JOURNAL_HEAD

Kind = Literal[
    "started", "decided", "requested", "approved", "rejected", "intent", "retried", "prepared", "rehearsed", "result",
    "release", "episode",
]  # fmt: skip
_GENESIS = "0" * 64
_HEAD = "journal"
_PAGE = 1000
# Where the journal ends, by the transaction that has locked its head: nobody else can write meanwhile.
_ENDS: WeakKeyDictionary[sa.Transaction, Anchor] = WeakKeyDictionary()


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

    def to_json(self) -> dict[str, Any]:
        """The row as the API shows it."""
        return {"seq": self.seq, "time": self.time, "kind": self.kind, "body": dict(self.body), "hash": self.hash}


@dataclass(frozen=True, slots=True)
class Anchor:
    """A journal's end as it was once: kept elsewhere, it shows that rows up to it were cut off or written anew."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Anchor:
        """The anchor of `SEQ:HASH`. Raises ValueError."""
        found = re.fullmatch(r"(\d{1,18}):([0-9a-f]{64})", text.strip())
        if found is None:
            raise ValueError(f"an anchor is SEQ:HASH as `trimtab actions verify` prints it, got {text!r}")
        return cls(int(found[1]), found[2])


class JournalBroken(RuntimeError):
    """A row of the journal was changed, removed or put in afterwards."""


def lock(connection: sa.Connection) -> None:
    """Make other writers wait until the transaction ends. It comes first in it, so that nobody waits for each other."""
    _end(connection)


def append(
    connection: sa.Connection, kind: Kind, key: str, body: Mapping[str, Any], now: float, *, secret: str = ""
) -> Entry:
    """Add a row in the caller's transaction, so that it stands or falls with what it tells of."""
    end = _end(connection)
    seq, previous = end.seq + 1, end.hash
    text = json.dumps(body, sort_keys=True, ensure_ascii=False, default=str)
    digest = _digest(seq, now, kind, key, text, previous)
    connection.execute(
        JOURNAL.insert().values(seq=seq, time=now, kind=kind, key=key, body=text, previous=previous, hash=digest)
    )
    new = {"seq": seq, "hash": digest, "seal": _seal(secret, seq, digest)}
    connection.execute(JOURNAL_HEAD.update().where(JOURNAL_HEAD.c.name == _HEAD).values(new))
    _remember(connection, Anchor(seq, digest))
    return Entry(seq, now, kind, key, json.loads(text), previous, digest)


def entries(connection: sa.Connection, *, key: str = "", since: float | None = None, limit: int = 1000) -> list[Entry]:
    """Rows in order, all or those of one action, from a time on (unix seconds)."""
    query = sa.select(JOURNAL).order_by(JOURNAL.c.seq).limit(limit)
    if key:
        query = query.where(JOURNAL.c.key == key)
    if since is not None:
        query = query.where(JOURNAL.c.time >= since)
    return [_entry(row) for row in connection.execute(query)]


def untold(connection: sa.Connection, limit: int = 100) -> list[Entry]:
    """The rows after the last that receivers were told of, in order."""
    told = _locked_head(connection).told
    query = sa.select(JOURNAL).where(JOURNAL.c.seq > told).order_by(JOURNAL.c.seq).limit(limit)
    return [_entry(row) for row in connection.execute(query)]


def tell_until(connection: sa.Connection, seq: int) -> None:
    """Receivers were told of all rows up to this one."""
    head = JOURNAL_HEAD.c
    connection.execute(JOURNAL_HEAD.update().where(head.name == _HEAD, head.told < seq).values(told=seq))


def head(connection: sa.Connection) -> Anchor:
    """The journal's end, to be kept elsewhere."""
    row = connection.execute(sa.select(JOURNAL_HEAD).where(JOURNAL_HEAD.c.name == _HEAD)).first()
    last = _last(connection) if row is None else row
    return Anchor(last.seq, last.hash) if last else Anchor(0, _GENESIS)


def verify(connection: sa.Connection, *, secret: str = "", anchor: Anchor | None = None) -> int:
    """The number of rows, all of them as they were written; raises JournalBroken at the first that is not.

    With the `secret` that the journal was written with its head's seal is checked; an `anchor` must lie on the chain.
    """
    previous, count = _GENESIS, 0
    for row in _rows(connection):
        count += 1
        if row.seq != count:
            raise JournalBroken(f"journal row {count} is not there: row {row.seq} stands in its place")
        if row.previous != previous or row.hash != _digest(row.seq, row.time, row.kind, row.key, row.body, previous):
            raise JournalBroken(f"journal row {row.seq} is not what was written: its hash or its place is wrong")
        previous = row.hash
        if anchor is not None and anchor.seq == count and anchor.hash != previous:
            raise JournalBroken(f"journal row {count} is not the one of the anchor: the chain was written anew")
    if anchor is not None and anchor.seq > count:
        raise JournalBroken(f"the journal ends at row {count}, the anchor is row {anchor.seq}: its end was cut off")
    _verify_head(connection, count, previous, secret)
    return count


def _verify_head(connection: sa.Connection, count: int, last: str, secret: str) -> None:
    row = connection.execute(sa.select(JOURNAL_HEAD).where(JOURNAL_HEAD.c.name == _HEAD)).first()
    if row is None:
        if count:
            raise JournalBroken(f"the journal has {count} rows and no head: the head was removed")
        return
    if row.seq > count:
        raise JournalBroken(f"journal row {row.seq} is not there: rows after {count} were cut off the end")
    if (row.seq, row.hash) != (count, last):
        raise JournalBroken(f"journal row {row.seq + 1} and later are not known to the head: they were put in")
    if secret and not hmac.compare_digest(row.seal, _seal(secret, count, last)):
        raise JournalBroken(
            f"the head at row {count} is not sealed with this secret: it was written without it, or by somebody else"
        )


def _end(connection: sa.Connection) -> Anchor:
    """Where the journal ends, which stays so until the transaction is over or appends."""
    transaction = connection.get_transaction()
    known = None if transaction is None else _ENDS.get(transaction)
    if known is not None:
        return known
    row = _locked_head(connection)
    return _remember(connection, Anchor(row.seq, row.hash))


def _remember(connection: sa.Connection, end: Anchor) -> Anchor:
    transaction = connection.get_transaction()
    if transaction is None:
        return end
    if connection.in_nested_transaction():  # which may be rolled back by itself
        _ENDS.pop(transaction, None)
    else:
        _ENDS[transaction] = end
    return end


def _locked_head(connection: sa.Connection) -> Any:
    query = sa.select(JOURNAL_HEAD).where(JOURNAL_HEAD.c.name == _HEAD).with_for_update()
    row = connection.execute(query).first()
    if row is None:
        # A journal from before there were heads: its last row is its end, and was told of.
        last = _last(connection)
        seq, digest = (last.seq, last.hash) if last else (0, _GENESIS)
        values = {"name": _HEAD, "seq": seq, "hash": digest, "seal": "", "told": seq}
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        connection.execute(insert(JOURNAL_HEAD).values(values).on_conflict_do_nothing())
        row = connection.execute(query).one()
    return row


def _last(connection: sa.Connection) -> Any:
    return connection.execute(sa.select(JOURNAL.c.seq, JOURNAL.c.hash).order_by(JOURNAL.c.seq.desc()).limit(1)).first()


def _rows(connection: sa.Connection) -> Iterator[Any]:
    """Every row in order, a page at a time: a journal may be larger than memory."""
    after = None
    while True:
        query = sa.select(JOURNAL).order_by(JOURNAL.c.seq).limit(_PAGE)
        page = connection.execute(query if after is None else query.where(JOURNAL.c.seq > after)).all()
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1].seq


def _entry(row: Any) -> Entry:
    return Entry(row.seq, row.time, row.kind, row.key, json.loads(row.body), row.previous, row.hash)


def _digest(seq: int, time: float, kind: str, key: str, body: str, previous: str) -> str:
    return hashlib.sha256(json.dumps([seq, time, kind, key, body, previous]).encode()).hexdigest()


def _seal(secret: str, seq: int, digest: str) -> str:
    return hmac.new(secret.encode(), f"{seq}:{digest}".encode(), hashlib.sha256).hexdigest() if secret else ""
