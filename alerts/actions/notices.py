"""Tells receivers of everything that is done and of everything that is held back, each row of the journal once.

The journal's head remembers up to which row receivers were told. What is told is an alert with labels that name the
action and the row, posted before the head moves on: after a crash it is posted again, as the same alert, and the log of
notifications keeps receivers from hearing of it twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sqlalchemy as sa

from alerts.actions.action import Action, action_by_key
from alerts.actions.journal import Entry, tell_until, untold
from alerts.labels import labels_of
from alerts.notifications.alert_store import RULES, KnownAlert

TAKEN, HELD_BACK = "ActionTaken", "ActionHeldBack"
# How long it stands as an alert: long enough for receivers that wait to group.
_STANDS_SECONDS = 300.0
_SEVERITY = {"failed": "page", "waiting": "ticket", "held": "ticket"}
_DECIDED = {"hold": "held", "wait": "waiting", "advise": "advised", "rehearse": "rehearsed"}


class Notices:
    """`tell` posts what is new in the journal. Any number of processes may: each row is told of once."""

    def __init__(self, engine: sa.Engine, post: Callable[[Sequence[KnownAlert], float], None]) -> None:
        self._engine = engine
        self._post = post

    def tell(self, now: float) -> int:
        """Post what was not told yet; how many alerts that were."""
        with self._engine.begin() as connection:
            rows = untold(connection)
            actions = {row.key: action_by_key(connection, row.key) for row in rows if row.key}
        if not rows:
            return 0
        found = [notice_of(row, actions.get(row.key)) for row in rows]
        alerts = [alert for alert in found if alert is not None]
        if alerts:
            self._post(alerts, now)
        with self._engine.begin() as connection:
            tell_until(connection, rows[-1].seq)
        return len(alerts)


def notice_of(row: Entry, action: Action | None) -> KnownAlert | None:
    """What receivers are told of a row; None where there is nothing to tell."""
    if row.kind == "episode":
        return _of_episode(row)
    if action is None:
        return None
    told = _told(row)
    if told is None:
        return None
    outcome, why = told
    held_back = outcome in ("held", "waiting", "advised", "rehearsed", "rejected")
    release = f" (release {action.release})" if action.release else ""
    labels = {
        "alertname": HELD_BACK if held_back else TAKEN,
        "kind": action.action,
        "model": action.model,
        "outcome": outcome,
        "action_id": str(action.id),
        "row": str(row.seq),
        "severity": _SEVERITY.get(outcome, "info"),
        **({"release": action.release} if action.release else {}),
    }
    annotations = {
        "summary": f"{action.action} of {action.model}{release} is {outcome}: {why}",
        "description": f"`trimtab actions show {action.id}` tells what was seen, decided and done.",
    }
    return KnownAlert(
        labels=labels_of(labels), annotations=tuple(sorted(annotations.items())), starts_at=row.time,
        ends_at=row.time + _STANDS_SECONDS, updated_at=row.time, origin=RULES,
    )  # fmt: skip


def _of_episode(row: Entry) -> KnownAlert | None:
    """What receivers are told of an episode of drift or decay: that it retrains no more for now, and why."""
    body = row.body
    if body.get("event") != "waits":
        return None
    labels = {
        "alertname": HELD_BACK, "kind": "retrain", "model": str(body["model"]), "outcome": "held",
        "episode": str(body["episode"]), "row": str(row.seq), "severity": _SEVERITY["held"],
    }  # fmt: skip
    annotations = {
        "summary": f"Episode {body['episode']} of {body['model']} goes on without a retraining: {body['reason']}",
        "description": "`trimtab actions episodes` shows its attempts and what became of them.",
    }
    return KnownAlert(
        labels=labels_of(labels), annotations=tuple(sorted(annotations.items())), starts_at=row.time,
        ends_at=row.time + _STANDS_SECONDS, updated_at=row.time, origin=RULES,
    )  # fmt: skip


def _told(row: Entry) -> tuple[str, str] | None:
    """The outcome that a row tells of, and why."""
    body = row.body
    if row.kind == "decided" and body.get("decision") in _DECIDED:
        return _DECIDED[body["decision"]], str(body.get("reason"))
    if row.kind == "rejected":
        return "rejected", f"{body.get('actor')} forbade it"
    if row.kind == "result":
        result = body.get("result") or {}
        good = "what is in force was looked at afterwards" if result.get("after") else "its hook has answered"
        return str(body.get("state")), str(result.get("error") or result.get("person") or good)
    return None
