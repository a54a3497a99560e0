"""Alerts, groups and silences in the JSON of Alertmanager's API v2."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cmp_to_key
from typing import Any

from alerts.labels import Labels
from alerts.notifications.alert_store import KnownAlert
from alerts.notifications.groups import compared_labels, in_order
from alerts.notifications.muting import Muting
from alerts.notifications.route import Route
from alerts.notifications.times import rfc3339_millis
from alerts.silence import Silence

_SILENCE_STATES = ("active", "pending", "expired")


def alert_json(alert: KnownAlert, receivers: Sequence[str], muting: Muting) -> dict[str, Any]:
    """An alert of `/api/v2/alerts`."""
    silenced, inhibited = muting.silenced_by(alert.labels), muting.inhibited_by(alert.labels)
    return {
        "annotations": dict(alert.annotations),
        "endsAt": rfc3339_millis(alert.ends_at),
        "fingerprint": alert.fingerprint,
        "receivers": [{"name": name} for name in receivers],
        "startsAt": rfc3339_millis(alert.starts_at),
        "status": {
            "inhibitedBy": inhibited,
            "silencedBy": silenced,
            "state": "suppressed" if silenced or inhibited else "active",
        },
        "updatedAt": rfc3339_millis(alert.updated_at),
        **({"generatorURL": alert.generator_url} if alert.generator_url else {}),
        "labels": dict(alert.labels),
    }


def groups_json(
    root: Route, alerts: Iterable[KnownAlert], muting: Muting, takes: Callable[[str], bool]
) -> list[dict[str, Any]]:
    """The groups of `/api/v2/alerts/groups`; `takes` says which receivers are asked for."""
    groups: dict[tuple[str, Labels], tuple[Route, list[KnownAlert]]] = {}
    receivers: dict[str, list[str]] = {}
    for alert in alerts:
        for route in root.match(alert.labels):
            if takes(route.receiver):
                place = (route.place, route.group_labels(alert.labels))
                groups.setdefault(place, (route, []))[1].append(alert)
                receivers.setdefault(alert.fingerprint, []).append(route.receiver)

    ordered = sorted(groups.items(), key=_KEY)
    return [
        {
            "alerts": [alert_json(each, sorted(receivers[each.fingerprint]), muting) for each in in_order(members)],
            "labels": dict(labels),
            "receiver": {"name": route.receiver},
        }
        for (_, labels), (route, members) in ordered
    ]


_Item = tuple[tuple[str, Labels], tuple[Route, list[KnownAlert]]]


def _compared(left: _Item, right: _Item) -> int:
    """By labels, then by receiver."""
    one, other = left[1][0].receiver, right[1][0].receiver
    return compared_labels(left[0][1], right[0][1]) or (one > other) - (one < other)


_KEY = cmp_to_key(_compared)


def silence_json(silence: Silence, now: float) -> dict[str, Any]:
    """A silence of `/api/v2/silences`."""
    return {
        "id": silence.id,
        "status": {"state": silence.state(now)},
        "updatedAt": rfc3339_millis(silence.updated_at),
        "comment": silence.comment,
        "createdBy": silence.created_by,
        "endsAt": rfc3339_millis(silence.ends_at),
        "matchers": [
            {
                "isEqual": not matcher.op.startswith("!"),
                "isRegex": matcher.op.endswith("~"),
                "name": matcher.name,
                "value": matcher.value,
            }
            for matcher in silence.matchers
        ],
        "startsAt": rfc3339_millis(silence.starts_at),
    }


def silences_in_order(silences: Iterable[Silence], now: float) -> list[Silence]:
    """Active ones by their end, then pending ones by their start, then expired ones, the last to end first."""

    def key(silence: Silence) -> tuple[int, float]:
        state = silence.state(now)
        times = {"active": silence.ends_at, "pending": silence.starts_at, "expired": -silence.ends_at}
        return _SILENCE_STATES.index(state), times[state]

    return sorted(silences, key=key)
