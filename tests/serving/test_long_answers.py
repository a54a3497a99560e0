"""Answers of many numbers are written beside the event loop, and everything else is as it is for short ones."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serving import (
    AsyncInferenceClient,
    Input,
    MountedServer,
    Output,
    Registry,
    Service,
    ServingConfig,
    Signature,
    save_artifact,
)  # fmt: skip
from serving.grpc import service as grpc_service
from serving.grpc.messages import SERVICE, message, methods
from serving.grpc.transcoding import infer_answer, streamed_answer
from serving.http import Limits
from serving.protocol import long_answers
from serving.protocol.long_answers import LongBody, content_pieces, packed_long, text_pieces, whole
from serving.protocol.outputs import LONG_VALUES, Outputs, Rows, values_text
from serving.protocol.responder import Responder
from serving.protocol.tensors import Array
from serving.transport.gateway import Reply
from serving.v2 import InferRequest
from serving.writing import Answer

Start = Callable[..., Awaitable[Service]]
TARGET = "/v2/models/wide/infer"
WIDTH = 2000
LONG = LONG_VALUES // WIDTH + 1


class Wide(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] + torch.arange(float(WIDTH)) / 8


@pytest.fixture
def wide(tmp_path: Path, registry: Registry) -> None:
    """The model `wide`, which gives 2,000 numbers for each."""
    signature = Signature((Input.of("x", "FP32", shape=[1]),), (Output("y"),))
    save_artifact(tmp_path / "wide", Wide(), signature, {"x": [[0.0]]})
    registry.register("wide", tmp_path / "wide", lineage={}, profile=None, metrics={})
    registry.set_alias("wide", "stable", 1)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that answers were written in, one an answer."""
    seen: list[str] = []
    write = Answer.write

    def noted(self: Answer, between: Callable[[], None]) -> None:
        seen.append(threading.current_thread().name)
        write(self, between)

    monkeypatch.setattr(Answer, "write", noted)
    return seen


def asked(rows: int, *, binary: bool = False, id: str = "") -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 1], "data": list(range(rows))}
    outputs = [{"name": "y", "parameters": {"binary_data": binary}}]
    return json.dumps({"id": id, "inputs": [tensor], "outputs": outputs}).encode()


def expected(rows: int) -> Array:
    return np.arange(rows, dtype="f4")[:, None] + np.arange(WIDTH, dtype="f4") / 8


def posted(body: bytes, *lines: bytes) -> bytes:
    head = b"".join(line + b"\r\n" for line in (b"POST %b HTTP/1.1" % TARGET.encode(), b"host: h", *lines))
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    return int(head.split()[1]), await reader.readexactly(int(length.partition(b":")[2]))


# --- the bytes -------------------------------------------------------------------------------------------------------
ARRAYS: dict[str, Array] = {
    "rows": np.arange(60, dtype="f4").reshape(12, 5) / 3,
    "by column": np.asfortranarray(np.arange(60, dtype="f8").reshape(12, 5) / 3),
    "long rows by column": np.asfortranarray(np.arange(60, dtype="i4").reshape(2, 30)),
    "cubes by column": np.asfortranarray(np.arange(120, dtype="i8").reshape(2, 5, 12)),
    "every other": np.arange(40, dtype="f4")[::2],
    "nothing": np.zeros((4, 0), "f4"),
    "one": np.ones((1,), "?"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_the_pieces_of_values_are_those_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_answers, "_STEP_VALUES", 7)
    monkeypatch.setattr(long_answers, "PIECE_BYTES", 30)
    values = ARRAYS[name]

    assert b"".join(text_pieces(values)) == values_text(values)
    assert b"".join(content_pieces(values)) == values.tobytes()


@pytest.mark.parametrize("id", ["", 'a "name"'])
@pytest.mark.parametrize("wanted", [None, {}, {"y": True}, {"z": False, "y": True}, {"y": False}, {"z": True}])
@pytest.mark.parametrize("binary", [False, True])
def test_a_long_body_is_the_short_one_in_pieces(wanted: dict[str, bool] | None, binary: bool, id: str) -> None:
    responder = Responder("m", 3, Signature((Input.of("x", "FP32"),), (Output("y"), Output("z", "INT64"))))
    batch = Outputs([np.arange(24, dtype="f4").reshape(4, 6), np.arange(4)], 4)
    request = InferRequest(id, 2, {}, outputs=wanted, binary_default=binary)
    steps: list[int] = []
    body, length = responder.long_body(request, Rows(batch, 1, 3), lambda: steps.append(1))

    assert (whole(body), length) == responder.body(request, Rows(batch, 1, 3))
    assert len(steps) == (2 if wanted is None else len(wanted))
    assert len(body) == len(whole(body))


def test_packed_pieces_are_let_go_of_and_unpack_to_the_body() -> None:
    body = LongBody([b"12345," * 30_000, b"", memoryview(b"6" * 200_000)])
    plain, steps = whole(body), []
    packed = packed_long(body, b"gzip", lambda: steps.append(1))

    assert gzip.decompress(whole(packed)) == plain
    assert not body.pieces
    assert len(steps) == 3 + 4


# --- the server ------------------------------------------------------------------------------------------------------
async def test_long_answers_are_written_in_threads_and_say_what_short_ones_say(
    wide: None, start: Start, threads: list[str]
) -> None:
    service = await start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", timeout=60) as client:
        # Headers that were met before take the shortcut; without an id the requests are of the usual kind.
        for rows in (LONG, 150, 150, 150):
            texts = await client.post(TARGET, content=asked(rows))
            named = await client.post(TARGET, content=asked(rows, id="me"))
            binary = await client.post(TARGET, content=asked(rows, binary=True))
            packed = await client.post(TARGET, content=asked(rows), headers={"accept-encoding": "gzip"})
            size = int(binary.headers["inference-header-content-length"])

            assert np.array_equal(np.reshape(texts.json()["outputs"][0]["data"], (rows, WIDTH)), expected(rows))
            assert named.json() == texts.json() | {"id": "me"}
            assert np.array_equal(np.frombuffer(binary.content[size:], "f4").reshape(rows, WIDTH), expected(rows))
            assert packed.headers["content-encoding"] == "gzip"
            assert packed.json() == texts.json()
        # Of the 34 kB of a row nothing is long, unless it is packed.
        written = len(threads)
        assert (await client.post(TARGET, content=asked(2))).status_code == 200
        assert len(threads) == written
        assert (await client.post(TARGET, content=asked(2), headers={"accept-encoding": "gzip"})).status_code == 200

    # All but the short binary one.
    assert len(threads) == written + 1 == 4 * 4 - 1 + 1
    assert all(name.startswith("reading") for name in threads)
    assert service.http.buffered == 0


async def test_requests_of_one_batch_get_long_answers_in_their_order(
    wide: None, start: Start, threads: list[str]
) -> None:
    service = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"".join(posted(asked(1 + place % 3)) for place in range(60)) + posted(b"{"))
    for place in range(60):
        status, body = await answer(reader)
        assert status == 200
        data = json.loads(body)["outputs"][0]["data"]
        assert np.array_equal(np.reshape(data, (-1, WIDTH)), expected(1 + place % 3))
    assert (await answer(reader))[0] == 400
    writer.close()

    assert threads, "a batch of many answers is written in a thread"


async def test_an_answer_whose_client_left_is_given_up(
    wide: None, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await start()
    begun, left, pieces = threading.Event(), threading.Event(), []
    write = Answer.write

    def slow(self: Answer, between: Callable[[], None]) -> None:
        def noted() -> None:
            begun.set()
            left.wait(30)
            pieces.append(1)
            between()

        write(self, noted)

    monkeypatch.setattr(Answer, "write", slow)
    _, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(posted(asked(200)))
    await asyncio.to_thread(begun.wait, 30)
    assert service.http.buffered > 200 * WIDTH
    writer.transport.abort()
    while service.http.connections:
        await asyncio.sleep(0.005)
    assert service.http.buffered == 0
    left.set()
    monkeypatch.undo()
    page = ""
    while 'outcome="cancelled",version="1"} 1.0' not in page:
        await asyncio.sleep(0.005)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as client:
            page = (await client.get("/metrics")).text

    assert len(pieces) == 1


async def test_an_answer_that_cannot_be_written_fails_alone(
    wide: None, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await start()
    long_body = Responder.long_body

    def broken(self: Responder, request: InferRequest, *rest: Any) -> Any:
        if request.id == "broken":
            raise RuntimeError("no text for this")
        return long_body(self, request, *rest)

    monkeypatch.setattr(Responder, "long_body", broken)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"".join(posted(asked(LONG, id=name)) for name in ("good", "broken", "fine")))
    answers = [await answer(reader) for _ in range(3)]
    writer.close()

    assert [status for status, _ in answers] == [200, 500, 200]
    assert "no text for this" in json.loads(answers[1][1])["error"]
    assert service.http.buffered == 0


async def test_a_drain_waits_for_long_answers(wide: None, start: Start) -> None:
    service = await start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", timeout=60) as client:
        tasks = [asyncio.create_task(client.post(TARGET, content=asked(300))) for _ in range(4)]
        while service.http.active() < 4:
            await asyncio.sleep(0)
        await service.drain()
        found = await asyncio.gather(*tasks)

    assert [one.status_code for one in found] == [200] * 4
    assert all(len(one.json()["outputs"][0]["data"]) == 300 * WIDTH for one in found)


async def test_our_client_reads_long_answers(wide: None, start: Start, threads: list[str]) -> None:
    service = await start()
    async with AsyncInferenceClient(f"http://127.0.0.1:{service.port}") as client:
        for client.binary in (True, False):
            found = await client.infer("wide", {"x": np.arange(LONG * 4, dtype="f4")[:, None]})
            assert np.array_equal(found["y"].reshape(-1, WIDTH), expected(LONG * 4))

    assert len(threads) == 2


# --- other ways in ---------------------------------------------------------------------------------------------------
@given(st.data())
def test_a_grpc_answer_does_not_depend_on_the_pieces(data: st.DataObject) -> None:
    responder = Responder("m", 3, Signature((Input.of("x", "FP32"),), (Output("y"), Output("z", "INT64"))))
    outputs = [np.arange(24, dtype="f4").reshape(4, 6), np.arange(4) << 40]
    body, length = responder.body(InferRequest("7", 4, {}, binary_default=True), outputs)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=5)))
    pieces = LongBody(body[at:end] for at, end in zip([0, *cuts], [*cuts, len(body)], strict=True))
    typed = data.draw(st.booleans())
    reply = Reply(200, {b"inference-header-content-length": b"%d" % length}, pieces)
    answer = message("ModelStreamInferResponse").FromString(
        b"".join(streamed_answer(infer_answer(reply, typed=typed, parameters={"last": True})))
    )

    response = answer.infer_response
    assert (response.model_name, response.id, response.parameters["last"].bool_param) == ("m", "7", True)
    if typed:
        assert list(response.outputs[0].contents.fp32_contents) == list(range(24))
        assert list(response.outputs[1].contents.int64_contents) == outputs[1].tolist()
    else:
        assert list(response.raw_output_contents) == [output.tobytes() for output in outputs]


async def test_grpc_makes_long_answers_beside_the_loop(
    wide: None, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []

    def noted(*args: Any, **options: Any) -> list[bytes]:
        made.append(threading.current_thread() is threading.main_thread())
        return infer_answer(*args, **options)

    monkeypatch.setattr(grpc_service, "infer_answer", noted)
    service = await start(grpc_port=0)
    target = f"127.0.0.1:{service.edge.grpc_port}"
    async with grpc.aio.insecure_channel(target, options=[("grpc.max_receive_message_length", -1)]) as channel:
        kinds = methods()["ModelInfer"]
        ask = channel.unary_unary(f"/{SERVICE}/ModelInfer", kinds[0].SerializeToString, kinds[1].FromString)
        for rows in (2, LONG * 10):
            request = message("ModelInferRequest")(model_name="wide")
            values = np.arange(rows, dtype="f4")
            tensor = request.inputs.add(name="x", datatype="FP32", shape=[rows, 1])
            tensor.contents.fp32_contents.extend(values)
            typed = await ask(request)
            tensor.ClearField("contents")
            request.raw_input_contents.append(values.tobytes())
            raw = await ask(request)

            assert np.array_equal(np.frombuffer(raw.raw_output_contents[0], "f4"), expected(rows).reshape(-1))
            assert np.array_equal(typed.outputs[0].contents.fp32_contents, expected(rows).reshape(-1))

    assert made == [True, True, False, False]


async def test_the_mounted_app_sends_long_answers_in_pieces(
    wide: None, registry_url: str, tmp_path: Path, threads: list[str]
) -> None:
    app = MountedServer(ServingConfig(registry_url=registry_url, artifacts_dir=tmp_path / "artifacts"))
    sent: list[dict[str, Any]] = []
    asks = [{"type": "http.request", "body": asked(200, binary=True), "more_body": False}]

    async def receive() -> Any:
        if asks:
            return asks.pop()
        return await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    async with app.lifespan():
        scope = {"type": "http", "method": "POST", "path": TARGET, "headers": [], "query_string": b""}
        await app(scope, receive, send)

    body = b"".join(message["body"] for message in sent[1:])
    assert [message["more_body"] for message in sent[1:-1]] == [True] * (len(sent) - 2)
    assert len(sent) > 4
    assert body.endswith(expected(200).tobytes())
    assert dict(sent[0]["headers"])[b"content-length"] == b"%d" % len(body)
    assert len(threads) == 1


# --- clients that do not read ----------------------------------------------------------------------------------------
async def test_answers_that_nobody_reads_are_bounded_and_others_are_served(wide: None, start: Start) -> None:
    limits = Limits(buffered_bytes=16_000_000, write_seconds=60)
    service = await start(limits=limits, max_queue_rows=100_000)
    writers = []
    for _ in range(12):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port, limit=1024)
        writer.write(b"".join(posted(asked(200, binary=True)) for _ in range(10)))
        writers.append((reader, writer))
    held = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", timeout=60) as client:
        statuses, page = set(), 'reason="memory"} 0.0'
        while 'reason="memory"} 0.0' in page:
            statuses.add((await client.post(TARGET, content=asked(2))).status_code)
            held.append(service.http.buffered)
            # They have been slow for long when others ask for more than there is room for.
            await client.post(TARGET, content=asked(400, binary=True))
            page = (await client.get("/metrics")).text

    assert statuses == {200}
    assert max(held) <= limits.buffered_bytes
    for _, writer in writers:
        writer.transport.abort()
    while service.http.connections:
        await asyncio.sleep(0.005)

    assert service.http.buffered == 0
