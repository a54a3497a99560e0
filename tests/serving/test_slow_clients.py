"""Clients that take their answers slowly or never: what they may hold, and what becomes of them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from serving.http import Connection, Exchange, Limits, Server
from serving.protocol.long_answers import PIECE_BYTES, LongBody

ANSWER = bytes(range(256)) * (8 * PIECE_BYTES // 256)


class Answering:
    """Answers each request with as many bytes of ANSWER as it says; counts them."""

    def __init__(self) -> None:
        self.seen = 0
        self.cancelled: list[Exchange] = []
        self.pieces = False

    def infer(self, exchange: Exchange, model: str, version: str | None) -> None:
        self.seen += 1
        body = ANSWER[: int(exchange.body)]
        exchange.respond(200, b"", LongBody.of(body) if self.pieces else body)

    def cancel(self, exchange: Exchange) -> None:
        self.cancelled.append(exchange)


class Pipe(asyncio.Transport):
    """Takes `room` bytes, then tells its protocol to pause."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.written = bytearray()
        self.closed = self.aborted = False
        self.reading = True
        self.protocol: Connection | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed, "nothing may be written after the close"
        assert len(data) <= max(PIECE_BYTES, 64 * 1024), "pieces keep turns short"
        self.written += data
        self.room -= len(data)
        if self.room < 0 and self.protocol is not None and not self.protocol.stuck(time.monotonic() + 1):
            self.protocol.pause_writing()

    def read(self, count: int) -> None:
        """The client takes so many bytes."""
        self.room += count
        if self.room >= 0 and self.protocol is not None:
            self.protocol.resume_writing()

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def get_write_buffer_size(self) -> int:
        return max(0, -self.room)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


def connected(server: Server, room: int) -> tuple[Connection, Pipe]:
    pipe = Pipe(room)
    connection = server.connection()
    connection.connection_made(pipe)
    pipe.protocol = connection
    return connection, pipe


def post(count: int, *lines: bytes) -> bytes:
    head = b"".join(line + b"\r\n" for line in (b"POST /v2/models/m/infer HTTP/1.1", b"host: h", *lines))
    return head + b"content-length: %d\r\n\r\n%d" % (len(str(count)), count)


async def turns() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


def of(handler: Answering, dropped: list[str], **limits: Any) -> Server:
    async def nowhere(*_: Any) -> None:
        raise AssertionError

    return Server(handler, nowhere, Limits(**limits), dropped.append)


@pytest.mark.parametrize("pieces", [False, True])
async def test_a_long_answer_goes_out_as_its_client_reads(pieces: bool) -> None:
    handler = Answering()
    handler.pieces = pieces
    server = of(handler, [])
    connection, pipe = connected(server, 2 * PIECE_BYTES)
    connection.data_received(post(len(ANSWER)) + post(3))
    await turns()

    assert len(pipe.written) < 4 * PIECE_BYTES
    assert 4 * PIECE_BYTES < server.buffered < len(ANSWER)
    assert not pipe.reading
    assert connection.active() == 2
    for _ in range(20):
        pipe.read(PIECE_BYTES)
        await turns()
    first, _, rest = bytes(pipe.written).partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert rest[: len(ANSWER)] == ANSWER
    assert rest[len(ANSWER) :] == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n" + ANSWER[:3]
    assert (server.buffered, connection.active(), pipe.reading) == (0, 0, True)


async def test_a_fast_reader_does_not_keep_the_loop_for_a_whole_answer() -> None:
    handler = Answering()
    server = of(handler, [])
    connection, pipe = connected(server, 10**9)
    connection.data_received(post(len(ANSWER), b"connection: close"))

    assert len(pipe.written) <= 5 * PIECE_BYTES
    await turns()
    assert bytes(pipe.written).endswith(ANSWER)
    assert pipe.closed
    assert server.buffered == 0


async def test_requests_behind_an_answer_that_is_not_read_wait_unread() -> None:
    handler = Answering()
    server = of(handler, [])
    connection, pipe = connected(server, 0)
    stream = post(len(ANSWER)) + post(5) * 2000
    connection.data_received(stream)
    await turns()
    seen = handler.seen

    # What comes in one step is seen at once.
    assert seen < 16 * 1024 / len(post(5)) + 2
    assert server.buffered > len(stream) / 2
    gone, _ = connected(server, 0)
    held = server.buffered
    gone.data_received(stream)
    assert server.buffered > held + len(stream) / 2
    gone.connection_lost(None)
    assert server.buffered == held
    handler.seen = seen
    for _ in range(100):
        pipe.read(PIECE_BYTES)
        await turns()
    assert handler.seen == 2001
    assert bytes(pipe.written).count(b"HTTP/1.1 200 OK") == 2001
    assert (server.buffered, pipe.reading) == (0, True)


async def test_pipelined_requests_beyond_those_that_may_wait_are_parsed_when_there_is_room() -> None:
    handler = Answering()
    held: list[Exchange] = []
    handler.infer = lambda exchange, model, version: held.append(exchange)  # type: ignore[method-assign]
    server = of(handler, [])
    connection, pipe = connected(server, 10**9)
    body = b"1" * 200_000
    long = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    connection.data_received(post(1) * 1000 + long + post(2) * 1000)
    answered = 0
    while answered < 2001:
        assert 0 < len(held) < 64 + 16 * 1024 / len(post(5)) + 2
        taken, held[:] = held[:], []
        answered += len(taken)
        for exchange in taken:
            exchange.respond(200, b"", b"%d" % len(exchange.body))
        await turns()

    bodies = [part.partition(b"\r\n\r\n")[2] for part in bytes(pipe.written).split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b"1"] * 1000 + [b"200000"] + [b"1"] * 1000
    assert (server.buffered, connection.active(), pipe.reading) == (0, 0, True)


def test_a_long_body_is_parsed_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    feed = Connection._feed_some
    monkeypatch.setattr(Connection, "_feed_some", lambda self, data: (steps.append(len(data)), feed(self, data)))
    connection, pipe = connected(of(Answering(), []), 10**9)
    body = b" " * 199_999 + b"7"
    stream = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    for at in range(0, len(stream), 100_000):
        connection.data_received(stream[at : at + 100_000])

    assert bytes(pipe.written).endswith(b"\r\n\r\n" + ANSWER[:7])
    assert len(steps) == 4
    assert sum(steps) == len(stream)


async def test_who_reads_nothing_is_dropped_after_a_while_and_counted() -> None:
    dropped: list[str] = []
    server = of(Answering(), dropped, write_seconds=5)
    connection, pipe = connected(server, 0)
    connection.data_received(post(len(ANSWER)))
    server.sweep(time.monotonic() + 4)
    assert not pipe.aborted
    pipe.read(2 * PIECE_BYTES)
    server.sweep(time.monotonic() + 4)
    assert not pipe.aborted
    server.sweep(time.monotonic() + 6)
    server.sweep(time.monotonic() + 7)

    assert pipe.aborted
    assert dropped == ["unread"]
    assert server.buffered == 0


async def test_a_request_that_does_not_come_is_counted() -> None:
    dropped: list[str] = []
    server = of(Answering(), dropped, request_seconds=5)
    connection, pipe = connected(server, 10**9)
    connection.data_received(post(3)[:-1])
    server.sweep(time.monotonic() + 6)

    assert bytes(pipe.written).startswith(b"HTTP/1.1 408")
    assert dropped == ["unsent"]


async def test_the_slowest_give_way_to_answers_that_have_no_room() -> None:
    dropped: list[str] = []
    size = len(ANSWER)
    server = of(Answering(), dropped, buffered_bytes=4 * size)
    slow = [connected(server, 0) for _ in range(2)]
    for connection, _ in slow:
        connection.data_received(post(size))
        connection._write_since -= 60  # type: ignore[operator]
    fresh = [connected(server, 0) for _ in range(4)]
    for place, (connection, _) in enumerate(fresh):
        server._shed = 0.0
        connection.data_received(post(size))
        assert dropped == ["memory"] * min(place, 2)

    # Nobody else has been slow for long: who asks for more is refused, and who is answered goes on being answered.
    assert [pipe.aborted for _, pipe in slow] == [True, True]
    assert [pipe.aborted for _, pipe in fresh] == [False] * 4
    assert [bytes(pipe.written[9:12]) for _, pipe in fresh] == [b"200"] * 3 + [b"503"]
    for connection in list(server.connections):
        connection.connection_lost(None)
    assert server.buffered == 0


async def test_short_answers_that_are_not_read_count_too() -> None:
    dropped: list[str] = []
    handler = Answering()
    held: list[Exchange] = []
    handler.infer = lambda exchange, model, version: held.append(exchange)  # type: ignore[method-assign]
    server = of(handler, dropped, buffered_bytes=10**6)
    slow, pipe = connected(server, 0)
    slow.data_received(post(1) * 60)
    for exchange in held:
        exchange.respond(200, b"", ANSWER[:5000])
    assert 290_000 < server.buffered < 300_000
    slow._write_since -= 20  # type: ignore[operator]
    server.sweep(time.monotonic())
    assert not pipe.aborted
    server.keep(Exchange(slow), 700_000)

    assert dropped == ["memory"]
    assert server.buffered == 700_000


async def test_a_client_that_ends_its_side_gets_the_rest_of_the_answer() -> None:
    server = of(Answering(), [])
    connection, pipe = connected(server, 0)
    assert not connection.eof_received()
    connection, pipe = connected(server, 0)
    connection.data_received(post(len(ANSWER)))

    assert connection.eof_received()
    for _ in range(20):
        pipe.read(PIECE_BYTES)
        await turns()
    assert bytes(pipe.written).endswith(ANSWER)
    assert pipe.closed
