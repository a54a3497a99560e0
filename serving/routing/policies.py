"""Traffic policies and control answers in SQL: what a restart restores, and the append-only history of switches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from serving import database as db
from serving.errors import Conflict
from serving.routing.traffic import Policy


class PolicyStore:
    """Policies by model. A write goes through only from the generation that it was decided on."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def load(self, model: str) -> Policy | None:
        """The policy in force, or None when none was ever set."""
        with self._engine.begin() as connection:
            body = connection.scalar(sa.select(db.policies.c.body).where(db.policies.c.model == model))
        return None if body is None else Policy.from_json(body)

    def models(self) -> list[str]:
        """The models that have a policy."""
        with self._engine.begin() as connection:
            return list(connection.scalars(sa.select(db.policies.c.model)))

    def save(
        self,
        policy: Policy,
        event: str,
        *,
        time: float,
        release: str | None,
        version: int | None,
        reason: str,
        actor: str,
    ) -> None:
        """Stores the policy and a line of history in one transaction. Raises Conflict when another writer was first."""
        table = db.policies
        values = {"generation": policy.generation, "body": policy.to_json()}
        with self._engine.begin() as connection:
            found = connection.scalar(
                sa.select(table.c.generation).where(table.c.model == policy.model).with_for_update()
            )
            if found is not None and found >= policy.generation:
                raise Conflict(
                    f"the policy of {policy.model!r} is at generation {found} already; read it and try again"
                )
            if found is None:
                connection.execute(table.insert().values(model=policy.model, **values))
            else:
                connection.execute(table.update().where(table.c.model == policy.model).values(**values))
            connection.execute(
                db.traffic_history.insert().values(
                    model=policy.model,
                    generation=policy.generation,
                    time=time,
                    event=event,
                    release=release,
                    version=version,
                    reason=reason,
                    actor=actor,
                )
            )

    def history(self, model: str, last: int | None = None) -> list[dict[str, Any]]:
        """The switches of a model, oldest first; only the `last` ones, if given."""
        table = db.traffic_history
        columns = [table.c[name] for name in ("generation", "time", "event", "release", "version", "reason", "actor")]
        query = sa.select(*columns).where(table.c.model == model).order_by(table.c.generation.desc()).limit(last)
        with self._engine.begin() as connection:
            return [dict(row._mapping) for row in connection.execute(query)][::-1]

    def answer(self, key: str) -> tuple[str, int, Mapping[str, Any]] | None:
        """What was answered to an idempotency key: (digest of the request, status, body)."""
        with self._engine.begin() as connection:
            row = connection.execute(sa.select(db.answers).where(db.answers.c.key == key)).one_or_none()
        return None if row is None else (row.request, row.status, row.body)

    def remember(self, key: str, request: str, status: int, body: Mapping[str, Any], time: float) -> None:
        """Keeps the answer to an idempotency key."""
        with self._engine.begin() as connection:
            connection.execute(
                db.answers.insert().values(key=key, request=request, status=status, body=dict(body), time=time)
            )
