"""An episode of drift or decay of a model, and its row in SQL: at most one is open for each model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from alerts.schema import EPISODES


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """Times are unix seconds; `quiet_since` is when it was last asked for, None while something asks."""

    id: int = 0
    model: str
    cause: str
    """The alert that opened it."""
    version: str = ""
    """The version in service when it opened; "" when that was not known."""
    opened_at: float
    asked_until: float
    """What asks stands until then, unless it says so again."""
    quiet_since: float | None = None
    looked_at: float
    ended_at: float | None = None
    ended_because: str = ""
    follows: int | None = None
    """The episode that it goes on from: that one had ended too shortly before to be over."""
    waits: str = ""
    """Why nothing is done about it now."""
    alert: Mapping[str, Any] = field(default_factory=dict)
    """The alert that asked last, to ask again."""

    @property
    def key(self) -> str:
        """What the keys of its retrainings, and its rows of the journal, begin with."""
        return f"retrain:{self.model}:episode-{self.id}"

    def attempt_key(self, number: int) -> str:
        """The idempotency key of an attempt, from 1 on."""
        return f"{self.key}:{number}"

    def to_json(self) -> dict[str, Any]:
        """The object of the episodes API."""
        return {**asdict(self), "alert": dict(self.alert)}


def insert_episode(connection: sa.Connection, episode: Episode) -> Episode:
    """Store a new one and give it its id. A second open one of a model is an IntegrityError."""
    result = connection.execute(EPISODES.insert().values(_row(episode)))
    key = result.inserted_primary_key
    assert key is not None
    return replace(episode, id=int(key[0]))


def update_episode(connection: sa.Connection, episode: Episode) -> None:
    """Store what changed."""
    connection.execute(EPISODES.update().where(EPISODES.c.id == episode.id).values(_row(episode)))


def open_episodes(connection: sa.Connection) -> dict[str, Episode]:
    """The open ones, by model."""
    rows = connection.execute(sa.select(EPISODES).where(EPISODES.c.ended_at.is_(None))).mappings()
    return {row["model"]: Episode(**row) for row in rows}


def episode_by_id(connection: sa.Connection, id: int) -> Episode | None:
    """The episode of an id."""
    row = connection.execute(sa.select(EPISODES).where(EPISODES.c.id == id)).mappings().first()
    return Episode(**row) if row else None


def read_episodes(connection: sa.Connection, *, model: str = "", limit: int = 100) -> list[Episode]:
    """Episodes, newest first."""
    query = sa.select(EPISODES).order_by(EPISODES.c.id.desc()).limit(limit)
    query = query.where(EPISODES.c.model == model) if model else query
    return [Episode(**row) for row in connection.execute(query).mappings()]


def _row(episode: Episode) -> dict[str, Any]:
    row = episode.to_json()
    del row["id"]
    return row
