"""The service's state in the JSON of others: Prometheus' rules and alerts, Alertmanager's alerts and silences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alerts.channels import rfc3339
from alerts.engine import GroupStatus, RuleStatus
from alerts.labels import Matcher
from alerts.received import read_time
from alerts.route import Route, matching
from alerts.silence import Silence, silenced_by
from alerts.states import Alert

_RESEND_SECONDS = 60.0


def rule_groups(groups: Iterable[GroupStatus]) -> list[dict[str, Any]]:
    """The groups of Prometheus' `/api/v1/rules`."""
    return [
        {
            "name": status.group.name,
            "file": status.group.path,
            "interval": status.group.interval_seconds,
            "limit": status.group.limit,
            "rules": [_rule(rule) for rule in status.rules],
            "evaluationTime": status.duration_seconds,
            "lastEvaluation": rfc3339(status.evaluated_at),
            "lastError": status.write_error,
        }
        for status in groups
    ]


def _rule(status: RuleStatus) -> dict[str, Any]:
    rule = status.rule
    common = {
        "name": rule.name,
        "query": rule.expr,
        "labels": dict(rule.labels),
        "health": status.health,
        "lastError": status.last_error,
        "evaluationTime": status.duration_seconds,
        "lastEvaluation": rfc3339(status.evaluated_at),
    }
    if rule.kind == "record":
        return {**common, "type": "recording"}
    alerts = [alert for alert in status.state.values() if alert.state != "inactive"]
    states = {alert.state for alert in alerts}
    return {
        **common,
        "type": "alerting",
        "state": "firing" if "firing" in states else "pending" if "pending" in states else "inactive",
        "duration": rule.for_seconds,
        "keepFiringFor": rule.keep_firing_for_seconds,
        "annotations": dict(rule.annotations),
        "alerts": [prometheus_alert(alert) for alert in alerts],
    }


def prometheus_alert(alert: Alert) -> dict[str, Any]:
    """An alert of Prometheus' `/api/v1/alerts`."""
    return {
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "state": alert.state,
        "activeAt": rfc3339(alert.active_at),
        "value": f"{alert.value:e}",
        **({"keepFiringSince": rfc3339(alert.keep_firing_since)} if alert.keep_firing_since is not None else {}),
    }


def alertmanager_alert(
    alert: Alert, silences: Sequence[Silence], routes: Sequence[Route], now: float
) -> dict[str, Any]:
    """An alert of Alertmanager's `/api/v2/alerts`."""
    silenced = silenced_by(silences, alert.labels, now)
    return {
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "fingerprint": alert.fingerprint,
        "startsAt": rfc3339(alert.fired_at or alert.active_at),
        "endsAt": rfc3339(alert.resolved_at or now + 4 * _RESEND_SECONDS),
        "updatedAt": rfc3339(now),
        "generatorURL": "",
        "receivers": [{"name": route.receiver} for route in matching(routes, alert.labels)],
        "status": {
            "state": "suppressed" if silenced else "active",
            "silencedBy": silenced,
            "inhibitedBy": [],
            "mutedBy": [],
        },
    }


def silence_json(silence: Silence, now: float) -> dict[str, Any]:
    """A silence of Alertmanager's `/api/v2/silences`."""
    return {
        "id": silence.id,
        "matchers": [
            {
                "name": matcher.name,
                "value": matcher.value,
                "isRegex": matcher.op.endswith("~"),
                "isEqual": not matcher.op.startswith("!"),
            }
            for matcher in silence.matchers
        ],
        "startsAt": rfc3339(silence.starts_at),
        "endsAt": rfc3339(silence.ends_at),
        "updatedAt": rfc3339(silence.updated_at),
        "createdBy": silence.created_by,
        "comment": silence.comment,
        "status": {"state": silence.state(now)},
    }


def read_silence(body: Any) -> Silence:
    """The silence of a request; raises ValueError and, when a field is missing or of the wrong kind, TypeError."""
    if not isinstance(body, Mapping):
        raise TypeError("a silence is an object")
    missing = [name for name in ("matchers", "startsAt", "endsAt", "createdBy", "comment") if body.get(name) is None]
    if missing:
        raise TypeError(f"{missing[0]} in body is required")
    if not isinstance(body["matchers"], list):
        raise TypeError("matchers in body must be a list")
    return Silence(
        id=str(body.get("id") or ""),
        matchers=tuple(_read_matcher(item) for item in body["matchers"]),
        starts_at=read_time(body["startsAt"], "startsAt", 0.0),
        ends_at=read_time(body["endsAt"], "endsAt", 0.0),
        created_by=str(body["createdBy"]),
        comment=str(body["comment"]),
    )


def _read_matcher(item: Any) -> Matcher:
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str) or not isinstance(item.get("value"), str):
        raise TypeError("a matcher needs a name and a value, both text")
    operator = ("=" if item.get("isEqual", True) else "!") + ("~" if item.get("isRegex") else "")
    return Matcher(item["name"], {"!": "!="}.get(operator, operator), item["value"])
