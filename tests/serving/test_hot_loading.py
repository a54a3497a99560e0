"""Versions loaded and unloaded, traffic switched, the server drained: under load, without a failed request."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from serving import Service
from serving.versions.residency import _short_turns

Start = Callable[..., Awaitable[Service]]
INPUTS = [
    {"name": "amount", "datatype": "FP32", "shape": [1], "data": [2.0]},
    {"name": "carrier", "datatype": "BYTES", "shape": [1], "data": ["AA"]},
]
BODY = json.dumps({"inputs": INPUTS}).encode()
HEAD = b"POST /v2/models/fares/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY)


class Clients:
    """Closed-loop connections; a closing one is not used again, as a pool would do."""

    def __init__(self, port: int, connections: int) -> None:
        self.answered = 0
        self.failures: list[bytes] = []
        self._stopped = False
        self._tasks = [asyncio.create_task(self._run(port)) for _ in range(connections)]

    async def _run(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while not self._stopped:
                writer.write(HEAD + BODY)
                head = await reader.readuntil(b"\r\n\r\n")
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
                await reader.readexactly(int(fields[b"content-length"]))
                if not head.startswith(b"HTTP/1.1 200"):
                    self.failures.append(head)
                self.answered += 1
                if fields.get(b"connection") == b"close":
                    return
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.failures.append(repr(error).encode())
        finally:
            writer.close()

    async def stop(self) -> None:
        self._stopped = True
        await asyncio.gather(*self._tasks)


@asynccontextmanager
async def under_load(service: Service, connections: int = 8) -> AsyncIterator[Clients]:
    """Clients at work while the block runs; each has been answered before it begins and after it ends."""
    clients = Clients(service.port, connections)
    try:
        await answered(clients, 5 * connections)
        yield clients
        await answered(clients, 5 * connections)
    finally:
        await clients.stop()
    assert clients.failures == []


async def answered(clients: Clients, more: int) -> None:
    goal, limit = clients.answered + more, time.monotonic() + 90
    while clients.answered < goal and time.monotonic() < limit:
        await asyncio.sleep(0.005)
    assert clients.answered >= goal, clients.failures


@asynccontextmanager
async def control(service: Service) -> AsyncIterator[Callable[[str, Any], Awaitable[None]]]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False, timeout=60) as http:

        async def post(path: str, body: Any) -> None:
            answer = await http.post(path, json=body)
            assert answer.status_code == 200, answer.text

        yield post


async def test_versions_are_loaded_and_unloaded_under_load(start: Start) -> None:
    service = await start()
    async with under_load(service), control(service) as post:
        for number in range(8):
            version = {"parameters": {"version": 2 + number % 2}}
            await post("/v2/repository/models/fares/load", version)
            await post("/v2/repository/models/fares/unload", version)

    assert sorted(service.deployments["fares"].versions) == [1]


async def test_traffic_is_switched_between_versions_under_load(start: Start) -> None:
    service = await start()
    async with under_load(service), control(service) as post:
        for number in range(10):
            version = service.deployments["fares"].router.policy.stable % 3 + 1
            await post("/api/v1/models/fares/canary", {"version": version, "weight": 0.5})
            await post(f"/api/v1/models/fares/{('promote', 'rollback')[number % 3 == 0]}", {})

    assert not service.deployments["fares"].leaving


async def test_a_drain_under_load_fails_nobody(start: Start) -> None:
    service = await start(drain_notice=0.2)
    clients = Clients(service.port, 8)
    await answered(clients, 40)

    await service.drain()

    await clients.stop()
    assert clients.failures == []


def test_threads_take_short_turns_only_while_something_loads() -> None:
    before = sys.getswitchinterval()
    with _short_turns():
        assert sys.getswitchinterval() == pytest.approx(0.0005)
    assert sys.getswitchinterval() == before
