"""An action: what is to be done to a model, why, and how far it got; and its row in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from alerts.schema import ACTIONS

ROLLBACK, PROMOTE, RETRAIN = "rollback", "promote", "retrain"
ADVANCE, PAUSE, SCALE, QUARANTINE = "advance", "pause", "scale", "quarantine"
# The traffic of one step of a release's policy; its labels say which.
STEP = "step"
KINDS = (ROLLBACK, PROMOTE, ADVANCE, STEP, PAUSE, RETRAIN, SCALE, QUARANTINE)
# These change a model's traffic, or stand in the way of it.
TRAFFIC_ACTIONS = (ROLLBACK, PROMOTE, ADVANCE, STEP, PAUSE)


class ActionState(StrEnum):
    """How far an action got. `running` is written before the effect: after a crash it is tried again."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    ADVISED = "advised"
    HELD = "held"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One action; times are unix seconds. `key` makes it unique: the same cause never acts twice."""

    id: int = 0
    key: str
    action: str
    model: str
    release: str = ""
    mode: str = "auto"
    state: ActionState
    alert: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    result: Mapping[str, Any] | None = None
    actor: str = ""
    """The person who asked, approved or rejected; "" for the machine."""
    decided_at: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The object of the actions API."""
        return {
            "id": self.id,
            "key": self.key,
            "action": self.action,
            "model": self.model,
            "release": self.release,
            "mode": self.mode,
            "state": self.state.value,
            "alert": self.alert,
            "labels": dict(self.labels),
            "reason": self.reason,
            "evidence": dict(self.evidence),
            "created_at": self.created_at,
            "started_at": self.started_at,
            "completed_at": self.completed_at,
            "result": None if self.result is None else dict(self.result),
            "actor": self.actor,
        }

    def to_decide(self) -> dict[str, Any]:
        """What a decision on a later action looks at."""
        return {name: getattr(self, name) for name in _DECISIVE}

    @classmethod
    def decisive(cls, fields: Mapping[str, Any]) -> Action:
        """An action of what a decision looks at, to decide once more."""
        return cls(**{**fields, "key": "", "state": ActionState(fields["state"])})


_DECISIVE = (
    "id", "action", "model", "release", "state", "created_at", "started_at", "completed_at", "actor", "decided_at",
)  # fmt: skip


def key_of(action: str, model: str, release: str, fingerprint: str, starts_at: float) -> str:
    """The idempotency key: the release for what happens once to it, the alert's episode for everything else."""
    if action in (ROLLBACK, PROMOTE) and release:
        return f"{action}:{model}:{release}"
    return f"{action}:{model}:{fingerprint}:{round(starts_at * 1000)}"


def insert_action(connection: sa.Connection, action: Action) -> Action:
    """Store a new action and give it its id. An existing key is an IntegrityError."""
    row = _row(action)
    result = connection.execute(ACTIONS.insert().values(row))
    key = result.inserted_primary_key
    assert key is not None
    return _action({**row, "id": key[0]})


def update_action(connection: sa.Connection, action: Action) -> None:
    """Store what changed."""
    connection.execute(ACTIONS.update().where(ACTIONS.c.id == action.id).values(_row(action)))


def action_by_key(connection: sa.Connection, key: str) -> Action | None:
    """The action of a key."""
    row = connection.execute(sa.select(ACTIONS).where(ACTIONS.c.key == key)).mappings().first()
    return _action(row) if row else None


def action_by_id(connection: sa.Connection, id: int) -> Action | None:
    """The action of an id."""
    row = connection.execute(sa.select(ACTIONS).where(ACTIONS.c.id == id)).mappings().first()
    return _action(row) if row else None


def running_actions(connection: sa.Connection) -> list[Action]:
    """Every action that has begun and has no result, oldest first."""
    query = sa.select(ACTIONS).where(ACTIONS.c.state == ActionState.RUNNING.value).order_by(ACTIONS.c.id)
    return [_action(row) for row in connection.execute(query).mappings()]


def actions_with_prefix(connection: sa.Connection, prefix: str) -> list[Action]:
    """The actions whose key begins so, oldest first."""
    query = sa.select(ACTIONS).where(ACTIONS.c.key.startswith(prefix, autoescape=True)).order_by(ACTIONS.c.id)
    return [_action(row) for row in connection.execute(query).mappings()]


def read_actions(
    connection: sa.Connection, *, model: str = "", states: Sequence[ActionState] = (), limit: int = 100
) -> list[Action]:
    """Actions, newest first."""
    query = sa.select(ACTIONS).order_by(ACTIONS.c.id.desc()).limit(limit)
    if model:
        query = query.where(ACTIONS.c.model == model)
    if states:
        query = query.where(ACTIONS.c.state.in_([state.value for state in states]))
    return [_action(row) for row in connection.execute(query).mappings()]


def _row(action: Action) -> dict[str, Any]:
    row = {**action.to_json(), "decided_at": action.decided_at}
    del row["id"]
    return row


def _action(row: Mapping[Any, Any]) -> Action:
    return Action(**{**row, "state": ActionState(row["state"])})
