"""Silences in SQL: while one matches an alert, nobody is told of it and nothing acts on it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from alerts.labels import Labels, Matcher, match_all
from alerts.schema import SILENCES

RETENTION_SECONDS = 5 * 86400.0


class UnknownSilence(LookupError):
    """No silence has this id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """Matchers and the time (unix seconds) for which they silence."""

    id: str = ""
    matchers: tuple[Matcher, ...]
    starts_at: float
    ends_at: float
    updated_at: float = 0.0
    created_by: str
    comment: str

    def __post_init__(self) -> None:
        if not self.matchers:
            raise ValueError("silence invalid: at least one matcher required")
        if all(map(_takes_empty, self.matchers)):
            raise ValueError(
                "silence invalid: at least one matcher must not match the empty string (or it would silence everything)"
            )
        if self.ends_at < self.starts_at:
            raise ValueError("silence invalid: end time must not be before start time")

    def state(self, now: float) -> str:
        """`pending`, `active` or `expired`."""
        if now >= self.ends_at:
            return "expired"
        return "pending" if now < self.starts_at else "active"


def silenced_by(silences: Iterable[Silence], labels: Labels, now: float) -> list[str]:
    """Ids of the active silences that match the labels."""
    return [s.id for s in silences if s.state(now) == "active" and match_all(s.matchers, labels)]


class SilenceStore:
    """Silences, kept five days beyond their end."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def all(self) -> list[Silence]:
        """Every silence, the one that ends last first."""
        with self._engine.begin() as connection:
            rows = connection.execute(sa.select(SILENCES).order_by(SILENCES.c.ends_at.desc())).mappings()
            return [_silence(row) for row in rows]

    def get(self, id: str) -> Silence:
        """One silence; raises UnknownSilence."""
        with self._engine.begin() as connection:
            row = connection.execute(sa.select(SILENCES).where(SILENCES.c.id == id)).mappings().first()
        if row is None:
            raise UnknownSilence(f"silence not found: there is no silence {id}")
        return _silence(row)

    def set(self, silence: Silence, now: float) -> str:
        """Store a new silence or change one by its id; the id. Raises ValueError and UnknownSilence.

        Like Alertmanager's: what would change the past (what an active one matches, or when it started) ends it and
        makes a new one; one that ended is made anew.
        """
        if silence.ends_at < now:
            raise ValueError("Failed to create silence: end time can't be in the past")
        if silence.id:
            old = self.get(silence.id)
            if _can_become(old, silence, now):
                self._write(replace(silence, updated_at=now))
                return silence.id
            self.expire(old.id, now)
        created = replace(silence, id=str(uuid.uuid4()), starts_at=max(silence.starts_at, now), updated_at=now)
        self._write(created)
        return created.id

    def expire(self, id: str, now: float) -> None:
        """End a silence now, if it has not ended; raises UnknownSilence."""
        silence = self.get(id)
        if silence.state(now) != "expired":
            self._write(replace(silence, starts_at=min(silence.starts_at, now), ends_at=now, updated_at=now))

    def _write(self, silence: Silence) -> None:
        row = {
            "id": silence.id,
            "matchers": [[m.name, m.op, m.value] for m in silence.matchers],
            "starts_at": silence.starts_at,
            "ends_at": silence.ends_at,
            "updated_at": silence.updated_at,
            "created_by": silence.created_by,
            "comment": silence.comment,
        }
        old = silence.updated_at - RETENTION_SECONDS
        with self._engine.begin() as connection:
            connection.execute(SILENCES.delete().where(sa.or_(SILENCES.c.id == silence.id, SILENCES.c.ends_at < old)))
            connection.execute(SILENCES.insert().values(row))


def _silence(row: Any) -> Silence:
    matchers: Sequence[Sequence[str]] = row["matchers"]
    return Silence(**{**row, "matchers": tuple(Matcher(*matcher) for matcher in matchers)})


def _can_become(old: Silence, new: Silence, now: float) -> bool:
    """Whether a silence may be changed in place."""
    state = old.state(now)
    if state == "expired" or old.matchers != new.matchers:
        return False
    if state == "pending":
        return new.starts_at >= now
    return int(new.starts_at) == int(old.starts_at) and new.ends_at >= now


def _takes_empty(matcher: Matcher) -> bool:
    """Whether the matcher asks for nothing. A negative one does not count: it was meant to leave something out."""
    if matcher.op == "=":
        return matcher.value == ""
    return matcher.op == "=~" and matcher.matches_empty
