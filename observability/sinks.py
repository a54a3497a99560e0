"""Where an exporter delivers: the `Sink` protocol and HTTP. The sink to Parquet is the lake's."""

from __future__ import annotations

import http.client
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

from observability.event_names import MEDIA_TYPE
from observability.gathering import GatheringConnection, native

BATCH_ID_HEADER = "X-Batch-Id"
# The receiver, or a gateway before it, is not there or is too busy: it says nothing about this body.
_TRY_LATER = (408, 429, 502, 503, 504)
# What may stand in a header as it is.
_PLAIN_ID = re.compile(r"[\w-]{1,200}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Batch:
    """One body to deliver. Its id stays the same over retries, so that the receiver can tell a repetition."""

    body: bytes | memoryview
    rows: int = 0
    id: str = field(default_factory=lambda: uuid4().hex)


@dataclass(frozen=True, slots=True)
class Scattered(Batch):
    """A batch whose body lies in `pieces` behind each other, and `body` is empty: for sinks that say they `gather`."""

    pieces: tuple[memoryview, ...] = ()


class DeliveryError(Exception):
    """A delivery that failed."""


class Unavailable(DeliveryError):
    """The receiver is away or busy: try again, not before `retry_after` seconds where it said so."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Rejected(DeliveryError):
    """The receiver will never take this body."""


class Sink(Protocol):
    def send(self, batch: Batch) -> None:
        """Delivers durably, or raises: Rejected for good, anything else to be tried again."""


class HttpSink:
    """POSTs batches to one URL over a kept-alive connection. For one thread."""

    gathers = True

    def __init__(
        self,
        url: str,
        *,
        content_type: str = MEDIA_TYPE,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the URL {url!r} is not usable: give http://host:port/path or https://…")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else GatheringConnection
        self._connection = kind(parts.hostname, parts.port, timeout=timeout)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Content-Type": content_type, **(headers or {})}
        self.url = url

    def send(self, batch: Batch) -> None:
        kept_alive = self._connection.sock is not None
        try:
            status, retry_after, text = self._post(batch)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            if not kept_alive:
                raise Unavailable(f"{self.url} cannot be reached: {error or type(error).__name__}") from error
            # The receiver may have closed an idle connection as we wrote; the batch id makes a repetition harmless.
            self.send(batch)
            return
        _raise_for(status, retry_after, f"{self.url} answered {status}: {text}")

    def close(self) -> None:
        self._connection.close()

    def _post(self, batch: Batch) -> tuple[int, float | None, str]:
        pieces = batch.pieces if isinstance(batch, Scattered) else (memoryview(batch.body),)
        size = sum(piece.nbytes for piece in pieces)
        headers = {**self._headers, BATCH_ID_HEADER: batch.id, "Content-Length": str(size)}
        connection = self._connection
        body: Any = batch.body
        if isinstance(connection, GatheringConnection):
            if connection.sock is not None and native() is not None and _PLAIN_ID.fullmatch(batch.id):
                if connection.posted(self._target, headers, pieces):
                    return 200, None, ""
                return _told(connection.answer())
            body = [pieces]
        elif isinstance(batch, Scattered):
            body = b"".join(pieces)
        connection.request("POST", self._target, body=body, headers=headers)
        return _told(connection.getresponse())


def _told(response: http.client.HTTPResponse) -> tuple[int, float | None, str]:
    with response:
        text = response.read().decode("utf-8", "replace")[:200]
    return response.status, _retry_after(response.headers.get("Retry-After")), text


def _raise_for(status: int, retry_after: float | None, message: str) -> None:
    if 200 <= status < 300:
        return
    if status in _TRY_LATER:
        raise Unavailable(message, retry_after)
    if status < 500:
        raise Rejected(message)
    raise DeliveryError(message)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); None if it says neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (when - datetime.now(UTC)).total_seconds()) if when.tzinfo else None
