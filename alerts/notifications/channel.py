"""A way to tell somebody, and how a try ends: delivered, to be tried again, or refused for good."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Collection
from typing import Protocol

import httpx

from alerts.notifications.message import Message

_SHOWN_CHARACTERS = 300


class DeliveryError(RuntimeError):
    """A notification was not delivered. `final`: another try is of no use; `retry_after`: seconds to wait at least."""

    def __init__(self, message: str, *, final: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.final = final
        self.retry_after = retry_after


class Channel(Protocol):
    """One way to tell somebody. Its kind is its name in metrics and in the log of notifications."""

    @property
    def kind(self) -> str:
        """Its name, such as `webhook`."""

    def send(self, message: Message, timeout: float) -> None:
        """Deliver within so many seconds, or raise DeliveryError. Called from several threads."""

    def close(self) -> None:
        """Let connections go."""


def check_answer(response: httpx.Response, where: str, retried: Collection[int] = ()) -> None:
    """Raise DeliveryError unless the answer is 2xx; 5xx, 429 and the codes in `retried` may be tried again."""
    status = response.status_code
    if response.is_success:
        return
    again = status >= 500 or status == 429 or status in retried
    said = response.text.strip()[:_SHOWN_CHARACTERS]
    raise DeliveryError(
        f"{where} answered {status}" + (f": {said}" if said else ""),
        final=not again,
        retry_after=_retry_after(response.headers.get("Retry-After", "")) if again else 0.0,
    )


def _retry_after(value: str) -> float:
    """Seconds of a `Retry-After` header, given as a number or as a date; 0 when it says nothing."""
    if value.strip().isdigit():
        return float(value)
    parsed = email.utils.parsedate_tz(value) if value else None
    return max(0.0, email.utils.mktime_tz(parsed) - time.time()) if parsed else 0.0
