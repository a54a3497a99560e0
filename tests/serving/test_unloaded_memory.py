"""What is unloaded is freed at once, and not when Python next looks for cycles: that may be hundreds of loads later."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

import httpx
import torch

from serving import Input, Output, Registry, Signature, save_artifact
from tests.serving.conftest import Start

ROW = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]}


class Sum(torch.nn.Module):
    """The sum of two values, scaled."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1) * self.scale


async def test_an_unloaded_versions_weights_go_without_a_collection(
    start: Start, registry: Registry, tmp_path: Path
) -> None:
    signature = Signature((Input.of("x", "FP32", shape=[2]),), (Output("y"),))
    for number in (1, 2):
        save_artifact(tmp_path / f"sum-{number}", Sum(float(number)), signature, {"x": [[1.0, 2.0]]})
        registry.register("sum", tmp_path / f"sum-{number}", lineage={}, profile=None, metrics={})
    registry.set_alias("sum", "stable", 1)
    service = await start(models=("sum",))
    gone = {}
    gc.collect()
    gc.disable()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False) as client:
            await client.post("/v2/repository/models/sum/load", json={"parameters": {"version": 2}})
            gone[2] = weakref.ref(service.deployments["sum"].versions[2].loaded.model)
            gone[1] = weakref.ref(service.deployments["sum"].versions[1].loaded.model)
            for path in ["/v2/models/sum/infer"] * 6 + ["/v2/models/sum/versions/2/infer"] * 3:
                assert (await client.post(path, json=ROW, headers={"x-deadline-ms": "60000"})).status_code == 200
                assert (await client.post(path, json=ROW)).status_code == 200
            await client.post("/v2/repository/models/sum/unload", json={"parameters": {"version": 2}})
            await freed(gone[2], client)
            assert gone[1]() is not None
            await client.post("/v2/repository/models/sum/unload", json={})
            await freed(gone[1], client)
    finally:
        gc.enable()


async def freed(reference: weakref.ref[object], client: httpx.AsyncClient) -> None:
    """Returns when nobody holds it; whoever scrapes settles what was counted."""
    async with asyncio.timeout(60):
        while reference() is not None:
            await client.get("/metrics")
            await asyncio.sleep(0.02)
