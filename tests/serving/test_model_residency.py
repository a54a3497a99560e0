"""Versions in memory: within a budget the least recently used give way, pinned ones stay, wanted ones return."""

from __future__ import annotations

import asyncio
import json
import mmap
import subprocess
import sys
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
from serving.versions.memory import Footprint, Held, giving_way, resident_bytes

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
    assert (await ask(service, 3)) == (200, 13.0)
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


async def test_a_server_is_not_ready_while_a_stable_version_could_not_be_loaded(four: Registry, start: Start) -> None:
    service = await start(models=("fares", "wide"), memory_budget_bytes=4 * MEGABYTE)

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False) as http:
        paths = "/v2/health/ready", "/v2/models/fares/ready", "/v2/models/wide/ready"
        server, fares, wide = [await http.get(path) for path in paths]

    assert (server.status_code, fares.status_code, wide.status_code) == (503, 200, 503)
    assert "wide" in server.json()["error"]


def test_pages_of_files_are_not_memory_that_a_version_takes(tmp_path: Path) -> None:
    (tmp_path / "library").write_bytes(bytes(40 * MEGABYTE))
    before = resident_bytes()

    with (tmp_path / "library").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        assert sum(pages[:: mmap.PAGESIZE]) == 0
        read = resident_bytes()
    # Not from the heap, which may have as much that was let go of.
    with mmap.mmap(-1, 40 * MEGABYTE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
        own.write(b"1" * len(own))
        written = resident_bytes()

    assert abs(read - before) < 10 * MEGABYTE
    assert written - read > 30 * MEGABYTE


LOAD_ALIKE = """
import json, sys
import numpy as np
from pathlib import Path
from serving import Registry
from serving.versions.deployment import load_version
from serving.versions.memory import release_unused

registry = Registry(sys.argv[1], Path(sys.argv[2]))
# What is loaded once, such as torch's own kernels, would be the first one's. An allocator that has given back a large
# block keeps the next ones that are freed, for which there is no room before.
load_version(registry, "fares", 1, (), 4)
del [np.ones(31_000_000, np.uint8)][:]
release_unused()
found = [load_version(registry, "large", number, (), 4).footprint for number in (1, 2, 3, 4)]
print(json.dumps([one.resident / one.weights for one in found]))
"""


def test_versions_that_are_alike_count_alike(registry: Registry, registry_url: str, tmp_path: Path) -> None:
    signature = Signature((Input.of("x", "FP32", shape=[64]),), (Output("y"),))
    for number in range(4):
        layers = torch.nn.Linear(64, 1024), torch.nn.Linear(1024, 4096), torch.nn.Linear(4096, 1)
        save_artifact(tmp_path / f"{number}", torch.nn.Sequential(*layers), signature, {"x": [[0.0] * 64]})
        registry.register("large", tmp_path / f"{number}", lineage={}, profile=None, metrics={})

    # In a process of its own: what other tests' threads take and let go would be counted, too.
    command = [sys.executable, "-c", LOAD_ALIKE, registry_url, str(tmp_path / "artifacts")]
    shares = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert all(0.9 < share < 1.3 for share in shares), shares


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


# --- more models than fit --------------------------------------------------------------------------------------------
MODELS = ("a", "b", "c", "d", "e")


@pytest.fixture
def five(registry: Registry, wide: list[Path]) -> Registry:
    """Five models of eight megabytes, each with a stable version; `a` has a second one."""
    for place, model in enumerate(MODELS):
        registry.register(model, wide[place % 4], lineage={}, profile=None, metrics={})
        registry.set_alias(model, "stable", 1)
    registry.register("a", wide[3], lineage={}, profile=None, metrics={})
    return registry


def loaded_in(service: Service) -> list[str]:
    return sorted(
        f"{model}:{number}" for model, deployment in service.deployments.items() for number in deployment.versions
    )


async def post_to(http: httpx.AsyncClient, model: str) -> tuple[int, Any]:
    inputs = [{"name": "amount", "datatype": "FP32", "shape": [1], "data": [10.0]}]
    answer = await http.post(f"/v2/models/{model}/infer", json={"inputs": inputs})
    return answer.status_code, answer.json()["outputs"][0]["data"][0] if answer.status_code == 200 else answer.json()


def client_of(service: Service) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False, timeout=60)


@pytest.mark.usefixtures("only_weights")
async def test_more_models_than_fit_are_all_answered_and_memory_keeps_to_its_budget(
    five: Registry, start: Start
) -> None:
    service = await start(models=MODELS, memory_budget_bytes=28 * MEGABYTE)
    most, answers = 0, []
    async with client_of(service) as http:
        assert (await http.get("/v2/health/ready")).status_code == 200

        async def caller(first: int) -> None:
            nonlocal most
            for turn in range(10):
                place = (first + turn) % len(MODELS)
                answers.append((place, *await post_to(http, MODELS[place])))
                most = max(most, len(loaded_in(service)))

        await asyncio.gather(*map(caller, range(6)))

    assert all((status, value) == (200, 11.0 + place % 4) for place, status, value in answers)
    assert (len(answers), most) == (60, 3)
    loads = sum(
        counted(service, names.MODEL_LOADS, model=model, reason=reason, outcome="ok")
        for model in MODELS for reason in ("policy", "demand")
    )  # fmt: skip
    gone = sum(counted(service, names.MODEL_UNLOADS, model=model, reason="evicted") for model in MODELS)
    assert loads - gone == 3


@pytest.mark.usefixtures("only_weights")
async def test_requests_that_come_together_for_a_model_that_gave_way_load_it_once(five: Registry, start: Start) -> None:
    service = await start(models=MODELS, memory_budget_bytes=28 * MEGABYTE)
    assert loaded_in(service) == ["c:1", "d:1", "e:1"]
    async with client_of(service) as http:
        ready = (await http.get("/v2/models/a/ready")).status_code
        assert loaded_in(service) == ["c:1", "d:1", "e:1"], "to look whether it is ready loads nothing"
        answers = await asyncio.gather(*(post_to(http, "a") for _ in range(8)), http.get("/v2/models/a"))

    assert ready == 200
    assert answers[:8] == [(200, 11.0)] * 8
    assert answers[8].json()["versions"] == ["1"]
    assert counted(service, names.MODEL_LOADS, model="a", reason="demand", outcome="ok") == 1
    assert loaded_in(service) == ["a:1", "d:1", "e:1"], "the one that was used least recently gave way"


@pytest.mark.usefixtures("only_weights")
async def test_pinned_versions_and_those_of_a_release_under_way_stay_when_others_are_asked_for(
    five: Registry, start: Start
) -> None:
    service = await start(models=MODELS[:4], memory_budget_bytes=36 * MEGABYTE, pinned_versions=("b:1",))
    assert (await post(service, "/api/v1/models/a/canary", {"version": 2, "weight": 0.5}))[0] == 200

    assert loaded_in(service) == ["a:1", "a:2", "b:1", "d:1"]
    async with client_of(service) as http:
        assert (await post_to(http, "c")) == (200, 13.0)

    assert loaded_in(service) == ["a:1", "a:2", "b:1", "c:1"]


@pytest.mark.usefixtures("only_weights")
async def test_who_waits_for_a_model_that_cannot_be_loaded_again_is_told_why(five: Registry, start: Start) -> None:
    service = await start(models=MODELS, memory_budget_bytes=28 * MEGABYTE)
    (five.folder(five.get("a", 1)) / "model.pt2").write_bytes(b"cut off")
    async with client_of(service) as http:
        together = await asyncio.gather(*(post_to(http, "a") for _ in range(3)))
        after = await post_to(http, "a")

    for status, body in (*together, after):
        assert status == 503
        assert "cannot be loaded again" in body["error"]
        assert "was altered" in body["error"]
    assert counted(service, names.MODEL_LOADS, model="a", reason="demand", outcome="failed") == 1
    assert loaded_in(service) == ["c:1", "d:1", "e:1"]


@pytest.mark.usefixtures("only_weights")
async def test_who_leaves_while_a_model_is_loaded_again_is_not_answered(five: Registry, start: Start) -> None:
    service = await start(models=MODELS, memory_budget_bytes=28 * MEGABYTE)
    _, writer = await asyncio.open_connection("127.0.0.1", service.port)
    body = b'{"inputs": [{"name": "amount", "datatype": "FP32", "shape": [1], "data": [1.0]}]}'
    writer.write(b"POST /v2/models/a/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await writer.drain()
    async with asyncio.timeout(30):
        while not service._front._waiting:
            await asyncio.sleep(0)
    writer.close()
    async with client_of(service) as http:
        assert (await post_to(http, "a")) == (200, 11.0)
        await http.get("/metrics")

    assert counted(service, names.INFERENCE_REQUESTS, model="a", version="1", outcome="ok") == 1
    assert counted(service, names.INFERENCE_REQUESTS, model="a", version="1", outcome="cancelled") == 1


@pytest.mark.usefixtures("only_weights")
async def test_a_version_that_gave_way_can_be_unloaded_for_good(five: Registry, start: Start) -> None:
    service = await start(models=MODELS[:3], memory_budget_bytes=28 * MEGABYTE)
    assert (await post(service, "/v2/repository/models/a/load", {"parameters": {"version": 2}}))[0] == 200
    assert loaded_in(service) == ["a:1", "a:2", "c:1"]
    async with client_of(service) as http:
        assert (await post_to(http, "b"))[0] == 200
    assert loaded_in(service) == ["a:1", "b:1", "c:1"], "what no policy names goes first"

    assert (await post(service, "/v2/repository/models/a/unload", {"parameters": {"version": 2}}))[0] == 200
    async with client_of(service) as http:
        answer = await http.post("/v2/models/a/versions/2/infer", json={"inputs": []})
    assert answer.status_code == 404
