"""Channels of notification: apprise (mail, Slack, PagerDuty, …) and Alertmanager's webhook, signed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import httpx
import msgspec

from alerts.route import Group
from alerts.states import Alert
from observability import signing

_NEVER = "0001-01-01T00:00:00Z"


class DeliveryError(RuntimeError):
    """A notification was not delivered; `final` says that another try is of no use."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


@dataclass(frozen=True, slots=True)
class Notification:
    """A group of alerts for a receiver."""

    group: Group
    receiver: str
    external_url: str = ""

    @property
    def status(self) -> str:
        """`firing` if any alert fires."""
        return "firing" if self.group.firing else "resolved"

    @property
    def title(self) -> str:
        """One line."""
        names = sorted({alert.name for alert in self.group.alerts})
        model = next((value for name, value in self.group.labels if name == "model"), "")
        count = len(self.group.firing) or len(self.group.resolved)
        return f"[{self.status.upper()}:{count}] {', '.join(names)}" + (f" ({model})" if model else "")


class Channel(Protocol):
    """One way to tell somebody."""

    name: str

    def send(self, notification: Notification) -> None:
        """Deliver, or raise DeliveryError."""


class AppriseChannel:
    """Any service that apprise knows, by its URL."""

    name = "apprise"

    def __init__(self, url: str) -> None:
        import apprise  # heavy, and needed only where a URL asks for it

        self._apprise = apprise.Apprise()
        if not self._apprise.add(url):
            raise ValueError(f"apprise cannot read the notification URL that begins with {url.partition('://')[0]}://")

    def send(self, notification: Notification) -> None:
        body = "\n".join(_line(alert) for alert in notification.group.alerts)
        kind = "failure" if notification.status == "firing" else "success"
        if not self._apprise.notify(body=body, title=notification.title, notify_type=kind):
            raise DeliveryError("apprise did not deliver the notification; its log says why")


class WebhookChannel:
    """Alertmanager's webhook JSON, version 4, by POST; signed if there is a secret."""

    name = "webhook"

    def __init__(
        self, url: str, *, secret: str = "", timeout_seconds: float = 10.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._url = url
        self._secret = secret
        self._clock = clock
        self._client = httpx.Client(timeout=timeout_seconds)

    def send(self, notification: Notification) -> None:
        body = msgspec.json.encode(webhook_body(notification))
        headers = {"Content-Type": "application/json", "User-Agent": "Trimtab"}
        if self._secret:
            headers[signing.HEADER] = signing.sign(self._secret, body, self._clock())
        try:
            response = self._client.post(self._url, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise DeliveryError(f"POST {self._url}: {error!r}") from error
        if not response.is_success:
            # Like Alertmanager's: what the receiver refuses is not sent again and again.
            raise DeliveryError(f"POST {self._url}: {response.status_code}", final=response.status_code < 500)


def webhook_body(notification: Notification) -> dict[str, Any]:
    """Alertmanager's webhook message, version 4."""
    alerts = notification.group.alerts
    return {
        "version": "4",
        "groupKey": notification.group.key,
        "truncatedAlerts": 0,
        "status": notification.status,
        "receiver": notification.receiver,
        "groupLabels": dict(notification.group.labels),
        "commonLabels": dict(set.intersection(*(set(alert.labels) for alert in alerts))),
        "commonAnnotations": dict(set.intersection(*(set(alert.annotations) for alert in alerts))),
        "externalURL": notification.external_url,
        "alerts": [
            {
                "status": "firing" if alert.state == "firing" else "resolved",
                "labels": dict(alert.labels),
                "annotations": dict(alert.annotations),
                "startsAt": rfc3339(alert.fired_at or alert.active_at),
                "endsAt": _NEVER if alert.resolved_at is None else rfc3339(alert.resolved_at),
                "generatorURL": "",
                "fingerprint": alert.fingerprint,
            }
            for alert in alerts
        ],
    }


def rfc3339(at: float) -> str:
    """Unix seconds as Alertmanager writes a time."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"


def channel_of(url: str, secret: str = "") -> Channel:
    """The channel of a URL: http and https are webhooks, everything else is apprise's."""
    if url.startswith(("http://", "https://")):
        return WebhookChannel(url, secret=secret)
    return AppriseChannel(url)


def _line(alert: Alert) -> str:
    text = alert.annotation("summary") or alert.annotation("description") or str(dict(alert.labels))
    return text if alert.state == "firing" else f"Resolved: {text}"
