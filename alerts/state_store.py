"""Alert states in SQL: what an evaluation starts from after a restart, FiredAt and KeepFiringSince included."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from alerts.labels import Labels
from alerts.rules import Rule, RuleGroup
from alerts.schema import ALERT_STATES, RULE_GROUPS
from alerts.states import Alert, RuleState

_NAME_LENGTH = 150

# What of an alert is worth a write: not its value, nor its annotations.
_Lasting = tuple[str, float, float | None, float | None, float | None]


class NoStateStore:
    """Keeps nothing: every evaluation begins in an empty world."""

    def load(self, group: RuleGroup) -> tuple[list[RuleState], float]:
        """No alerts."""
        return [{} for _ in group.rules], 0.0

    def save(self, group: RuleGroup, states: Sequence[RuleState], evaluated_at: float) -> None:
        """Nothing to do."""

    def keep_only(self, groups: Collection[RuleGroup]) -> None:
        """Nothing to do."""


class StateStore:
    """Saves and restores the alerts of rules. A rule is known by its group, its name and its labels."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._saved: dict[tuple[str, str], dict[Labels, _Lasting]] = {}

    def load(self, group: RuleGroup) -> tuple[list[RuleState], float]:
        """The alerts of each rule as they were last saved, and when (unix seconds; 0 for never)."""
        columns = ALERT_STATES.c
        query = sa.select(columns.rule, columns.body).where(columns.group_key == group.key)
        when = sa.select(RULE_GROUPS.c.evaluated_at).where(RULE_GROUPS.c.group_key == group.key)
        found: dict[str, list[Alert]] = {}
        with self._engine.begin() as connection:
            for rule, body in connection.execute(query):
                found.setdefault(rule, []).append(_alert(body))
            evaluated_at = float(connection.scalar(when) or 0.0)
        states: list[RuleState] = []
        for key in rule_keys(group.rules):
            state = {alert.labels: alert for alert in found.get(key, [])}
            self._saved[group.key, key] = _lasting(state)
            states.append(state)
        return states, evaluated_at

    def save(self, group: RuleGroup, states: Sequence[RuleState], evaluated_at: float) -> None:
        """Write what changed since the last save, in one transaction. Values alone are not worth a write."""
        writes: list[tuple[tuple[str, str], RuleState]] = []
        for rule, state in zip(rule_keys(group.rules), states, strict=True):
            if _lasting(state) != self._saved.get((group.key, rule), {}):
                writes.append(((group.key, rule), state))
        # How long an alert has waited, or is kept firing, counts only while somebody looks: see `states.resumed`.
        waiting = any(_waits(alert) for state in states for alert in state.values())
        if not writes and not waiting:
            return
        columns = ALERT_STATES.c
        with self._engine.begin() as connection:
            for (group_key, rule), state in writes:
                connection.execute(ALERT_STATES.delete().where(columns.group_key == group_key, columns.rule == rule))
                rows = [
                    {"group_key": group_key, "rule": rule, "fingerprint": alert.fingerprint, "body": _body(alert)}
                    for alert in state.values()
                ]
                if rows:
                    connection.execute(ALERT_STATES.insert(), rows)
            known = RULE_GROUPS.c.group_key == group.key
            updated = connection.execute(RULE_GROUPS.update().where(known).values(evaluated_at=evaluated_at))
            if not updated.rowcount:
                connection.execute(RULE_GROUPS.insert().values(group_key=group.key, evaluated_at=evaluated_at))
        self._saved.update((key, _lasting(state)) for key, state in writes)

    def keep_only(self, groups: Collection[RuleGroup]) -> None:
        """Forget the alerts of rules that are no more: a rule that comes back begins anew."""
        present = {(group.key, rule) for group in groups for rule in rule_keys(group.rules)}
        columns = ALERT_STATES.c
        with self._engine.begin() as connection:
            stored = connection.execute(sa.select(columns.group_key, columns.rule).distinct()).all()
            for group_key, rule in stored:
                if (group_key, rule) not in present:
                    connection.execute(
                        ALERT_STATES.delete().where(columns.group_key == group_key, columns.rule == rule)
                    )
                    self._saved.pop((group_key, rule), None)


def rule_keys(rules: Sequence[Rule]) -> list[str]:
    """What each rule is known by in its group: name and labels, and for equal ones their order."""
    seen: Counter[str] = Counter()
    keys = []
    for rule in rules:
        digest = hashlib.blake2b(repr((rule.kind, rule.name, rule.labels)).encode(), digest_size=12).hexdigest()
        keys.append(f"{rule.name[:_NAME_LENGTH]}#{digest}.{seen[digest]}")
        seen[digest] += 1
    return keys


def _waits(alert: Alert) -> bool:
    return alert.state == "pending" or alert.keep_firing_since is not None


def _lasting(state: RuleState) -> dict[Labels, _Lasting]:
    return {
        labels: (alert.state, alert.active_at, alert.fired_at, alert.keep_firing_since, alert.resolved_at)
        for labels, alert in state.items()
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
