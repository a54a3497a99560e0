"""Reference profiles by version, and closed windows with how far measuring had come: kept in SQL for a restart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

import msgspec
import sqlalchemy as sa

from collectors.database import MEASURED, REFERENCES, WINDOWS, replace
from collectors.drift.calibration import Calibration
from collectors.journal import Journal
from collectors.windows import ModelTime, Pane
from observability.columns import ProfileError
from observability.profile import Profile

STANDING = "windows"
EVIDENCE = "evidence/"


class _StoredStanding(msgspec.Struct):
    position: int
    times: dict[str, tuple[float | None, float | None]]


@dataclass(frozen=True, slots=True)
class Reference:
    """What a version was registered with: the profile of its training data and what its blocks say of chance."""

    profile: Profile
    calibration: Calibration | None = None

    @staticmethod
    def from_json(body: bytes) -> Reference:
        """A profile's JSON, which may carry `"calibration"`. ProfileError when it is something else."""
        profile = Profile.from_json(body)
        value = msgspec.json.decode(body, type=_CalibrationOnly).calibration
        if value is None:
            return Reference(profile)
        try:
            return Reference(profile, Calibration.from_json(value))
        except ValueError as error:
            raise ProfileError(f"the reference's calibration cannot be read: {error}") from error


class _CalibrationOnly(msgspec.Struct):
    calibration: dict[str, Any] | None = None


class References:
    """The references, durable when the future of `put` resolves."""

    def __init__(self, journal: Journal, clock: Callable[[], float]) -> None:
        self._journal = journal
        self._clock = clock

    def put(self, model: str, version: str, body: bytes, then: Callable[[Reference], None]) -> Future[None]:
        """Keeps a reference as JSON; `then` gets it after the commit. ProfileError when the body is none."""
        reference = Reference.from_json(body)
        row = {"model": model, "version": version, "profile": body, "updated_at": self._clock()}
        return self._journal.submit(
            lambda connection: replace(connection, REFERENCES, row),
            lambda _: then(reference),
        )

    def get(self, model: str, version: str) -> bytes | None:
        """The profile as it was put."""
        chosen = (REFERENCES.c.model == model) & (REFERENCES.c.version == version)
        with self._journal.engine.connect() as connection:
            body: bytes | None = connection.execute(sa.select(REFERENCES.c.profile).where(chosen)).scalar()
        return body

    def all(self) -> list[tuple[str, str, Reference]]:
        """Every reference."""
        with self._journal.engine.connect() as connection:
            rows = connection.execute(sa.select(REFERENCES)).all()
        return [(row.model, row.version, Reference.from_json(row.profile)) for row in rows]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where measuring stands: the log position up to which it is in `panes` and in those stored before."""

    position: int
    times: Mapping[str, ModelTime]
    panes: Sequence[Pane] = ()
    """Panes closed or amended since they were stored last."""
    alarms: Mapping[tuple[str, str], bytes] = field(default_factory=dict)
    """The evidence of versions, as JSON, that changed since it was stored last."""


class ClosedWindows:
    """Closed windows, kept so that history survives a restart, and how far measuring had come with them."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def put(self, standing: Standing) -> Future[None]:
        """Keeps the panes and the position in one transaction."""
        rows = [
            {
                "model": pane.model,
                "version": pane.version,
                "start": pane.start,
                "end": pane.end,
                "body": pane.to_json(),
            }
            for pane in standing.panes
        ]
        stored = _StoredStanding(
            standing.position,
            {model: (_finite(time.latest), _finite(time.closed_until)) for model, time in standing.times.items()},
        )
        body = msgspec.json.encode(stored)

        def write(connection: sa.Connection) -> None:
            for row in rows:
                replace(connection, WINDOWS, row)
            replace(connection, MEASURED, {"name": STANDING, "body": body})
            for key, evidence in standing.alarms.items():
                replace(connection, MEASURED, {"name": _evidence_name(key), "body": evidence})

        return self._journal.submit(write)

    def standing(self) -> Standing | None:
        """The last standing, without its panes; None in a database that has none."""
        with self._journal.engine.connect() as connection:
            chosen = sa.select(MEASURED.c.body).where(MEASURED.c.name == STANDING)
            body: bytes | None = connection.execute(chosen).scalar()
        if body is None:
            return None
        stored = msgspec.json.decode(body, type=_StoredStanding)
        times = {
            model: ModelTime(-math.inf if latest is None else latest, -math.inf if until is None else until)
            for model, (latest, until) in stored.times.items()
        }
        return Standing(stored.position, times, alarms=self._evidence())

    def _evidence(self) -> dict[tuple[str, str], bytes]:
        with self._journal.engine.connect() as connection:
            rows = connection.execute(sa.select(MEASURED).where(MEASURED.c.name.startswith(EVIDENCE))).all()
        found = {}
        for row in rows:
            model, version = (unquote(part) for part in row.name.removeprefix(EVIDENCE).split("/"))
            found[model, version] = row.body
        return found

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


def _evidence_name(key: tuple[str, str]) -> str:
    return EVIDENCE + "/".join(quote(part, safe="") for part in key)


def _finite(time: float) -> float | None:
    """JSON has no infinity."""
    return time if math.isfinite(time) else None
