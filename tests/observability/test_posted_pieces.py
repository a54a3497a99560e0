"""Bodies in pieces over a connection that is kept: by the compiled call and without it all ends the same."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

import pytest

from observability.gathering import native
from observability.sinks import BATCH_ID_HEADER, HttpSink, Scattered, Unavailable

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
ANSWERS = {
    "none": b"",
    "plain": OK,
    "short": OK[:-1],
    "in two": b"",
    "accepted": b"HTTP/1.1 202 Accepted\r\ncontent-length:0\r\n\r\n",
    "long": b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + bytes(9000),
    "very long": b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + bytes(200_000),
    "no body": b"HTTP/1.1 204 No Content\r\n\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "closing": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
    "until it closes": b"HTTP/1.1 200 OK\r\n\r\n{}",
    "older": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "twice as long": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "no number": b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n",
    "continue": b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    "moved": b"HTTP/1.1 301 Moved\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
    "wrong": b"HTTP/1.1 422 Unprocessable\r\nContent-Length: 3\r\n\r\nbad",
    "later": b"HTTP/1.1 503 Unavailable\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy",
    "failed": b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno",
    "not HTTP": b"hello\r\n\r\n",
    "long header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9000 + b"\r\nContent-Length: 2\r\n\r\n{}",
}


def _head(file: BinaryIO) -> bytes:
    """A request's header, with the blank line; nothing where the connection ends."""
    lines = []
    while line := file.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


class Receiver:
    """Reads requests and says what it is told to, one answer a request; closes the connection where that is nothing.

    `seen` are the requests: whole, as bytes; `connections` how many came.
    """

    def __init__(self, answers: list[bytes], *, in_two: bool = False) -> None:
        self.seen: list[bytes] = []
        self.connections = 0
        self._answers, self._in_two = answers, in_two
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1/events"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while self._answers:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            # Who gives an answer up before all of it has come closes the connection upon the rest.
            with suppress(ConnectionError), client, client.makefile("rb") as file:
                while self._answers and (head := _head(file)):
                    size = int(head.lower().partition(b"content-length:")[2].split()[0])
                    self.seen.append(head + file.read(size))
                    answer = self._answers.pop(0)
                    half = 20 if self._in_two else len(answer)
                    client.sendall(answer[:half])
                    if self._in_two:
                        # So that the first half is there alone.
                        threading.Event().wait(0.05)
                        client.sendall(answer[half:])
                    if not answer or b"close" in answer or b"Length" not in answer or b"two" in answer:
                        break
                    if answer == ANSWERS["short"]:
                        break


@contextmanager
def receiving(answers: list[bytes], *, in_two: bool = False) -> Iterator[Receiver]:
    receiver = Receiver(answers, in_two=in_two)
    try:
        yield receiver
    finally:
        receiver.close()


def scattered(number: int) -> Scattered:
    pieces = tuple(memoryview(bytes([k % 251]) * (k * number % 5_000)) for k in range(2_500))
    return Scattered(b"", 1, f"id-{number}", pieces)


def _sent(name: str) -> tuple[list[object], list[bytes], int]:
    """What three deliveries come to, of which the second is answered so; the requests; how many connections it took."""
    answers = [OK, OK if name == "in two" else ANSWERS[name], OK, OK, OK]
    ends: list[object] = []
    with receiving(answers, in_two=name == "in two") as receiver:
        sink = HttpSink(receiver.url, headers={"Authorization": "Bearer x"}, timeout=20)
        for number in range(3):
            try:
                sink.send(scattered(number))
                ends.append(None)
            except Exception as error:
                ends.append((type(error), getattr(error, "retry_after", None), str(error).split("answered")[-1]))
        sink.close()
        return ends, receiver.seen, receiver.connections


@pytest.mark.skipif(native() is None, reason="needs a C compiler")
@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_means_the_same_as_to_pythons_client(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends, seen, connections = _sent(name)
    monkeypatch.setattr("observability.sinks.native", lambda: None)
    others, wanted, others_connections = _sent(name)

    port, other = (next(line for line in one[0].splitlines() if line.startswith(b"Host")) for one in (seen, wanted))
    assert ends == others
    assert connections == others_connections
    assert [_parts(request) for request in seen] == [_parts(request.replace(other, port)) for request in wanted]


def _parts(request: bytes) -> tuple[bytes, list[bytes], bytes]:
    """Its first line, the header's lines in any order, the body."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    return first, sorted(lines), body


@pytest.mark.skipif(native() is None, reason="needs a C compiler")
def test_a_kept_connection_is_used_by_the_compiled_call(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving([OK] * 3) as receiver:
        sink = HttpSink(receiver.url, timeout=20)
        sink.send(scattered(1))
        monkeypatch.setattr(type(sink._connection), "request", None)
        sink.send(scattered(2))
        sink.send(scattered(3))
        sink.close()

    assert receiver.connections == 1
    assert [f"{BATCH_ID_HEADER}: id-{k}".encode() in request for k, request in enumerate(receiver.seen, 1)] == [
        True
    ] * 3


def test_an_id_that_does_not_fit_a_header_is_refused_over_a_kept_connection_too() -> None:
    with receiving([OK] * 3) as receiver:
        sink = HttpSink(receiver.url, timeout=20)
        sink.send(scattered(1))
        with pytest.raises(ValueError, match="Invalid header value"):
            sink.send(Scattered(b"", 1, "a\r\nX-Other: b", (memoryview(b"x"),)))
        sink.close()

    assert len(receiver.seen) == 1


@pytest.mark.parametrize("reads", [False, True])
def test_a_receiver_that_stops_is_given_up_in_time(reads: bool) -> None:
    """It takes nothing, or takes everything and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        # Enough for the first delivery, which a thread of this process has to answer.
        sink = HttpSink(f"http://127.0.0.1:{server.getsockname()[1]}", timeout=1.0)
        done = threading.Event()

        def serve() -> None:
            first, _ = server.accept()
            with first:
                while first.recv(1 << 20)[-1:] != b"!":
                    pass
                first.sendall(OK)
                while reads and first.recv(1 << 20):
                    pass
                done.wait(60)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        sink.send(Scattered(b"", 1, "a", (memoryview(b"!"),)))
        with pytest.raises(Unavailable, match="cannot be reached"):
            sink.send(Scattered(b"", 1, "b", (memoryview(bytes(64 << 20)),)))
        done.set()
        thread.join(60)
        sink.close()
