"""Streams of requests, right and wrong, cut anywhere: the shortcut for known headers, other parsers, and memory."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving.http import Connection, Exchange, Limits, Server
from serving.transport.heads import HeadCache

TARGET = b"/v2/models/m/infer"
LIMITS = Limits(header_bytes=2048, body_bytes=1024, buffered_bytes=1_000_000)
FUZZ = settings(
    max_examples=300, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


class Pipe(asyncio.Transport):
    """Keeps what is written, also by a server that writes after its close."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = self.aborted = False
        self.late = b""
        self.reading = True

    def write(self, data: Any) -> None:
        if self.closed:
            self.late += bytes(data)
        else:
            self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


Seen = tuple[bytes, bytes, dict[bytes, bytes], bytes]


class Recording:
    """Answers inference requests with their bodies, at once or on `settle`, and notes what it was asked."""

    def __init__(self, hold: bool = False) -> None:
        self.seen: list[Seen] = []
        self.known = 0
        self.held: list[Exchange] | None = [] if hold else None
        self.cancelled = 0

    def infer(self, exchange: Exchange, model: str, version: str | None) -> None:
        self.seen.append((exchange.method, exchange.target, dict(exchange.headers), exchange.body))
        self.known += exchange.head is not None
        if self.held is None:
            exchange.respond(200, b"x-model: %b\r\n" % model.encode(), exchange.body)
        else:
            self.held.append(exchange)

    def cancel(self, exchange: Exchange) -> None:
        self.cancelled += 1


async def _app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the path and the body; nothing it is given makes it fail."""
    request = Request(scope, receive)
    names = b",".join(sorted(name for name, _ in scope["headers"]))
    content = scope["path"].encode() + b" " + names + b" " + await request.body()
    await PlainTextResponse(content)(scope, receive, send)


class Cold(HeadCache):
    """Knows no header, ever."""

    def meet(self, data: bytes) -> None:
        pass


@dataclass
class Run:
    """What became of one stream."""

    written: bytes
    closed: bool
    seen: list[Seen]
    known: int


def reads(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(stream)) for cut in cuts})
    parts = [stream[start:end] for start, end in zip([0, *places], [*places, len(stream)], strict=True)]
    return [part for part in parts if part]


def served(parts: list[bytes], heads: HeadCache | None = None, *, check: bool = True) -> tuple[Run, Server]:
    """The parts, read one after the other by one connection; its memory is looked at after each."""
    handler = Recording()
    server = Server(handler, _app, LIMITS)
    if heads is not None:
        server.heads = heads
    connection, pipe = server.connection(), Pipe()

    async def feed() -> None:
        connection.connection_made(pipe)
        for part in parts:
            if pipe.closed:
                break
            connection.data_received(part)
            if check:
                held = holds(connection)
                most = LIMITS.header_bytes + LIMITS.body_bytes + 2 * max(map(len, parts))
                assert held <= most, f"{held} bytes held, {most} allowed"
                assert server.buffered >= sum(map(len, connection._chunks)) - len(part)
            for _ in range(6):
                await asyncio.sleep(0)
        for task in list(server.tasks):
            await task
        connection.connection_lost(None)

    asyncio.run(feed())
    assert not pipe.late, "nothing may be written behind the last answer"
    assert server.buffered == 0, "what was counted as held must be counted down"
    assert not server.connections
    return Run(pipe.written, pipe.closed, handler.seen, handler.known), server


def holds(connection: Connection) -> int:
    """Bytes of the request in arrival that a connection keeps."""
    if connection._current is None:
        return 0
    pairs = sum(len(name) + len(value) for name, value in connection._pairs)
    return pairs + len(connection._current.target) + sum(map(len, connection._chunks))


# --- streams -----------------------------------------------------------------------------------------------------
def post(body: bytes, *lines: bytes, target: bytes = TARGET, length: bool = True, start: bytes = b"POST") -> bytes:
    own = [b"content-length: %d" % len(body)] if length else []
    return b"\r\n".join([start + b" " + target + b" HTTP/1.1", b"host: x", *own, *lines, b"", b""]) + body


def chunks(body: bytes, size: int, extension: bytes = b"", trailer: bytes = b"") -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x%b\r\n%b\r\n" % (len(p), extension, p) for p in pieces) + b"0\r\n" + trailer + b"\r\n"


CHUNKED = b"transfer-encoding: chunked"
THREE = b"3\r\nabc\r\n0\r\n\r\n"
BODIES = st.sampled_from([b"", b"a", b"abc", b"\r\n\r\n", b"x" * 40, b"y" * 300, b"GET / HTTP/1.1\r\n\r\n"])
PLAIN = st.one_of(
    st.builds(post, BODIES),
    st.builds(lambda body: post(body, b"content-type: application/json", b"X-Deadline-Ms: 50"), BODIES),
    st.builds(lambda body: post(body, b"connection: keep-alive"), BODIES),
    st.builds(lambda body: post(body, target=TARGET + b"?a=b"), BODIES),
    st.builds(lambda body: post(body, target=b"/v2/models/m/versions/2/infer"), BODIES),
    st.builds(lambda body, size: post(chunks(body, size), CHUNKED, length=False), BODIES, st.integers(1, 50)),
    st.just(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"),
)
ODD = {
    "two equal lengths": post(b"abc", b"content-length: 3"),
    "two lengths": post(b"abc", b"content-length: 4"),
    "a list of lengths": post(b"abc", b"content-length: 3, 3", length=False),
    "length and chunks": post(THREE, CHUNKED),
    "chunks and length": post(THREE, CHUNKED, b"content-length: 3", length=False),
    "chunks, then identity": post(THREE, CHUNKED, b"transfer-encoding: identity", length=False),
    "chunks twice": post(THREE, CHUNKED, CHUNKED, length=False),
    "almost chunked": post(THREE, b"transfer-encoding: xchunked", length=False),
    "a vertical tab before chunked": post(THREE, b"transfer-encoding: \x0bchunked", length=False),
    "packed chunks": post(THREE, b"transfer-encoding: gzip, chunked", length=False),
    "capitals": post(THREE, b"Transfer-Encoding: CHUNKED", length=False),
    "a folded line": post(b"abc", b"x: a\r\n b"),
    "a folded length": post(b"abc", b"content-length:\r\n 3", length=False),
    "a bare LF": post(b"abc", b"x: a\ny: b"),
    "a bare LF at the end": post(b"abc").replace(b"\r\n\r\n", b"\r\n\n"),
    "LF only": post(b"abc").replace(b"\r\n", b"\n"),
    "a bare CR": post(b"abc", b"x: a\rcontent-length: 0"),
    "NUL in a value": post(b"abc", b"x: a\x00b"),
    "NUL in a name": post(b"abc", b"x\x00: b"),
    "a huge chunk": post(b"f" * 17 + b"\r\nabc", CHUNKED, length=False),
    "a large chunk": post(b"7fffffffffffffff\r\nabc", CHUNKED, length=False),
    "a negative chunk": post(b"-3\r\nabc\r\n0\r\n\r\n", CHUNKED, length=False),
    "a chunk in C": post(b"0x3\r\nabc\r\n0\r\n\r\n", CHUNKED, length=False),
    "chunk extensions": post(chunks(b"abcdef", 3, b";a=b;c"), CHUNKED, length=False),
    "a trailer": post(chunks(b"abc", 3, b"", b"authorization: Bearer t\r\n"), CHUNKED, length=False),
    "a trailing length": post(chunks(b"abc", 3, b"", b"content-length: 0\r\n"), CHUNKED, length=False),
    "LF after a chunk": post(b"3\nabc\n0\n\n", CHUNKED, length=False),
    "a space before the colon": post(b"abc", b"content-length : 3", length=False),
    "a space before a name": post(b"abc", b" x: y"),
    "a space first of all": post(b"abc").replace(b"host", b" host", 1),
    "no colon": post(b"abc", b"x"),
    "no name": post(b"abc", b": x"),
    "no length in it": post(b"abc", b"content-length:", length=False),
    "a signed length": post(b"abc", b"content-length: +3", length=False),
    "a negative length": post(b"abc", b"content-length: -3", length=False),
    "a length over 64 bits": post(b"abc", b"content-length: 99999999999999999999999", length=False),
    "a length over the limit": post(b"z" * 2000),
    "a length with a space": post(b"abc", b"content-length: 3 ", length=False),
    "lower case": post(b"abc", start=b"post"),
    "a method that is none": post(b"abc", start=b"FOO"),
    "HTTP/1.0": post(b"abc").replace(b"1.1", b"1.0"),
    "HTTP/1.0 kept": post(b"abc", b"connection: keep-alive").replace(b"1.1", b"1.0"),
    "HTTP/1.0 in chunks": post(THREE, CHUNKED, b"connection: keep-alive", length=False).replace(b"1.1", b"1.0"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.7": post(b"abc").replace(b"1.1", b"3.7"),
    "absolute form": post(b"abc", target=b"http://h:80" + TARGET),
    "absolute form, elsewhere": post(b"abc", target=b"http://h?q"),
    "a fragment": post(b"abc", target=TARGET + b"#f"),
    "no slash": post(b"abc", target=b"v2"),
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    "not ASCII": post(b"abc", target=b"/v2/\xc3\xa4/infer"),
    "a tunnel": b"CONNECT h:80 HTTP/1.1\r\nhost: x\r\n\r\nabc",
    "an upgrade": post(b"", b"connection: Upgrade", b"upgrade: websocket"),
    "an upgrade with a body": post(b"abc", b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c",
                                   b"http2-settings: A"),
    "continue": post(b"abc", b"expect: 100-continue"),
    "another expectation": post(b"abc", b"expect: 200-ok"),
    "close": post(b"abc", b"connection: close"),
    "two hosts": post(b"abc", b"host: y"),
    "no host": post(b"abc").replace(b"host: x\r\n", b""),
    "many headers": post(b"abc", *(b"x-%d: %b" % (n, b"v" * 20) for n in range(200))),
    "a long header": post(b"abc", b"x: " + b"v" * 3000),
    "empty lines first": b"\r\n\r\n" + post(b"abc"),
    "a truncated body": post(b"abc")[:-1],
    "a truncated header": post(b"abc")[:40],
    "nothing like it": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
}  # fmt: skip
REQUESTS = st.one_of(PLAIN, PLAIN, st.sampled_from(sorted(ODD.values())))


@st.composite
def noisy(draw: st.DrawFn) -> bytes:
    """A request with a few bytes changed."""
    request = bytearray(draw(REQUESTS))
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(request)))
        request[at : at + draw(st.integers(0, 3))] = draw(
            st.sampled_from(
                [b"", b"\r", b"\n", b"\r\n", b" ", b"\x00", b"\t", b":", b"1", b"\xff", b"HTTP", b"\r\n\r\n"]
            )
        )
    return bytes(request)


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Reads of a stream: cut at the ends of requests, as most clients' are, and anywhere."""
    requests = draw(st.lists(st.one_of(REQUESTS, REQUESTS, REQUESTS, noisy()), min_size=1, max_size=6))
    stream, ends = b"", []
    for request in requests:
        stream += request
        if draw(st.integers(0, 3)):
            ends.append(len(stream))
    return reads(stream, ends + draw(st.lists(st.integers(0, len(stream)), max_size=3)))


def warmed(requests: list[bytes]) -> HeadCache:
    """A cache that met each of these reads twice on other connections."""
    heads = HeadCache()
    for part in requests:
        for _ in range(2):
            served([part], heads, check=False)
    return heads


# --- the shortcut ------------------------------------------------------------------------------------------------
@FUZZ
@given(streams(), st.booleans())
def test_known_headers_change_nothing_that_a_client_or_the_handler_sees(parts: list[bytes], elsewhere: bool) -> None:
    cold, _ = served(parts, Cold())
    assert cold.known == 0
    warm, server = served(parts, warmed(parts) if elsewhere else HeadCache())
    assert (warm.written, warm.closed, warm.seen) == (cold.written, cold.closed, cold.seen)
    # Once more, with what the stream itself has taught.
    again, _ = served(parts, server.heads)
    assert (again.written, again.closed, again.seen) == (cold.written, cold.closed, cold.seen)
    assert b"HTTP/1.1 5" not in cold.written.replace(b"HTTP/1.1 501 ", b"")


def test_the_shortcut_is_taken_by_whole_plain_requests_and_by_no_others() -> None:
    plain = [post(b"abc"), post(b"", b"content-type: application/json"), post(b"x", target=TARGET + b"?q")]
    for request in plain:
        run, _ = served([request] * 3, warmed([request]))
        assert run.known == 3
    halved, _ = served([plain[0][:-1], plain[0][-1:], plain[0] * 2, plain[0]], warmed(plain))
    assert halved.known == 1
    taken = set()
    for name, request in ODD.items():
        run, _ = served([request] * 2, warmed([request]))
        taken |= {name} if run.known else set()
    assert taken == {"a length with a space", "no host"}


def test_heads_are_bounded_and_a_header_is_kept_only_when_it_comes_again() -> None:
    heads = HeadCache(max_heads=8)
    once = post(b"abc")
    heads.meet(once)
    assert heads.get(once[:-3]) is None
    heads.meet(once)
    assert heads.get(once[:-3]) is not None
    for number in range(100):
        for _ in range(2):
            heads.meet(post(b"abc", b"x: %d" % number))
    assert len(heads._heads) <= 8
    assert len(heads._met) <= 8
    for long in (post(b"abc", b"x: " + b"v" * 5000), b"\r\n\r\n", b"", b"POST", b"\r\n" + once[:20]):
        heads.meet(long)
        heads.meet(long)
    assert all(len(header) < 4200 for header in heads._heads)


@FUZZ
@given(st.one_of(noisy(), REQUESTS, st.binary(max_size=60)), st.one_of(noisy(), st.binary(max_size=20)))
def test_a_header_is_kept_only_if_a_parser_of_another_make_reads_it_alike(request: bytes, behind: bytes) -> None:
    heads = HeadCache()
    for _ in range(2):
        heads.meet(request + behind)
    for header, head in heads._heads.items():
        peer = h11.Connection(h11.SERVER)
        # h11 wants a host, and takes what is optional around a value away.
        peer.receive_data(header if b"host" in head.headers else header.replace(b"\r\n", b"\r\nhost: x\r\n", 1))
        event = peer.next_event()
        assert isinstance(event, h11.Request)
        assert (event.method, event.target) == (head.method, head.target)
        fields = {name: value for name, value in event.headers if name != b"host"}
        assert fields == {name: value for name, value in head.headers.items() if name != b"host"}
        assert int(fields[b"content-length"]) == head.length
        assert b"transfer-encoding" not in fields
        assert peer.trailing_data[0] == b""


# --- other servers -----------------------------------------------------------------------------------------------
def uvicorn_takes(request: bytes) -> tuple[bool, bytes]:
    """Whether uvicorn accepts a request, and the body that its app reads."""
    bodies: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        bodies.append(await Request(scope, receive).body())
        await PlainTextResponse(b"")(scope, receive, send)

    async def feed() -> bytes:
        config = Config(app, log_config=None, access_log=False, ws="none", lifespan="off")
        state = ServerState()
        protocol, pipe = HttpToolsProtocol(config, state, {}), Pipe()
        protocol.connection_made(pipe)
        protocol.data_received(request)
        for _ in range(20):
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        if state.tasks:
            await asyncio.wait(state.tasks)
        return pipe.written

    logging.getLogger("uvicorn.error").disabled = True
    written = asyncio.run(feed())
    return b"HTTP/1.1 200" in written[:13] or b"100 Continue\r\n\r\nHTTP/1.1 200" in written, b"".join(bodies[:1])


def h11_takes(request: bytes) -> tuple[bool, bytes]:
    """Whether h11 accepts a request and all that follows it, and its body."""
    peer, body = h11.Connection(h11.SERVER), b""
    peer.receive_data(request)
    try:
        while not isinstance(event := peer.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return False, b""
            if isinstance(event, h11.Data):
                body += bytes(event.data)
    except h11.RemoteProtocolError:
        return False, b""
    return True, body


def we_take(request: bytes) -> tuple[bool, bytes | None]:
    """Whether we accept a request, and its body if it is an inference request."""
    run, _ = served([request], Cold())
    written = run.written.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    return written.startswith(b"HTTP/1.1 200"), run.seen[0][3] if run.seen else None


# Where we refuse what uvicorn takes, and why.
STRICTER = {
    "packed chunks": "the coding is not undone, so the body would not be what its client means",
    "two hosts": "RFC 9112, 3.2: proxies choose different ones",
    "a length over the limit": "our limit on bodies",
    "many headers": "our limit on headers",
    "a long header": "our limit on headers",
}
# Where we take what uvicorn refuses.
LOOSER = {
    "absolute form, elsewhere": "RFC 9112, 3.2.1: an empty path is /",
    "a tunnel": "our app says 404 or 405 to it, and the connection is closed",
}
# What uvicorn reads otherwise: it gives its app no body here, though the client sent one.
OTHERWISE = {"an upgrade with a body"}


@pytest.mark.parametrize("name", ODD)
def test_requests_are_taken_and_refused_as_by_uvicorn_but_for_listed_reasons(name: str) -> None:
    request = ODD[name]
    (ours, body), (theirs, their_body) = we_take(request), uvicorn_takes(request)
    if name in STRICTER:
        assert (ours, theirs) == (False, True)
    elif name in LOOSER:
        assert (ours, theirs) == (True, False)
    else:
        assert ours == theirs
    if ours and theirs and body is not None:
        assert (body == their_body) == (name not in OTHERWISE)


# What h11 refuses and we take; none of it moves the end of a request.
H11_STRICTER = {
    "no host": "clients written by hand leave it out, and no route depends on it",
    "empty lines first": "RFC 9112, 2.2: they may be ignored; h11 ignores one",
}


@pytest.mark.parametrize("name", ODD)
def test_nothing_that_h11_refuses_or_frames_otherwise_is_taken(name: str) -> None:
    (ours, body), (theirs, their_body) = we_take(ODD[name]), h11_takes(ODD[name])
    assert (ours and not theirs) == (name in H11_STRICTER)
    if ours and theirs and body is not None:
        assert body == their_body


@FUZZ
@given(noisy())
def test_a_changed_request_is_never_taken_with_another_body_than_h11_or_uvicorn_read(request: bytes) -> None:
    ours, body = we_take(request)
    if not ours:
        return
    theirs, their_body = uvicorn_takes(request)
    upgrade = b"upgrade" in request.lower()
    if theirs and body is not None and not upgrade:
        assert body == their_body
    strict, strict_body = h11_takes(request)
    if strict and body is not None:
        assert body == strict_body


# --- memory and time ---------------------------------------------------------------------------------------------
def connected(
    limits: Limits, *, hold: bool = False, heads: HeadCache | None = None
) -> tuple[Server, Connection, Pipe, Recording]:
    handler = Recording(hold)
    server = Server(handler, _app, limits)
    server.heads = heads or Cold()
    connection, pipe = server.connection(), Pipe()
    connection.connection_made(pipe)
    return server, connection, pipe, handler


@pytest.mark.parametrize("known", [False, True])
def test_bodies_count_against_the_memory_of_all_connections_until_they_are_answered(known: bool) -> None:
    request = post(b"x" * 300)
    heads = warmed([request]) if known else None
    server, connection, pipe, handler = connected(Limits(buffered_bytes=1150), hold=True, heads=heads)
    assert handler.held is not None
    for count in (1, 2, 3):
        connection.data_received(request)
        assert handler.known == (count if known else 0)
        assert 300 * count <= server.buffered <= 370 * count
    other, other_pipe = server.connection(), Pipe()
    other.connection_made(other_pipe)
    other.data_received(request)
    assert other_pipe.written.startswith(b"HTTP/1.1 503")
    assert b"retry-after: " in other_pipe.written
    assert other_pipe.closed
    assert not pipe.closed
    for exchange in handler.held:
        exchange.respond(200, b"", b"")
    assert server.buffered == 0
    fresh, fresh_pipe = server.connection(), Pipe()
    fresh.connection_made(fresh_pipe)
    fresh.data_received(request)
    handler.held[-1].respond(200, b"", b"")
    assert fresh_pipe.written.startswith(b"HTTP/1.1 200")
    assert (server.buffered, len(handler.seen)) == (0, 4)


@pytest.mark.parametrize("known", [False, True])
def test_memory_is_given_back_when_clients_leave_and_when_the_server_closes(known: bool) -> None:
    heads = warmed([post(b"x" * 300)]) if known else None
    for way in ("leave", "drain", "close"):
        server, connection, pipe, handler = connected(Limits(buffered_bytes=5000), hold=True, heads=heads)
        assert handler.held is not None
        for _ in range(3):
            connection.data_received(post(b"x" * 300))
        connection.data_received(post(b"x" * 300)[:-1])
        assert server.buffered >= 900
        if way == "leave":
            connection.connection_lost(None)
            assert handler.cancelled == 3
        elif way == "drain":
            server.begin_close()
            for exchange in handler.held:
                exchange.respond(200, b"", b"")
            assert pipe.written.count(b"HTTP/1.1 200") == 3
            assert pipe.written.count(b"connection: close") == 1
            assert pipe.closed
            assert not pipe.late
        else:
            connection.data_received(b"x" + post(b"abc", b"connection: close") + b"more")
            for exchange in handler.held:
                exchange.respond(200, b"", b"")
            assert pipe.written.count(b"HTTP/1.1 200") == 5
            assert pipe.closed
            assert not pipe.late
        connection.connection_lost(None)
        assert server.buffered == 0


def test_trailers_extensions_and_small_chunks_hold_no_memory() -> None:
    head = post(b"", CHUNKED, length=False)
    for opening, more in ((b"0\r\nx: ", b"y" * 500), (b"0\r\n", b"a: b\r\n" * 80), (b"3;", b"e=" * 250)):
        _, connection, pipe, handler = connected(LIMITS)
        connection.data_received(head + opening)
        for _ in range(50):
            if not pipe.closed:
                connection.data_received(more)
        assert pipe.written.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))
        assert pipe.closed
        assert not handler.seen
    _, connection, pipe, handler = connected(Limits())
    body = bytes(range(256)) * 200
    stream = head + chunks(body, 2)
    for start in range(0, len(stream), 60_000):
        connection.data_received(stream[start : start + 60_000])
        assert len(connection._chunks) <= 2
    assert handler.seen[0][3] == body


def test_a_long_pipeline_in_one_read_is_no_long_header() -> None:
    run, _ = served([post(b"x" * 100) * 50 + post(b"last")[:-20], post(b"last")[-20:]], check=False)
    assert run.written.count(b"HTTP/1.1 200") == 51
    assert not run.closed


def test_a_header_is_too_long_however_it_is_cut() -> None:
    stream = post(b"abc", b"x: " + b"v" * 3000)
    for size in (100, 1000, 10_000):
        run, _ = served(reads(stream, list(range(0, len(stream), size))), check=False)
        assert run.written.startswith(b"HTTP/1.1 431")
        assert run.closed


def test_trailers_are_no_headers() -> None:
    stream = post(chunks(b"abc", 3, b"", b"authorization: t\r\n"), CHUNKED, length=False, target=b"/app")
    run, _ = served([stream])
    assert b"authorization" not in run.written


def test_clients_that_offer_an_upgrade_are_served_with_their_body_and_keep_the_connection() -> None:
    offer = ODD["an upgrade with a body"]
    for parts in ([offer * 3], [offer[:50], offer[50:-2], offer[-2:]], [offer + post(b"x")]):
        run, _ = served(parts)
        assert {body for *_, body in run.seen} <= {b"abc", b"x"}
        assert len(run.seen) == run.written.count(b"HTTP/1.1 200")
        assert not run.closed
    run, _ = served([post(b"abc", b"connection: upgrade, close", b"upgrade: h2c") + post(b"x")])
    assert [seen[3] for seen in run.seen] == [b"abc"]
    assert run.closed
    run, _ = served([offer * 2000], check=False)
    assert len(run.seen) == 2000


def test_a_client_that_does_not_read_its_last_answer_is_dropped() -> None:
    server, connection, pipe, _ = connected(Limits(write_seconds=5))
    before = time.monotonic()
    connection.data_received(post(b"abc", b"connection: close"))
    assert pipe.closed
    assert not pipe.aborted
    server.sweep(before + 4)
    assert not pipe.aborted
    server.sweep(time.monotonic() + 6)
    assert pipe.aborted


def test_nothing_is_written_behind_the_answer_that_closes_a_draining_connection() -> None:
    server, connection, pipe, handler = connected(Limits(), hold=True)
    assert handler.held is not None
    connection.data_received(post(b"a") + post(b"b"))
    server.begin_close()
    handler.held[1].respond(200, b"", b"b")
    connection.data_received(post(b"c"))
    handler.held[0].respond(200, b"", b"a")
    assert (pipe.written.count(b"HTTP/1.1 200"), pipe.closed, handler.cancelled) == (2, True, 1)
    handler.held[2].respond(200, b"", b"c")
    assert (pipe.late, server.buffered, connection.active()) == (b"", 0, 0)

    server, connection, pipe, _ = connected(Limits())
    server.begin_close()
    connection.data_received(post(b"a") + ODD["continue"])
    assert (pipe.written.count(b"HTTP/1.1 "), pipe.late) == (1, b"")


def test_headers_that_end_their_connection_are_not_kept() -> None:
    heads = HeadCache()
    for _ in range(3):
        heads.meet(ODD["HTTP/1.0"])
        heads.meet(ODD["close"])
    assert not heads._heads
