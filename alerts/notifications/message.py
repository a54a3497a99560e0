"""A notification: some alerts of a group for a receiver, as they were when the group was looked at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alerts.labels import Labels
from alerts.notifications.fingerprints import fingerprint_of
from alerts.notifications.times import rfc3339

# The characters that Go's regexp.QuoteMeta escapes.
_META = re.compile(r"[\\.+*?()|\[\]{}^$]")


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageAlert:
    """An alert in a notification; `ends_at` is None while it fires. Times are unix seconds."""

    labels: Labels
    annotations: Labels
    starts_at: float
    ends_at: float | None = None
    generator_url: str = ""

    @property
    def status(self) -> str:
        """`firing` or `resolved`."""
        return "firing" if self.ends_at is None else "resolved"

    def to_json(self) -> dict[str, Any]:
        """The alert in a webhook's message."""
        return {
            "status": self.status,
            "labels": dict(self.labels),
            "annotations": dict(self.annotations),
            "startsAt": rfc3339(self.starts_at),
            "endsAt": rfc3339(self.ends_at),
            "generatorURL": self.generator_url,
            "fingerprint": fingerprint_of(self.labels),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is sent once. `id` is the same for every try, so that a receiver can tell a repeated one."""

    id: str
    receiver: str
    group_key: str
    group_labels: Labels
    alerts: tuple[MessageAlert, ...]
    external_url: str = ""

    @property
    def status(self) -> str:
        """`firing` if any alert fires."""
        return "firing" if any(alert.ends_at is None for alert in self.alerts) else "resolved"

    @property
    def firing(self) -> tuple[MessageAlert, ...]:
        """The alerts that fire."""
        return tuple(alert for alert in self.alerts if alert.ends_at is None)

    @property
    def resolved(self) -> tuple[MessageAlert, ...]:
        """The alerts that do not fire any more."""
        return tuple(alert for alert in self.alerts if alert.ends_at is not None)

    @property
    def title(self) -> str:
        """One line."""
        names = sorted({value for alert in self.alerts for name, value in alert.labels if name == "alertname"})
        model = next((value for name, value in self.group_labels if name == "model"), "")
        count = len(self.firing) or len(self.resolved)
        return f"[{self.status.upper()}:{count}] {', '.join(names)}" + (f" ({model})" if model else "")

    @property
    def text(self) -> str:
        """One line an alert."""
        return "\n".join(map(_line, self.alerts))

    def to_json(self) -> dict[str, Any]:
        """The data that webhooks and templates share."""
        return {
            "receiver": _META.sub(lambda found: "\\" + found[0], self.receiver),
            "status": self.status,
            "alerts": [alert.to_json() for alert in self.alerts],
            "groupLabels": dict(self.group_labels),
            "commonLabels": dict(_shared([alert.labels for alert in self.alerts])),
            "commonAnnotations": dict(_shared([alert.annotations for alert in self.alerts])),
            "externalURL": self.external_url,
        }


def _shared(sets: Sequence[Labels]) -> Labels:
    if not sets:
        return ()
    others = [dict(labels) for labels in sets[1:]]
    return tuple((name, value) for name, value in sets[0] if all(other.get(name, "") == value for other in others))


def _line(alert: MessageAlert) -> str:
    annotations = dict(alert.annotations)
    text = annotations.get("summary") or annotations.get("description") or str(dict(alert.labels))
    return text if alert.ends_at is None else f"Resolved: {text}"
