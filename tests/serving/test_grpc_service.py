"""The V2 protocol over gRPC: the same answers, errors and deadlines as over HTTP; messages as the public ones are."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2

from serving import Registry, Service
from serving.callers import Caller, token_digest
from serving.errors import InvalidRequest
from serving.grpc import messages
from serving.grpc.messages import message, methods
from serving.grpc.transcoding import infer_answer, infer_body
from serving.pages.statistics import read_counts
from serving.protocol.responder import Responder
from serving.protocol.signature import Input, Output, Signature
from serving.transport.gateway import Reply
from serving.transport.limits import Limits
from serving.v2 import parse

Start = Callable[..., Awaitable[Service]]
PROTO = Path(messages.__file__).with_name("open_inference.proto")


# --- the messages ------------------------------------------------------------------------------------------------
def test_every_message_is_the_public_protocols() -> None:
    """Names, numbers, types and methods are those that tritonclient was generated from."""
    theirs = {
        name: found
        for file in (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)
        for name, found in file.message_types_by_name.items()
    }
    ours = message("ModelInferRequest").DESCRIPTOR.file.message_types_by_name
    assert len(ours) > 50
    for name, found in ours.items():
        _same_fields(found, theirs[name])
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert {
        name: (asked.DESCRIPTOR.full_name, answered.DESCRIPTOR.full_name, streams)
        for name, (asked, answered, streams) in methods().items()
    } == {
        method.name: (method.input_type.full_name, method.output_type.full_name, method.client_streaming)
        for method in service.methods
        if method.name in methods()
    }
    assert set(methods()) == {method.name for method in service.methods}


def _same_fields(ours: Any, theirs: Any) -> None:
    for name, field in ours.fields_by_name.items():
        other = theirs.fields_by_name[name]
        assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated), name
        assert (field.containing_oneof is None) == (other.containing_oneof is None), name
    for name, nested in ours.nested_types_by_name.items():
        _same_fields(nested, theirs.nested_types_by_name[name])


def test_the_compiled_description_is_that_of_the_proto_file() -> None:
    """Every field of the text is in the binary with its number, and none else."""
    text = re.sub(r"//.*", "", PROTO.read_text())
    written = sorted(re.findall(r"(\w+)\s*=\s*(\d+);", text))
    found: list[tuple[str, str]] = []

    def walk(descriptor: Any) -> None:
        if descriptor.GetOptions().map_entry:
            return
        found.extend((field.name, str(field.number)) for field in descriptor.fields)
        for nested in descriptor.nested_types:
            walk(nested)

    file = message("ModelInferRequest").DESCRIPTOR.file
    for descriptor in file.message_types_by_name.values():
        walk(descriptor)
    values = [(v.name, str(v.number)) for enum in file.enum_types_by_name.values() for v in enum.values]
    assert sorted(found + values) == written


# --- the way there and back ---------------------------------------------------------------------------------------
SIGNATURE = Signature(
    (Input.of("x", "FP32", None, [3]), Input.of("name", "BYTES", ["a", "ü"]), Input.of("k", "INT64")),
    (Output("y"), Output("label", "INT64")),
)
ROWS = st.lists(
    st.tuples(
        st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 3),
        st.sampled_from(["a", "ü", "", "other"]),
        st.integers(-(2**63), 2**63 - 1),
    ),
    min_size=1,
    max_size=5,
)


@given(rows=ROWS, raw=st.booleans())
def test_a_request_means_the_same_as_its_http_form(rows: list[tuple[tuple[float, ...], str, int]], raw: bool) -> None:
    request = _request(rows, raw)
    body, length = infer_body(request)
    parsed = parse(body, length)

    columns = SIGNATURE.columns([parsed.values(SIGNATURE)])
    np.testing.assert_array_equal(columns[0], np.array([row[0] for row in rows], np.float32))
    assert columns[1].tolist() == [{"a": 1, "ü": 2}.get(row[1], 0) for row in rows]
    assert columns[2].tolist() == [row[2] for row in rows]
    assert (parsed.id, parsed.parameters["timeout"], parsed.parameters["note"]) == ("7", 5, "x")


@given(rows=st.lists(st.tuples(st.floats(width=32, allow_nan=False), st.integers(-9, 9)), min_size=1, max_size=5),
       typed=st.booleans())  # fmt: skip
def test_an_answer_means_the_same_as_its_http_form(rows: list[tuple[float, int]], typed: bool) -> None:
    parsed = parse(*infer_body(_request([((0.0, 0.0, 0.0), "a", 1)] * len(rows), True)))
    outputs = [np.array([row[0] for row in rows], np.float32), np.array([row[1] for row in rows], np.int64)]
    body, length = Responder("m", 3, SIGNATURE).body(parsed, outputs)
    assert length is not None
    reply = Reply(200, {b"inference-header-content-length": b"%d" % length}, body)

    answer = message("ModelInferResponse").FromString(b"".join(infer_answer(reply, typed=typed)))

    assert (answer.model_name, answer.model_version, answer.id) == ("m", "3", "7")
    assert [list(output.shape) for output in answer.outputs] == [[len(rows)], [len(rows)]]
    if typed:
        assert not answer.raw_output_contents
        np.testing.assert_array_equal(answer.outputs[0].contents.fp32_contents, outputs[0])
        assert list(answer.outputs[1].contents.int64_contents) == outputs[1].tolist()
    else:
        assert list(answer.raw_output_contents) == [outputs[0].tobytes(), outputs[1].tobytes()]


def test_what_no_body_can_say_is_refused() -> None:
    both = _request([((0.0, 0.0, 0.0), "a", 1)], False)
    both.raw_input_contents.extend([b"", b"", b""])
    with pytest.raises(InvalidRequest, match="contents and raw_input_contents"):
        infer_body(both)
    both.raw_input_contents.pop()
    with pytest.raises(InvalidRequest, match="2 raw_input_contents for 3 inputs"):
        infer_body(both)
    small = message("ModelInferRequest")(model_name="m")
    small.inputs.add(name="n", datatype="INT8", shape=[1]).contents.int_contents.append(300)
    with pytest.raises(InvalidRequest, match="outside INT8"):
        infer_body(small)
    odd = message("ModelInferRequest")(model_name="m")
    odd.inputs.add(name="n", datatype="FP16", shape=[1]).contents.fp32_contents.append(1.0)
    with pytest.raises(InvalidRequest, match="send others as raw_input_contents"):
        infer_body(odd)


def _request(rows: list[tuple[tuple[float, ...], str, int]], raw: bool) -> Any:
    request = message("ModelInferRequest")(model_name="m", id="7")
    request.parameters["timeout"].int64_param = 5
    request.parameters["note"].string_param = "x"
    numbers = [value for row in rows for value in row[0]]
    texts = [row[1].encode() for row in rows]
    x = request.inputs.add(name="x", datatype="FP32", shape=[len(rows), 3])
    name = request.inputs.add(name="name", datatype="BYTES", shape=[len(rows), 1])
    k = request.inputs.add(name="k", datatype="INT64", shape=[len(rows)])
    if raw:
        request.raw_input_contents.extend([
            np.array(numbers, "<f4").tobytes(),
            b"".join(len(text).to_bytes(4, "little") + text for text in texts),
            np.array([row[2] for row in rows], "<i8").tobytes(),
        ])  # fmt: skip
    else:
        x.contents.fp32_contents.extend(numbers)
        name.contents.bytes_contents.extend(texts)
        k.contents.int64_contents.extend(row[2] for row in rows)
    return request


# --- the service --------------------------------------------------------------------------------------------------
Call = Callable[..., Awaitable[Any]]


@pytest.fixture
async def dial() -> AsyncIterator[Callable[[Service], Call]]:
    """Makes a function that calls a method of a service: `call("ModelInfer", request, timeout=…)`."""
    channels: list[grpc.aio.Channel] = []

    def begin(service: Service) -> Call:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{service.edge.grpc_port}")
        channels.append(channel)

        async def call(name: str, request: Any, **options: Any) -> Any:
            method = channel.unary_unary(f"/inference.GRPCInferenceService/{name}")
            data = request if isinstance(request, bytes) else request.SerializeToString()
            return methods()[name][1].FromString(await method(data, **options))

        return call

    yield begin
    for channel in channels:
        await channel.close()


def fares(amounts: list[float] | None = None, carrier: str = "AA", model: str = "fares") -> Any:
    request = message("ModelInferRequest")(model_name=model)
    if amounts is not None:
        tensor = request.inputs.add(name="amount", datatype="FP32", shape=[len(amounts)])
        tensor.contents.fp32_contents.extend(amounts)
    rows = len(amounts or [1.0])
    request.inputs.add(name="carrier", datatype="BYTES", shape=[rows]).contents.bytes_contents.extend(
        [carrier.encode()] * rows
    )
    return request


@pytest.mark.slow
async def test_errors_have_the_right_codes(start: Start, dial: Callable[[Service], Call]) -> None:
    call = dial(await start(grpc_port=0))

    async def code(request: Any, name: str = "ModelInfer", **options: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(name, request, **options)
        return caught.value.code(), caught.value.details() or ""

    answer = await call("ModelInfer", fares([1.0, np.e]))
    np.testing.assert_allclose(answer.outputs[0].contents.fp32_contents, [10.0, 11.0], rtol=1e-5)
    missing, said = await code(fares(None))
    assert missing is grpc.StatusCode.INVALID_ARGUMENT
    assert "'amount' is missing" in said
    assert (await code(fares([1.0], model="nope")))[0] is grpc.StatusCode.NOT_FOUND
    pinned = fares([1.0])
    pinned.model_version = "9"
    assert (await code(pinned))[0] is grpc.StatusCode.NOT_FOUND
    assert (await code(fares([-1.0])))[0] is grpc.StatusCode.INTERNAL
    late = fares([1.0])
    late.parameters["timeout"].int64_param = 1
    assert (await code(late))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await code(b"\xff\xff\xff"))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert (await code(b"\xff", "ModelMetadata"))[0] is grpc.StatusCode.INVALID_ARGUMENT
    region = message("SystemSharedMemoryRegisterRequest")(name="r", key="/r", byte_size=4)
    refused, said = await code(region, "SystemSharedMemoryRegister")
    assert refused is grpc.StatusCode.INVALID_ARGUMENT
    assert "shared memory is not offered" in said
    shared = fares([1.0])
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    assert "shared memory is not offered" in (await code(shared))[1]
    sequence = fares([1.0])
    sequence.parameters["sequence_id"].int64_param = 4
    assert "sequences are not offered" in (await code(sequence))[1]
    classified = fares([1.0])
    classified.outputs.add(name="score").parameters["classification"].int64_param = 2
    assert "classification is not offered" in (await code(classified))[1]


@pytest.mark.slow
async def test_too_large_messages_and_bombs_are_refused(start: Start, dial: Callable[[Service], Call]) -> None:
    limits = Limits(body_bytes=100_000)
    call = dial(await start(grpc_port=0, limits=limits))
    for options in ({}, {"compression": grpc.Compression.Gzip}):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call("ModelInfer", fares([1.0] * 100_000), **options)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await call("ModelInfer", fares([1.0]))).outputs


@pytest.mark.slow
async def test_the_calls_deadline_is_the_requests_and_a_cancelled_call_is_dropped(
    start: Start, dial: Callable[[Service], Call], gate: tuple[str, Path], registry: Registry
) -> None:
    architecture, door = gate
    service = await start(grpc_port=0, architectures=(architecture,))
    call = dial(service)
    door.unlink()
    # The first one holds the model; those behind it wait in the queue.
    first = asyncio.create_task(call("ModelInfer", fares([1.0], model="gate")))
    lane = service.deployments["gate"].versions[1].lane
    while not lane.busy:
        await asyncio.sleep(0.01)
    # A deadline that is over before a busy machine has brought the call here proves nothing: a longer one does.
    for deadline in (0.3, 3.0, 30.0):
        late, waited = asyncio.create_task(call("ModelInfer", fares([2.0], model="gate"), timeout=deadline)), False
        while not late.done():
            waited = waited or bool(lane.queue.requests)
            await asyncio.sleep(0.01)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await late
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if waited:
            break
    assert waited
    while lane.queue.requests:
        await asyncio.sleep(0.01)
    gone = asyncio.create_task(call("ModelInfer", fares([3.0], model="gate")))
    while not lane.queue.requests:
        await asyncio.sleep(0.01)
    gone.cancel()
    while lane.queue.requests:
        await asyncio.sleep(0.01)
    door.touch()
    assert list((await first).outputs[0].contents.fp32_contents) == [1.0]

    async with asyncio.timeout(60):
        while sum((outcomes := read_counts(service.metrics)["gate", "1"].outcomes).values()) < 3:
            await asyncio.sleep(0.01)
    # The client's own clock may cut its call off a moment before the server's does.
    assert outcomes["ok"] == 1
    assert outcomes["expired"] + outcomes["cancelled"] >= 2


@pytest.mark.slow
async def test_callers_traces_and_health(start: Start, dial: Callable[[Service], Call]) -> None:
    token = "a-long-token"
    limited = Caller(name="web", token_sha256=token_digest(token), rows_per_second=0.001, burst_rows=2)
    service = await start(grpc_port=0, callers=(limited,))
    call = dial(service)
    bearer = (("authorization", f"Bearer {token}"),)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call("ModelInfer", fares([1.0]))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert (await call("ModelInfer", fares([1.0, 2.0]), metadata=bearer)).outputs
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call("ModelInfer", fares([1.0]), metadata=bearer)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing = dict(caught.value.trailing_metadata())
    assert int(trailing["grpc-retry-pushback-ms"]) == int(trailing["retry-after"]) * 1000 > 0

    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.edge.grpc_port}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"") == b"\x08\x01"
        service.health.state = "draining"
        assert await check(b"") == b"\x08\x02"
        assert not (await call("ServerReady", message("ServerReadyRequest")())).ready
        service.health.state = "ready"
