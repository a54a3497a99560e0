"""HTTP/1.1 on the wire: order, framing, limits, and that no bytes break the server."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from serving.http import Connection, Exchange, Limits, Server
from serving.transport.exchange import route


class Echo:
    """Answers an inference request with its own body; `hold` keeps exchanges for later."""

    def __init__(self) -> None:
        self.held: list[Exchange] = []
        self.hold = False
        self.cancelled: list[Exchange] = []

    def infer(self, exchange: Exchange, model: str, version: str | None) -> None:
        if self.hold:
            self.held.append(exchange)
        else:
            exchange.respond(200, b"x-model: %b\r\n" % f"{model}/{version}".encode(), exchange.body)

    def cancel(self, exchange: Exchange) -> None:
        self.cancelled.append(exchange)


class Pipe(asyncio.Transport):
    """Keeps what the server writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False
        self.reading = True
        self.unread = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed, "nothing may be written after the close"
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return self.unread

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


async def _nowhere(request: Request) -> Response:
    return PlainTextResponse(f"{request.method} {(await request.body()).decode()}")


def connected(handler: Echo, limits: Limits | None = None) -> tuple[Server, Connection, Pipe]:
    app = Starlette(routes=[Route("/echo", _nowhere, methods=["GET", "POST"])])
    server = Server(handler, app, limits)
    connection, pipe = server.connection(), Pipe()
    connection.connection_made(pipe)
    return server, connection, pipe


def post(body: bytes, *lines: bytes) -> bytes:
    head = [b"POST /v2/models/m/infer HTTP/1.1", b"host: x", b"content-length: %d" % len(body), *lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def chunked(body: bytes, size: int) -> bytes:
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    return b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + framed


def answers(written: bytes, methods: list[bytes]) -> list[tuple[int, bytes]]:
    """What h11, a strict parser of another make, reads in the server's bytes."""
    found = []
    for method in methods:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(written)
        client.receive_data(b"")
        status, body = 0, b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
        found.append((status, body))
        written = client.trailing_data[0]
    assert written == b"", "no bytes may follow the last answer"
    return found


REQUEST = st.tuples(st.binary(min_size=0, max_size=40), st.one_of(st.none(), st.integers(1, 9)))


@settings(max_examples=200, deadline=None)
@given(st.lists(REQUEST, min_size=1, max_size=5), st.data())
def test_pipelined_requests_cut_anywhere_are_answered_in_order(
    requests: list[tuple[bytes, int | None]], data: st.DataObject
) -> None:
    stream = b"".join(post(body) if size is None or not body else chunked(body, size) for body, size in requests)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    _, connection, pipe = connected(Echo())
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if end > start:
            connection.data_received(stream[start:end])

    assert answers(pipe.written, [b"POST"] * len(requests)) == [(200, body) for body, _ in requests]
    assert not pipe.closed


@settings(max_examples=200, deadline=None)
@given(st.permutations(range(4)))
def test_answers_keep_the_order_of_requests_whatever_the_order_they_are_ready_in(order: list[int]) -> None:
    handler = Echo()
    handler.hold = True
    _, connection, pipe = connected(handler)
    connection.data_received(b"".join(post(b"%d" % number) for number in range(4)))
    for number in order:
        handler.held[number].respond(200, b"", handler.held[number].body)

    assert answers(pipe.written, [b"POST"] * 4) == [(200, b"%d" % number) for number in range(4)]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_bytes_break_the_connection_and_what_cannot_be_read_is_refused_and_closed(data: st.DataObject) -> None:
    stream = bytearray(post(b"abc") + chunked(b"defg", 2) + post(b""))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(stream) - 1))
        stream[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    _, connection, pipe = connected(Echo())

    async def feed() -> None:
        half = data.draw(st.integers(0, len(stream)))
        for part in (bytes(stream[:half]), bytes(stream[half:])):
            if part and not pipe.closed:
                connection.data_received(part)
        for _ in range(20):
            await asyncio.sleep(0)

    asyncio.run(feed())
    if b"HTTP/1.1 400" in pipe.written or b"HTTP/1.1 413" in pipe.written:
        assert pipe.closed


async def test_what_is_no_inference_goes_to_the_app_in_order() -> None:
    _, connection, pipe = connected(Echo())
    connection.data_received(b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n" + post(b"later"))
    for _ in range(50):
        await asyncio.sleep(0)

    assert answers(pipe.written, [b"GET", b"POST"]) == [(200, b"GET "), (200, b"later")]


async def test_head_gives_the_length_without_the_body() -> None:
    _, connection, pipe = connected(Echo())
    connection.data_received(b"HEAD /echo HTTP/1.1\r\nhost: x\r\n\r\n")
    for _ in range(50):
        await asyncio.sleep(0)

    assert b"content-length: 5\r\n" in pipe.written
    assert pipe.written.endswith(b"\r\n\r\n")


def test_100_continue_is_said_before_the_body_comes() -> None:
    _, connection, pipe = connected(Echo())
    head, _, body = post(b"abc", b"expect: 100-continue").partition(b"\r\n\r\n")
    connection.data_received(head + b"\r\n\r\n")
    assert pipe.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.data_received(body)

    assert pipe.written.endswith(b"abc")


def test_100_continue_waits_for_the_answers_before_it() -> None:
    handler = Echo()
    handler.hold = True
    _, connection, pipe = connected(handler)
    head, _, _ = post(b"second", b"expect: 100-continue").partition(b"\r\n\r\n")
    connection.data_received(post(b"first") + head + b"\r\n\r\n")
    assert pipe.written == b""
    handler.held[0].respond(200, b"", b"first")

    assert pipe.written.endswith(b"firstHTTP/1.1 100 Continue\r\n\r\n")


@pytest.mark.parametrize(
    "request_bytes",
    [post(b"a", b"connection: close"), b"POST /v2/models/m/infer HTTP/1.0\r\ncontent-length: 1\r\n\r\na"],
)
def test_a_client_that_wants_the_connection_closed_gets_it_closed(request_bytes: bytes) -> None:
    _, connection, pipe = connected(Echo())
    connection.data_received(request_bytes + post(b"ignored"))

    assert answers(pipe.written, [b"POST"]) == [(200, b"a")]
    assert b"connection: close" in pipe.written
    assert pipe.closed


def test_a_draining_server_ends_each_connection_with_its_answer() -> None:
    server, connection, pipe = connected(Echo())
    server.begin_close()
    connection.data_received(post(b"a"))

    assert b"connection: close" in pipe.written
    assert pipe.closed


def test_an_upgrade_that_is_not_spoken_is_answered_and_closed() -> None:
    _, connection, pipe = connected(Echo())
    connection.data_received(post(b"", b"connection: upgrade", b"upgrade: h2c"))

    assert pipe.written.startswith(b"HTTP/1.1 200")
    assert pipe.closed


@pytest.mark.parametrize(
    ("stream", "status"),
    [
        (post(b"x" * 101), 413),
        (chunked(b"x" * 101, 50), 413),
        (b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\nlong: " + b"y" * 1000, 431),
        (b"GET /" + b"y" * 1000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"POST /v2/models/m/infer HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"not http at all\r\n\r\n", 400),
    ],
)
def test_what_is_too_large_or_not_http_is_refused_and_closed(stream: bytes, status: int) -> None:
    _, connection, pipe = connected(Echo(), Limits(header_bytes=300, body_bytes=100))
    for start in range(0, len(stream), 64):
        if not pipe.closed:
            connection.data_received(stream[start : start + 64])

    assert pipe.written.startswith(b"HTTP/1.1 %d " % status)
    assert pipe.closed


def test_a_slow_client_gets_408_and_an_idle_one_is_closed() -> None:
    server, connection, pipe = connected(Echo(), Limits(request_seconds=5, idle_seconds=20))
    begun = connection._since
    connection.data_received(post(b"abc")[:-1])
    server.sweep(begun + 4)
    assert pipe.written == b""
    server.sweep(begun + 100)
    assert pipe.written.startswith(b"HTTP/1.1 408")
    assert pipe.closed

    server, connection, pipe = connected(Echo(), Limits(request_seconds=5, idle_seconds=20))
    server.sweep(connection._since + 19)
    assert not pipe.closed
    server.sweep(connection._since + 21)
    assert pipe.closed


def test_a_client_that_does_not_read_is_not_read_from_and_then_dropped() -> None:
    server, connection, pipe = connected(Echo(), Limits(write_seconds=5))
    connection.pause_writing()
    assert not pipe.reading
    connection.resume_writing()
    assert pipe.reading
    connection.pause_writing()
    assert connection._write_since is not None
    server.sweep(connection._write_since + 6)

    assert pipe.closed


def test_a_client_that_pipelines_too_much_is_paused_until_answers_are_out() -> None:
    handler = Echo()
    handler.hold = True
    _, connection, pipe = connected(handler)
    connection.data_received(post(b"a") * 64)
    assert not pipe.reading
    for exchange in handler.held:
        exchange.respond(200, b"", b"")

    assert pipe.reading


def test_a_disconnect_cancels_what_is_not_answered() -> None:
    handler = Echo()
    handler.hold = True
    server, connection, pipe = connected(handler)
    connection.data_received(post(b"a") + post(b"b"))
    handler.held[0].respond(200, b"", b"")
    connection.connection_lost(None)
    handler.held[1].respond(200, b"", b"too late")

    assert handler.cancelled == [handler.held[1]]
    assert b"too late" not in pipe.written
    assert server.connections == set()


def test_a_client_of_http_1_0_that_asks_for_it_is_told_that_its_connection_stays() -> None:
    _, connection, pipe = connected(Echo())
    old = b"POST /v2/models/m/infer HTTP/1.0\r\n%bcontent-length: 1\r\n\r\na"
    connection.data_received(old % b"connection: keep-alive\r\n")
    assert pipe.written.endswith(b"connection: keep-alive\r\n\r\na")
    assert not pipe.closed

    connection.data_received(old % b"")
    assert pipe.written.endswith(b"connection: close\r\n\r\na")
    assert pipe.closed


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (b"/v2/models/fares/infer", ("fares", None)),
        (b"/v2/models/fares/versions/3/infer?a=b", ("fares", "3")),
        # What no model can be asked is answered as any other unknown path, by one process and by a fleet.
        (b"/v2/models//infer", None),
        (b"/v2/models//versions/3/infer", None),
    ],
)
def test_only_a_request_that_names_a_model_is_inference(target: bytes, found: tuple[str, str | None] | None) -> None:
    assert route(b"POST", target) == found
