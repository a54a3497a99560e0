"""HTTP/1.1 on one port: inference requests go straight to the front, everything else to an ASGI app."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import ASGIApp

from serving.transport.connection import Connection
from serving.transport.exchange import Exchange, InferHandler, error_head, run_app
from serving.transport.heads import HeadCache
from serving.transport.limits import Limits

__all__ = ["Connection", "Exchange", "InferHandler", "Limits", "Server", "error_head", "run_app"]

# A client that has read nothing for so many seconds is slow.
_SLOW = 1.0
# Seconds between two looks for them.
_SHED_SECONDS = 0.1
# Long answers leave one part in so many of what may be held to requests.
_REQUESTS_SHARE = 4


class Server:
    """What the connections of one listener share: handler, app, limits, and who is connected."""

    def __init__(
        self, handler: InferHandler, app: ASGIApp, limits: Limits | None = None,
        dropped: Callable[[str], None] = lambda reason: None,
    ) -> None:  # fmt: skip
        """`dropped` counts the connections that are ended on their clients, by the reason."""
        self.handler = handler
        self.app = app
        self.limits = limits or Limits()
        self.heads = HeadCache()
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.closing = False
        self.dropped = dropped
        # Bytes of requests that are arriving or wait for their answers, and of long answers.
        self.buffered = 0
        self._shed = 0.0

    def connection(self) -> Connection:
        """The protocol factory of `loop.create_server`."""
        return Connection(self)

    def begin_close(self) -> None:
        """From now on every answer ends its connection."""
        self.closing = True
        for connection in list(self.connections):
            connection.disarm()

    def active(self) -> int:
        """Requests begun and not yet answered."""
        return sum(connection.active() for connection in self.connections)

    def expects(self, now: float, seconds: float) -> bool:
        """Whether a connection of the last `seconds` has not sent a request yet, which may be under way."""
        return any(connection.fresh and now - connection.opened < seconds for connection in self.connections)

    def sweep(self, now: float) -> None:
        """Closes connections that take too long; call it about once a second with `time.monotonic()`."""
        for connection in list(self.connections):
            connection.sweep(now)
        self._shed_unread(self.limits.buffered_bytes)

    def abort(self) -> None:
        """Closes every connection."""
        for connection in list(self.connections):
            connection.close()

    def hold(self, exchange: Exchange, size: int) -> bool:
        """Counts bytes of a long answer until it is out; clients that read slowly make room for it, else False."""
        if self.keep(exchange, size):
            return True
        # Its own connection may have been dropped, and this with it.
        size = min(size, exchange.size)
        self.buffered -= size
        exchange.size -= size
        return False

    def keep(self, exchange: Exchange, size: int) -> bool:
        """Counts bytes of an answer that is there, until it is out; whether there was room for them, or is now."""
        self.buffered += size
        exchange.size += size
        limit = self.limits.buffered_bytes - self.limits.buffered_bytes // _REQUESTS_SHARE
        now = time.monotonic()
        if self.buffered > limit and now - self._shed > _SHED_SECONDS:
            self._shed = now
            self._shed_unread(limit)
        return self.buffered <= limit

    def _shed_unread(self, limit: int) -> None:
        """Drops the clients that read slowest while what is held takes more memory: most bytes for longest first."""
        now = time.monotonic()
        waiting = [(connection.stuck(now), *connection.unread(), connection) for connection in self.connections]
        total = self.buffered + sum(size - held for _, size, held, _ in waiting)
        if total <= limit:
            return
        slow = [(seconds * size, size, connection) for seconds, size, _, connection in waiting if seconds > _SLOW]
        for _, size, connection in sorted(slow, key=lambda entry: entry[0], reverse=True):
            connection.drop("memory")
            total -= size
            if total <= limit:
                return
