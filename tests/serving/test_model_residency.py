"""Versions in memory: within a budget the least recently used give way, pinned ones stay, wanted ones return."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from observability import names
from serving import (
    ArtifactError,
    Input,
    Output,
    Registry,
    Service,
    ServingConfig,
    Signature,
    load_artifact,
    save_artifact,
)
from serving.errors import OverBudget
from serving.versions.memory import Footprint, Held, giving_way

Start = Callable[..., Awaitable[Service]]
MEGABYTE = 1_000_000


# --- the choice ------------------------------------------------------------------------------------------------------
def held(*versions: tuple[str, int, float, bool]) -> list[Held[str]]:
    return [Held(*version) for version in versions]


def test_the_least_recently_used_give_way_until_there_is_room() -> None:
    versions = held(("new", 40, 9.0, False), ("old", 30, 1.0, False), ("older", 20, 0.5, False))

    assert giving_way(versions, 10, 100) == []
    assert giving_way(versions, 20, 100) == ["older"]
    assert giving_way(versions, 31, 100) == ["older", "old"]


def test_pinned_versions_never_give_way() -> None:
    with pytest.raises(OverBudget, match="pinned versions hold 60"):
        giving_way(held(("stable", 60, 0.0, True), ("other", 30, 5.0, False)), 50, 100)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.floats(0, 9), st.booleans()), max_size=8),
    st.integers(0, 80),
    st.integers(1, 200),
)
def test_what_stays_and_what_comes_fit_and_nobody_goes_needlessly(
    versions: list[tuple[int, float, bool]], needed: int, limit: int
) -> None:
    given_ = [Held(place, size, used, pinned) for place, (size, used, pinned) in enumerate(versions)]
    try:
        gone = giving_way(given_, needed, limit)
    except OverBudget:
        assert sum(version.bytes for version in given_ if version.pinned) + needed > limit
        return
    staying = [version for version in given_ if version.key not in gone]
    assert sum(version.bytes for version in staying) + needed <= limit or not gone
    assert not any(given_[key].pinned for key in gone)
    if gone:
        last = given_[gone[-1]]
        assert sum(version.bytes for version in staying) + last.bytes + needed > limit
        assert all(given_[key].used <= v.used for key in gone for v in staying if not v.pinned)


def test_a_version_counts_by_its_weights_where_the_process_reused_memory() -> None:
    assert Footprint(weights=10, resident=0).bytes == 10
    assert Footprint(weights=10, resident=14).bytes == 14


# --- the server ------------------------------------------------------------------------------------------------------
class Wide(torch.nn.Module):
    """About eight megabytes."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.full((2 * MEGABYTE,), offset))

    def forward(self, amount: torch.Tensor) -> torch.Tensor:
        return amount + self.table[:1]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = []
    for offset in (1.0, 2.0, 3.0, 4.0):
        folder = tmp_path_factory.mktemp("wide")
        save_artifact(
            folder, Wide(offset), Signature((Input.of("amount", "FP32"),), (Output("sum"),)), {"amount": [0.0]}
        )
        folders.append(folder)
    return folders


@pytest.fixture
def four(registry: Registry, wide: list[Path]) -> Registry:
    for folder in wide:
        registry.register("wide", folder, lineage={}, profile=None, metrics={})
    registry.set_alias("wide", "stable", 1)
    return registry


async def post(service: Service, path: str, body: Any = None) -> tuple[int, Any]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False, timeout=60) as http:
        answer = await http.post(path, json=body or {})
    return answer.status_code, answer.json()


async def ask(service: Service, version: int | None = None) -> tuple[int, Any]:
    named = "" if version is None else f"/versions/{version}"
    inputs = [{"name": "amount", "datatype": "FP32", "shape": [1], "data": [10.0]}]
    status, body = await post(service, f"/v2/models/wide{named}/infer", {"inputs": inputs})
    return status, body["outputs"][0]["data"][0] if status == 200 else body["error"]


async def load(service: Service, *versions: int) -> tuple[int, Any]:
    config = {"version_policy": {"specific": {"versions": versions}}}
    return await post(service, "/v2/repository/models/wide/load", {"parameters": {"config": config}})


def in_memory(service: Service) -> list[int]:
    return sorted(service.deployments["wide"].versions)


def counted(service: Service, metric: names.Metric, **labels: str) -> float:
    return service.metrics.registry.get_sample_value(metric.name, labels) or 0.0


@pytest.fixture
def only_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a version takes beside its weights depends on the machine and its allocator: here it takes nothing."""
    monkeypatch.setattr("serving.versions.deployment.resident_bytes", lambda: 0)


@pytest.mark.usefixtures("only_weights")
async def test_the_least_recently_used_version_gives_way_and_comes_back_when_it_is_asked_for(
    four: Registry, start: Start
) -> None:
    service = await start(models=("wide",), memory_budget_bytes=28 * MEGABYTE)
    assert (await load(service, 2))[0] == 200
    assert (await load(service, 3))[0] == 200
    assert (await ask(service, 2)) == (200, 12.0)  # 3 is the least recently used now

    assert (await load(service, 4))[0] == 200

    assert in_memory(service) == [1, 2, 4], "stable stays, and who was asked last"
    assert counted(service, names.MODEL_UNLOADS, model="wide", reason="evicted") == 1
    assert counted(service, names.MODEL_MEMORY, model="wide", version="4", kind="weights") == 8 * MEGABYTE
    assert service.metrics.registry.get_sample_value(
        names.MODEL_MEMORY.name, {"model": "wide", "version": "3", "kind": "weights"}
    ) is None  # fmt: skip
    status, error = await ask(service, 3)
    assert status == 503
    assert "being loaded again" in error
    async with asyncio.timeout(60):
        while status != 200:
            await asyncio.sleep(0.02)
            status, answer = await ask(service, 3)
    assert (status, answer) == (200, 13.0)
    assert counted(service, names.MODEL_LOADS, model="wide", reason="demand", outcome="ok") == 1
    assert in_memory(service) == [1, 3, 4]


@pytest.mark.usefixtures("only_weights")
async def test_a_version_that_cannot_fit_is_refused_and_nothing_goes_for_it(four: Registry, start: Start) -> None:
    service = await start(models=("wide",), memory_budget_bytes=20 * MEGABYTE, pinned_versions=("wide:2",))

    status, body = await load(service, 3)

    assert status == 507
    assert "memory budget is 20000000" in body["error"]
    assert in_memory(service) == [1, 2]
    assert (await ask(service))[0] == 200
    _, index = await post(service, "/v2/repository/index")
    states = {row["version"]: (row["state"], row["reason"]) for row in index if row["name"] == "wide"}
    assert states["2"] == ("READY", "")
    assert states["3"][0] == "UNAVAILABLE"
    assert "memory budget" in states["3"][1]


@pytest.mark.usefixtures("only_weights")
async def test_requests_are_told_why_a_stable_version_was_not_loaded_at_the_start(four: Registry, start: Start) -> None:
    service = await start(models=("wide",), memory_budget_bytes=4 * MEGABYTE)

    status, error = await ask(service)

    assert status == 503
    assert "no version ready: the version needs 8" in error
    assert "raise memory_budget_bytes" in error


async def test_a_version_that_nobody_loaded_is_not_loaded_by_a_request(four: Registry, start: Start) -> None:
    service = await start(models=("wide",))

    status, error = await ask(service, 2)

    assert status == 404
    assert "loaded are [1]" in error


async def test_a_version_that_fails_to_load_leaves_the_rest_alone_and_says_why(
    four: Registry, start: Start, tmp_path: Path
) -> None:
    service = await start(models=("wide",))
    folder = four.folder(four.get("wide", 2))
    (folder / "model.pt2").write_bytes(b"cut off")

    status, body = await load(service, 2)

    assert status == 409
    assert "was altered" in body["error"]
    assert (await ask(service)) == (200, 11.0)
    _, index = await post(service, "/v2/repository/index")
    assert "was altered" in next(r["reason"] for r in index if (r["name"], r["version"]) == ("wide", "2"))
    assert counted(service, names.MODEL_LOADS, model="wide", reason="repository", outcome="failed") == 1


def test_a_pin_that_names_no_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MODEL:VERSION"):
        ServingConfig(registry_url="sqlite://", artifacts_dir=tmp_path, pinned_versions=("wide",))


def test_an_artifact_that_does_not_fit_into_the_free_memory_is_refused_before_it_is_read(
    wide: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.artifacts.manifest.available_bytes", lambda: 10 * MEGABYTE)
    with pytest.raises(ArtifactError, match=r"needs twice that to be loaded; 10000000 are free"):
        load_artifact(wide[0])
