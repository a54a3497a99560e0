"""Reference profiles by version, and closed windows with how far measuring had come: kept in SQL for a restart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

import msgspec
import sqlalchemy as sa

from collectors.database import MEASURED, REFERENCES, WINDOWS, replace
from collectors.drift.calibration import Calibration
from collectors.drift.seasonal import SeasonalReference
from collectors.journal import Journal
from collectors.profiles import EVENTS, Source
from collectors.scores import PerformanceEstimator
from collectors.windows import ModelTime, Pane, same_layout
from observability.columns import ProfileError
from observability.events import FEATURE, PREDICTION
from observability.profile import Profile

StateKey = tuple[str, str, str]
STANDING = "windows"
_NOTHING = b"null"


class _StoredStanding(msgspec.Struct):
    position: int
    times: dict[str, tuple[float | None, float | None]]


@dataclass(frozen=True, slots=True)
class Reference:
    """What a version was registered with: the profile of its training data, what that data's blocks say of chance,
    and what its scores are expected from."""

    profile: Profile
    calibration: Calibration | None = None
    """From blocks as long as judged windows."""
    estimator: PerformanceEstimator | None = None
    pane_calibration: Calibration | None = None
    """From blocks as long as single windows, where judged ones are sums of several."""
    seasonal: SeasonalReference | None = None
    """The same rows by hour of the week, in the profile's layout."""
    source: Source = EVENTS
    """Which columns come in profiles that senders count themselves."""

    @staticmethod
    def from_json(body: bytes) -> Reference:
        """A profile's JSON, which may carry `"calibration"`, `"pane_calibration"`, `"estimator"` and `"seasonal"`.

        And `"from_profiles"`: true, or names of columns that are not taken from events but from posted profiles.
        ProfileError if it is something else.
        """
        profile = Profile.from_json(body)
        try:
            beside = msgspec.json.decode(body, type=_Beside)
            calibration = Calibration.from_json(beside.calibration) if beside.calibration else None
            panes = Calibration.from_json(beside.pane_calibration) if beside.pane_calibration else None
            stored = bytes(beside.estimator)
            estimator = PerformanceEstimator.from_json(stored) if stored != _NOTHING else None
            hours = bytes(beside.seasonal)
            seasonal = SeasonalReference.from_json(hours) if hours != _NOTHING else None
        except (ValueError, msgspec.DecodeError) as error:
            raise ProfileError(f"what comes beside the profile cannot be read: {error}") from error
        if seasonal is not None and not same_layout(Profile(profile.columns), Profile(seasonal.whole.columns)):
            raise ProfileError("the seasonal reference has other bins or categories than the profile")
        source = Source.declared(beside.from_profiles, profile)
        return Reference(profile, calibration, estimator, panes, seasonal, source)

    @staticmethod
    def given(body: bytes) -> Reference:
        """The same of a body that is new. ProfileError also when nothing that comes can be compared with it."""
        found = Reference.from_json(body)
        names, prefixes = list(found.profile.columns), (FEATURE, PREDICTION)
        if names and not found.source.columns and not any(name.startswith(prefixes) for name in names):
            raise ProfileError(
                f"none of the profile's columns ({', '.join(map(repr, names[:3]))}, …) is named {FEATURE}… or "
                f"{PREDICTION}… as those of events are: rename the table's columns, and make the profile again"
            )
        return found


class _Beside(msgspec.Struct):
    calibration: dict[str, Any] | None = None
    pane_calibration: dict[str, Any] | None = None
    estimator: msgspec.Raw = msgspec.Raw(_NOTHING)
    seasonal: msgspec.Raw = msgspec.Raw(_NOTHING)
    from_profiles: bool | list[str] | None = None


class References:
    """The references, durable when the future of `put` resolves."""

    def __init__(self, journal: Journal, clock: Callable[[], float]) -> None:
        self._journal = journal
        self._clock = clock

    def put(self, model: str, version: str, body: bytes, then: Callable[[Reference], None]) -> Future[None]:
        """Keeps a reference as JSON; `then` gets it after the commit. ProfileError when the body is none."""
        reference = Reference.given(body)
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
    states: Mapping[StateKey, bytes] = field(default_factory=dict)
    """What else is known of versions, as JSON, that changed since it was stored last: by kind, model and version."""


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
            for key, state in standing.states.items():
                replace(connection, MEASURED, {"name": "/".join(quote(part, safe="") for part in key), "body": state})

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
        return Standing(stored.position, times, states=self._states())

    def _states(self) -> dict[StateKey, bytes]:
        with self._journal.engine.connect() as connection:
            rows = connection.execute(sa.select(MEASURED).where(MEASURED.c.name != STANDING)).all()
        found = {}
        for row in rows:
            kind, model, version = (unquote(part) for part in row.name.split("/"))
            found[kind, model, version] = row.body
        return found

    def all(self) -> list[Pane]:
        """Every kept window, oldest first."""
        with self._journal.engine.connect() as connection:
            rows = connection.execute(sa.select(WINDOWS).order_by(WINDOWS.c.end)).all()
        return [Pane.from_json(row.model, row.version, row.start, row.end, row.body) for row in rows]

    def prune(self, keep: int) -> None:
        """Keeps the last `keep` windows of each version."""
        self._journal.keep_latest(WINDOWS, ("model", "version"), "end", keep)


def _finite(time: float) -> float | None:
    """JSON has no infinity."""
    return time if math.isfinite(time) else None
