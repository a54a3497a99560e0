"""Alertmanager's webhook: its JSON, version 4, by POST; signed if there is a secret."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import msgspec

from alerts.notifications.channel import DeliveryError, check_answer
from alerts.notifications.http_options import HttpOptions, Secret
from alerts.notifications.message import Message
from observability import signing

USER_AGENT = "Trimtab"


class WebhookChannel:
    """POST to a URL. `Idempotency-Key` is the message's id: a try that is repeated carries the same one."""

    kind = "webhook"

    def __init__(
        self,
        url: Secret,
        *,
        max_alerts: int = 0,
        timeout_seconds: float = 0.0,
        options: HttpOptions | None = None,
        secret: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = url
        self._max_alerts = max_alerts
        self._timeout_seconds = timeout_seconds
        self._options = options or HttpOptions()
        self._secret = secret
        self._clock = clock

    def close(self) -> None:
        self._options.close()

    def send(self, message: Message, timeout: float) -> None:
        body = msgspec.json.encode(webhook_body(message, self._max_alerts))
        headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT, "Idempotency-Key": message.id}
        if self._secret:
            headers[signing.HEADER] = signing.sign(self._secret, body, self._clock())
        timeout = min(timeout, self._timeout_seconds) if self._timeout_seconds else timeout
        try:
            url = self._url.get()
            response = self._options.request("POST", url, content=body, headers=headers, timeout=timeout)
        except httpx.InvalidURL as error:
            raise DeliveryError(f"the webhook's URL cannot be used: {error}", final=True) from error
        except (httpx.HTTPError, OSError) as error:
            raise DeliveryError(f"POST to the webhook failed: {error!r}") from error
        check_answer(response, f"the webhook {url.split('?')[0]}")


def webhook_body(message: Message, max_alerts: int = 0) -> dict[str, Any]:
    """The message of version 4; with `max_alerts`, alerts beyond that many are left out and counted."""
    truncated = max(0, len(message.alerts) - max_alerts) if max_alerts else 0
    shown = replace(message, alerts=message.alerts[:max_alerts]) if truncated else message
    return {**shown.to_json(), "version": "4", "groupKey": message.group_key, "truncatedAlerts": truncated}
