"""A replica's end of the fronts' connections: requests in as they came, answers out, and how much is left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol

from serving.fleet import frames
from serving.fleet.frames import FrameError, FrameReader, Request
from serving.fleet.link import FrameWriter
from serving.http import Server
from serving.protocol.long_answers import LongBody, whole
from serving.transport.exchange import Head, KnownExchange, error_head, run_app

_log = logging.getLogger(__name__)
_CLIENT_CLOSED = 499


class Inside(Protocol):
    """What a line needs of its replica."""

    http: Server
    lines: set[Line]

    @property
    def leading(self) -> bool: ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> None: ...

    async def answers(self) -> bool: ...

    def active(self) -> int: ...

    def queue_rows(self) -> int: ...


class RelayedExchange(KnownExchange):
    """A request that came over a front's connection; the answer goes back the same way, with its number."""

    __slots__ = ("sequence",)

    def __init__(self, line: Line, sequence: int, head: Head, body: bytes, received: float) -> None:
        super().__init__(line, head, body, received)
        self.sequence = sequence
        self.size = len(body)


class Heads:
    """Headers of requests as the fronts packed them, read once each; bounded."""

    def __init__(self, limit: int = 1024, limit_bytes: int = 4096) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._known: dict[bytes, tuple[Head, bytes]] = {}

    def read(self, content: bytes) -> tuple[Head, bytes]:
        """The header, and the client's address. Raises FrameError."""
        found = self._known.get(content)
        if found is None:
            method, target, peer, pairs = frames.parse_head(content)
            found = Head(method, target, pairs), peer
            if len(content) <= self._limit_bytes:
                if len(self._known) >= self._limit:
                    self._known.clear()
                self._known[content] = found
        return found


class Line(asyncio.Protocol):
    """The connection of one front."""

    def __init__(self, replica: Inside) -> None:
        self._replica = replica
        self._reader = FrameReader()
        self._heads = Heads()
        self._open: dict[int, RelayedExchange] = {}
        self._transport: asyncio.Transport | None = None
        self._writer: FrameWriter | None = None
        self._reporting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._writer = FrameWriter(self._transport, asyncio.get_running_loop().call_soon)  # type: ignore[arg-type]
        self._replica.lines.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._replica.lines.discard(self)
        held, self._open = self._open, {}
        for exchange in held.values():
            exchange.answer = b""
            self._replica.http.handler.cancel(exchange)

    def active(self) -> int:
        """Requests of this front that are not answered."""
        return len(self._open)

    def data_received(self, data: bytes) -> None:
        try:
            for kind, sequence, payload in self._reader.feed(data):
                if kind == frames.REQUEST:
                    self._request(sequence, frames.parse_request(payload))
                elif kind == frames.CANCEL:
                    self._cancel(sequence)
                elif kind == frames.PING:
                    self.put(frames.frame(frames.PONG, sequence))
                elif kind == frames.PROBE:
                    self._replica.spawn(self._probe())
        except FrameError as error:
            _log.error("a front does not speak frames: %s", error)
            if self._transport is not None:
                self._transport.abort()

    def _request(self, sequence: int, request: Request) -> None:
        head, peer = self._heads.read(request.head)
        exchange = RelayedExchange(self, sequence, head, request.body, request.received)
        self._open[sequence] = exchange
        if head.model:
            self._replica.http.handler.infer(exchange, head.model, head.version)
        elif not self._replica.leading and head.method not in (b"GET", b"HEAD"):
            exchange.respond(503, error_head(1.0), b'{"error": "this replica does not lead: retry"}')
        else:
            host, _, port = peer.decode().partition("\t")
            self._replica.spawn(run_app(self._replica.http.app, exchange, (host, int(port)) if port else None))

    def _cancel(self, sequence: int) -> None:
        exchange = self._open.get(sequence)
        if exchange is not None:
            self._replica.http.handler.cancel(exchange)
            # The front keeps its account of this request until it hears of it.
            exchange.respond(_CLIENT_CLOSED, b"", b"")

    async def _probe(self) -> None:
        self.put(frames.frame(frames.PROBED, 0, b"\1" if await self._replica.answers() else b"\0"))

    def hold(self, _exchange: RelayedExchange, _size: int) -> bool:
        """Yes: the front counts what its clients do not read."""
        return True

    def respond(self, exchange: RelayedExchange, status: int, head: bytes, body: bytes | LongBody) -> None:
        """Writes an answer, and how much is left, with all others of this turn of the loop."""
        if self._open.pop(exchange.sequence, None) is None:
            return
        exchange.answer = b""
        self.put(frames.answer_frame(exchange.sequence, status, head, whole(body)))
        if not self._reporting:
            self._reporting = True
            asyncio.get_running_loop().call_soon(self._report)

    def arm(self, intake: object) -> None:
        """Nothing: requests come in frames here, which the compiled way does not read."""

    def _report(self) -> None:
        self._reporting = False
        self.put(frames.load_frame(self._replica.active(), self._replica.queue_rows()))

    def put(self, frame: bytes) -> None:
        """Writes a frame."""
        if self._writer is not None:
            self._writer.put(frame)
