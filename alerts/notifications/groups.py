"""Groups of alerts and their rhythm: gathered for the group wait, then looked at once every group interval.

Source: Alertmanager, dispatch/dispatch.go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cmp_to_key

from alerts.labels import Labels
from alerts.notifications.alert_store import KnownAlert
from alerts.notifications.ledger import digest
from alerts.notifications.route import Route, group_key

_FIRST = ("job", "instance")


@dataclass(slots=True)
class Group:
    """Alerts of one route with the same group labels. `waiting` holds the ids of what is being delivered."""

    route: Route
    labels: Labels
    next_flush: float
    flushed: bool = False
    alerts: dict[str, KnownAlert] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    failed: bool = False
    deadline: float = 0.0
    looked_at: float = 0.0
    seen: tuple[KnownAlert, ...] = ()

    @property
    def key(self) -> str:
        """Its key in notifications."""
        return group_key(self.route, self.labels)

    @property
    def id(self) -> str:
        """What tells it from every other: routes may share a key."""
        return digest(f"{self.route.place} {self.key}")

    def insert(self, alert: KnownAlert, now: float) -> None:
        """Take an alert in; one that is older than the group wait does not wait."""
        self.alerts[alert.fingerprint] = alert
        if not self.flushed and alert.starts_at + self.route.group_wait_seconds < now:
            self.next_flush = min(self.next_flush, now)

    def is_due(self, now: float) -> bool:
        """Whether it is time to look; what is being delivered is waited for until its deadline."""
        return now >= self.next_flush and (not self.waiting or now >= self.deadline)

    def look(self, now: float) -> list[KnownAlert]:
        """The alerts to tell of now, in order; the next look is a group interval away."""
        self.next_flush = now + self.route.group_interval_seconds
        self.flushed, self.failed, self.looked_at = True, False, now
        self.seen = tuple(in_order(list(self.alerts.values())))
        return list(self.seen)

    def settle(self) -> None:
        """Everybody was told: let go of the alerts that were resolved then and were not renewed since."""
        for alert in self.seen:
            held = self.alerts.get(alert.fingerprint)
            if held is not None and alert.resolved(self.looked_at) and held.updated_at == alert.updated_at:
                del self.alerts[alert.fingerprint]


def in_order(alerts: list[KnownAlert]) -> list[KnownAlert]:
    """By job, by instance, then by labels: the order in notifications."""
    return sorted(alerts, key=_KEY)


def _by_labels(left: KnownAlert, right: KnownAlert) -> int:
    return _compared(left.labels, right.labels)


def _compared(left: Labels, right: Labels) -> int:
    first, second = dict(left), dict(right)
    for name in _FIRST:
        if name in first and name in second and first[name] != second[name]:
            return -1 if first[name] < second[name] else 1
        if (name in first) != (name in second):
            return -1 if name in first else 1
    return compared_labels(left, right)


def compared_labels(left: Labels, right: Labels) -> int:
    """-1, 0 or 1 as Prometheus orders label sets: by size, then by the first name that differs, then by its value."""
    if len(left) != len(right):
        return -1 if len(left) < len(right) else 1
    first, second = dict(left), dict(right)
    for name in sorted({*first, *second}):
        if name not in first:
            return -1
        if name not in second:
            return 1
        if first[name] != second[name]:
            return -1 if first[name] < second[name] else 1
    return 0


_KEY = cmp_to_key(_by_labels)
