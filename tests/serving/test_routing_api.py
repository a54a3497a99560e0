"""Routing over the control API of a real service: experiments, blue-green, rules, shadows, and the way back."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from observability.events import validate_events
from observability.laid_columns import LaidRows
from serving import Registry, Service, Signature, save_artifact
from serving.router import Router
from serving.routing.switches import with_experiment
from serving.routing.traffic import Policy, Variant
from tests.serving.conftest import LogOfAmount

Start = Callable[..., Awaitable[Service]]
AB = [{"name": "a", "version": 1, "weight": 0.25}, {"name": "b", "version": 2, "weight": 0.75}]


class Client:
    """One HTTP connection pool; `post` and `infer` give status and JSON, and headers."""

    def __init__(self, service: Service) -> None:
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False, timeout=60)

    async def post(self, verb: str, body: Any, key: str | None = None) -> tuple[int, Any]:
        headers = {} if key is None else {"Idempotency-Key": key}
        answer = await self.http.post(f"/api/v1/models/fares/{verb}", content=json.dumps(body), headers=headers)
        return answer.status_code, answer.json()

    async def change(self, verb: str, body: Any) -> Any:
        status, answer = await self.post(verb, body)
        assert status == 200, answer
        return answer

    async def infer(self, unit: str | None = None, **headers: str) -> httpx.Headers:
        body = {
            "inputs": [
                {"name": "amount", "shape": [1], "datatype": "FP32", "data": [math.e]},
                {"name": "carrier", "shape": [1], "datatype": "BYTES", "data": ["AA"]},
            ],
            "parameters": {} if unit is None else {"user": unit},
        }
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.http.post("/v2/models/fares/infer", content=json.dumps(body), headers=given)
        assert answer.status_code == 200, answer.text
        return answer.headers


@pytest.fixture
async def served(start: Start) -> Any:
    service = await start()
    client = Client(service)
    yield service, client
    await client.http.aclose()


def count(service: Service, name: str, **labels: str) -> float:
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


async def until(condition: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit, f"{what} did not come"
        await asyncio.sleep(0.01)


async def test_an_experiment_keeps_units_on_their_variants_until_the_weights_move_them(served: Any) -> None:
    service, client = served
    described = await client.change("experiment", {"variants": AB, "sticky": "user"})
    units = [f"u{n}" for n in range(40)]
    first = [(await client.infer(unit))["x-trimtab-arm"] for unit in units]
    again = [(await client.infer(unit))["x-trimtab-arm"] for unit in units]
    more = [{**AB[0], "weight": 0.5}, {**AB[1], "weight": 0.5}]
    await client.change("experiment", {"variants": more})
    later = [(await client.infer(unit))["x-trimtab-arm"] for unit in units]

    expected = Router.of(with_experiment(Policy("fares", stable=1, releases=1), [Variant(**v) for v in AB], None, 0.0))
    assert first == again == [expected.choose(unit).arm for unit in units]  # type: ignore[union-attr]
    assert all(after == "ab:a" for before, after in zip(first, later, strict=True) if before != after)
    assert Counter(later)["ab:a"] > Counter(first)["ab:a"]
    assert described["experiment"]["release"] == "fares-2"
    assert described["experiment"]["variants"] == AB
    assert "runs" not in described["experiment"]
    assert [v["state"] for v in described["versions"]] == ["stable", "ab:b", "registered"]
    await until(lambda: sum(count_experiment(service, v, w) for v, w in (("a", "0.25"), ("b", "0.75"))) == 80, "counts")


def count_experiment(service: Service, variant: str, propensity: str) -> float:
    labels = {"a": "1", "b": "2"}
    return count(
        service, "experiment_requests_total", model="fares", release="fares-2", variant=variant,
        version=labels[variant], propensity=propensity, outcome="ok",
    )  # fmt: skip


async def test_a_version_whose_lineage_holds_numbers_that_are_none_is_shown_and_released(
    start: Start, registry: Registry, signature: Signature, tmp_path: Path
) -> None:
    save_artifact(tmp_path / "new", LogOfAmount(4.0), signature, {"amount": [2.0], "carrier": ["AA"]})
    lineage = {"sample": {"inputs": {"amount": [math.nan, math.inf, 1.0]}}}
    registered = registry.register("fares", tmp_path / "new", lineage=lineage, profile=None, metrics={"auc": math.nan})
    client = Client(await start())

    answer = await client.change("canary", {"version": registered.version, "weight": 0.5})
    await client.http.aclose()

    (shown,) = [one for one in answer["versions"] if one["version"] == registered.version]
    assert shown["lineage"] == {"sample": {"inputs": {"amount": [None, None, 1.0]}}}
    assert shown["metrics"] == {"auc": None}


async def test_a_rollback_of_an_experiment_leaves_stable_and_no_trace_in_the_canarys_evidence(served: Any) -> None:
    service, client = served
    await client.change("experiment", {"variants": AB})
    for _ in range(5):
        await client.infer()
    weights = {
        (sample.labels["version"], sample.labels["role"]): sample.value
        for family in service.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "traffic_weight_ratio"
    }
    status, answer = await client.post("rollback", {"release": "fares-2", "reason": "enough"})
    described = (await client.http.get("/api/v1/models/fares")).json()

    assert {k: v for k, v in weights.items() if v} == {("1", "ab:a"): 0.25, ("2", "ab:b"): 0.75}
    assert (status, answer["stable"], answer["rolled_back"], answer["release"]) == (200, 1, 2, "fares-2")
    assert described["experiment"] is None
    assert [line["event"] for line in described["history"]] == ["promote", "experiment", "rollback"]
    assert (await client.infer())["x-trimtab-arm"] == "stable"
    families = {family.name: family.samples for family in service.metrics.registry.collect()}
    assert not families.get("release_requests")


async def test_blue_green_is_made_ready_switched_and_switched_back(served: Any, registry: Registry) -> None:
    _, client = served
    ready = await client.change("switch", {"version": 2, "prepare": True})
    assert (ready["stable"], ready["standby"], ready["versions"][1]["state"]) == (1, 2, "standby")
    assert (await client.infer())["x-trimtab-version"] == "1"
    green = await client.change("switch", {"reason": "now"})
    assert (green["stable"], green["standby"]) == (2, 1)
    assert registry.alias("fares", "stable") == 2
    assert (await client.infer())["x-trimtab-version"] == "2"
    blue = await client.change("switch", {})
    assert (blue["stable"], blue["standby"], blue["generation"]) == (1, 2, green["generation"] + 1)
    assert (await client.infer())["x-trimtab-version"] == "1"
    await client.change("switch", {})
    _, back = await client.post("rollback", {})
    assert (back["stable"], back["rolled_back"]) == (1, 2)
    assert [line["event"] for line in (await client.change("shadow", {"version": 3, "fraction": 0}))["history"]] == [
        "promote", "standby", "switch", "switch", "switch", "rollback", "shadow",
    ]  # fmt: skip


async def test_headers_choose_and_the_answer_says_that_it_was_forced(served: Any) -> None:
    service, client = served
    await client.change("canary", {"version": 2, "weight": 0.0001})
    rules = [
        {"header": "X-QA", "equals": "yes", "version": 3}, {"header": "x-team", "prefix": "beta-", "variant": "canary"},
    ]  # fmt: skip
    described = await client.change("route", {"rules": rules})
    seen = [await client.infer(x_qa="yes"), await client.infer(x_team="beta-7"), await client.infer(x_team="b")]

    assert [(h["x-trimtab-version"], h["x-trimtab-arm"]) for h in seen[:2]] == [("3", "forced"), ("2", "forced")]
    assert seen[2]["x-trimtab-arm"] in ("stable", "canary")
    assert [rule["header"] for rule in described["rules"]] == ["x-qa", "x-team"]
    assert described["versions"][2]["state"] == "forced"
    await until(lambda: count(service, "inference_requests_total", model="fares", version="3", outcome="ok") == 1, "3")
    await client.infer()
    samples = [s for f in service.metrics.registry.collect() for s in f.samples if s.name == "release_requests_total"]
    assert sum(sample.value for sample in samples) <= 2
    await client.change("route", {"rules": []})
    assert (await client.infer(x_qa="yes"))["x-trimtab-arm"] != "forced"


async def test_everything_survives_a_restart(start: Start) -> None:
    service = await start()
    client = Client(service)
    await client.change("experiment", {"variants": AB, "sticky": "user"})
    await client.change("shadow", {"version": 3, "fraction": 0.5})
    await client.change("route", {"rules": [{"header": "x", "equals": "1", "variant": "b"}]})
    before = service.deployments["fares"].router.policy
    await client.http.aclose()
    await service.drain()
    again = await start()

    assert again.deployments["fares"].router.policy == before
    client = Client(again)
    assert (await client.infer(x="1"))["x-trimtab-arm"] == "forced"
    await client.http.aclose()


async def test_an_idempotency_key_gives_the_first_answer_of_a_change_again(served: Any) -> None:
    _, client = served
    first = await client.post("switch", {"version": 2}, key="k")
    second = await client.post("switch", {"version": 2}, key="k")
    other, _ = await client.post("experiment", {"variants": AB}, key="k")

    assert first == second
    assert (first[0], other) == (200, 422)


@pytest.mark.parametrize(
    ("verb", "body", "status", "reason"),
    [
        ("experiment", {}, 400, "variants is missing"),
        ("experiment", {"variants": AB, "end": True}, 400, "both end and variants"),
        ("experiment", {"variants": AB[:1]}, 400, "2 to 64"),
        ("experiment", {"variants": [{**AB[0], "share": 1}, AB[1]]}, 400, "'share'"),
        ("experiment", {"variants": [{**AB[0], "weight": "x"}, AB[1]]}, 400, "weight 'x'"),
        ("experiment", {"variants": [AB[0], {**AB[1], "version": 9}]}, 404, "9"),
        ("experiment", {"end": True}, 409, "no experiment"),
        ("experiment", {"variants": AB, "stikcy": "user"}, 400, "'stikcy' is unknown"),
        ("switch", {}, 409, "no standby"),
        ("switch", {"version": 1}, 409, "stable already"),
        ("switch", {"version": 1.5}, 400, "whole number"),
        ("switch", {"prepare": True}, 400, "needs a version"),
        ("route", {}, 400, "rules is missing"),
        ("route", {"rules": [{"header": "x", "equals": "1", "variant": "z"}]}, 400, "'z'; there are"),
        ("route", {"rules": [{"header": "x", "equals": "1", "version": 9}]}, 404, "9"),
    ],
)
async def test_a_change_that_makes_no_sense_changes_nothing_and_says_why(
    served: Any, verb: str, body: Any, status: int, reason: str
) -> None:
    service, client = served
    before = service.deployments["fares"].router.policy
    answered, answer = await client.post(verb, body)

    assert (answered, reason in answer["error"]) == (status, True), answer
    assert service.deployments["fares"].router.policy == before


# --- events and shadows ---------------------------------------------------------------------------------------------
async def test_events_name_the_variant_and_the_forced_and_shadows_pair_with_their_answers(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[pa.RecordBatch] = []

    class Sink:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def put(self, item: LaidRows) -> None:
            batches.append(item.arrow())

        def close(self, timeout: float) -> None: ...

    monkeypatch.setattr("observability.EventExporter", Sink)
    service = await start(collector_url="http://127.0.0.1:9", trace_sample_ratio=0.0)
    client = Client(service)
    await client.change("experiment", {"variants": AB})
    await client.change("shadow", {"version": 2, "fraction": 1.0})
    await client.change("shadow", {"version": 3, "fraction": 1.0})
    await client.change("route", {"rules": [{"header": "x", "equals": "1", "version": 1}]})
    for n in range(12):
        await client.infer(**({"x": "1"} if n < 2 else {}))
    rows = lambda: [row for batch in batches for row in batch.to_pylist()]  # noqa: E731
    await until(lambda: len(rows()) == 12 + 2 * 10, "32 events")
    await client.http.aclose()

    for batch in batches:
        validate_events(pa.Table.from_batches([batch]))
    arms = Counter(row["arm"] for row in rows())
    assert (arms["forced"], arms["shadow"], arms["ab:a"] + arms["ab:b"]) == (2, 20, 10)
    for row in rows():
        expected = {"forced": (1.0, None), "shadow": (1.0, None), "ab:a": (0.25, "fares-2"), "ab:b": (0.75, "fares-2")}
        assert (row["propensity"], row["release"]) == expected[row["arm"]]
    ids = {arm: Counter(row["id"] for row in rows() if row["arm"].startswith(arm)) for arm in ("ab:", "shadow")}
    assert ids["shadow"] == dict.fromkeys(ids["ab:"], 2)
    for shadow in ("2", "3"):
        compared = count(service, "shadow_requests_total", model="fares", shadow=shadow, outcome="compared")
        assert compared == 10
    gaps = [
        count(service, "shadow_output_difference_sum", model="fares", version=version, shadow="3")
        for version in ("1", "2")
    ]
    assert gaps == pytest.approx([2.0 * arms["ab:a"], 1.0 * arms["ab:b"]], abs=1e-4)
