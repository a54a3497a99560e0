"""The whole server as an ASGI app, for those who run or mount it elsewhere: slower than its own port, same answers.

`uvicorn module:app` with `app = serving.asgi(ServingConfig(...))`, or `Mount("/models", app)` in Starlette or FastAPI.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from serving.protocol.long_answers import LongBody
from serving.protocol.responder import error_body
from serving.server import Service, ServingConfig
from serving.transport.exchange import joined, route
from serving.transport.gateway import Reply

_log = logging.getLogger(__name__)


class _Unlistening(Service):
    async def _listen(self) -> Any:
        return None

    async def _stop_listening(self) -> None:
        return None


class MountedServer:
    """The ASGI app. `host`, `port` and the drain notice of the settings do not count: connections belong to the host.

    A host that has a lifespan of its own must enter `lifespan`; one that never does gets a server that starts with the
    first request and is not drained. `service` is there once it has started.
    """

    def __init__(self, config: ServingConfig) -> None:
        self._config = replace(config, drain_notice=0.0)
        self._starting: asyncio.Task[Service] | None = None
        self.service: Service | None = None

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Starts the server, and drains it at the end. Pass it as `lifespan=` to the app that this is mounted in."""
        await self._start()
        try:
            yield
        finally:
            if self.service is not None:
                await self.service.drain()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3: lifespan and http."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        if self.service is None:
            if self._starting is None:
                _log.warning("starting with the first request, since no lifespan was entered: it will not be drained")
            await self._start()
        assert self.service is not None
        await self._answer(self.service, scope, receive, send)

    async def _start(self) -> Service:
        if self._starting is None:
            self._starting = asyncio.create_task(self._started())
        return await asyncio.shield(self._starting)

    async def _started(self) -> Service:
        service = _Unlistening(self._config)
        await service.start()
        self.service = service
        return service

    async def _live(self, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        try:
            await self._start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self.service is not None:
            await self.service.drain()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive, self._config.limits.body_bytes)
        if body is None:
            message = f"the body is over the limit of {self._config.limits.body_bytes} bytes"
            await _send(send, Reply(413, {b"content-type": b"application/json"}, error_body(message)))
            return
        path, root = scope["path"], scope.get("root_path", "")
        path = path.removeprefix(root) if root else path
        found = route(scope["method"].encode(), path.encode())
        gateway = service.edge.gateway
        if found is None:
            assert gateway.app is not None
            await gateway.app(scope, _given(body), send)
            return
        model, version = found
        asked = asyncio.create_task(gateway.infer(model, version, joined(scope["headers"]), body))
        gone = asyncio.create_task(_disconnected(receive))
        await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if asked.done():
            await _send(send, asked.result())
        else:
            asked.cancel()


def asgi(config: ServingConfig) -> MountedServer:
    """The server as an ASGI app."""
    return MountedServer(config)


async def _body(receive: Receive, limit: int) -> bytes | None:
    """The request's body; None when it is over the limit."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


def _given(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(send: Send, reply: Reply) -> None:
    body = reply.body
    headers = [*reply.headers.items(), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    if isinstance(body, LongBody):
        while body.pieces:
            await send({"type": "http.response.body", "body": bytes(body.pieces.popleft()), "more_body": True})
        body = b""
    await send({"type": "http.response.body", "body": body})
