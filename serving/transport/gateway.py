"""Requests that came another way than over this server's connections (gRPC, ASGI), to the same front and app."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from starlette.types import ASGIApp

from serving.protocol.long_answers import LongBody
from serving.transport.exchange import Exchange, InferHandler, run_app


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its HTTP status, its headers by lower-case name, its body."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes | LongBody


class _Line:
    """Stands where an exchange has its connection."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[Reply]) -> None:
        self.future = future

    def hold(self, _exchange: Exchange, _size: int) -> bool:
        return True

    def respond(self, exchange: Exchange, status: int, head: bytes, body: bytes | LongBody) -> None:
        exchange.answer = b""
        if not self.future.done():
            pairs = (line.partition(b":") for line in head.split(b"\r\n") if line)
            self.future.set_result(
                Reply(status, {name.strip().lower(): value.strip() for name, _, value in pairs}, body)
            )


class Gateway:
    """`infer` and `control` wait for the answer; a cancelled `infer` is one whose client went away."""

    def __init__(self, handler: InferHandler) -> None:
        self._handler = handler
        # The control app, which is built after what it is made of.
        self.app: ASGIApp | None = None
        # Requests begun and not yet answered.
        self.active = 0

    async def infer(self, model: str, version: str | None, headers: dict[bytes, bytes], body: bytes) -> Reply:
        """Asks the front; `headers` by lower-case name."""
        named = f"/versions/{quote(version, safe='')}" if version is not None else ""
        target = f"/v2/models/{quote(model, safe='')}{named}/infer".encode()
        exchange, future = self._exchange(b"POST", target, headers, body)
        self.active += 1
        try:
            self._handler.infer(exchange, model, version)
            return await future
        except asyncio.CancelledError:
            if exchange.answer is None:
                exchange.answer = b""
                self._handler.cancel(exchange)
            raise
        finally:
            self.active -= 1

    async def control(self, method: bytes, target: bytes, headers: dict[bytes, bytes], body: bytes = b"") -> Reply:
        """Asks the control app."""
        assert self.app is not None
        exchange, future = self._exchange(method, target, headers, body)
        self.active += 1
        try:
            await run_app(self.app, exchange, None)
            return await future
        finally:
            self.active -= 1

    def _exchange(
        self, method: bytes, target: bytes, headers: dict[bytes, bytes], body: bytes
    ) -> tuple[Exchange, asyncio.Future[Reply]]:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        exchange = Exchange(_Line(future))
        exchange.method, exchange.target, exchange.headers, exchange.body = method, target, headers, body
        exchange.size = len(body)
        exchange.received = time.perf_counter()
        return exchange, future
