"""Reference profiles by model and version: kept in SQL, handed to the measures."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

import sqlalchemy as sa

from collectors.database import REFERENCES, WINDOWS, replace
from collectors.journal import Journal
from collectors.windows import Pane
from observability.profile import Profile


class References:
    """The references, durable when the future of `put` resolves."""

    def __init__(self, journal: Journal, clock: Callable[[], float]) -> None:
        self._journal = journal
        self._clock = clock

    def put(self, model: str, version: str, body: bytes, then: Callable[[Profile], None]) -> Future[None]:
        """Keeps a profile as JSON; `then` gets it after the commit. ProfileError when the body is none."""
        profile = Profile.from_json(body)
        row = {"model": model, "version": version, "profile": body, "updated_at": self._clock()}
        return self._journal.submit(
            lambda connection: replace(connection, REFERENCES, row),
            lambda _: then(profile),
        )

    def get(self, model: str, version: str) -> bytes | None:
        """The profile as it was put."""
        chosen = (REFERENCES.c.model == model) & (REFERENCES.c.version == version)
        with self._journal.engine.connect() as connection:
            body: bytes | None = connection.execute(sa.select(REFERENCES.c.profile).where(chosen)).scalar()
        return body

    def all(self) -> list[tuple[str, str, Profile]]:
        """Every reference."""
        with self._journal.engine.connect() as connection:
            rows = connection.execute(sa.select(REFERENCES)).all()
        return [(row.model, row.version, Profile.from_json(row.profile)) for row in rows]


class ClosedWindows:
    """Closed windows, kept so that history survives a restart."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def put(self, pane: Pane) -> Future[None]:
        row = {
            "model": pane.model,
            "version": pane.version,
            "start": pane.start,
            "end": pane.end,
            "body": pane.to_json(),
        }
        return self._journal.submit(lambda connection: replace(connection, WINDOWS, row))

    def all(self) -> list[Pane]:
        """Every kept window, oldest first."""
        with self._journal.engine.connect() as connection:
            rows = connection.execute(sa.select(WINDOWS).order_by(WINDOWS.c.end)).all()
        return [Pane.from_json(row.model, row.version, row.start, row.end, row.body) for row in rows]

    def prune(self, keep: int) -> None:
        """Keeps the last `keep` windows of each version."""
        with self._journal.engine.connect() as connection:
            versions = connection.execute(sa.select(WINDOWS.c.model, WINDOWS.c.version).distinct()).all()
        for model, version in versions:
            own = (WINDOWS.c.model == model) & (WINDOWS.c.version == version)
            oldest = sa.select(WINDOWS.c.end).where(own).order_by(WINDOWS.c.end.desc()).offset(keep).limit(1)
            statement = WINDOWS.delete().where(own & (WINDOWS.c.end <= oldest.scalar_subquery()))
            self._journal.submit(partial(_execute, statement)).result()


def _execute(statement: sa.Delete, connection: sa.Connection) -> None:
    connection.execute(statement)
