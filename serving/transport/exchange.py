"""A request on its way through the server and its answer, whatever connection it came by; and the app behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from starlette.types import ASGIApp, Message, Scope

from serving.protocol.long_answers import LongBody
from serving.protocol.responder import error_body

Pairs = Sequence[tuple[bytes, bytes]]


class InferHandler(Protocol):
    """Takes inference requests. `infer` answers through the exchange, now or later; `cancel`: nobody reads it."""

    def infer(self, exchange: Exchange, model: str, version: str | None) -> None: ...

    def cancel(self, exchange: Exchange) -> None: ...


class Line(Protocol):
    """Where an exchange came from, and where its answer goes. `hold` as an exchange has it."""

    def respond(self, exchange: Any, status: int, head: bytes, body: bytes | LongBody) -> None: ...

    def hold(self, exchange: Any, size: int) -> bool: ...


class Head:
    """A request's header, read once for all requests with the same bytes, `text`. `memo` is the handler's own.

    `headers` has lower-case names, repeated ones joined; it is shared, and only read.
    """

    __slots__ = ("headers", "length", "memo", "method", "model", "pairs", "target", "text", "version")

    def __init__(self, method: bytes, target: bytes, pairs: Pairs, text: bytes = b"") -> None:
        self.text = text
        self.method = method
        self.target = target
        self.pairs = pairs
        self.headers = joined(pairs)
        self.length = int(self.headers.get(b"content-length", b"0"))
        self.model, self.version = route(method, target) or ("", None)
        self.memo: Any = None


class Exchange:
    """One request and its answer. `respond` is called once; the connection keeps answers in the order of requests."""

    __slots__ = (
        "answer", "body", "connection", "continues", "handle", "head", "headers", "keep_alive", "method", "pairs",
        "received", "rest", "size", "target",
    )  # fmt: skip

    def __init__(self, connection: Line) -> None:
        self.connection = connection
        self.method = b""
        self.target = b""
        self.headers: Mapping[bytes, bytes] = {}
        self.pairs: list[tuple[bytes, bytes]] | None = None
        self.head: Head | None = None
        self.size = 0  # bytes that count as held until the answer
        self.body = b""
        self.keep_alive = True
        self.continues = False
        self.received = 0.0
        self.answer: bytes | None = None
        self.rest: LongBody | None = None  # of a long answer, behind what `answer` holds
        self.handle: Any = None  # the handler's own

    def hold(self, size: int) -> bool:
        """Counts so many bytes of an answer to come as held until the answer is; False where there is no room."""
        return self.connection.hold(self, size)

    def respond(self, status: int, head: bytes, body: bytes | LongBody) -> None:
        """`head` is header lines, each ended by CRLF, without content-length. Ignored once answered or disconnected."""
        if self.answer is None:
            self.connection.respond(self, status, head, body)


class KnownExchange(Exchange):
    """A request whose header was met before."""

    __slots__ = ()

    def __init__(self, connection: Line, head: Head, body: bytes, received: float) -> None:
        self.connection = connection
        self.method = head.method
        self.target = head.target
        self.headers = head.headers
        self.pairs = None
        self.head = head
        self.size = head.length
        self.body = body
        self.keep_alive = True
        self.continues = False
        self.received = received
        self.answer = None
        self.rest = None
        self.handle = None


def joined(pairs: Pairs) -> dict[bytes, bytes]:
    """Header fields by lower-case name; the values of one that comes several times are joined by a comma."""
    headers: dict[bytes, bytes] = {}
    for name, value in pairs:
        name = name.lower()
        value = value.rstrip(b" \t")
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def route(method: bytes, target: bytes) -> tuple[str, str | None] | None:
    """Model and version of an inference request, /v2/models/{model}[/versions/{version}]/infer; None for others."""
    if method != b"POST":
        return None
    path = target.partition(b"?")[0]
    if not path.endswith(b"/infer"):
        return None
    parts = path.split(b"/")
    if parts[1:3] != [b"v2", b"models"] or not (len(parts) == 5 or (len(parts) == 7 and parts[4] == b"versions")):
        return None
    # Without a name it is no request of a model: in a fleet it would be one of nobody's.
    if not parts[3]:
        return None
    return _unquoted(parts[3]), _unquoted(parts[5]) if len(parts) == 7 else None


def error_head(retry_after_seconds: float | None) -> bytes:
    """Header lines of an error answer. Retry-After is in whole seconds, at least 1."""
    lines = b"content-type: application/json\r\n"
    if retry_after_seconds is None:
        return lines
    return lines + b"retry-after: %d\r\n" % max(1, round(retry_after_seconds + 0.5))


async def run_app(app: ASGIApp, exchange: Exchange, peer: tuple[str, int] | None) -> None:
    """Answers the exchange by an ASGI app."""
    path, _, query = exchange.target.partition(b"?")
    pairs = list(exchange.headers.items()) if exchange.pairs is None else exchange.pairs
    scope: Scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": exchange.method.decode("latin-1"), "scheme": "http", "path": _unquoted(path), "raw_path": path,
        "query_string": query, "root_path": "", "headers": [(name.lower(), value) for name, value in pairs],
        "client": peer, "server": None, "extensions": {},
    }  # fmt: skip
    status, head, chunks = 500, b"", [b""]

    async def receive() -> Message:
        return {"type": "http.request", "body": exchange.body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, head
        if message["type"] == "http.response.start":
            status = message["status"]
            head = b"".join(
                b"%b: %b\r\n" % (name, value) for name, value in message.get("headers", []) if name != b"content-length"
            )
        elif message["type"] == "http.response.body":
            chunks.append(message.get("body", b""))

    try:
        await app(scope, receive, send)
    except Exception as error:
        exchange.respond(500, error_head(None), error_body(f"{type(error).__name__}: {error}"))
        return
    exchange.respond(status, head, b"".join(chunks))


def _unquoted(path: bytes) -> str:
    return unquote_to_bytes(path).decode("utf-8", "replace")
