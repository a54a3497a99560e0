"""The server as an ASGI app: under uvicorn, mounted under a prefix, with and without a lifespan."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from serving import AsyncInferenceClient, MountedServer, Registry, ServingConfig, asgi
from serving.http import Limits
from serving.pages.statistics import read_counts


@pytest.fixture
async def mounted(registry: Registry, registry_url: str, tmp_path: Path) -> AsyncIterator[MountedServer]:
    app = asgi(
        ServingConfig(registry_url=registry_url, artifacts_dir=tmp_path / "artifacts", limits=Limits(body_bytes=10_000))
    )
    yield app
    if app.service is not None and app.service.health.state != "draining":
        await app.service.drain()


FARES = {"amount": np.array([1.0, np.e], np.float32), "carrier": ["AA", "UA"]}


@pytest.mark.slow
async def test_mounted_under_a_prefix_it_answers_as_on_its_own_port(mounted: MountedServer) -> None:
    host = Starlette(routes=[Mount("/models", mounted)], lifespan=mounted.lifespan)
    async with host.router.lifespan_context(host):
        transport = httpx.ASGITransport(host)
        async with httpx.AsyncClient(transport=transport, base_url="http://host/models") as client:
            assert (await client.get("/v2/health/ready")).json() == {"ready": True}
            assert (await client.get("/v2/models/fares")).json()["inputs"][0]["name"] == "amount"
            async with AsyncInferenceClient("http://host/models", transport=transport) as ours:
                for binary in (True, False):
                    ours.binary = binary
                    result = await ours.infer("fares", FARES)
                    np.testing.assert_allclose(result["score"], [10.0, 21.0], rtol=1e-5)
                    assert (result.version, result.arm) == ("1", "stable")
            missing = await client.post("/v2/models/nowhere/infer", json={"inputs": []})
            assert (missing.status_code, "nowhere" in missing.json()["error"]) == (404, True)
            large = await client.post("/v2/models/fares/infer", content=b" " * 10_001)
            assert (large.status_code, "limit" in large.json()["error"]) == (413, True)
            also = await client.post("/api/v1/models/fares/promote", content=b" " * 10_001)
            assert also.status_code == 413
            wrong = await client.put("/v2/models/fares/infer", content=b"{}")
            assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
            assert "inference_requests_total" in (await client.get("/metrics")).text
            assert (await client.get("/openapi.json")).json()["servers"] == [{"url": "/models"}]
    assert mounted.service is not None
    assert mounted.service.health.state == "draining"


@pytest.mark.slow
async def test_without_a_lifespan_it_starts_with_the_first_requests(mounted: MountedServer) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(mounted), base_url="http://host") as client:
        answers = await asyncio.gather(*(client.get("/v2/health/ready") for _ in range(3)))
    assert [answer.status_code for answer in answers] == [200, 200, 200]


@pytest.mark.slow
async def test_uvicorn_runs_it_and_a_client_that_leaves_is_noticed(
    gate: tuple[str, Path], registry_url: str, tmp_path: Path
) -> None:
    architecture, door = gate
    app = asgi(
        ServingConfig(registry_url=registry_url, artifacts_dir=tmp_path / "artifacts", architectures=(architecture,))
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        serving = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with AsyncInferenceClient(url, timeout=60) as client:
            np.testing.assert_allclose((await client.infer("fares", FARES))["score"], [10.0, 21.0], rtol=1e-5)
            door.unlink()
            body: dict[str, Any] = {"inputs": [
                {"name": "amount", "datatype": "FP32", "shape": [1], "data": [2]},
                {"name": "carrier", "datatype": "BYTES", "shape": [1], "data": ["AA"]},
            ]}  # fmt: skip
            for _ in range(2):
                with pytest.raises(httpx.ReadTimeout):
                    await _impatient(url, json.dumps(body))
            assert app.service is not None
            async with asyncio.timeout(60):
                while read_counts(app.service.metrics)["gate", "1"].outcomes["cancelled"] < 2:
                    await asyncio.sleep(0.01)
            door.touch()
            answer = await client.infer("gate", {"amount": [3.0], "carrier": ["AA"]})
            assert answer["score"].tolist() == [3.0]
        server.should_exit = True
        await serving
    assert app.service.health.state == "draining"


async def _impatient(url: str, body: str) -> None:
    async with httpx.AsyncClient(timeout=httpx.Timeout(20, read=0.3)) as client:
        await client.post(f"{url}/v2/models/gate/infer", content=body)
