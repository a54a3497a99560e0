"""What can be wrong with a request, sent to a real server over raw sockets: status, error body, bounded memory."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import pytest

from serving import Service
from serving.http import Limits

Start = Callable[..., Awaitable[Service]]
LIMITS = Limits(
    body_bytes=200_000, header_bytes=8192, request_seconds=1.0, idle_seconds=30.0, write_seconds=1.0
)  # fmt: skip
TARGET = "/v2/models/fares/infer"
AMOUNT = {"name": "amount", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}
CARRIER = {"name": "carrier", "datatype": "BYTES", "shape": [2], "data": ["AA", "UA"]}


def post(body: bytes, target: str = TARGET, *headers: str, length: int | None = None) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "host: h", *headers]
    if not any(line.lower().startswith("transfer-encoding") for line in headers):
        lines.append(f"content-length: {len(body) if length is None else length}")
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


def said(*inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": inputs, **more}).encode()


def amount(**changes: Any) -> bytes:
    return said(AMOUNT | changes, CARRIER)


def binary(tail: bytes, *, length: int | str | None = None, size: Any = 8, **changes: Any) -> bytes:
    tensor = {"name": "amount", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": size}} | changes
    header = said(tensor, CARRIER)
    given = len(header) if length is None else length
    return post(header + tail, TARGET, f"inference-header-content-length: {given}")


@dataclass(frozen=True)
class Case:
    """A request, the statuses that are right for it, and what the error must say."""

    name: str
    request: bytes
    status: int | tuple[int, ...] = 400
    says: str = ""


EIGHT = struct.pack("<2f", 1.0, 2.0)
CASES = [
    Case("no body", post(b""), says="not a V2 inference request"),
    Case("cut JSON", post(said(AMOUNT, CARRIER)[:-9]), says="not a V2 inference request"),
    Case("no JSON", post(b"\x00\xff\xfe"), says="not a V2 inference request"),
    Case("not UTF-8", post(said(AMOUNT, CARRIER).replace(b"AA", b"\xc3(")), says="not a V2 inference request"),
    Case("a list", post(b"[1, 2]"), says="not a V2 inference request"),
    Case("deeply nested", post(b"[" * 90_000), says="not a V2 inference request"),
    Case("deeply nested data", post(amount(data=None).replace(b"null", b"[" * 60_000 + b"]" * 60_000))),
    Case("NaN, which is no JSON", post(amount(data=[float("nan"), 1.0]))),
    Case("Infinity, which is no JSON", post(amount(data=[float("inf"), 1.0]))),
    Case("a number beyond FP32", post(amount(data=[1e300, 1.0])), says="'amount'"),
    Case("an integer beyond all", post(amount(data=[10**400, 1.0]))),
    Case("no inputs", post(said()), says="no inputs"),
    Case("inputs that are an object", post(b'{"inputs": {"amount": [1]}}')),
    Case("a missing input", post(said(AMOUNT)), says="'carrier' is missing"),
    Case("an input twice", post(said(AMOUNT, AMOUNT, CARRIER)), says="twice"),
    Case("an unknown input", post(said(AMOUNT, CARRIER, AMOUNT | {"name": "speed"})), says="'speed' is unknown"),
    Case("a tensor without a shape", post(said({"name": "amount", "datatype": "FP32", "data": [1]}, CARRIER))),
    Case("text for a number", post(amount(data=["1", "2"])), says="'amount'"),
    Case("a number for text", post(said(AMOUNT, CARRIER | {"data": [1, 2]})), says="'carrier'"),
    Case("an object for a number", post(amount(data=[{}, 1.0])), says="'amount'"),
    Case("an unknown datatype", post(amount(datatype="FP33")), says="FP33"),
    Case("a datatype that the model does not take", post(amount(datatype="BYTES", data=["a", "b"])), says="BYTES"),
    Case("a shape that is too small", post(amount(shape=[1]))),
    Case("a shape that is too large", post(amount(shape=[3]))),
    Case("a shape of other rank", post(amount(shape=[2, 2], data=[1.0] * 4)), says="shape"),
    Case("a huge shape", post(amount(shape=[2**62])), says="rows"),
    Case("shapes whose product overflows", post(amount(shape=[2**62, 2**62, 2**62]))),
    Case("a shape beyond 64 bits", post(amount(shape=[2**70]))),
    Case("a negative shape", post(amount(shape=[-2])), says="shape"),
    Case("a shape of 0", post(amount(shape=[0], data=[])), says="shape"),
    Case("a fractional shape", post(amount(shape=[1.5]))),
    Case("no shape", post(amount(shape=[])), says="shape"),
    Case("neither data nor bytes", post(said({k: v for k, v in AMOUNT.items() if k != "data"}, CARRIER)), says="data"),
    Case("an unknown output", post(said(AMOUNT, CARRIER, outputs=[{"name": "price"}])), says="'price' is unknown"),
    Case("too many rows", post(said(AMOUNT | {"shape": [2000], "data": [1.0] * 2000},
                                    CARRIER | {"shape": [2000], "data": ["AA"] * 2000})), says="2000 rows"),
    Case("a timeout that is none", post(said(AMOUNT, CARRIER, parameters={"timeout": "soon"})), says="timeout"),
    Case("a deadline header that is none", post(amount(), TARGET, "x-deadline-ms: -5"), says="X-Deadline-Ms"),
    Case("a priority that is none", post(said(AMOUNT, CARRIER, parameters={"priority": "high"})), says="priority"),
    Case("attributes that are none", post(said(AMOUNT, CARRIER, parameters={"attributes": [1]})), says="attributes"),
    Case("nothing left of a deadline", post(amount(), TARGET, "X-Deadline-Ms: 0"), 504, "deadline"),
    Case("nothing left of a time limit", post(amount(), TARGET, "Request-Timeout: 0"), 504, "deadline"),
    Case("a deadline that is no number", post(amount(), TARGET, "X-Deadline-Ms: NaN"), says="X-Deadline-Ms"),
    Case("a deadline beyond all times", post(amount(), TARGET, "X-Deadline-Ms: 1e400"), says="X-Deadline-Ms"),
    Case("a deadline that has passed", post(said(AMOUNT, CARRIER, parameters={"timeout": 1})), 504, "deadline"),
    Case("an output that is NaN", post(amount(data=[-1.0, 1.0])), 500, "NaN"),
    Case("an unknown model", post(amount(), "/v2/models/nowhere/infer"), 404, "'nowhere' is not served"),
    Case("a model's name that is not UTF-8", post(amount(), "/v2/models/%ff%fe/infer"), 404, "not served"),
    Case("an unknown version", post(amount(), "/v2/models/fares/versions/9/infer"), 404, "loaded are"),
    Case("a version that is no number", post(amount(), "/v2/models/fares/versions/one/infer"), 404, "one"),
    Case("a version with too many digits", post(amount(), f"/v2/models/fares/versions/{'9' * 5000}/infer"), 404),
    Case("a digit that is none", post(amount(), "/v2/models/fares/versions/%C2%B2/infer"), 404),
    Case("an unknown path", post(amount(), "/v3/infer"), 404, "/v3/infer"),
    Case("a wrong method", post(b"", TARGET).replace(b"POST", b"PUT", 1), 405),
    Case("a wrong method of the control API", post(b"", "/metrics"), 405),
    # --- the binary form ---
    Case("fewer bytes than said", binary(EIGHT[:5]), says="binary_data_size"),
    Case("more bytes than said", binary(EIGHT + b"x"), says="belong to none"),
    Case("bytes that are no number of floats", binary(EIGHT[:7], size=7), says="bytes"),
    Case("fewer bytes than the shape", binary(EIGHT[:4], size=4), says="shape"),
    Case("a huge size", binary(EIGHT, size=2**62), says="binary_data_size"),
    Case("a size beyond 64 bits", binary(EIGHT, size=2**70)),
    Case("a negative size", binary(EIGHT, size=-8), says="binary_data_size"),
    Case("a size that is text", binary(EIGHT, size="8"), says="binary_data_size"),
    Case("a header length beyond the body", binary(EIGHT, length=100_000), says="does not fit"),
    Case("a header length of 5", binary(EIGHT, length=5), says="not a V2 inference request"),
    Case("a header length that is none", binary(EIGHT, length="x"), says="Inference-Header-Content-Length"),
    Case("a negative header length", binary(EIGHT, length=-1), says="Inference-Header-Content-Length"),
    Case("a header length of 5000 digits", binary(EIGHT, length="9" * 5000)),
    Case("no header length", post(said(AMOUNT | {"parameters": {"binary_data_size": 8}}, CARRIER))),
    Case("infinite in binary", binary(struct.pack("<2f", float("inf"), 1.0)), (400, 500)),
    Case("text that runs over", post(
        (head := said(AMOUNT, {"name": "carrier", "datatype": "BYTES", "shape": [2],
                               "parameters": {"binary_data_size": 8}})) + struct.pack("<I", 10**9) + b"abcd",
        TARGET, f"inference-header-content-length: {len(head)}"), says="'carrier'"),
    Case("shared memory", post(said({"name": "amount", "datatype": "FP32", "shape": [2],
                                     "parameters": {"shared_memory_region": "r"}}, CARRIER)), says="shared memory"),
    # --- HTTP ---
    Case("no HTTP", b"hello there\r\n\r\n", 400, "HTTP"),
    Case("a body over the limit", post(b"", length=10**9), 413, "limit"),
    Case("a content length beyond 64 bits", post(b"", length=10**30), (400, 413)),
    Case("a negative content length", post(b"", length=-1)),
    Case("two content lengths", post(b"", TARGET, "content-length: 4"), 400),
    Case("chunks over the limit", post(b"40000\r\n" + b"x" * 0x40000 + b"\r\n0\r\n\r\n", TARGET,
                                       "transfer-encoding: chunked"), 413, "limit"),
    Case("a chunk size that is none", post(b"zz\r\n", TARGET, "transfer-encoding: chunked")),
    Case("a header over the limit", post(b"", TARGET, "x-long: " + "y" * 400_000), 431, "header"),
    Case("an unknown content encoding", post(b"x", TARGET, "content-encoding: br"), 400, "'br'"),
    Case("gzip that is none", post(amount(), TARGET, "content-encoding: gzip"), 400, "gzip"),
    Case("gzip that is cut off", post(gzip.compress(amount())[:-12], TARGET, "content-encoding: gzip"), 400, "cut off"),
    Case("a bomb", post(gzip.compress(b" " * 10_000_000), TARGET, "content-encoding: gzip"), 413, "limit"),
    Case("a deflated bomb", post(zlib.compress(b" " * 10_000_000), TARGET, "content-encoding: deflate"), 413, "limit"),
    # --- the control API ---
    Case("no JSON to the control API", post(b"{", "/api/v1/models/fares/canary"), 400, "JSON"),
    Case("deeply nested to the control API", post(b"[" * 90_000, "/api/v1/models/fares/canary"), 400, "JSON"),
    Case("a list to the control API", post(b"[]", "/api/v1/models/fares/promote"), 400, "object"),
    Case("a huge version", post(b'{"version": 99999999999999999999, "weight": 0.5}', "/api/v1/models/fares/canary")),
    Case("a weight beyond all", post(b'{"version": 2, "weight": 1e999}', "/api/v1/models/fares/canary")),
    Case("a version of odd digits", post('{"version": "²", "weight": 0.5}'.encode(), "/api/v1/models/fares/canary")),
    Case("a model that is not registered", post(b"{}", "/api/v1/models/nowhere/promote"), (404, 409)),
    Case("a load of nothing", post(b"{}", "/v2/repository/models/nowhere/load"), 404, "nowhere"),
    Case("parameters that are none", post(b'{"parameters": 3}', "/v2/repository/models/fares/load"), 400, "parameters"),
    Case("a trace setting", post(b'{"trace_rate": "5"}', "/v2/trace/setting"), 400, "fixed at start"),
]  # fmt: skip


async def answer_to(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the first answer; the client sends all it has and reads until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    try:
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), 60)
        return int(status.split()[1]), headers, body
    finally:
        writer.transport.abort()


@pytest.fixture
async def port(start: Start) -> int:
    """Of a server with small limits, and time for a machine that is busy."""
    return (await start(limits=replace(LIMITS, request_seconds=30.0))).port


@pytest.mark.slow
async def test_every_wrong_request_gets_its_status_and_an_error_that_says_what(port: int) -> None:
    wrong = []
    for case in CASES:
        try:
            status, headers, body = await answer_to(port, case.request)
            statuses = case.status if isinstance(case.status, tuple) else (case.status,)
            error = json.loads(body)["error"]
            fits = status in statuses and case.says in error and headers["content-type"] == "application/json"
            # An error says what it saw, not all of it, and never where in the program.
            fits = fits and 10 < len(error) < 6000 and "Traceback" not in error and 'File "' not in error
            if status == 405:
                fits = fits and bool(headers.get("allow"))
            if not fits:
                wrong.append((case.name, status, error[:300]))
        except (OSError, EOFError, ValueError, KeyError, TimeoutError) as error:
            wrong.append((case.name, repr(error), ""))
    assert wrong == []
    status, _, body = await answer_to(port, post(amount()))
    assert (status, json.loads(body)["outputs"][0]["name"]) == (200, "score")


@pytest.mark.slow
async def test_what_is_sent_by_halves_holds_no_memory_and_is_ended(start: Start) -> None:
    """Slow-loris by header, by body, by a lying length, by never reading; the server answers others meanwhile."""
    service = await start(limits=LIMITS)
    port, process = service.port, psutil.Process()
    await answer_to(port, post(amount()))
    before = process.memory_info().rss
    openings = {
        "header": b"POST " + TARGET.encode() + b" HTTP/1.1\r\nhost: h\r\nx-a: ",
        "body": post(b"x" * 1000, length=150_000),
        "lying length": post(amount(), length=len(amount()) + 50),
        "chunk": post(b"1000\r\nabc", TARGET, "transfer-encoding: chunked"),
        "nothing": b"",
    }
    held = []
    for opening in openings.values():
        for _ in range(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(opening)
            held.append((opening, reader, writer))
    status, _, _ = await answer_to(port, post(amount()))
    assert status == 200
    # Those that sent nothing; of the others a busy machine may have ended some, as is read below.
    assert len(service.http.connections) >= 60
    for opening, reader, _ in held:
        if opening:
            answer = await asyncio.wait_for(reader.read(), 60)
            assert answer.startswith(b"HTTP/1.1 408"), answer
            assert b'{"error":"the request did not arrive within 1 s"}' in answer
    for _, _, writer in held:
        writer.transport.abort()
    async with asyncio.timeout(60):
        while service.http.connections:
            await asyncio.sleep(0.02)
    assert process.memory_info().rss - before < 60e6
    assert service.http.active() == 0


@pytest.mark.slow
async def test_a_client_that_never_reads_is_dropped(start: Start) -> None:
    service = await start(limits=LIMITS)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port, limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    rows = 1000
    many = said(AMOUNT | {"shape": [rows], "data": [1.0] * rows}, CARRIER | {"shape": [rows], "data": ["AA"] * rows})
    request, process = post(many), psutil.Process()
    before = process.memory_info().rss
    try:
        async with asyncio.timeout(60):
            while not writer.transport.is_closing() and service.http.connections:
                writer.write(request)
                await asyncio.wait([asyncio.ensure_future(writer.drain())], timeout=0.2)
    except OSError:
        pass
    assert process.memory_info().rss - before < 80e6
    writer.transport.abort()
    async with asyncio.timeout(60):
        while service.http.connections:
            await asyncio.sleep(0.02)
    status, _, _ = await answer_to(service.port, post(amount()))
    assert status == 200
    del reader


@pytest.mark.slow
async def test_odd_values_that_mean_something_are_told_from_those_that_do_not(port: int) -> None:
    """Null is a missing number, as NaN is in bytes; a model that makes nothing finite of it was asked wrongly."""
    for request in (post(amount(data=[None, 1.0])), binary(struct.pack("<2f", np.nan, 1.0))):
        status, _, body = await answer_to(port, request)
        assert (status, "NaN" in json.loads(body)["error"]) == (400, True)
    for fine in (amount(data=[[1.0], [2.0]], shape=[2, 1]), amount(datatype="INT64", data=[1, 2]), amount(data=[1, 2])):
        assert (await answer_to(port, post(fine)))[0] == 200
