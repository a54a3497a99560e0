"""What a front answers besides inference: liveness itself, readiness, metrics and load of all, the rest by relay."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.types import Message, Receive, Scope, Send

from serving.fleet.frames import Request, pack_head
from serving.fleet.relay import Relay

_LIVE = (b"/health/live", b"/v2/health/live")
_READY = (b"/health/ready", b"/v2/health/ready")
_MODEL_READY = re.compile(rb"/v2/models/[^/]+(/versions/[^/]+)?/ready")
Reply = tuple[int, list[tuple[bytes, bytes]], bytes]


class RelayApp:
    """An ASGI app.

    `ready` gives the reason why the server is not, or None; `away` why this front is not, whatever the replicas have;
    `page` the metrics for an Accept header; `load` the load report of all processes.
    """

    def __init__(
        self,
        relay: Relay,
        ready: Callable[[], Awaitable[str | None]],
        away: Callable[[], str | None],
        page: Callable[[str], Awaitable[tuple[bytes, str]]],
        load: Callable[[], Awaitable[dict[str, Any]]],
        clock: Callable[[], float],
    ) -> None:
        self._relay = relay
        self._ready = ready
        self._away = away
        self._page = page
        self._load = load
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        path = scope["raw_path"]
        if path in _LIVE:
            reply = _json(200, {"live": True})
        elif path in _READY:
            reason = await self._ready()
            reply = _json(200, {"ready": True}) if reason is None else _json(503, {"ready": False, "error": reason})
        elif _MODEL_READY.fullmatch(path) and (gone := self._away()) is not None:
            reply = _json(503, {"ready": False, "error": gone})
        elif path == b"/metrics" and scope["method"] in ("GET", "HEAD"):
            accept = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
            body, content_type = await self._page(accept)
            reply = 200, [(b"content-type", content_type.encode())], body
        elif path == b"/load" and scope["method"] in ("GET", "HEAD"):
            reply = _json(200, await self._load())
        else:
            reply = await self._relayed(scope, await _body_of(receive))
        status, headers, body = reply
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _relayed(self, scope: Scope, body: bytes) -> Reply:
        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        client = scope.get("client")
        peer = b"" if client is None else f"{client[0]}\t{client[1]}".encode()
        try:
            head = pack_head(scope["method"].encode("latin-1"), target, peer, scope["headers"])
        except ValueError as error:
            return _json(400, {"error": f"{error}: send text"})
        answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def respond(status: int, head: bytes, content: bytes) -> None:
            if not answered.done():
                answered.set_result((status, _headers(head), content))

        self._relay.call(Request(self._clock(), head, body), respond)
        return await answered


async def _body_of(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    while True:
        message: Message = await receive()
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(chunks)


def _headers(head: bytes) -> list[tuple[bytes, bytes]]:
    pairs = [line.partition(b":") for line in head.split(b"\r\n") if line]
    return [(name, value.strip()) for name, _, value in pairs]


def _json(status: int, value: dict[str, object]) -> Reply:
    headers = [(b"content-type", b"application/json")]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    return status, headers, msgspec.json.encode(value)
