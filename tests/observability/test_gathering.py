"""Bodies in pieces: what arrives is the pieces behind each other, however many they are."""

from __future__ import annotations

import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from observability.events import event_batch, from_ipc, ipc_pieces, to_ipc
from observability.gathering import GatheringConnection, native


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


@contextmanager
def receiving(*answers: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """The port of a server that answers the requests of one connection so, and the bodies that it got."""
    received: list[bytes] = []

    def serve(server: socket.socket) -> None:
        client, _ = server.accept()
        with client, client.makefile("rb") as file:
            for answer in answers:
                lines = [line.lower() for line in iter(file.readline, b"\r\n")]
                size = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
                received.append(file.read(size))
                client.sendall(answer)

    with listening() as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        yield server.getsockname()[1], received
        thread.join(60)


def post(connection: GatheringConnection, pieces: tuple[memoryview, ...]) -> int:
    size = sum(piece.nbytes for piece in pieces)
    body: Any = [pieces]
    connection.request("POST", "/", body=body, headers={"Content-Length": str(size)})
    with connection.getresponse() as response:
        return response.status


@pytest.mark.parametrize("count", [1, 40, 2_500])
def test_pieces_arrive_behind_each_other(count: int) -> None:
    drawn = np.random.default_rng(count)
    sizes = [0 if k % 7 == 3 else int(drawn.integers(1, 6_000_000 // count)) for k in range(count)]
    bodies = [drawn.bytes(size) for size in sizes]
    pieces = tuple(memoryview(pa.py_buffer(body) if k % 2 else body) for k, body in enumerate(bodies))

    with receiving(b"HTTP/1.1 204 No Content\r\n\r\n") as (port, received):
        connection = GatheringConnection("127.0.0.1", port, timeout=60)
        assert post(connection, pieces) == 204
        connection.close()

    assert received == [b"".join(bodies)]


@pytest.mark.skipif(native() is None, reason="there is no compiler")
@pytest.mark.parametrize("count", [1, 40, 2_500])
def test_a_large_body_goes_whole_and_with_pauses_in_which_others_get_the_processor(count: int) -> None:
    bodies = [np.random.default_rng(k).bytes(12_000_000 // count - 1000 * (k % 2)) for k in range(count)]
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

    with receiving(answer, answer) as (port, received):
        connection = GatheringConnection("127.0.0.1", port, timeout=60)
        # The first opens the connection; the compiled call needs one that is open.
        assert post(connection, (memoryview(b"first"),)) == 200
        size = sum(map(len, bodies))
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        assert connection.posted("/", {"Content-Length": str(size)}, tuple(map(memoryview, bodies)))
        pauses = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before
        connection.close()

    assert received == [b"first", b"".join(bodies)]
    assert pauses >= 20


def test_a_receiver_that_takes_nothing_is_given_up_in_time() -> None:
    with listening() as server:
        connection = GatheringConnection("127.0.0.1", server.getsockname()[1], timeout=0.2)
        with pytest.raises(TimeoutError):
            post(connection, (memoryview(bytes(64 << 20)),))
        connection.close()


def batch_of(rows: int) -> pa.RecordBatch:
    """Every kind of column that events have, with nulls and without."""
    numbers = np.arange(float(rows))
    texts = pa.array([None if k % 3 == 1 else "é" * (k % 5) for k in range(rows)], pa.utf8())
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(4 * rows, dtype=np.float32)), 4)
    return event_batch(
        ids=[f"i-{k}" for k in range(rows)], time_ns=5, model="m", version="1",
        features={"x": numbers, "t": texts, "v": vectors, "b": pa.array([True, None, False] * rows)[:rows]},
        predictions={"y": numbers * 2, "none": None, "some": pa.array(numbers, mask=numbers % 2 > 0)},
    )  # fmt: skip


@pytest.mark.parametrize("sizes", [(1,), (8, 9), (900, 64, 1)])
def test_pieces_are_a_stream_of_the_same_batches(sizes: tuple[int, ...]) -> None:
    batches = [batch_of(rows) for rows in sizes]

    body = b"".join(ipc_pieces(batches))

    read = list(pa.ipc.open_stream(body))
    for made, batch in zip(read, batches, strict=True):
        made.validate(full=True)
        assert made.equals(batch)
    assert from_ipc(body).schema.equals(batches[0].schema)
    assert len(body) <= len(to_ipc(batches))


def test_pieces_that_lie_plainly_are_found_without_arrows_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(900)
    monkeypatch.setattr(pa, "PythonFile", None)

    pieces = ipc_pieces([batch, batch])

    address = batch.column("feature.v").values.buffers()[1].address
    assert sum(np.frombuffer(piece, np.uint8).ctypes.data == address for piece in pieces if piece.nbytes) == 2


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1.0], [2.0, 3.0]], pa.list_(pa.float64())),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array(["x", "a", "b"])[1:],
        pa.array([True, False, True])[1:],
        pa.FixedSizeListArray.from_arrays(pa.array([0.0, 1.0, 2.0, 3.0])[1:3], 1),
        pa.FixedSizeListArray.from_arrays(pa.array([0.0, 1.0, 2.0]), 1)[1:],
        pa.nulls(2),
        pa.array(["a", "b"], pa.large_utf8()),
        pa.array([b"a", None], pa.binary()),
        pa.array([b"a", None], pa.binary(1)),
        pa.array([1, None], pa.decimal128(5)),
        pa.array(["aa", None], pa.string_view()),
    ],
    ids=str,
)
def test_what_does_not_lie_plainly_is_told_too(column: pa.Array) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1.0, 2.0]), column], ["one", "other"])

    (read,) = pa.ipc.open_stream(b"".join(ipc_pieces(batch)))

    read.validate(full=True)
    assert read.equals(batch)


def test_a_batch_without_rows_is_a_stream_too() -> None:
    batch = batch_of(3).slice(0, 0)

    assert pa.ipc.open_stream(b"".join(ipc_pieces(batch))).read_all().schema.equals(batch.schema)


def test_pieces_of_a_batch_are_the_stream_itself() -> None:
    values = np.arange(900.0)
    batch = event_batch(
        ids=[f"i-{k}" for k in range(900)], time_ns=5, model="m", version="1", features={"x": values},
        predictions={"y": values * 2},
    )  # fmt: skip
    pieces = ipc_pieces([batch, batch.slice(100, 7)])

    assert b"".join(pieces) == to_ipc([batch, batch.slice(100, 7)])
    # Not copied: the column's own memory.
    assert any(np.frombuffer(piece, np.uint8).ctypes.data == values.ctypes.data for piece in pieces if piece.nbytes)
