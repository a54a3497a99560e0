"""The service's state in Prometheus' JSON: rules and alerts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from alerts.engine import GroupStatus, RuleStatus
from alerts.notifications.times import rfc3339_millis as rfc3339
from alerts.states import Alert


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
