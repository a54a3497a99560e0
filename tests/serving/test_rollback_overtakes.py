"""A rollback while another change of the model loads versions: it is done at once, and what was loading never wins."""

from __future__ import annotations

import asyncio
import importlib
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from serving import Registry, Service, Signature, save_artifact
from tests.serving.conftest import Start


class Slow:
    """A server whose model `slow` has four versions; 1 is stable. Loading waits while `hold` is there."""

    def __init__(self, service: Service, http: httpx.AsyncClient, hold: Path) -> None:
        self.service = service
        self.http = http
        self.hold = hold

    async def do(self, deed: str, **body: object) -> httpx.Response:
        return await self.http.post(f"/api/v1/models/slow/{deed}", json=body)

    async def described(self) -> dict[str, object]:
        found: dict[str, object] = (await self.http.get("/api/v1/models/slow")).json()
        return found

    async def loading(self, number: int) -> None:
        """Returns when the loader has the version in hand."""
        async with asyncio.timeout(60):
            while not (self.hold.parent / "loading").exists():
                await asyncio.sleep(0.005)
        assert self.service._residency.status("slow", number).state == "LOADING"

    async def waiting(self) -> None:
        """Returns when a change waits for its turn behind the one that loads."""
        async with asyncio.timeout(60):
            while not self.service._control._turns["slow"]._waiters:
                await asyncio.sleep(0.005)


@pytest.fixture
async def slow(
    registry: Registry, signature: Signature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start
) -> AsyncIterator[Slow]:
    (tmp_path / "slow_architecture.py").write_text(
        textwrap.dedent(
            f"""
            import pathlib, time, torch

            FOLDER = pathlib.Path({str(tmp_path)!r})

            class SlowToLoad(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.scale = torch.nn.Parameter(torch.tensor(1.0))
                    while (FOLDER / "hold").exists():
                        (FOLDER / "loading").touch()
                        time.sleep(0.002)

                def forward(self, amount, carrier):
                    return amount * self.scale
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(importlib.sys.modules, "slow_architecture", raising=False)  # type: ignore[attr-defined]
    module = importlib.import_module("slow_architecture")
    for number in range(1, 5):
        made = module.SlowToLoad()
        made.scale.data.fill_(float(number))
        folder = tmp_path / f"slow-{number}"
        save_artifact(
            folder, made, signature, {"amount": [2.0], "carrier": ["AA"]}, format="safetensors",
            architecture="slow_architecture:SlowToLoad",
        )  # fmt: skip
        registry.register("slow", folder, lineage={}, profile=None, metrics={})
    registry.set_alias("slow", "stable", 1)
    service = await start(architectures=("slow_architecture:SlowToLoad",), models=("slow",))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False, timeout=60) as http:
        yield Slow(service, http, tmp_path / "hold")
    (tmp_path / "hold").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("before", "change"),
    [("promote", name) for name in ("canary", "shadow", "promote", "switch", "load")] + [("canary", "shadow")],
)
async def test_a_rollback_is_done_while_another_version_loads(slow: Slow, before: str, change: str) -> None:
    assert (await slow.do(before, version=2, **({"weight": 0.5} if before == "canary" else {}))).status_code == 200
    slow.hold.touch()
    body = {"canary": {"weight": 0.5}, "shadow": {"fraction": 0.5}}.get(change, {})
    if change == "load":
        call = slow.http.post("/v2/repository/models/slow/load", json={"parameters": {"version": 3}})
    else:
        call = slow.do(change, version=3, **body)
    overtaken = asyncio.create_task(call)
    await slow.loading(3)
    # And one that waits behind it, which was there first, too.
    waiting = asyncio.create_task(slow.do("shadow", version=4, fraction=0.1))
    await slow.waiting()
    rollback = await slow.do("rollback", reason="harm")
    answers = await asyncio.gather(overtaken, waiting)

    # Nothing of it waited for the loader: that one is still held.
    assert slow.hold.exists()
    assert rollback.status_code == 200, rollback.text
    assert (rollback.json()["stable"], rollback.json()["rolled_back"]) == (1, 2)
    for answer in answers:
        assert answer.status_code == 409
        assert "a rollback of 'slow' came while this change was being prepared" in answer.json()["error"]
    generation = rollback.json()["generation"]
    slow.hold.unlink()
    # What was loading when it was overtaken is thrown away; the model takes other changes as before.
    described = await slow.described()
    assert (described["generation"], described["stable"], described["canary"]) == (generation, 1, None)
    again = await slow.do("canary", version=3, weight=0.5)
    assert again.status_code == 200, again.text
    assert again.json()["generation"] == generation + 1
    assert again.json()["canary"]["version"] == 3


async def test_a_rollback_that_has_nothing_to_take_out_waits_for_what_is_loading(slow: Slow) -> None:
    slow.hold.touch()
    canary = asyncio.create_task(slow.do("canary", version=2, weight=0.5))
    await slow.loading(2)
    rollback = asyncio.create_task(slow.do("rollback"))
    await slow.waiting()
    assert not rollback.done()
    slow.hold.unlink()

    assert (await canary).status_code == 200
    assert (await rollback).json()["rolled_back"] == 2
    assert (await slow.described())["canary"] is None
