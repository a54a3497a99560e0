"""Traffic policies and control answers in SQL: what a restart restores, and the append-only history of switches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.database import Database, Json, json_of, read
from serving.errors import Conflict
from serving.routing.traffic import Policy

_SWITCH = ("generation", "time", "event", "release", "version", "reason", "actor")
_COLUMNS = ", ".join(_SWITCH)
_SWITCH_VALUES = ", ".join(f":{name}" for name in _SWITCH)


class PolicyStore:
    """Policies by model. A write goes through only from the generation that it was decided on."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self, model: str) -> Policy | None:
        """The policy in force, or None when none was ever set."""
        found = read(self._database, "SELECT body FROM traffic_policies WHERE model = :model", model=model)
        return Policy.from_json(json_of(found[0][0])) if found else None

    def models(self) -> list[str]:
        """The models that have a policy."""
        return [name for (name,) in read(self._database, "SELECT model FROM traffic_policies")]

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
        new = {"model": policy.model, "generation": policy.generation, "body": Json(policy.to_json())}
        with self._database.begin() as transaction:
            changed = transaction.run(
                "UPDATE traffic_policies SET generation = :generation, body = :body "
                "WHERE model = :model AND generation < :generation",
                **new,
            )
            if not changed:
                found = transaction.rows(
                    "SELECT generation FROM traffic_policies WHERE model = :model", model=policy.model
                )
                if found:
                    raise Conflict(
                        f"the policy of {policy.model!r} is at generation {found[0][0]} already; read it and try again"
                    )
                transaction.run(
                    "INSERT INTO traffic_policies (model, generation, body) VALUES (:model, :generation, :body)", **new
                )
            transaction.run(
                f"INSERT INTO traffic_history (model, {_COLUMNS}) VALUES (:model, {_SWITCH_VALUES})",
                model=policy.model, generation=policy.generation, time=time, event=event, release=release,
                version=version, reason=reason, actor=actor,
            )  # fmt: skip

    def history(self, model: str, last: int | None = None) -> list[dict[str, Any]]:
        """The switches of a model, oldest first; only the `last` ones, if given."""
        query = f"SELECT {_COLUMNS} FROM traffic_history WHERE model = :model ORDER BY generation DESC"
        if last is None:
            found = read(self._database, query, model=model)
        else:
            found = read(self._database, f"{query} LIMIT :last", model=model, last=last)
        return [dict(zip(_SWITCH, row, strict=True)) for row in reversed(found)]

    def answer(self, key: str) -> tuple[str, int, Mapping[str, Any]] | None:
        """What was answered to an idempotency key: (digest of the request, status, body)."""
        query = "SELECT request, status, body FROM control_answers WHERE key = :key"
        found = read(self._database, query, key=key)
        return (found[0][0], found[0][1], json_of(found[0][2])) if found else None

    def remember(self, key: str, request: str, status: int, body: Mapping[str, Any], time: float) -> None:
        """Keeps the answer to an idempotency key."""
        with self._database.begin() as transaction:
            transaction.run(
                "INSERT INTO control_answers (key, request, status, body, time) "
                "VALUES (:key, :request, :status, :body, :time)",
                key=key, request=request, status=status, body=Json(body), time=time,
            )  # fmt: skip
