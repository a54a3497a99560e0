"""Bodies that take long to read are read beside the event loop, and everything else is as it is for short ones."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch

from observability import names
from serving import Input, MountedServer, Output, Registry, Service, ServingConfig, Signature, save_artifact
from serving.errors import Expired, InvalidRequest, TooLarge
from serving.http import Limits
from serving.protocol.unpacking import Unpacking
from serving.reading import Reader, Reading

Start = Callable[..., Awaitable[Service]]
TARGET = "/v2/models/sums/infer"
WIDTH, ROWS = 2000, 100
VALUES = np.random.default_rng(1).normal(size=(ROWS, WIDTH)).astype("f4").round(2)
LIMITS = Limits(body_bytes=3_000_000)


class Sums(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1)


@pytest.fixture
def sums(tmp_path: Path, registry: Registry) -> None:
    """The model `sums`, of rows of 2,000 numbers."""
    signature = Signature((Input.of("x", "FP32", shape=[WIDTH]),), (Output("y"),))
    save_artifact(tmp_path / "sums", Sums(), signature, {"x": [[0.0] * WIDTH]})
    registry.register("sums", tmp_path / "sums", lineage={}, profile=None, metrics={})
    registry.set_alias("sums", "stable", 1)


def as_json(values: Any = VALUES, id: str = "") -> bytes:
    data = [round(value, 2) for value in np.asarray(values, "f8").reshape(-1).tolist()]
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(values), WIDTH], "data": data}
    return json.dumps({"id": id, "inputs": [tensor]}).encode()


def as_binary(values: Any = VALUES) -> tuple[bytes, dict[str, str]]:
    parameters = {"binary_data_size": values.nbytes}
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(values), WIDTH], "parameters": parameters}
    header = json.dumps({"inputs": [tensor]}).encode()
    return header + values.tobytes(), {"inference-header-content-length": str(len(header))}


def cancelled(service: Service) -> float:
    service._front.settle()
    samples = (s for family in service.metrics.registry.collect() for s in family.samples)
    named = (s for s in samples if s.name == names.INFERENCE_REQUESTS.name)
    return sum(s.value for s in named if s.labels.get("outcome") == "cancelled")


def posted(body: bytes, **headers: str) -> bytes:
    lines = [f"POST {TARGET} HTTP/1.1", "host: h", *(f"{name.replace('_', '-')}: {v}" for name, v in headers.items())]
    return "\r\n".join((*lines, f"content-length: {len(body)}", "", "")).encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    return int(head.split()[1]), json.loads(await reader.readexactly(int(length.partition(b":")[2])))


@pytest.fixture
async def client(sums: None, start: Start) -> AsyncIterator[httpx.AsyncClient]:
    service = await start(limits=LIMITS)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as client:
        yield client


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that bodies were read in, one a reading."""
    seen: list[str] = []
    run = Reading.run

    def noted(self: Reading) -> None:
        seen.append(threading.current_thread().name)
        run(self)

    monkeypatch.setattr(Reading, "run", noted)
    return seen


async def test_long_bodies_are_read_in_threads_and_answered_as_short_ones(
    client: httpx.AsyncClient, threads: list[str]
) -> None:
    binary, length = as_binary()
    packed = {"content-encoding": "gzip"}
    long = [
        await client.post(TARGET, content=as_json()),
        await client.post(TARGET, content=gzip.compress(as_json()), headers=packed),
        await client.post(TARGET, content=gzip.compress(binary), headers=packed | length),
        await client.post(TARGET, content=gzip.compress(binary[:4000]) + gzip.compress(binary[4000:]),
                          headers=packed | length),
    ]  # fmt: skip
    assert len(threads) == 4
    assert all(name.startswith("reading") for name in threads)
    short = await client.post(TARGET, content=gzip.compress(as_json(VALUES[:2])), headers=packed)
    plain = await client.post(TARGET, content=binary, headers=length)

    assert len(threads) == 4
    for found in (*long, plain):
        assert found.status_code == 200
        assert np.allclose(found.json()["outputs"][0]["data"], VALUES.sum(1), atol=1e-2)
    assert np.allclose(short.json()["outputs"][0]["data"], VALUES[:2].sum(1), atol=1e-2)


async def test_what_is_wrong_with_a_long_body_is_said(client: httpx.AsyncClient, threads: list[str]) -> None:
    packed = {"content-encoding": "gzip"}
    cut = await client.post(TARGET, content=gzip.compress(as_json())[:-9], headers=packed)
    bomb = await client.post(TARGET, content=gzip.compress(b" " * 50_000_000), headers=packed)
    broken = await client.post(TARGET, content=gzip.compress(as_json()[:-1]), headers=packed)
    misshapen = await client.post(TARGET, content=as_json().replace(b"2000]", b"1999]"))
    late = await client.post(TARGET, content=as_json(), headers={"x-deadline-ms": "0"})

    assert [r.status_code for r in (cut, bomb, broken, misshapen, late)] == [400, 413, 400, 400, 504]
    assert "cut off" in cut.json()["error"]
    assert "limit" in bomb.json()["error"]
    assert "not a V2" in broken.json()["error"]
    assert "shape" in misshapen.json()["error"]
    assert len(threads) == 5
    assert (await client.post(TARGET, content=as_json())).status_code == 200


async def test_answers_keep_the_order_of_requests(sums: None, start: Start) -> None:
    service = await start(limits=LIMITS)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(posted(gzip.compress(as_json(id="long")), content_encoding="gzip"))
    writer.write(posted(as_json(VALUES[:1], "short")) + posted(as_json(id="plain")) + posted(b"{"))
    answers = [await answer(reader) for _ in range(4)]
    writer.close()

    assert [(status, body.get("id")) for status, body in answers] == [
        (200, "long"), (200, "short"), (200, "plain"), (400, None),
    ]  # fmt: skip


async def test_a_body_that_nobody_waits_for_is_given_up(sums: None, start: Start, monkeypatch: Any) -> None:
    service = await start(limits=LIMITS)
    begun, ended = threading.Event(), []
    step = Unpacking.step

    def slow(self: Unpacking) -> bool:
        begun.set()
        time.sleep(0.01)
        ended.append(step(self))
        return False if len(ended) < 2000 else ended[-1]

    monkeypatch.setattr(Unpacking, "step", slow)
    _, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(posted(gzip.compress(as_json()), content_encoding="gzip"))
    await asyncio.to_thread(begun.wait, 30)
    writer.transport.abort()
    while cancelled(service) < 1:
        await asyncio.sleep(0.005)
    monkeypatch.undo()

    assert len(ended) < 2000
    assert service.http.buffered == 0
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as client:
        assert (await client.post(TARGET, content=as_json())).status_code == 200


async def test_a_drain_waits_for_bodies_that_are_read_and_leaves_no_thread(sums: None, start: Start) -> None:
    service = await start(limits=LIMITS)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as client:
        body = gzip.compress(as_json())
        asked = [client.post(TARGET, content=body, headers={"content-encoding": "gzip"}) for _ in range(8)]
        tasks = [asyncio.create_task(one) for one in asked]
        while service.http.active() < 8:
            await asyncio.sleep(0)
        await service.drain()
        answers = await asyncio.gather(*tasks)

    assert [found.status_code for found in answers] == [200] * 8
    while any(thread.name.startswith("reading") for thread in threading.enumerate()):
        await asyncio.sleep(0.005)


async def test_the_mounted_app_reads_long_bodies_too(
    sums: None, registry_url: str, tmp_path: Path, threads: list[str]
) -> None:
    app = MountedServer(ServingConfig(registry_url=registry_url, artifacts_dir=tmp_path / "artifacts", limits=LIMITS))
    async with app.lifespan():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://mounted") as client:
            found = await client.post(TARGET, content=gzip.compress(as_json()), headers={"content-encoding": "gzip"})

    assert found.status_code == 200
    assert len(threads) == 1


async def test_memory_is_bounded_while_bombs_come(sums: None, start: Start) -> None:
    service = await start(limits=LIMITS)
    bomb = gzip.compress(gzip.compress(b" " * 10_000_000) + b" " * 2_900_000 + bytes(200_000))
    process = psutil.Process()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", timeout=60) as client:
        for count in (4, 64):
            before = process.memory_info().rss
            statuses = await asyncio.gather(
                *(client.post(TARGET, content=bomb, headers={"content-encoding": "gzip"}) for _ in range(count))
            )
            assert {found.status_code for found in statuses} == {413}

    assert process.memory_info().rss - before < 10 * LIMITS.body_bytes


def reading(body: bytes, done: Callable[[], None], **more: Any) -> Reading:
    given = {"json": False, "deadline": None} | more
    return Reading(body, Unpacking(body, b"gzip", 10_000_000), done=done, **given)


async def test_readings_that_are_given_up_or_late_cost_nothing() -> None:
    reader, ended = Reader(), []
    body = gzip.compress(b"x" * 5_000_000)
    readings = [reading(body, lambda n=n: ended.append(n)) for n in range(12)]
    readings.append(reading(body, lambda: ended.append(12), deadline=time.perf_counter() - 1.0))
    for one in readings:
        reader.put(one)
    for one in readings[6:12]:
        reader.give_up(one)
    while len(ended) < 13:
        await asyncio.sleep(0.001)
    reader.close()

    assert sorted(ended) == list(range(13))
    assert [len(one.body) for one in readings[:6]] == [5_000_000] * 6
    assert all(len(one.body) < 10_000 and one.error is None for one in readings[6:12])
    assert isinstance(readings[12].error, Expired)
    assert all(one.done is None for one in readings)


def test_a_short_body_is_read_at_once_as_far_as_it_goes() -> None:
    def small(content: bytes) -> Reading:
        return reading(gzip.compress(content), lambda: None)

    one, much = small(b"x" * 1000), small(b"x" * 5_000_000)
    assert one.at_once()
    assert one.body == b"x" * 1000
    # Little that is packed may be much: the rest is for a thread.
    assert not much.at_once()
    much.run()
    assert much.body == b"x" * 5_000_000
    with pytest.raises(InvalidRequest, match="not gzip"):
        reading(b"x" * 100, lambda: None).at_once()
    late = reading(gzip.compress(b"x" * 50_000_000), lambda: None)
    late.run()
    assert isinstance(late.error, TooLarge)
