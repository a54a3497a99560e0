"""Routes: which receiver hears of an alert, in which group, and when it is told again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alerts.labels import Labels, Matcher, match_all
from alerts.states import Alert


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Alerts that meet all matchers go to `receiver`; the first route that matches is the last, unless it goes on."""

    receiver: str = "default"
    matchers: tuple[Matcher, ...] = ()
    group_by: tuple[str, ...] = ("alertname", "model")
    group_wait_seconds: float = 0.0
    group_interval_seconds: float = 10.0
    repeat_interval_seconds: float = 4 * 3600.0
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """What a receiver was last told of a group: fingerprints, and when (unix seconds)."""

    firing: frozenset[str]
    resolved: frozenset[str]
    sent_at: float


@dataclass(frozen=True, slots=True)
class Group:
    """Alerts of one route with the same values of its `group_by` labels."""

    route: Route
    labels: Labels
    alerts: tuple[Alert, ...]

    @property
    def key(self) -> str:
        """Alertmanager's form of a group's key."""
        matchers = ",".join(map(str, self.route.matchers))
        labels = ", ".join(f'{name}="{value}"' for name, value in self.labels)
        return f"{{}}/{{{matchers}}}:{{{labels}}}"

    @property
    def firing(self) -> frozenset[str]:
        return frozenset(alert.fingerprint for alert in self.alerts if alert.state == "firing")

    @property
    def resolved(self) -> frozenset[str]:
        return frozenset(alert.fingerprint for alert in self.alerts if alert.state == "inactive")


def matching(routes: Sequence[Route], labels: Labels) -> list[Route]:
    """The routes of an alert, in order."""
    found = []
    for route in routes:
        if match_all(route.matchers, labels):
            found.append(route)
            if not route.goes_on:
                break
    return found


def grouped(routes: Sequence[Route], alerts: Iterable[Alert]) -> list[Group]:
    """Groups of the alerts that are firing or resolved; pending ones are nobody's business yet."""
    groups: dict[tuple[int, Labels], tuple[Route, list[Alert]]] = {}
    for alert in alerts:
        if alert.state == "pending":
            continue
        for route in matching(routes, alert.labels):
            labels = tuple((name, value) for name, value in alert.labels if name in route.group_by)
            groups.setdefault((routes.index(route), labels), (route, []))[1].append(alert)
    return [Group(route, labels, tuple(members)) for (_, labels), (route, members) in groups.items()]


def is_due(group: Group, told: Told | None, waiting_since: float, now: float) -> bool:
    """Whether the receiver is to be told now. `waiting_since` is when the group was first seen or last looked at."""
    route = group.route
    if told is None:
        return bool(group.firing) and now - waiting_since >= route.group_wait_seconds
    if now - told.sent_at < route.group_interval_seconds:
        return False
    if group.firing - told.firing or told.firing & group.resolved:
        return True
    return bool(group.firing) and now - told.sent_at >= route.repeat_interval_seconds
