"""Walks in SQL: saved with their row in the journal, and changed by one process at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from alerts.actions.journal import Entry, append, entries, lock
from alerts.releases.walk import ENDED, Phase, Walk
from alerts.schema import RELEASE_WALKS

_TABLE = RELEASE_WALKS
_OPEN = _TABLE.c.phase.not_in([phase.value for phase in ENDED])


class InProgress(ValueError):
    """The model has a release in progress already."""


class WalkStore:
    """The walks of all models. Raises sqlalchemy's errors; then nothing has changed."""

    def __init__(self, engine: sa.Engine, *, secret: str = "") -> None:
        self._engine = engine
        self._secret = secret

    def begin(self, walk: Walk, now: float) -> Walk:
        """Save a new walk and give it its id. Raises InProgress when the model has one that is not over."""
        with self._engine.begin() as connection:
            lock(connection)
            row = connection.execute(sa.select(_TABLE).where(_TABLE.c.model == walk.model, _OPEN)).first()
            if row is not None:
                mend = f"let it end, or abort it first (trimtab releases abort {walk.model})"
                if row.phase == Phase.GUARDING:
                    mend = f"end its watch first (trimtab releases approve {walk.model})"
                raise InProgress(f"release {row.id} of {walk.model} (version {row.version}) is {row.phase}: {mend}")
            result = connection.execute(_TABLE.insert().values({**_row(walk), "revision": 1}))
            key = result.inserted_primary_key
            assert key is not None
            begun = replace(walk, id=key[0])
            connection.execute(_TABLE.update().where(_TABLE.c.id == begun.id).values(body=begun.dumped()))
            self._write(connection, begun, now, f"version {walk.version} is to be released: {walk.reason}", {})
        return begun

    def change(
        self, before: Walk, after: Walk, revision: int, now: float, inputs: Mapping[str, Any], *, why: str = ""
    ) -> bool:
        """Save what became of a walk; False when another process has changed it. What matters goes to the journal.

        `why` is the reason that a person gave for it.
        """
        told = _told(before, after)
        if told and why not in told:
            told = f"{told}; the reason given: {why}"
        with self._engine.begin() as connection:
            lock(connection)
            where = sa.and_(_TABLE.c.id == after.id, _TABLE.c.revision == revision)
            values = {**_row(after), "revision": revision + 1}
            if connection.execute(_TABLE.update().where(where).values(values)).rowcount != 1:
                return False
            if told:
                self._write(connection, after, now, told, inputs)
        return True

    def open(self) -> list[tuple[Walk, int]]:
        """Every walk that is not over, with its revision."""
        with self._engine.begin() as connection:
            return _walks(connection.execute(sa.select(_TABLE).where(_OPEN).order_by(_TABLE.c.id)))

    def latest(self, *, model: str = "", limit: int = 100) -> list[tuple[Walk, int]]:
        """The newest walks first, with their revisions."""
        query = sa.select(_TABLE).order_by(_TABLE.c.id.desc()).limit(limit)
        with self._engine.begin() as connection:
            return _walks(connection.execute(query.where(_TABLE.c.model == model) if model else query))

    def history(self, walk: Walk) -> list[Entry]:
        """The journal's rows of a walk."""
        with self._engine.begin() as connection:
            return entries(connection, key=walk.key)

    def _write(self, connection: sa.Connection, walk: Walk, now: float, told: str, inputs: Mapping[str, Any]) -> None:
        body = {
            "told": told,
            "model": walk.model,
            "version": walk.version,
            "release": walk.release,
            "phase": walk.phase.value,
            "place": walk.place,
            "actor": walk.actor,
            "policy": walk.policy.digest,
            **inputs,
        }
        append(connection, "release", walk.key, body, now, secret=self._secret)


def _told(before: Walk, after: Walk) -> str:
    """What a change is in words; "" for one that only counts on."""
    if after.paused and after.paused != before.paused:
        return f"paused: {after.paused}"
    if before.paused and not after.paused and not after.ended:
        return f"it goes on ({after.actor})"
    if (after.phase, after.step, after.held) != (before.phase, before.step, before.held):
        return f"{after.phase.value.replace('_', ' ')}, {after.place}: {after.reason}"
    if after.tries > before.tries:
        return f"{after.phase.value.replace('_', ' ')} is tried again"
    return ""


def _row(walk: Walk) -> dict[str, Any]:
    return {
        "model": walk.model,
        "version": walk.version,
        "phase": walk.phase.value,
        "release": walk.release,
        "began_at": walk.began_at,
        "ended_at": walk.ended_at,
        "body": walk.dumped(),
    }


def _walks(rows: sa.CursorResult[Any]) -> list[tuple[Walk, int]]:
    return [(Walk.from_json(json.loads(row.body)), row.revision) for row in rows]
