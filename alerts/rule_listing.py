"""Prometheus' `/api/v1/rules`: which groups and rules a request asks for, and their JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Protocol

from alerts.notifications.times import NEVER, rfc3339
from alerts.rule_status import GroupStatus, RuleStatus
from alerts.samples import QueryError
from alerts.states import Alert
from alerts.templates.printing import exponent_text
from collectors import query
from collectors.query import parse_selector
from collectors.store import Matcher

_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false", "")


class Parameters(Protocol):
    """A request's query: the first value of a name, and all of them."""

    def get(self, key: str, default: str) -> str: ...

    def getlist(self, key: str) -> list[str]: ...


class BadParameter(ValueError):
    """A parameter that Prometheus would refuse, in its words."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f'invalid parameter "{name}": {reason}')


def rule_discovery(groups: Iterable[GroupStatus], asked: Parameters) -> dict[str, Any]:
    """The `data` of the answer, a page of it where `group_limit` says so. Raises BadParameter."""
    kind = asked.get("type", "").lower()
    if kind not in ("", "alert", "record"):
        raise BadParameter("type", f'not supported value "{kind}"')
    alerts = not _truth(asked.get("exclude_alerts", ""))
    limit, token = _page(asked)
    names, wanted, files = (frozenset(asked.getlist(key)) for key in ("rule_name[]", "rule_group[]", "file[]"))
    matchers = [_matchers(text) for text in asked.getlist("match[]")]
    shown: list[dict[str, Any]] = []
    found = not token
    for status in groups:
        group = status.group
        found = found or token == _token(status)
        if not found or (wanted and group.name not in wanted) or (files and group.path not in files):
            continue
        rules = [
            _rule(rule, alerts=alerts)
            for rule in status.rules
            if kind in ("", rule.rule.kind) and (not names or rule.rule.name in names) and _meets(rule, matchers)
        ]
        if not rules:
            continue
        if limit and len(shown) == limit:
            return {"groups": shown, "groupNextToken": _token(status)}
        shown.append(
            {
                "name": group.name,
                "file": group.path,
                "rules": rules,
                "interval": group.interval_seconds,
                "limit": group.limit,
                "evaluationTime": status.duration_seconds,
                "lastEvaluation": _time(status.looked_at),
            }
        )
    if not found:
        raise BadParameter("group_next_token", f"invalid group_next_token '{token}'. were rule groups changed?")
    return {"groups": shown}


def alert_json(alert: Alert) -> dict[str, Any]:
    """An alert of Prometheus' `/api/v1/alerts`."""
    since = alert.keep_firing_since
    return {
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "state": alert.state,
        "activeAt": rfc3339(alert.active_at),
        **({} if since is None else {"keepFiringSince": rfc3339(since)}),
        "value": exponent_text(alert.value),
    }


def _rule(status: RuleStatus, *, alerts: bool) -> dict[str, Any]:
    rule = status.rule
    common = {
        "name": rule.name,
        "query": rule.expr,
        "labels": dict(rule.labels),
        "health": status.health,
        **({"lastError": status.last_error} if status.last_error else {}),
        "evaluationTime": status.duration_seconds,
        "lastEvaluation": _time(status.evaluated_at),
    }
    if rule.kind == "record":
        return {**common, "type": "recording"}
    active = [alert for alert in list(status.state.values()) if alert.state != "inactive"]
    return {
        "state": _state(status, active),
        **common,
        "duration": rule.for_seconds,
        "keepFiringFor": rule.keep_firing_for_seconds,
        "annotations": dict(rule.annotations),
        "alerts": [alert_json(alert) for alert in active] if alerts else None,
        "type": "alerting",
    }


def _state(status: RuleStatus, active: Iterable[Alert]) -> str:
    states = {alert.state for alert in active}
    if not status.evaluated_at and not states:
        return "unknown"
    return "firing" if "firing" in states else "pending" if "pending" in states else "inactive"


def _meets(status: RuleStatus, matcher_sets: list[tuple[Matcher, ...]]) -> bool:
    labels = dict(status.rule.labels)
    return not matcher_sets or any(all(m.matches_labels(labels) for m in matchers) for matchers in matcher_sets)


def _matchers(text: str) -> tuple[Matcher, ...]:
    try:
        return parse_selector(text)
    except (query.QueryError, QueryError) as error:
        raise BadParameter("match[]", str(error)) from error


def _truth(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise BadParameter(
            "exclude_alerts", f'error converting exclude_alerts: strconv.ParseBool: parsing "{text}": invalid syntax'
        )
    return text.lower() in _TRUE


def _page(asked: Parameters) -> tuple[int, str]:
    limit, token = asked.get("group_limit", ""), asked.get("group_next_token", "")
    if token and not limit:
        needed = "group_limit needs to be present in order to paginate over the groups"
        raise BadParameter("group_next_token", needed)
    if not limit:
        return 0, ""
    try:
        number = int(limit)
    except ValueError:
        reason = f'strconv.ParseInt: parsing "{limit}": invalid syntax'
        raise BadParameter("group_limit", f"group_limit needs to be a valid number: {reason}") from None
    if number <= 0:
        raise BadParameter("group_limit", "group_limit needs to be greater than 0")
    return number, token


def _token(status: GroupStatus) -> str:
    return hashlib.sha256(status.group.key.encode()).hexdigest()


def _time(at: float) -> str:
    return rfc3339(at) if at else NEVER
