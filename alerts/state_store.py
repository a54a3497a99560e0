"""Alert states in SQL: what an evaluation starts from after a restart, FiredAt and KeepFiringSince included."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from alerts.labels import fingerprint
from alerts.rules import RuleGroup
from alerts.schema import ALERT_STATES
from alerts.states import Alert, RuleState


class StateStore:
    """Saves and restores the alerts of rules. A rule is known by its file's group and its name and place in it."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._saved: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}

    def load(self, group: RuleGroup, place: int) -> RuleState:
        """The rule's alerts as they were last saved."""
        key = _key(group, place)
        query = sa.select(ALERT_STATES.c.fingerprint, ALERT_STATES.c.body).where(
            ALERT_STATES.c.group_key == key[0], ALERT_STATES.c.rule == key[1]
        )
        with self._engine.begin() as connection:
            rows = {row.fingerprint: row.body for row in connection.execute(query)}
        self._saved[key] = rows
        alerts = [_alert(body) for body in rows.values()]
        return {alert.labels: alert for alert in alerts}

    def save(self, group: RuleGroup, states: dict[int, RuleState]) -> None:
        """Write what changed since the last save, in one transaction. Values alone are not worth a write."""
        writes: list[tuple[tuple[str, str], dict[str, dict[str, Any]]]] = []
        for place, state in states.items():
            key = _key(group, place)
            bodies = {fingerprint(labels): _body(alert) for labels, alert in state.items()}
            if _lasting(bodies) != _lasting(self._saved.get(key, {})):
                writes.append((key, bodies))
        if not writes:
            return
        with self._engine.begin() as connection:
            for key, bodies in writes:
                connection.execute(
                    ALERT_STATES.delete().where(ALERT_STATES.c.group_key == key[0], ALERT_STATES.c.rule == key[1])
                )
                if bodies:
                    connection.execute(
                        ALERT_STATES.insert(),
                        [
                            {"group_key": key[0], "rule": key[1], "fingerprint": mark, "body": body}
                            for mark, body in bodies.items()
                        ],
                    )
        self._saved.update(writes)


def _key(group: RuleGroup, place: int) -> tuple[str, str]:
    return f"{group.path};{group.name}", f"{place}:{group.rules[place].name}"


def _lasting(bodies: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        mark: {name: item for name, item in body.items() if name not in ("value", "annotations")}
        for mark, body in bodies.items()
    }


def _body(alert: Alert) -> dict[str, Any]:
    body = asdict(alert)
    # JSON knows no NaN or infinity; float() reads their names back.
    return {**body, "labels": dict(alert.labels), "annotations": dict(alert.annotations), "value": repr(alert.value)}


def _alert(body: dict[str, Any]) -> Alert:
    return Alert(
        **{
            **body,
            "labels": tuple(sorted(body["labels"].items())),
            "annotations": tuple(sorted(body["annotations"].items())),
            "value": float(body["value"]),
        }
    )
