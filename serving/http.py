"""HTTP/1.1 over asyncio with llhttp: inference requests go straight to the front, everything else to an ASGI app."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import httptools
from starlette.types import ASGIApp, Message, Scope

from serving.errors import InvalidRequest, TooLarge
from serving.responder import error_body

Headers = list[tuple[bytes, bytes]]

_REASONS = {
    200: b"OK", 400: b"Bad Request", 401: b"Unauthorized", 404: b"Not Found", 405: b"Method Not Allowed",
    408: b"Request Timeout", 409: b"Conflict", 413: b"Content Too Large", 422: b"Unprocessable Content",
    429: b"Too Many Requests", 431: b"Request Header Fields Too Large", 500: b"Internal Server Error",
    503: b"Service Unavailable", 504: b"Gateway Timeout",
}  # fmt: skip
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_MAX_PIPELINED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one connection may cost."""

    header_bytes: int = 32 * 1024
    body_bytes: int = 16 * 1024 * 1024
    # From a request's first byte to its last.
    request_seconds: float = 30.0
    # An open connection without a request.
    idle_seconds: float = 90.0
    # A client that does not read its answers.
    write_seconds: float = 30.0


class InferHandler(Protocol):
    """Takes inference requests. `infer` answers through the exchange, now or later; `cancel`: nobody reads it."""

    def infer(self, exchange: Exchange, model: str, version: str | None) -> None: ...

    def cancel(self, exchange: Exchange) -> None: ...


class Exchange:
    """One request and its answer. `respond` is called once; the connection keeps answers in the order of requests."""

    __slots__ = (
        "answer", "body", "chunks", "connection", "continues", "handle", "headers", "keep_alive", "method", "received",
        "size", "target",
    )  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.method = b""
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.chunks: list[bytes] = []
        self.size = 0
        self.body = b""
        self.keep_alive = True
        self.continues = False
        self.received = 0.0
        self.answer: bytes | None = None
        self.handle: Any = None  # the handler's own

    def respond(self, status: int, head: bytes, body: bytes) -> None:
        """`head` is header lines, each ended by CRLF, without content-length. Ignored once answered or disconnected."""
        if self.answer is None:
            self.connection.respond(self, status, head, body)


def error_head(retry_after_seconds: float | None) -> bytes:
    """Header lines of an error answer. Retry-After is in whole seconds, at least 1."""
    lines = b"content-type: application/json\r\n"
    if retry_after_seconds is None:
        return lines
    return lines + b"retry-after: %d\r\n" % max(1, round(retry_after_seconds + 0.5))


class Server:
    """What the connections of one listener share: handler, app, limits, and who is connected."""

    def __init__(self, handler: InferHandler, app: ASGIApp, limits: Limits | None = None) -> None:
        self.handler = handler
        self.app = app
        self.limits = limits or Limits()
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.closing = False

    def connection(self) -> Connection:
        """The protocol factory of `loop.create_server`."""
        return Connection(self)

    def begin_close(self) -> None:
        """From now on every answer ends its connection."""
        self.closing = True

    def active(self) -> int:
        """Requests begun and not yet answered."""
        return sum(connection.active() for connection in self.connections)

    def sweep(self, now: float) -> None:
        """Closes connections that take too long; call it about once a second with `time.monotonic()`."""
        for connection in list(self.connections):
            connection.sweep(now)

    def abort(self) -> None:
        """Closes every connection."""
        for connection in list(self.connections):
            connection.close()


class Connection(asyncio.Protocol):
    """One client connection: parses, keeps answers in order, applies the limits."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._limits = server.limits
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._exchanges: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._header_bytes = 0
        self._head_done = False
        self._since = time.monotonic()
        self._write_since: float | None = None
        self._closing = False
        self._paused = False

    def active(self) -> int:
        """Requests of this connection begun and not yet answered."""
        return len(self._exchanges) + (self._current is not None)

    # --- transport -----------------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._current = None
        self._server.connections.discard(self)
        waiting, self._exchanges = self._exchanges, deque()
        for exchange in waiting:
            if exchange.answer is None:
                exchange.answer = b""
                self._server.handler.cancel(exchange)

    def pause_writing(self) -> None:
        self._write_since = time.monotonic()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._write_since = None
        if not self._paused and not self._closing:
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        # A half-closed connection looks the same as a client that left; nearly all of them have left.
        return False

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # No upgrade is spoken here: the request is answered as it is, and the rest of the stream is not ours.
            self._last_of_connection()
        except _Refusal as refusal:
            self._refuse(refusal.status, str(refusal))
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, _Refusal):
                raise
            self._refuse(cause.status, str(cause))
        except httptools.HttpParserError as error:
            self._refuse(400, f"the request is not HTTP/1.1: {error}")
        else:
            # A header that came in one read is bounded by the size of a read.
            self._header_bytes = 0 if self._current is None or self._head_done else self._header_bytes + len(data)
            if self._header_bytes > self._limits.header_bytes:
                self._refuse(431, f"the request's header is over {self._limits.header_bytes} bytes")

    # --- parser --------------------------------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        self._current = Exchange(self)
        self._header_bytes = 0
        self._head_done = False
        self._since = time.monotonic()

    def on_url(self, url: bytes) -> None:
        self._exchange.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        headers = self._exchange.headers
        headers[name] = headers[name] + b", " + value if name in headers else value

    def on_headers_complete(self) -> None:
        exchange = self._exchange
        self._head_done = True
        exchange.method = self._parser.get_method()
        exchange.keep_alive = self._parser.should_keep_alive()
        length = exchange.headers.get(b"content-length")
        if length is not None and int(length) > self._limits.body_bytes:
            raise _Refusal(413, f"the body has {int(length)} bytes, the limit is {self._limits.body_bytes}")
        if exchange.headers.get(b"expect", b"").lower() == b"100-continue":
            if self._exchanges:
                exchange.continues = True
            else:
                self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        exchange = self._exchange
        exchange.size += len(body)
        if exchange.size > self._limits.body_bytes:
            raise _Refusal(413, f"the body is over the limit of {self._limits.body_bytes} bytes")
        exchange.chunks.append(body)

    def on_message_complete(self) -> None:
        exchange = self._exchange
        self._current = None
        self._head_done = False
        self._header_bytes = 0
        if self._closing:
            return
        chunks = exchange.chunks
        exchange.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        exchange.received = time.perf_counter()
        self._exchanges.append(exchange)
        if not exchange.keep_alive:
            self._last_of_connection()
        if len(self._exchanges) >= _MAX_PIPELINED:
            self._paused = True
            self._transport.pause_reading()
        self._route(exchange)

    @property
    def _exchange(self) -> Exchange:
        if self._current is None:
            raise _Refusal(400, "data outside a request")
        return self._current

    def _route(self, exchange: Exchange) -> None:
        if exchange.method == b"POST" and exchange.target.endswith(b"/infer"):
            parts = exchange.target.split(b"/")
            # /v2/models/{model}[/versions/{version}]/infer
            if parts[1:3] == [b"v2", b"models"] and (len(parts) == 5 or (len(parts) == 7 and parts[4] == b"versions")):
                version = parts[5].decode("latin-1") if len(parts) == 7 else None
                self._server.handler.infer(exchange, parts[3].decode("latin-1"), version)
                return
        task = asyncio.get_running_loop().create_task(run_app(self._server.app, exchange, self._peer()))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    def _peer(self) -> tuple[str, int] | None:
        peer = self._transport.get_extra_info("peername")
        return (peer[0], peer[1]) if isinstance(peer, tuple) else None

    # --- answers -------------------------------------------------------------------------------------------------
    def respond(self, exchange: Exchange, status: int, head: bytes, body: bytes) -> None:
        """Keeps the answer, and writes all that are now first in line."""
        close = not exchange.keep_alive or self._server.closing
        exchange.answer = b"HTTP/1.1 %d %b\r\n%bcontent-length: %d\r\n%b\r\n%b" % (
            status, _REASONS.get(status, b"Status"), head, len(body), b"connection: close\r\n" if close else b"",
            b"" if exchange.method == b"HEAD" else body,
        )  # fmt: skip
        if close:
            exchange.keep_alive = False
        self._flush()

    def _flush(self) -> None:
        exchanges = self._exchanges
        while exchanges and exchanges[0].answer is not None:
            exchange = exchanges.popleft()
            self._transport.write(exchange.answer)  # type: ignore[arg-type]
            if not exchange.keep_alive:
                self.close()
                return
        self._since = time.monotonic() if self._current is None else self._since
        if self._closing and not exchanges:
            self.close()
            return
        if not exchanges and self._current is not None and self._current.continues:
            self._current.continues = False
            self._transport.write(_CONTINUE)
        if self._paused and len(exchanges) < _MAX_PIPELINED // 2:
            self._paused = False
            if self._write_since is None:
                self._transport.resume_reading()

    def _refuse(self, status: int, message: str) -> None:
        """Answers a request that could not be read, after those before it, and closes: the stream's sense is lost."""
        if self._closing:
            # Bytes behind the last request that this connection takes: nobody is owed an answer to them.
            return
        exchange = self._current or Exchange(self)
        self._current = None
        exchange.keep_alive = False
        self._exchanges.append(exchange)
        self._last_of_connection()
        exchange.respond(status, error_head(None), error_body(message))

    def _last_of_connection(self) -> None:
        self._closing = True
        if not self._exchanges:
            self.close()

    def close(self) -> None:
        """Closes after what was written has gone out."""
        self._closing = True
        self._transport.close()

    def sweep(self, now: float) -> None:
        """Closes the connection if its client takes too long to send, to ask, or to read."""
        limits = self._limits
        if self._write_since is not None and now - self._write_since > limits.write_seconds:
            self._transport.abort()
        elif self._current is not None and now - self._since > limits.request_seconds:
            self._refuse(408, f"the request did not arrive within {limits.request_seconds:g} s")
        elif self._current is None and not self._exchanges and now - self._since > limits.idle_seconds:
            self.close()


class _Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def decoded_body(exchange: Exchange, limit: int) -> bytes:
    """The request's body, unpacked from gzip or deflate. Raises TooLarge over `limit` bytes, InvalidRequest."""
    encoding = exchange.headers.get(b"content-encoding", b"identity").lower()
    if encoding == b"identity":
        return exchange.body
    if encoding not in (b"gzip", b"deflate"):
        raise InvalidRequest(f"content-encoding {encoding.decode('latin-1')!r} is not understood; use gzip or deflate")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        body = unpack.decompress(exchange.body, limit + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the body is not {encoding.decode()}: {error}") from error
    if len(body) > limit:
        raise TooLarge(f"the unpacked body is over the limit of {limit} bytes")
    if not unpack.eof:
        raise InvalidRequest(f"the {encoding.decode()} body is cut off")
    return body


async def run_app(app: ASGIApp, exchange: Exchange, peer: tuple[str, int] | None) -> None:
    """Answers the exchange with what the ASGI app says; 500 when the app raises."""
    path, _, query = exchange.target.partition(b"?")
    scope: Scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": exchange.method.decode("latin-1"), "scheme": "http", "path": _unquoted(path), "raw_path": path,
        "query_string": query, "root_path": "", "headers": list(exchange.headers.items()), "client": peer,
        "server": None, "extensions": {},
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
