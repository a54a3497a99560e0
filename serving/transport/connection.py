"""One HTTP/1.1 connection over asyncio with llhttp: parses, keeps answers in order, applies the limits."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httptools

from serving.protocol.long_answers import PIECE_BYTES, LongBody
from serving.protocol.responder import error_body
from serving.transport import framing
from serving.transport.exchange import Exchange, KnownExchange, error_head, joined, route, run_app
from serving.transport.intake import native
from serving.transport.limits import Refusal

if TYPE_CHECKING:
    from serving.http import Server

__all__ = ["Connection"]

_REASONS = {
    200: b"OK", 202: b"Accepted", 204: b"No Content", 307: b"Temporary Redirect", 400: b"Bad Request",
    401: b"Unauthorized", 403: b"Forbidden", 404: b"Not Found", 405: b"Method Not Allowed", 408: b"Request Timeout",
    409: b"Conflict", 413: b"Content Too Large", 415: b"Unsupported Media Type", 422: b"Unprocessable Content",
    429: b"Too Many Requests", 431: b"Request Header Fields Too Large", 500: b"Internal Server Error",
    501: b"Not Implemented", 503: b"Service Unavailable", 504: b"Gateway Timeout", 507: b"Insufficient Storage",
}  # fmt: skip
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LINGER_SECONDS = 2.0
_MAX_PIPELINED = 64
# Smaller pieces of a body are gathered: as objects of their own they would take many times their bytes.
_SMALL_PIECE = 4096
# Longer answers go out in pieces as their clients read them, no more than so many bytes in a turn of the loop.
_LONG_ANSWER = PIECE_BYTES
_TURN_BYTES = 4 * PIECE_BYTES
# Pipelined requests are parsed in steps of so many bytes, until as many wait as may.
_STEP_BYTES = 16 * 1024


class Connection(asyncio.Protocol):
    """One client connection: parses, keeps answers in order, applies the limits."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._limits = server.limits
        self._heads = server.heads
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._exchanges: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._pairs: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes | bytearray] = []
        self._body_bytes = 0
        # Messages that the parser has completed in the read at hand; what is no inference counts twice.
        self._completed = 0
        self._begun = 0
        # Bytes of a header that has not ended; behind a header, of reads without a byte of the body.
        self._header_bytes = 0
        self._framing_bytes = 0
        self._framing_only = False
        self._head_done = False
        self._version = "1.1"
        # Its client asks for another protocol first, and the parser takes its body for that protocol.
        self._upgrades = False
        self._since = self.opened = time.monotonic()
        self._write_since: float | None = None
        self._closing = False
        self._paused = False
        # What was read and not parsed, since as many requests wait as may, or an answer is not read; and whether it is
        # parsed in the next turn of the loop.
        self._unfed = b""
        self._feeds_on = False
        # The next pieces of a long answer follow in the next turn of the loop.
        self._goes_on = False
        # A request was refused whose client may still be sending it; then, what it sends is thrown away for a while.
        self._refused = False
        self._lingering = False
        # When the transport was told to close.
        self._ended: float | None = None
        self._dropped = False
        # The compiled way past this class, where there is one: it takes requests while nothing else is on its way.
        compiled = native()
        self._slot: Any = None
        if compiled is not None:
            self._slot = compiled.Slot(self, self._received)
            self.data_received = self._slot.feed  # type: ignore[method-assign]

    def active(self) -> int:
        """Requests of this connection begun and not yet answered."""
        taken = self._slot is not None and self._slot.taken
        return len(self._exchanges) + (self._current is not None) + taken

    @property
    def fresh(self) -> bool:
        """Whether it has answered nothing yet, and has nothing to answer."""
        return self._last() == self.opened and not self.active()

    def stuck(self, now: float) -> float:
        """Seconds in which its client has not read what was written."""
        return 0.0 if self._write_since is None else now - self._write_since

    def unread(self) -> tuple[int, int]:
        """Bytes of answers that wait for the client, and those of them that count as held by the server."""
        held = sum(exchange.size for exchange in self._exchanges if exchange.answer is not None)
        return held + self._transport.get_write_buffer_size(), held

    def drop(self, reason: str) -> None:
        """Ends the connection at once, with what was written and not read; `reason` is counted."""
        if self._dropped:
            return
        self._dropped = self._closing = True
        self._server.dropped(reason)
        self._abandon()
        self._transport.abort()

    # --- transport -----------------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._server.connections.add(self)
        _hold_little(self._transport)
        if self._slot is not None:
            self._slot.opened(self._transport.write, *_socket(self._transport))

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._server.connections.discard(self)
        if self._slot is not None:
            self._slot.close()
            # Else the two would keep each other alive until a garbage collection.
            self.__dict__.pop("data_received", None)
        self._abandon()

    # --- the compiled way --------------------------------------------------------------------------------------------
    def arm(self, intake: Any) -> None:
        """From now on requests like those that the intake knows go to it, if nothing is on its way here."""
        busy = self._exchanges or self._closing or self._paused or self._server.closing or self._current is not None
        if self._slot is not None and not busy:
            self._slot.arm(intake)

    def disarm(self) -> None:
        """What was taken comes back, and nothing is taken any more."""
        if self._slot is not None:
            self._slot.release()
            self._slot.disarm()

    def given_back(self, data: bytes, received: float) -> Exchange | None:
        """The request that was taken, as if it had not been; None when its header means nothing, which cannot be."""
        end = data.find(b"\r\n\r\n") + 4
        head = self._heads.known(data[:end])
        if head is None:
            self._transport.abort()
            return None
        exchange = KnownExchange(self, head, data[end:], received)
        self._server.buffered += head.length
        self._exchanges.append(exchange)
        return exchange

    def _abandon(self) -> None:
        """Nobody will read the answers that are not written."""
        current, self._current = self._current, None
        if current is not None:
            self._release(current)
        self._take_unfed()
        self._chunks = []
        waiting, self._exchanges = self._exchanges, deque()
        for exchange in waiting:
            self._release(exchange)
            exchange.rest = None
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
            self._resume()
        if self._exchanges and self._exchanges[0].answer is not None:
            self._flush()

    def eof_received(self) -> bool:
        # A half-closed connection looks the same as a client that left; nearly all of them have left. Of one that is
        # being answered the next write tells.
        if not (self._exchanges and self._exchanges[0].answer is not None):
            return False
        self._last_of_connection()
        return True

    def data_received(self, data: bytes) -> None:
        self._received(data)

    def _received(self, data: bytes) -> None:
        if self._slot is not None and self._slot.taken:
            # The answers keep the order of the requests.
            self._slot.release()
        if self._closing:
            return
        if self._current is not None:
            self._feed(data)
            return
        end = data.find(b"\r\n\r\n") + 4
        head = self._heads.get(data[:end])
        if head is not None and len(data) == end + head.length:
            exchange = KnownExchange(self, head, data[end:], time.perf_counter())
            server = self._server
            server.buffered += head.length
            if server.buffered > self._limits.buffered_bytes and head.length:
                self._current = exchange
                self._refuse(503, self._no_memory())
                return
            self._exchanges.append(exchange)
            if len(self._exchanges) >= _MAX_PIPELINED:
                self._pause()
            server.handler.infer(exchange, head.model, head.version)
            return
        self._completed = 0
        self._feed(data)
        if self._completed == 1 and self._current is None and not self._closing:
            self._heads.meet(data)

    def _feed(self, data: bytes) -> None:
        """Parses what was read; what follows more requests than may wait, or an answer that is not read, later."""
        at = 0
        while at < len(data) and not self._closing:
            if at and (self._paused or self._write_since is not None):
                self._unfed = data[at:]
                self._server.buffered += len(self._unfed)
                return
            step = self._step()
            self._feed_some(data[at : at + step] if at or step < len(data) else data)
            at += step

    def _step(self) -> int:
        """Bytes to parse next: not many small requests, but all of a body."""
        if self._current is None or not self._head_done:
            return _STEP_BYTES
        return max(_STEP_BYTES, int(self._current.headers.get(b"content-length", b"0")) - self._body_bytes)

    def _feed_some(self, data: bytes) -> None:
        self._begun = 0 if self._current is None else 1
        self._framing_only = True
        rest: bytes | None = data
        while rest is not None:
            rest = self._parse(rest)
        if self._current is not None and not self._closing:
            self._arriving(len(data))

    def _resume(self) -> None:
        """Goes on with what was read already, then with reading."""
        if not self._unfed:
            self._transport.resume_reading()
        elif not self._feeds_on:
            self._feeds_on = True
            asyncio.get_running_loop().call_soon(self._feed_on)

    def _feed_on(self) -> None:
        self._feeds_on = False
        if self._paused or self._write_since is not None:
            return
        data = self._take_unfed()
        if data and not self._closing:
            self._feed(data)
        if not (self._unfed or self._paused or self._closing or self._write_since is not None):
            self._transport.resume_reading()

    def _take_unfed(self) -> bytes:
        data, self._unfed = self._unfed, b""
        self._server.buffered -= len(data)
        return data

    def _parse(self, data: bytes) -> bytes | None:
        """Bytes to parse in the place of the last ones, if their client asked for another protocol."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # No upgrade is spoken here: the request is answered as it is.
            if self._upgrades:
                return self._without_upgrade() + data[upgrade.args[0] :]
            # The rest of the stream is not ours.
            self._last_of_connection()
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, Refusal):
                raise
            self._refuse(cause.status, str(cause))
        except httptools.HttpParserError as error:
            self._refuse(400, f"the request is not HTTP/1.1: {error}")
        return None

    def _without_upgrade(self) -> bytes:
        exchange = self._exchange
        self._parser = httptools.HttpRequestParser(self)
        self._current = None
        self._begun -= 1
        self._release(exchange)
        connection = exchange.headers.get(b"connection", b"")
        return framing.without_upgrade(exchange.method, exchange.target, self._version, self._pairs, connection)

    def _arriving(self, size: int) -> None:
        """Counts a read that did not end the request."""
        limit = self._limits.header_bytes
        if self._head_done:
            self._framing_bytes = self._framing_bytes + size if self._framing_only else 0
            if self._framing_bytes > limit:
                self._refuse(431, f"what frames the request's body is over {limit} bytes")
            return
        # Where in the read the request began is known only of the first one.
        self._header_bytes += size if self._begun == 1 else 0
        if self._header_bytes > limit:
            self._refuse(431, f"the request's header is over {limit} bytes")
            return
        try:
            self._hold(size)
        except Refusal as refusal:
            self._refuse(refusal.status, str(refusal))

    # --- parser --------------------------------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        self._current = Exchange(self)
        self._begun += 1
        self._pairs, self._chunks = [], []
        self._header_bytes = self._framing_bytes = self._body_bytes = 0
        self._head_done = self._upgrades = False
        self._since = time.monotonic()

    def on_url(self, url: bytes) -> None:
        self._exchange.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # Behind the body nothing is a header: such fields may say what a proxy would have refused in front of it.
        if not self._head_done:
            self._pairs.append((name, value))

    def on_headers_complete(self) -> None:
        exchange = self._exchange
        self._head_done = True
        self._framing_only = False
        exchange.pairs = pairs = self._pairs
        exchange.headers = headers = joined(pairs)
        exchange.method = self._parser.get_method()
        exchange.keep_alive = self._parser.should_keep_alive()
        self._version = self._parser.get_http_version()
        self._upgrades = self._parser.should_upgrade() and exchange.method != b"CONNECT" and framing.has_body(headers)
        if self._upgrades:
            return
        size = len(exchange.target) + sum([len(name) + len(value) + 4 for name, value in pairs])
        if size > self._limits.header_bytes:
            raise Refusal(431, f"the request's header is over {self._limits.header_bytes} bytes")
        if size > exchange.size:
            self._hold(size - exchange.size)
        framing.check(headers)
        if not exchange.target.startswith(b"/") or b"#" in exchange.target:
            exchange.target = framing.origin_form(exchange.target)
        if self._version != "1.1" and b"transfer-encoding" in headers:
            # Older servers on the way do not know where such a request ends.
            exchange.keep_alive = False
        length = headers.get(b"content-length")
        if length is not None and int(length) > self._limits.body_bytes:
            raise Refusal(413, f"the body has {int(length)} bytes, the limit is {self._limits.body_bytes}")
        if headers.get(b"expect", b"").lower() == b"100-continue" and self._version == "1.1" and not self._closing:
            if self._exchanges:
                exchange.continues = True
            else:
                self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._framing_only = False
        self._hold(len(body))
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.body_bytes:
            raise Refusal(413, f"the body is over the limit of {self._limits.body_bytes} bytes")
        chunks = self._chunks
        if chunks and len(body) < _SMALL_PIECE:
            last = chunks[-1]
            if isinstance(last, bytearray):
                last += body
            else:
                chunks.append(bytearray(body))
        else:
            chunks.append(body)

    def on_message_complete(self) -> None:
        exchange = self._exchange
        if self._upgrades:
            return
        self._current = None
        self._head_done = False
        if self._closing:
            self._release(exchange)
            return
        chunks = self._chunks
        exchange.body = bytes(chunks[0]) if len(chunks) == 1 else b"".join(chunks)
        self._chunks = []
        exchange.received = time.perf_counter()
        self._exchanges.append(exchange)
        if len(self._exchanges) >= _MAX_PIPELINED:
            self._pause()
        if not exchange.keep_alive:
            self._last_of_connection()
        self._completed += 1
        found = route(exchange.method, exchange.target)
        if found is not None:
            self._server.handler.infer(exchange, *found)
            return
        self._completed += 1  # never a header worth remembering
        task = asyncio.get_running_loop().create_task(run_app(self._server.app, exchange, self._peer()))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    @property
    def _exchange(self) -> Exchange:
        if self._current is None:
            raise Refusal(400, "data outside a request")
        return self._current

    def _pause(self) -> None:
        self._paused = True
        self._transport.pause_reading()

    def _hold(self, size: int) -> None:
        """Counts bytes of the current request against what all connections may hold."""
        server = self._server
        self._exchange.size += size
        server.buffered += size
        if server.buffered > self._limits.buffered_bytes:
            raise Refusal(503, self._no_memory())

    def _no_memory(self) -> str:
        return f"requests hold the {self._limits.buffered_bytes} bytes that they may; send again"

    def _release(self, exchange: Exchange) -> None:
        self._server.buffered -= exchange.size
        exchange.size = 0

    def _peer(self) -> tuple[str, int] | None:
        peer = self._transport.get_extra_info("peername")
        return (peer[0], peer[1]) if isinstance(peer, tuple) else None

    # --- answers -------------------------------------------------------------------------------------------------
    def hold(self, exchange: Exchange, size: int) -> bool:
        """Counts bytes of an answer to come; False where clients that are slower could not make room for them."""
        return self._server.hold(exchange, size)

    def respond(self, exchange: Exchange, status: int, head: bytes, body: bytes | LongBody) -> None:
        """Keeps the answer, and writes all that are now first in line."""
        self._server.buffered -= exchange.size
        exchange.size = 0
        if len(body) > _LONG_ANSWER:
            self._respond_long(exchange, status, head, body)
            return
        if isinstance(body, LongBody):
            body = b"".join(body.pieces)
        exchanges = self._exchanges
        old = self._version == "1.0"
        if status == 200 and exchange.keep_alive and exchange.method == b"POST" and not (old or self._server.closing):
            exchange.answer = answer = b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)
            if len(exchanges) == 1 and self._current is None and not self._closing and exchanges[0] is exchange:
                exchanges.popleft()
                self._since = time.monotonic()
                self._transport.write(answer)
                return
        else:
            head = self._head(exchange, status, head, len(body))
            exchange.answer = head if exchange.method == b"HEAD" else head + body
        if self._write_since is not None:
            self._server.keep(exchange, len(exchange.answer))
        self._flush()

    def _respond_long(self, exchange: Exchange, status: int, head: bytes, body: bytes | LongBody) -> None:
        if exchange.method == b"HEAD":
            exchange.answer = self._head(exchange, status, head, len(body))
        elif self._server.hold(exchange, len(body)):
            exchange.answer = self._head(exchange, status, head, len(body))
            exchange.rest = body if isinstance(body, LongBody) else LongBody.of(body)
        elif exchange.answer is None:
            self.respond(exchange, 503, error_head(1.0), error_body(self._no_memory()))
            return
        self._flush()

    def _head(self, exchange: Exchange, status: int, head: bytes, size: int) -> bytes:
        """The answer's header; what it says of the connection's end holds from then on."""
        last = self._server.closing and (not self._exchanges or exchange is self._exchanges[-1])
        if last:
            exchange.keep_alive = False
        # A client of HTTP/1.0 closes a connection of which this is not said.
        lasts = b"connection: keep-alive\r\n" if self._version == "1.0" else b""
        return b"HTTP/1.1 %d %b\r\n%bcontent-length: %d\r\n%b\r\n" % (
            status, _REASONS.get(status, b"Status"), head, size,
            lasts if exchange.keep_alive else b"connection: close\r\n",
        )  # fmt: skip

    def _flush(self) -> None:
        exchanges = self._exchanges
        while exchanges and exchanges[0].answer is not None:
            exchange = exchanges[0]
            if self._write_since is not None or (
                exchange.rest is not None and not self._went_out(exchange, exchange.rest)
            ):
                return
            exchanges.popleft()
            self._release(exchange)
            if exchange.answer:
                self._transport.write(exchange.answer)
            if not exchange.keep_alive:
                self._abandon()
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
                self._resume()

    def _went_out(self, exchange: Exchange, rest: LongBody) -> bool:
        """Writes what the client takes now of a long answer; whether that was all but its `answer`."""
        written = 0
        while rest.pieces and self._write_since is None:
            if written >= _TURN_BYTES:
                # Others have a turn of the loop, too.
                if not self._goes_on:
                    self._goes_on = True
                    asyncio.get_running_loop().call_soon(self._go_on)
                return False
            piece, exchange.answer = (exchange.answer, b"") if exchange.answer else (rest.pieces.popleft(), b"")
            self._transport.write(piece)
            written += len(piece)
            size = min(len(piece), exchange.size)
            exchange.size -= size
            self._server.buffered -= size
        return not rest.pieces

    def _go_on(self) -> None:
        self._goes_on = False
        if self._exchanges:
            self._flush()

    def _refuse(self, status: int, message: str) -> None:
        """Answers a request that could not be read, after those before it, and closes: the stream's sense is lost."""
        if self._closing:
            # Bytes behind the last request that this connection takes: nobody is owed an answer to them.
            return
        exchange = self._current or Exchange(self)
        self._current = None
        self._chunks = []
        exchange.keep_alive = False
        self._exchanges.append(exchange)
        self._refused = True
        self._last_of_connection()
        exchange.respond(status, error_head(1.0 if status == 503 else None), error_body(message))

    def _last_of_connection(self) -> None:
        self._closing = True
        if self._slot is not None:
            self._slot.disarm()
        if not self._exchanges:
            self.close()

    def close(self) -> None:
        """Closes after what was written has gone out."""
        self._closing = True
        if self._slot is not None:
            self._slot.disarm()
        if self._refused and not self._lingering and self._peer() is not None and self._transport.can_write_eof():
            # Closing on a client that still sends resets a TCP connection, and the client loses the answer.
            self._lingering = True
            self._since = time.monotonic()
            self._transport.write_eof()
            return
        if self._ended is None:
            self._ended = time.monotonic()
        self._transport.close()

    def sweep(self, now: float) -> None:
        """Closes the connection if its client takes too long to send, to ask, or to read."""
        limits = self._limits
        if self._write_since is not None and now - self._write_since > limits.write_seconds:
            self.drop("unread")
        elif self._ended is not None:
            # What was written last waits for a client that does not read.
            if now - self._ended > limits.write_seconds:
                self.drop("unread")
        elif self._lingering:
            if now - self._since > _LINGER_SECONDS:
                self._transport.abort()
        elif self._current is not None and not self._waits() and now - self._since > limits.request_seconds:
            self._server.dropped("unsent")
            self._refuse(408, f"the request did not arrive within {limits.request_seconds:g} s")
        elif not self.active() and now - self._last() > limits.idle_seconds:
            self.close()

    def _waits(self) -> bool:
        """Whether the server does not read, for now."""
        return self._paused or bool(self._unfed)

    def _last(self) -> float:
        """When the last answer was written."""
        return self._since if self._slot is None else max(self._since, self._slot.since)


def _hold_little(transport: asyncio.Transport) -> None:
    """Has the kernel keep no more unsent than a piece of a long answer: else it takes megabytes of each connection."""
    found = transport.get_extra_info("socket")
    if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError, AttributeError):
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, PIECE_BYTES)


def _socket(transport: asyncio.Transport) -> tuple[()] | tuple[int, Callable[[], int]]:
    """A plain transport's file descriptor, and who tells how much it has not sent; nothing of one that encrypts."""
    found = transport.get_extra_info("socket")
    if found is None or transport.get_extra_info("sslcontext") is not None:
        return ()
    return found.fileno(), transport.get_write_buffer_size
