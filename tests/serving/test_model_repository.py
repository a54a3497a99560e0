"""The repository extension: Triton's calls and parameters, true states, signatures; unloading drops nothing."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from observability import signing
from serving import InferenceClient, Service
from serving.errors import InvalidRequest
from serving.versions.repository import Wanted, wanted_versions

Start = Callable[..., Awaitable[Service]]
LOAD, UNLOAD, INDEX = "/v2/repository/models/fares/load", "/v2/repository/models/fares/unload", "/v2/repository/index"


async def call(service: Service, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False, timeout=60) as http:
        content = None if body is None else json.dumps(body).encode()
        answer = await http.request(method, path, content=content, headers=headers)
    return answer.status_code, answer.json()


async def states(service: Service, model: str = "fares") -> dict[str, str]:
    _, rows = await call(service, "POST", INDEX)
    return {row["version"]: row["state"] for row in rows if row["name"] == model}


def specific(*versions: int) -> dict[str, Any]:
    return {"parameters": {"config": json.dumps({"version_policy": {"specific": {"versions": versions}}})}}


# --- parameters ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("parameters", "known", "wanted"),
    [
        ({}, [1, 2, 3], None),
        ({"version": "2"}, [1, 2, 3], [2]),
        ({"config": '{"version_policy": {"specific": {"versions": ["1", 3]}}}'}, [1, 2, 3], [1, 3]),
        ({"config": '{"versionPolicy": {"latest": {"numVersions": 2}}}'}, [1, 2, 3], [2, 3]),
        ({"config": '{"version_policy": {"latest": {}}}'}, [1, 2, 3], [3]),
        ({"config": '{"version_policy": {"all": {}}}'}, [1, 2, 3], [1, 2, 3]),
        ({"config": "{}"}, [1], None),
    ],
)
def test_the_parameters_say_which_versions(
    parameters: dict[str, Any], known: list[int], wanted: list[int] | None
) -> None:
    assert wanted_versions(parameters).of(known) == wanted


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"file:1/model.pt": "AAAA"}, "brings no files"),
        ({"config": "{"}, "not JSON"),
        ({"config": "[]"}, "JSON object"),
        ({"config": '{"max_batch_size": 8}'}, "only version_policy"),
        ({"config": '{"version_policy": {"specific": {"versions": []}}}'}, "give a list of versions"),
        ({"config": '{"version_policy": {"newest": {}}}'}, "one of latest, all, specific"),
        ({"version": -1}, "whole number from 1"),
        ({"version": True}, "whole number from 1"),
        ({"version": "9" * 5000}, "whole number from 1"),
        ({"colour": "red"}, "unknown parameters"),
    ],
)
def test_parameters_that_mean_nothing_here_are_refused(parameters: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        wanted_versions(parameters)


def test_nothing_wanted_means_what_the_traffic_policy_names() -> None:
    assert wanted_versions({}) == Wanted()


# --- the server ------------------------------------------------------------------------------------------------------
async def test_versions_come_and_go_and_the_index_says_where_each_stands(start: Start) -> None:
    service = await start()
    assert await states(service) == {"1": "READY", "2": "UNAVAILABLE", "3": "UNAVAILABLE"}

    assert await call(service, "POST", LOAD, specific(2, 3)) == (200, {})
    assert await states(service) == {"1": "READY", "2": "READY", "3": "READY"}
    assert (await call(service, "GET", "/v2/models/fares/versions/3/ready"))[0] == 200

    assert await call(service, "POST", UNLOAD, {"parameters": {"version": 3}}) == (200, {})
    assert await states(service) == {"1": "READY", "2": "READY", "3": "UNAVAILABLE"}
    assert (await call(service, "GET", "/v2/models/fares/versions/3/ready"))[0] == 404
    _, ready = await call(service, "POST", INDEX, {"ready": True})
    assert [(row["name"], row["version"]) for row in ready] == [("fares", "1"), ("fares", "2")]


async def test_a_change_of_traffic_does_not_take_out_what_was_loaded_by_hand(start: Start) -> None:
    service = await start()
    await call(service, "POST", LOAD, specific(3))

    status, _ = await call(service, "POST", "/api/v1/models/fares/promote", {"version": 2})

    assert status == 200
    assert await states(service) == {"1": "READY", "2": "READY", "3": "READY"}


async def test_an_unloaded_model_is_gone_the_server_stays_ready_and_loading_it_restores_its_traffic(
    start: Start,
) -> None:
    service = await start()
    await call(service, "POST", "/api/v1/models/fares/canary", {"version": 2, "weight": 0.5})

    assert await call(service, "POST", UNLOAD, {"parameters": {"unload_dependents": True}}) == (200, {})

    assert set((await states(service)).values()) == {"UNAVAILABLE"}
    assert (await call(service, "GET", "/v2/models/fares/ready"))[0] == 404
    assert (await call(service, "GET", "/v2/health/ready"))[0] == 200
    assert (await call(service, "POST", UNLOAD))[0] == 404
    assert await call(service, "POST", LOAD) == (200, {})
    assert await states(service) == {"1": "READY", "2": "READY", "3": "UNAVAILABLE"}
    _, described = await call(service, "GET", "/api/v1/models/fares")
    assert (described["stable"], described["canary"]["weight"]) == (1, 0.5)


async def test_a_model_without_a_stable_version_gets_the_newest_one(
    start: Start, registry: Any, artifacts: list[Path]
) -> None:
    service = await start()
    for folder in artifacts[:2]:
        registry.register("fresh", folder, lineage={}, profile=None, metrics={})

    assert await call(service, "POST", "/v2/repository/models/fresh/load") == (200, {})

    async with InferenceClient(f"http://127.0.0.1:{service.port}") as client:
        answer = await client.infer("fresh", {"amount": [1.0], "carrier": ["AA"]})
    assert (answer.ok, answer.version) == (True, "2")
    assert registry.alias("fresh", "stable") == 2


async def test_no_variant_becomes_stable_because_it_is_the_newest(
    start: Start, registry: Any, artifacts: list[Path]
) -> None:
    service = await start()
    for folder, lineage in zip(artifacts, ({}, {}, {"parent": 2, "variant": "int8"}), strict=True):
        registry.register("fresh", folder, lineage=lineage, profile=None, metrics={})
    registry.register("alone", artifacts[0], lineage={"parent": 9, "variant": "int8"}, profile=None, metrics={})

    every = {"parameters": {"config": '{"version_policy": {"all": {}}}'}}
    assert await call(service, "POST", "/v2/repository/models/fresh/load", every) == (200, {})
    assert await call(service, "POST", "/v2/repository/models/alone/load") == (200, {})

    assert registry.alias("fresh", "stable") == 2
    assert registry.alias("alone", "stable") == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/v2/repository/models/nobody/load", {}, 404, "not in the registry"),
        ("/v2/repository/models/nobody/unload", {}, 404, "not loaded"),
        (LOAD, specific(9), 404, r"no version \[9\]"),
        (UNLOAD, {"parameters": {"version": 1}}, 409, "named by the traffic policy"),
        (UNLOAD, {"parameters": {"version": 3}}, 404, "version 3 is not loaded"),
        (LOAD, {"parameters": 3}, 400, "give an object"),
        (INDEX, {"ready": "yes"}, 400, "ready is 'yes'"),
    ],
)
async def test_what_cannot_be_done_is_said(start: Start, path: str, body: Any, status: int, error: str) -> None:
    service = await start()

    got, answer = await call(service, "POST", path, body)

    assert got == status
    assert re.search(error, answer["error"])


async def test_with_a_secret_loading_needs_a_signature_and_the_index_does_not(start: Start) -> None:
    service = await start(secret="hush")
    content = json.dumps(specific(2)).encode()

    assert (await call(service, "POST", LOAD, specific(2)))[0] == 401
    assert (await call(service, "POST", UNLOAD, {}))[0] == 401
    assert (await call(service, "POST", INDEX))[0] == 200
    signed = {signing.HEADER: signing.sign(b"hush", content, time.time())}
    assert (await call(service, "POST", LOAD, specific(2), **signed))[0] == 200


async def test_requests_that_a_version_has_are_answered_before_it_goes(start: Start, gate: tuple[str, Path]) -> None:
    architecture, gate_file = gate
    service = await start(architectures=(architecture,))
    gate_file.unlink()
    async with InferenceClient(f"http://127.0.0.1:{service.port}", timeout=60) as client:
        lane = service.deployments["gate"].versions[1].lane
        asked = [asyncio.create_task(client.infer("gate", {"amount": [4.0], "carrier": ["AA"]}))]
        while not lane.busy:
            await asyncio.sleep(0.005)
        asked += [asyncio.create_task(client.infer("gate", {"amount": [4.0], "carrier": ["AA"]})) for _ in range(2)]
        while lane.queue.rows < 2:
            await asyncio.sleep(0.005)
        unloading = asyncio.create_task(call(service, "POST", "/v2/repository/models/gate/unload"))
        while (await states(service, "gate"))["1"] != "UNLOADING":
            await asyncio.sleep(0.005)
        status, body = await call(service, "GET", "/v2/models/gate/ready")
        late = await client.infer("gate", {"amount": [4.0], "carrier": ["AA"]})
        gate_file.touch()
        answers = await asyncio.gather(*asked)

        assert [answer.ok for answer in answers] == [True] * 3
        assert (status, "being unloaded" in body["error"]) == (503, True)
        assert late.status == 503
        assert await unloading == (200, {})
        assert "gate" not in service.deployments
