"""The compiled way of usual requests: it takes what Python would take, and its answers are Python's."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from serving import Input, Output, Registry, Signature, save_artifact, v2
from serving.server import Service
from serving.transport import connection as connections
from serving.transport.intake import binary_form, json_form, native

Start = Callable[..., Awaitable[Service]]
HEADER = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\nContent-Length: %d\r\naccept: */*\r\n\r\n"
COMPILED = native()
pytestmark = pytest.mark.skipif(COMPILED is None, reason="no C compiler, or no headers of Python's")


def request(body: bytes) -> bytes:
    return HEADER % len(body) + body


def body(values: Any, rows: int = 1, width: int = 3, **more: Any) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, width], "data": values}
    return json.dumps({"inputs": [tensor], **more}).encode()


class Line:
    """A slot with an intake of three FP32 values a row, and what each of them was told."""

    def __init__(self, **sizes: int) -> None:
        assert COMPILED is not None
        self.declined: list[bytes] = []
        self.written: list[bytes] = []
        self.woken = 0
        self.slot = COMPILED.Slot(self, self.declined.append)
        self.slot.opened(self.written.append)
        limits = {"rows": 8, "most": 8, "bytes": 1 << 20} | sizes
        self.intake = COMPILED.Intake(
            3, 12, "f", limits["rows"], limits["most"], limits["bytes"], self._wake, lambda: None
        )

    def _wake(self) -> None:
        self.woken += 1

    def learn(self, content: bytes, rows: int = 1) -> None:
        form = json_form(HEADER % len(content), content, rows * 3, rows)
        assert form is not None
        self.intake.learn(form.before, form.behind, form.prefix, form.suffix, ("tag", rows), rows, False)
        self.slot.arm(self.intake)

    def rows(self) -> list[list[float]]:
        found = np.zeros((self.intake.rows, 3), np.float32)
        self.intake.read(found)
        return found.tolist()  # type: ignore[no-any-return]


SIGNS = st.sampled_from(["", "-", "+"])
DIGITS = st.text("0123456789", min_size=1, max_size=25)
NUMBERS = st.one_of(
    st.floats().map(repr), st.integers().map(str), st.floats(width=32, allow_nan=False).map(repr),
    st.builds("{}{}.{}{}".format, SIGNS, DIGITS, DIGITS, st.sampled_from(["", "e-7", "E+30"])),
    st.text("0123456789.-+eE \t", max_size=12),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=4), st.sampled_from([",", " ,\n", "\t, ", "\x0b,"]))
@example(["9007199254740993", "1e23", "0.1"], ",")
@example(["17.999999523162842", "1.00000005960464477540", "3.4028235677973366e38"], ",")
@example(["-0", "-0.0e5", "0e999999"], ",")
def test_numbers_are_read_as_python_reads_them_or_left_to_it(numbers: list[str], comma: str) -> None:
    line = Line()
    line.learn(body([0.5, 1.5, 2.5]))
    content = body([]).replace(b"[]", b"[%b]" % comma.join(numbers).encode())

    line.slot.feed(request(content))

    read = v2.decoded_floats(content)
    if line.intake.count:
        assert read is not None
        assert struct.pack("<3f", *read.inputs[0].data) == np.array(line.rows(), "<f4").tobytes()
    else:
        assert line.declined == [request(content)]
        fits = read is not None and len(read.inputs[0].data) == 3
        large = fits and any(len(number) > 60 or abs(float(number)) > 3.4e38 for number in numbers)
        assert not fits or large, "a request of the form is taken"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_differs_from_the_form_is_left_to_python(data: st.DataObject) -> None:
    line, whole = Line(), request(body([0.5, 1.5, 2.5]))
    line.learn(body([0.5, 1.5, 2.5]))
    at = data.draw(st.integers(0, len(whole)))
    kind = data.draw(st.sampled_from(["cut", "insert", "change"]))
    byte = bytes([data.draw(st.integers(0, 255))])
    changed = {
        "cut": whole[:at],
        "insert": whole[:at] + byte + whole[at:],
        "change": whole[:at] + byte + whole[at + 1 :],
    }

    line.slot.feed(changed[kind])

    assert line.intake.count + len(line.declined) == 1
    if line.intake.count:
        head, _, content = changed[kind].partition(b"\r\n\r\n")
        assert head == whole.partition(b"\r\n\r\n")[0], "the header is the one that was met"
        read = v2.decoded_floats(content)
        assert read is not None
        assert read.inputs[0].shape == [1, 3]
        assert struct.pack("<3f", *read.inputs[0].data) == np.array(line.rows(), "<f4").tobytes()


@pytest.mark.parametrize(
    "content",
    [
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1.0,2.0]}]}',
        b'{"inputs":[{"data":[1.0,2.0],"name":"x","datatype":"FP32","shape":[1,2]}]}',
        b'{"inputs":[{"data":[1.0,2.0],"name":"x","datatype":"FP32","shape":[1,2],"data":[3.0,4.0]}]}',
    ],
)  # fmt: skip
def test_the_values_are_found_wherever_they_stand(content: bytes) -> None:
    form = json_form(HEADER % len(content), content, 2, 1)

    assert form is not None
    read = v2.decoded_floats(form.prefix + b"7.0,8.0" + form.suffix)
    assert read is not None
    assert read.inputs[0].data == [7.0, 8.0]
    assert read.inputs[0].shape == [1, 2]


def test_no_form_comes_of_what_may_mean_something_else() -> None:
    content = body([1.0, 2.0, 3.0])
    twice = HEADER.replace(b"host: x", b"host: x\r\ncontent-length: 5") % len(content)
    text = b'{"inputs":[{"name":"[1.0,2.0,3.0]","shape":[1,3],"datatype":"FP32","data":[1.0,2.0,3.0]}]}'

    assert json_form(twice, content, 3, 1) is None
    assert json_form(HEADER % len(content), body([[1.0, 2.0, 3.0]]), 3, 1) is None
    assert binary_form(twice, content, 3, 1) is None
    found = json_form(HEADER % len(text), text, 3, 1)
    assert found is not None
    assert found.prefix.endswith(b'"data":[')


def test_a_slot_takes_one_request_at_a_time_and_no_more_than_there_is_room_for() -> None:
    line, content = Line(rows=3, most=2), body([0.5, 1.5, 2.5])
    line.learn(content)
    others = [Line() for _ in range(3)]
    for other in others:
        other.slot.arm(line.intake)

    line.slot.feed(request(content))
    line.slot.feed(request(content))
    for other in others:
        other.slot.feed(request(content))

    assert (line.intake.count, line.woken, line.declined) == (2, 1, [request(content)])
    assert [len(other.declined) for other in others] == [0, 1, 1]
    others[0].slot.close()
    assert line.intake.batch(8) is None, "a client has left: its row must not reach the model"
    given = line.intake.give(0, 2)
    assert [one[1] for one in given] == [line, None]
    assert (line.intake.count, line.intake.rows, line.slot.taken) == (0, 0, False)
    large = Line(bytes=len(request(content)) - 1)
    large.learn(content)
    large.slot.feed(request(content))
    assert large.declined == [request(content)]


def test_answers_go_to_their_requests_and_taking_one_out_moves_the_rows() -> None:
    lines = [Line() for _ in range(4)]
    intake = lines[0].intake
    lines[0].learn(body([0.0] * 3))
    for number, line in enumerate(lines):
        line.slot.arm(intake)
        line.slot.feed(request(body([number + 0.5] * 3)))

    assert [one[1] for one in intake.give(1, 2)] == [lines[1]]
    assert lines[0].rows() == [[0.5] * 3, [2.5] * 3, [3.5] * 3]
    count, rows, tags = intake.batch(2)
    assert (count, rows, tags) == (2, 2, [("tag", 1)])
    intake.answer(count, ((b"H:", b"<", b">", [b"a", b"b"], 0),))
    moments, arrived, each = intake.end(count, 1.0, 2.0, 3.0, 4.0)

    assert [line.written for line in lines] == [[b"H:3\r\n\r\n<a>"], [], [b"H:3\r\n\r\n<b>"], []]
    found = np.frombuffer(moments).reshape(2, 6)
    assert found[:, 2:].tolist() == [[1.0, 2.0, 3.0, 4.0]] * 2
    assert (np.diff(found[:, :2]) >= 0).all()
    assert np.frombuffer(arrived).tolist() == found[:, 0].tolist()
    assert np.frombuffer(each, np.int64).tolist() == [1, 1]
    assert lines[0].rows() == [[3.5] * 3]
    with pytest.raises(ValueError, match="fit the batch"):
        intake.answer(intake.batch(8)[0], ((b"", b"", b"", b"short", 8),))
    intake.close()
    lines[0].slot.feed(b"later")
    assert lines[0].declined == [b"later"]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(kind: type[np.floating[Any]], value: float) -> None:
    intake = Line().intake
    values = np.zeros((3, 5), kind)
    values[0] = np.finfo(kind).max, np.finfo(kind).min, np.finfo(kind).tiny, np.finfo(kind).smallest_subnormal, -0.0

    assert intake.finite(values) is True
    for place in range(values.size):
        spoilt = values.copy()
        spoilt.reshape(-1)[place] = value
        assert intake.finite(spoilt) is False


def test_integers_are_finite_and_of_other_arrays_the_intake_cannot_tell() -> None:
    intake = Line().intake

    assert intake.finite(np.full((2, 2), -1)) is True
    assert intake.finite(np.full(3, 0x7F800000, np.uint32)) is True
    assert intake.finite(np.array([True])) is True
    assert intake.finite(np.zeros((0, 4))) is True
    assert intake.finite(np.zeros(3, np.float16)) is None
    assert intake.finite(np.zeros((4, 4))[:, ::2]) is None
    assert intake.finite(np.zeros(3, ">f4")) is None
    assert intake.finite(np.array(["a"])) is None


class Wire(Line):
    """A line whose slot may use its socket; the client's end is `client`, and `unsent` is what its transport holds."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.own, self.client = socket.socketpair()
        self.client.setblocking(False)
        self.unsent, self.asked = 0, 0
        self.slot.opened(self.written.append, self.own.fileno(), self._held)

    def _held(self) -> int:
        self.asked += 1
        return self.unsent

    def got(self) -> bytes:
        with suppress(BlockingIOError):
            return self.client.recv(1 << 20)
        return b""

    def answered(self, before: bytes = b"<") -> None:
        """Answers all that was taken."""
        count, rows, _ = self.intake.batch(8)
        self.intake.answer(count, ((b"H:", before, b">", [b"a"] * rows, 0),))
        self.intake.end(count, 1.0, 2.0, 3.0, 4.0)

    def close(self) -> None:
        self.own.close()
        self.client.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    line = Wire()
    line.learn(body([0.5, 1.5, 2.5]))
    yield line
    line.close()


def test_an_answer_goes_past_a_transport_that_holds_nothing_and_by_one_that_does(wire: Wire) -> None:
    whole, answer = request(body([0.5, 1.5, 2.5])), b"H:3\r\n\r\n<a>"
    wire.unsent = 7
    wire.slot.feed(whole)
    wire.answered()
    by_transport = wire.written.copy(), wire.got()
    wire.unsent = 0
    for _ in range(3):
        wire.slot.feed(whole)
        wire.answered()
    past = wire.written.copy(), wire.got(), wire.asked
    wire.slot.arm(wire.intake)
    wire.unsent = 1
    wire.slot.feed(whole)
    wire.answered()

    assert by_transport == ([answer], b"")
    assert past == ([answer], answer * 3, 2), "asked once, until somebody else may have written"
    assert (wire.written, wire.got()) == ([answer] * 2, b"")


def test_what_the_socket_does_not_take_follows_by_the_transport(wire: Wire) -> None:
    whole, large = request(body([0.5, 1.5, 2.5])), b"x" * 4_000_000
    wire.slot.feed(whole)
    wire.answered(large)
    first = wire.got()
    wire.unsent = len(wire.written[0])
    wire.slot.feed(whole)
    wire.answered()

    assert 0 < len(first) < len(large)
    assert len(wire.written) == 2, "the second waits behind the rest of the first"
    received = first
    while more := wire.got():
        received += more
    assert received + b"".join(wire.written) == b"H:%d\r\n\r\n%ba>H:3\r\n\r\n<a>" % (len(large) + 2, large)


def test_a_socket_that_fails_leaves_the_error_to_the_transport(wire: Wire) -> None:
    wire.slot.feed(request(body([0.5, 1.5, 2.5])))
    wire.client.close()
    wire.answered()

    assert wire.written == [b"H:3\r\n\r\n<a>"]


def test_a_slot_that_takes_nothing_more_writes_by_its_transport(wire: Wire) -> None:
    wire.slot.feed(request(body([0.5, 1.5, 2.5])))
    wire.slot.disarm()
    wire.answered()

    assert (wire.written, wire.got()) == ([b"H:3\r\n\r\n<a>"], b"")


def test_the_next_request_of_who_was_answered_is_found_in_its_socket(wire: Wire) -> None:
    whole = request(body([0.5, 1.5, 2.5]))
    seek = partial(wire.intake.gather, 8, 0.0)
    wire.client.send(whole)
    seek()
    before = wire.intake.count
    wire.slot.feed(whole)
    wire.answered()
    seek()
    taken = wire.intake.count
    wire.answered()
    wire.client.send(b"GET /")
    seek()
    wire.client.send(whole)
    seek()

    assert (before, taken) == (0, 1), "only who was answered is looked for"
    assert wire.declined == [b"GET /"], "the rest of what Python reads is the loop's to find"
    assert wire.intake.count == 0


def test_who_has_not_sent_again_is_looked_for_once(wire: Wire) -> None:
    whole = request(body([0.5, 1.5, 2.5]))
    wire.slot.feed(whole)
    wire.answered()
    wire.intake.gather(8, 0.0)
    wire.client.send(whole)
    wire.intake.gather(8, 0.0)

    assert wire.intake.count == 0, "the loop finds it"


def test_a_request_that_the_loop_has_brought_is_not_read_twice(wire: Wire) -> None:
    whole = request(body([0.5, 1.5, 2.5]))
    wire.slot.feed(whole)
    wire.answered()
    wire.slot.feed(whole)
    wire.client.send(whole)
    wire.intake.gather(8, 0.0)

    assert (wire.intake.count, wire.declined) == (1, [])


def test_the_end_of_a_stream_and_a_full_intake_are_left_to_the_loop() -> None:
    whole = request(body([0.5, 1.5, 2.5]))
    line = Wire(most=1)
    line.learn(body([0.5, 1.5, 2.5]))
    line.slot.feed(whole)
    line.answered()
    other = Line()
    other.slot.arm(line.intake)
    other.slot.feed(whole)
    line.client.send(whole)
    line.intake.gather(8, 0.0)
    full = line.declined.copy(), line.intake.count
    line.answered()
    line.slot.feed(line.own.recv(1 << 16))
    line.answered()
    line.client.close()
    line.intake.gather(8, 0.0)
    line.own.close()

    assert full == ([], 1)
    assert line.declined == []


def test_it_stops_looking_where_clients_do_not_send_again_at_once(wire: Wire) -> None:
    whole = request(body([0.5, 1.5, 2.5]))
    for _ in range(40):
        wire.slot.feed(whole)
        wire.answered()
        wire.intake.gather(8, 0.0)
    found = []
    for _ in range(16):
        wire.slot.feed(whole)
        wire.answered()
        wire.client.send(whole)
        wire.intake.gather(8, 0.0)
        found.append(wire.intake.count)
        if not wire.intake.count:
            wire.slot.feed(wire.own.recv(1 << 16))
        wire.answered()

    assert sorted(set(found)) == [0, 1]
    assert found.index(1) > 0


async def exchanged(port: int, streams: list[list[bytes]]) -> list[bytes]:
    """What each connection gets for its requests, each sent when the one before is answered."""

    async def talk(requests: list[bytes]) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answers = b""
        for one in requests:
            writer.write(one)
            for _ in range(one.count(b"POST /")):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                answers += head + await reader.readexactly(length)
        writer.close()
        await writer.wait_closed()
        return answers

    return list(await asyncio.gather(*map(talk, streams)))


@pytest.mark.slow
async def test_answers_and_counts_are_those_of_the_way_through_python(
    start: Start, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    # Sums that are exact in any order: batches differ in size from run to run.
    layer = torch.nn.Linear(3, 2)
    layer.load_state_dict(
        {"weight": torch.tensor([[0.25, 0.5, -0.75], [1.0, 2.0, 3.0]]), "bias": torch.tensor([0.125, -0.5])}
    )
    signature = Signature((Input("x", "FP32", shape=(3,)),), (Output("y", shape=(2,)),))
    save_artifact(tmp_path / "linear", layer, signature, {"x": [[0.1] * 3]})
    registry.register("m", tmp_path / "linear", lineage={}, profile=None, metrics={})
    registry.set_alias("m", "stable", 1)
    plain, two = request(body([0.25, -1.5, 625e-4])), request(body([0.5] * 6, rows=2))
    packed = body([]).replace(b'"data": []', b'"parameters":{"binary_data_size":12}')
    binary = b"Inference-Header-Content-Length: %d\r\n" % len(packed)
    raw = struct.pack("<3f", 1.0, 2.0, 3.0)
    bits = (HEADER % (len(packed) + 12)).replace(b"accept", binary + b"accept") + packed + raw
    streams = [
        [plain] * 6, [two, plain] * 4, [bits] * 6, [plain * 3] * 4, [plain, plain + two, plain] * 2,
        [plain, plain, plain, request(body([0.5] * 2)), plain, plain],
        [plain, plain, plain, request(b"{"), plain, request(body([1, 2, 3])), plain],
        [bits, bits, bits, bits[:-12] + struct.pack("<3f", float("nan"), 0.0, 1.0), bits, bits],
    ]  # fmt: skip

    taken = await start()
    ours = await exchanged(taken.port, streams)
    again = await exchanged(taken.port, streams)
    assert taken._front._express["m"].intake.known >= 3  # type: ignore[union-attr]
    monkeypatch.setattr(connections, "native", lambda: None)
    theirs = await exchanged((await start()).port, streams)

    # Identifiers that a request did not give are the server's own.
    assert ours == again == theirs
    text = generate_latest(taken.metrics.registry).decode()
    answered = sum(answers.count(b" 200 OK") for answers in (*ours, *again))
    assert f'inference_requests_total{{model="m",outcome="ok",version="1"}} {float(answered)}' in text
    assert 'inference_request_duration_seconds_count{model="m",version="1"} ' in text


async def test_a_client_that_reads_late_gets_every_answer_whole_and_in_order(
    start: Start, registry: Registry, tmp_path: Path
) -> None:
    import torch

    class Wide(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.repeat(1, 2000)

    signature = Signature((Input("x", "FP32", shape=(3,)),), (Output("y", shape=(6000,)),))
    save_artifact(tmp_path / "wide", Wide(), signature, {"x": [[0.1] * 3]})
    registry.register("m", tmp_path / "wide", lineage={}, profile=None, metrics={})
    registry.set_alias("m", "stable", 1)
    service = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    wanted = []

    async def answer() -> list[float]:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        found: list[float] = json.loads(await reader.readexactly(length))["outputs"][0]["data"]
        return found

    for number in range(4):
        writer.write(request(body([float(number)] * 3)))
        assert await answer() == [number] * 6000
    # One by one while the answers wait, which are more than the sockets hold; what comes together Python reads.
    for number in range(400):
        writer.write(request(body([float(number)] * 3)))
        await asyncio.sleep(0)
        wanted.append(number)

    assert [(await answer())[::5999] for _ in wanted] == [[number] * 2 for number in wanted]
    writer.close()
    await writer.wait_closed()
