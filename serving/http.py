"""HTTP/1.1 on one port: inference requests go straight to the front, everything else to an ASGI app."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp

from serving.transport.connection import Connection
from serving.transport.exchange import Exchange, InferHandler, error_head, run_app
from serving.transport.heads import HeadCache
from serving.transport.limits import Limits

__all__ = ["Connection", "Exchange", "InferHandler", "Limits", "Server", "error_head", "run_app"]


class Server:
    """What the connections of one listener share: handler, app, limits, and who is connected."""

    def __init__(self, handler: InferHandler, app: ASGIApp, limits: Limits | None = None) -> None:
        self.handler = handler
        self.app = app
        self.limits = limits or Limits()
        self.heads = HeadCache()
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.closing = False
        # Bytes of requests that are arriving or wait for their answers.
        self.buffered = 0

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
        self._shed_unread()

    def abort(self) -> None:
        """Closes every connection."""
        for connection in list(self.connections):
            connection.close()

    def _shed_unread(self) -> None:
        """Drops the clients that read slowest while their unread answers take more than their share of memory."""
        slow = [(connection.unread(), connection) for connection in self.connections if connection.stuck]
        total = self.buffered + sum(size for size, _ in slow)
        for size, connection in sorted(slow, key=lambda entry: entry[0], reverse=True):
            if total <= self.limits.buffered_bytes:
                return
            connection.drop()
            total -= size
