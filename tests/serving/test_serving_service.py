"""A real service on a free port: traffic policies, failures, telemetry, control."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from observability import names, signing
from observability.events import from_ipc, validate_events
from serving import CachePolicy, InferenceClient, Registry, Service

Start = Callable[..., Awaitable[Service]]
GOOD = {"amount": [math.e], "carrier": ["AA"]}


def client_of(service: Service, **options: Any) -> InferenceClient:
    return InferenceClient(f"http://127.0.0.1:{service.port}", **options)


async def call(service: Service, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False, timeout=60) as http:
        content = None if body is None else json.dumps(body).encode()
        answer = await http.request(method, path, content=content, headers=headers)
    return answer.status_code, answer.json() if "json" in answer.headers["content-type"] else answer.text


async def control(service: Service, verb: str, body: Any = None, **headers: str) -> Any:
    status, answer = await call(service, "POST", f"/api/v1/models/fares/{verb}", body or {}, **headers)
    assert status == 200, answer
    return answer


def value(service: Service, metric: names.Metric, **labels: str) -> float:
    """The sample on the service's own registry; 0 when there is none."""
    name = metric.name if metric.kind != "histogram" else f"{metric.name}_count"
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


async def until(condition: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit, f"{what} did not come"
        await asyncio.sleep(0.01)


class Collector:
    """A loopback intake that keeps what it is sent, a batch that is sent again once; `away` makes it answer 503."""

    def __init__(self) -> None:
        self.batches: set[bytes] = set()
        self.tables: list[pa.Table] = []
        self.spans: list[Any] = []
        self.references: dict[str, bytes] = {}
        self.away = False
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int((re.search(rb"content-length: (\d+)", head, re.IGNORECASE) or [0, b"0"])[1])
                body = await reader.readexactly(length)
                path = head.split(b" ")[1].decode()
                batch = re.search(rb"x-batch-id: (\S+)", head, re.IGNORECASE)
                if not self.away and (batch is None or batch[1] not in self.batches):
                    self.take(path, body)
                    self.batches |= {batch[1]} if batch else set()
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\n{}" % (503 if self.away else 200))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def take(self, path: str, body: bytes) -> None:
        if path == "/v1/events":
            table = from_ipc(body)
            validate_events(table)
            self.tables.append(table)
        elif path == "/v1/traces":
            request = ExportTraceServiceRequest.FromString(body)
            self.spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        elif path.startswith("/v1/references/"):
            self.references[path.removeprefix("/v1/references/")] = body

    @property
    def events(self) -> list[dict[str, Any]]:
        return [row for table in self.tables for row in table.to_pylist()]


@pytest.fixture
async def collector() -> Any:
    collector = Collector()
    server = await asyncio.start_server(collector.handle, "127.0.0.1", 0)
    collector.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield collector
    server.close()


async def test_a_request_gets_the_stable_versions_answer(start: Start) -> None:
    service = await start()
    async with client_of(service) as client:
        answer = await client.infer("fares", {"amount": [math.e, 1.0], "carrier": ["UA", "??"]})

    assert answer.ok
    assert answer.outputs["score"] == pytest.approx([21.0, 0.0], abs=1e-5)
    assert (answer.version, answer.arm) == ("1", "stable")


async def test_errors_say_what_is_wrong(start: Start) -> None:
    service = await start()
    async with client_of(service) as client:
        unknown = await client.infer("nobody", GOOD)
        invalid = await client.infer("fares", {"amount": [1.0]})
        version = await client.infer("fares", GOOD, version=7)
        broken = await client.infer("fares", {"amount": [-1.0], "carrier": ["AA"]})

    assert (unknown.status, invalid.status, version.status, broken.status) == (404, 400, 404, 500)
    assert "'carrier' is missing" in (invalid.error or "")
    assert "NaN" in (broken.error or "")
    assert value(service, names.INFERENCE_REQUESTS, model="fares", version="1", outcome="non_finite") == 1
    assert value(service, names.INFERENCE_REQUESTS, model="fares", version="1", outcome="invalid") == 2


async def test_a_canary_takes_its_share_and_every_request_is_counted_by_arm_with_its_propensity(start: Start) -> None:
    service = await start()
    described = await control(service, "canary", {"version": 2, "weight": 0.25})
    assert described["canary"]["release"] == "fares-2"
    bad = {"amount": [-1.0], "carrier": ["AA"]}
    async with client_of(service) as client:
        answers = [await client.infer("fares", bad if n % 4 == 0 else GOOD) for n in range(200)]

    canary = [answer for answer in answers if answer.arm == "canary"]
    assert 20 <= len(canary) <= 85
    assert all(answer.version == ("2" if answer.arm == "canary" else "1") for answer in answers)
    common = {"model": "fares", "release": "fares-2", "candidate": "2", "baseline": "1", "propensity": "0.25"}
    for arm in ("canary", "stable"):
        for outcome, status in (("ok", 200), ("error", 500)):
            counted = value(service, names.RELEASE_REQUESTS, **common, arm=arm, outcome=outcome)
            assert counted == sum(answer.arm == arm and answer.status == status for answer in answers)
        assert value(service, names.RELEASE_DURATION, **common, arm=arm) == sum(a.arm == arm for a in answers)
    assert value(service, names.TRAFFIC_STICKY, model="fares") == 0
    assert value(service, names.RELEASE_FAILED_UNITS, **common, arm="canary") == 0


async def test_a_sticky_canary_gives_a_unit_the_same_arm_each_time(collector: Collector, start: Start) -> None:
    service = await start(collector_url=collector.url)
    await control(service, "canary", {"version": 2, "weight": 0.5, "sticky": "user"})
    async with client_of(service) as client:
        rounds = [
            [(await client.infer("fares", GOOD, attributes={"user": f"u{unit}"})).arm for unit in range(30)]
            for _ in range(2)
        ]

    assert rounds[0] == rounds[1]
    assert set(rounds[0]) == {"stable", "canary"}
    assert value(service, names.TRAFFIC_STICKY, model="fares") == 1
    await until(lambda: len(collector.events) == 60, "sixty events")
    # Chance chose for a unit's first request; the second had its arm already and is no evidence.
    assert Counter(event["propensity"] for event in collector.events) == {0.5: 30, None: 30}


async def test_with_a_sticky_canary_a_unit_fails_once_and_a_request_without_one_each_time(start: Start) -> None:
    service = await start()
    await control(service, "canary", {"version": 2, "weight": 0.5, "sticky": "user"})
    bad = {"amount": [-1.0], "carrier": ["AA"]}
    async with client_of(service) as client:
        failed = [await client.infer("fares", bad, attributes={"user": f"u{n % 3}"}) for n in range(9)]
        failed += [await client.infer("fares", bad) for _ in range(4)]

    common = {"model": "fares", "release": "fares-2", "candidate": "2", "baseline": "1", "propensity": "0.5"}
    for arm in ("canary", "stable"):
        units = sum(answer.arm == arm for answer in (*failed[:3], *failed[9:]))
        assert value(service, names.RELEASE_FAILED_UNITS, **common, arm=arm) == units
        errors = value(service, names.RELEASE_REQUESTS, **common, arm=arm, outcome="error")
        assert errors == sum(answer.arm == arm for answer in failed)
        for metric in (names.RELEASE_UNITS, names.RELEASE_DURATION):
            assert value(service, metric, **common, arm=arm) == units


async def test_a_request_that_fails_each_time_it_is_sent_again_fails_once_for_its_release(start: Start) -> None:
    service = await start()
    await control(service, "canary", {"version": 2, "weight": 0.5})
    bad = {"amount": [-1.0], "carrier": ["AA"]}
    async with client_of(service) as client:
        for name in ("a", "b", "a", "a"):
            await client.infer("fares", bad, id=name)

    common = {"model": "fares", "release": "fares-2", "candidate": "2", "baseline": "1", "propensity": "0.5"}
    arms = ("canary", "stable")
    assert sum(value(service, names.RELEASE_REQUESTS, **common, arm=arm, outcome="error") for arm in arms) == 2
    failed = sum(
        value(service, names.INFERENCE_REQUESTS, model="fares", version=version, outcome="non_finite")
        for version in ("1", "2")
    )
    assert failed == 4


async def test_a_rollback_is_verified_and_repeating_it_says_already(start: Start) -> None:
    service = await start()
    await control(service, "canary", {"version": 2, "weight": 0.5})
    first = await control(service, "rollback", {"release": "fares-2", "reason": "evidence"})
    again = await control(service, "rollback", {"release": "fares-2"})
    _, described = await call(service, "GET", "/api/v1/models/fares")

    assert (first["stable"], first["rolled_back"], first["release"], first["already"]) == (1, 2, "fares-2", False)
    assert first["completed_at"] == pytest.approx(time.time(), abs=60)
    assert again["already"] is True
    assert again["generation"] == first["generation"] == described["generation"]
    assert [line["event"] for line in described["history"]] == ["promote", "canary", "rollback"]
    assert described["history"][-1]["reason"] == "evidence"
    async with client_of(service) as client:
        assert {(await client.infer("fares", GOOD)).version for _ in range(20)} == {"1"}


async def test_promotion_then_rollback_of_its_release_returns_to_previous(start: Start, registry: Registry) -> None:
    service = await start()
    await control(service, "canary", {"version": 2, "weight": 0.1})
    promoted = await control(service, "promote", {"release": "fares-2"})
    assert (promoted["stable"], promoted["previous"], promoted["canary"]) == (2, 1, None)
    assert registry.alias("fares", "stable") == 2
    back = await control(service, "rollback", {"release": "fares-2"})

    assert (back["stable"], back["rolled_back"]) == (1, 2)
    assert registry.alias("fares", "stable") == 1
    status, answer = await call(service, "POST", "/api/v1/models/fares/rollback", {"release": "fares-9"})
    assert status == 409
    assert "nothing to roll back" in answer["error"]


async def test_a_rollback_whose_target_does_not_load_changes_nothing(
    start: Start, registry: Registry, tmp_path: Path
) -> None:
    service = await start()
    await control(service, "promote", {"version": 2})
    await service.drain()
    shutil.rmtree(registry.artifact(registry.get("fares", 1)))
    service = await start()
    status, answer = await call(service, "POST", "/api/v1/models/fares/rollback", {})

    assert status == 409
    assert "cannot be read" in answer["error"]
    async with client_of(service) as client:
        assert (await client.infer("fares", GOOD)).version == "2"


async def test_a_restart_restores_the_policy(start: Start) -> None:
    service = await start()
    await control(service, "canary", {"version": 3, "weight": 1.0})
    _, before = await call(service, "GET", "/api/v1/models/fares")
    await service.drain()
    service = await start()
    _, after = await call(service, "GET", "/api/v1/models/fares")

    assert after == before
    async with client_of(service) as client:
        assert (await client.infer("fares", GOOD)).arm == "canary"


async def test_a_canary_that_does_not_load_at_start_is_rolled_back(start: Start, registry: Registry) -> None:
    service = await start()
    await control(service, "canary", {"version": 3, "weight": 1.0})
    await service.drain()
    (registry.artifact(registry.get("fares", 3)) / "model.pt2").write_bytes(b"altered")
    service = await start()
    _, described = await call(service, "GET", "/api/v1/models/fares")

    assert described["canary"] is None
    assert described["history"][-1]["event"] == "rollback"
    assert "altered" in described["history"][-1]["reason"]


async def test_an_idempotency_key_gives_the_first_answer_again(start: Start) -> None:
    service = await start()
    await control(service, "canary", {"version": 2, "weight": 0.5})
    answers = await asyncio.gather(*(control(service, "rollback", {}, **{"Idempotency-Key": "k"}) for _ in range(4)))
    status, _ = await call(service, "POST", "/api/v1/models/fares/promote", {}, **{"Idempotency-Key": "k"})

    assert all(answer == answers[0] for answer in answers)
    assert answers[0]["already"] is False
    assert status == 422


async def test_with_a_secret_only_signed_control_calls_count(start: Start) -> None:
    service = await start(secret="s3cret")
    body = json.dumps({"version": 2, "weight": 0.5}).encode()
    path = "/api/v1/models/fares/canary"
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False, timeout=60) as http:
        unsigned = await http.post(path, content=body)
        other = await http.post(path, content=body, headers={signing.HEADER: signing.sign("other", body, time.time())})
        old = await http.post(
            path, content=body, headers={signing.HEADER: signing.sign("s3cret", body, time.time() - 900)}
        )
        signed = await http.post(
            path, content=body, headers={signing.HEADER: signing.sign("s3cret", body, time.time())}
        )
        reading = await http.get("/api/v1/models/fares")

    assert [answer.status_code for answer in (unsigned, other, old, signed, reading)] == [401, 401, 401, 200, 200]


async def test_bad_control_calls_say_what_is_wrong(start: Start) -> None:
    service = await start()
    for verb, body, status, reason in [
        ("canary", {"version": 9, "weight": 0.1}, 404, "no version 9"),
        ("canary", {"version": 2}, 400, "weight is None"),
        ("canary", {"version": 2, "weight": 2}, 400, "from 0 to 1"),
        ("promote", {}, 409, "no canary"),
        ("rollback", [], 400, "not a JSON object"),
    ]:
        found, answer = await call(service, "POST", f"/api/v1/models/fares/{verb}", body)
        assert (found, reason in answer["error"]) == (status, True), answer
    assert (await call(service, "POST", "/api/v1/models/nobody/rollback", {}))[0] == 404
    assert (await call(service, "GET", "/api/v1/models/nobody"))[0] == 404
    assert (await call(service, "GET", "/nothing"))[0] == 404


async def test_a_model_is_served_as_soon_as_a_version_is_promoted(
    start: Start, registry: Registry, artifacts: list[Path]
) -> None:
    service = await start(models=("late",))
    assert (await call(service, "GET", "/v2/models/late/ready"))[0] in (404, 503)
    registry.register("late", artifacts[0], lineage={}, profile=None, metrics={})
    status, _ = await call(service, "POST", "/api/v1/models/late/promote", {"version": 1})

    assert status == 200
    async with client_of(service) as client:
        assert (await client.infer("late", GOOD)).ok


async def test_a_shadow_sees_the_traffic_and_nobody_sees_the_shadow(collector: Collector, start: Start) -> None:
    service = await start(collector_url=collector.url)
    await control(service, "shadow", {"version": 2, "fraction": 1.0})
    async with client_of(service) as client:
        answers = [await client.infer("fares", GOOD, id=f"s{n}") for n in range(5)]
    await until(lambda: sum(event["arm"] == "shadow" for event in collector.events) == 5, "five shadow events")

    assert {answer.version for answer in answers} == {"1"}
    assert value(service, names.SHADOW_DIFFERENCE, model="fares", version="1", shadow="2") == 5
    assert value(service, names.INFERENCE_REQUESTS, model="fares", version="2", outcome="ok") == 0
    await control(service, "shadow", {"version": 2, "fraction": 0})


async def test_events_carry_what_was_asked_answered_and_chosen(collector: Collector, start: Start) -> None:
    service = await start(collector_url=collector.url, trace_sample_ratio=0.0)
    await control(service, "canary", {"version": 2, "weight": 1.0})
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with client_of(service) as client:
        two, parent = {"amount": [math.e, 1.0], "carrier": ["UA", "??"]}, f"00-{trace}-b7ad6b7169203331-01"
        await client.infer("fares", two, id="good", attributes={"day": "d"}, traceparent=parent)
        await client.infer("fares", {"amount": [None], "carrier": ["AA"]}, id="bad")
    await until(lambda: len(collector.events) == 3, "three events")
    first, second, bad = sorted(collector.events, key=lambda event: ("bad" in event["id"], event["id"]))

    assert (first["id"], second["id"], bad["id"]) == ("good/0", "good/1", "bad")
    assert (first["model"], first["version"], first["arm"], first["release"]) == ("fares", "2", "canary", "fares-2")
    assert (first["propensity"], first["outcome"], first["trace_id"]) == (1.0, "ok", trace)
    assert json.loads(first["attributes"]) == {"day": "d"}
    assert (second["feature.carrier"], second["feature.amount"]) == ("??", 1.0)
    assert second["prediction.score"] == pytest.approx(0.0, abs=1e-6)
    assert 0 < first["latency_seconds"] < 60
    assert (bad["outcome"], bad["prediction.score"], bad["trace_id"]) == ("non_finite", None, None)
    await until(lambda: collector.references == {f"fares/{n}": b'{"columns": {}}' for n in (1, 2)}, "the profiles")


async def test_a_sampled_request_leaves_spans_from_the_clients_down_to_the_model(
    collector: Collector, start: Start
) -> None:
    service = await start(collector_url=collector.url, trace_sample_ratio=0.0)
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with client_of(service) as client:
        await client.infer("fares", GOOD, traceparent=f"00-{trace}-{parent}-01")
        await client.infer("fares", GOOD, traceparent=f"00-{'f' * 32}-{parent}-00")
        await client.infer("fares", GOOD)
    async with httpx.AsyncClient(trust_env=False) as http:
        page = await http.get(
            f"http://127.0.0.1:{service.port}/metrics",
            headers={"accept": "application/openmetrics-text; version=1.0.0"},
        )
    await until(lambda: len(collector.spans) >= 4, "four spans")
    spans = {span.name: span for span in collector.spans}

    assert len(collector.spans) == 4
    assert {span.trace_id.hex() for span in collector.spans} == {trace}
    request, queue = spans[names.SPAN_REQUEST], spans[names.SPAN_QUEUE]
    batch, model = spans[names.SPAN_BATCH], spans[names.SPAN_MODEL]
    assert request.parent_span_id.hex() == parent
    assert queue.parent_span_id == batch.parent_span_id == request.span_id
    assert model.parent_span_id == batch.span_id
    assert request.start_time_unix_nano <= queue.start_time_unix_nano <= queue.end_time_unix_nano
    assert (
        queue.end_time_unix_nano <= model.start_time_unix_nano <= model.end_time_unix_nano <= request.end_time_unix_nano
    )
    assert f'trace_id="{trace}"' in page.text


async def test_a_header_that_names_no_trace_begins_none_beyond_those_that_are_drawn(
    collector: Collector, start: Start
) -> None:
    service = await start(collector_url=collector.url, trace_sample_ratio=0.0)
    async with client_of(service) as client:
        for odd in ("garbage", f"00-{'0' * 32}-{'1' * 16}-01", f"ff-{'a' * 32}-{'1' * 16}-01", f"00-{'a' * 32}-01"):
            await client.infer("fares", GOOD, traceparent=odd)
        await client.infer("fares", GOOD, traceparent=f"00-{'b' * 32}-{'1' * 16}-01")
    await until(lambda: len(collector.events) == 5, "all events")
    await until(lambda: len(collector.spans) >= 4, "one trace")

    assert sorted(filter(None, (event["trace_id"] for event in collector.events))) == ["b" * 32]
    assert {span.trace_id.hex() for span in collector.spans} == {"b" * 32}


async def test_spans_bear_the_state_of_the_callers_trace_and_what_the_cache_found(
    collector: Collector, start: Start
) -> None:
    service = await start(collector_url=collector.url, trace_sample_ratio=0.0, cache={"fares": CachePolicy()})
    body = {"inputs": [{"name": n, "datatype": t, "shape": [1, 1], "data": v} for n, t, v in (
        ("amount", "FP32", [2.0]), ("carrier", "BYTES", ["UA"]))]}  # fmt: skip
    async with httpx.AsyncClient(trust_env=False) as http:
        for digit in "ab":
            answer = await http.post(
                f"http://127.0.0.1:{service.port}/v2/models/fares/infer", json=body,
                headers=[("traceparent", f"00-{digit * 32}-{'1' * 16}-01"), ("tracestate", "ot=th:8"),
                         ("tracestate", f"v={digit}")],
            )  # fmt: skip
            assert answer.status_code == 200
    await until(lambda: len({span.trace_id for span in collector.spans}) == 2, "two traces")

    requests = {span.trace_id.hex()[0]: span for span in collector.spans if span.name == names.SPAN_REQUEST}
    found = {digit: {a.key: a.value.string_value for a in span.attributes}["cache"] for digit, span in requests.items()}
    assert found == {"a": "miss", "b": "hit"}
    assert {span.trace_state for span in collector.spans if span.trace_id.hex()[0] == "b"} == {"ot=th:8,v=b"}


async def test_what_has_not_happened_yet_is_counted_as_none_so_that_its_first_time_is_a_rise(start: Start) -> None:
    service = await start()
    async with httpx.AsyncClient(trust_env=False) as http:
        page = (await http.get(f"http://127.0.0.1:{service.port}/metrics")).text

    for name in (names.PADDING_ROWS.name, names.INFERENCE_LATE_ROWS.name):
        assert f'{name}{{model="fares",version="1"}} 0.0' in page
    for reason in names.SHED_REASONS:
        assert f'{names.REQUESTS_SHED.name}{{model="fares",reason="{reason}",version="1"}} 0.0' in page


async def test_the_batch_of_several_traced_requests_is_linked_to_each_of_them(
    collector: Collector, start: Start
) -> None:
    # A batch waits for the third request, whatever the machine does meanwhile.
    service = await start(collector_url=collector.url, trace_sample_ratio=0.0, max_batch_rows=3, max_delay=60.0)
    traces = [digit * 32 for digit in "abc"]
    async with client_of(service) as client:
        asked = [client.infer("fares", GOOD, traceparent=f"00-{trace}-{'1' * 16}-01") for trace in traces]
        await asyncio.gather(*asked)
    await until(lambda: len(collector.spans) >= 12, "four spans a request")

    requests = {span.trace_id.hex(): span.span_id for span in collector.spans if span.name == names.SPAN_REQUEST}
    batches = {span.trace_id.hex(): span for span in collector.spans if span.name == names.SPAN_BATCH}
    assert set(batches) == set(requests) == set(traces)
    for trace, batch in batches.items():
        assert batch.parent_span_id == requests[trace]
        linked = {link.trace_id.hex(): link.span_id for link in batch.links}
        assert linked == {other: span for other, span in requests.items() if other != trace}


async def test_a_process_begins_no_more_traces_in_a_second_than_it_may_and_follows_its_callers_besides(
    collector: Collector, start: Start
) -> None:
    service = await start(collector_url=collector.url, trace_sample_ratio=1.0, trace_limit_per_second=2)
    asked, begun = 40, time.perf_counter()
    async with client_of(service) as client:
        for _ in range(asked):
            await client.infer("fares", GOOD)
        seconds = time.perf_counter() - begun
        for digit in "123456":
            await client.infer("fares", GOOD, traceparent=f"00-{digit * 32}-b7ad6b7169203331-01")
    await until(lambda: len(collector.events) == asked + 6, "all events")

    kept = {event["trace_id"] for event in collector.events} - {None}
    assert kept > {digit * 32 for digit in "123456"}
    # A second begins with a request: no more of them can begin in that time.
    assert 2 <= len(kept) - 6 <= 2 * (int(seconds) + 1)


async def test_a_full_queue_answers_429_with_retry_after_and_a_deadline_504(
    start: Start, gate: tuple[str, Path]
) -> None:
    architecture, gate_file = gate
    service = await start(architectures=(architecture,), max_batch_rows=2, max_queue_rows=4)
    gate_file.unlink()
    one = {"amount": [1.0], "carrier": ["AA"]}
    async with client_of(service, timeout=60) as client:
        held = [asyncio.create_task(client.infer("gate", one)) for _ in range(1)]
        lane = service.deployments["gate"].versions[1].lane
        await until(lambda: lane.busy, "a running batch")
        held += [asyncio.create_task(client.infer("gate", one)) for _ in range(3)]
        await until(lambda: lane.queue.rows == 3, "a queue of three")
        late = await client.infer("gate", one, deadline=0.05)
        held.append(asyncio.create_task(client.infer("gate", one)))
        await until(lambda: lane.queue.rows == 4, "a full queue")
        refused = await client.infer("gate", one)
        async with httpx.AsyncClient(trust_env=False) as http:
            body = {"inputs": [{"name": n, "datatype": d, "shape": [1], "data": v}
                               for n, d, v in (("amount", "FP32", [1.0]), ("carrier", "BYTES", ["AA"]))]}  # fmt: skip
            answer = await http.post(f"http://127.0.0.1:{service.port}/v2/models/gate/infer", json=body)
        gate_file.touch()
        answers = await asyncio.gather(*held)

    assert late.status == 504
    assert refused.status == answer.status_code == 429
    assert "4 of 4 rows wait" in (refused.error or "")
    assert int(answer.headers["retry-after"]) >= 1
    assert all(answer.ok for answer in answers)
    assert value(service, names.INFERENCE_REQUESTS, model="gate", version="1", outcome="rejected") == 2
    assert value(service, names.INFERENCE_REQUESTS, model="gate", version="1", outcome="expired") == 1


async def test_a_client_that_leaves_takes_its_rows_out_of_the_queue(start: Start, gate: tuple[str, Path]) -> None:
    architecture, gate_file = gate
    service = await start(architectures=(architecture,))
    gate_file.unlink()
    one = {"amount": [1.0], "carrier": ["AA"]}
    lane = service.deployments["gate"].versions[1].lane
    async with client_of(service) as client:
        held = asyncio.create_task(client.infer("gate", one))
        await until(lambda: lane.busy, "a running batch")
        leaving = asyncio.create_task(client.infer("gate", one))
        await until(lambda: lane.queue.rows == 1, "a waiting row")
        leaving.cancel()
        await until(lambda: lane.queue.rows == 0, "an empty queue")
        gate_file.touch()
        assert (await held).ok

    assert value(service, names.INFERENCE_REQUESTS, model="gate", version="1", outcome="cancelled") == 1
    assert value(service, names.INFERENCE_ROWS, model="gate", version="1") == 1


async def test_a_request_that_makes_the_model_raise_fails_alone(start: Start, gate: tuple[str, Path]) -> None:
    architecture, gate_file = gate
    service = await start(architectures=(architecture,))
    gate_file.unlink()
    lane = service.deployments["gate"].versions[1].lane
    async with client_of(service) as client:
        held = [asyncio.create_task(client.infer("gate", {"amount": [1.0], "carrier": ["AA"]}))]
        await until(lambda: lane.busy, "a running batch")
        amounts = [2.0, 666.0, 3.0, 4.0]
        held += [asyncio.create_task(client.infer("gate", {"amount": [a], "carrier": ["AA"]})) for a in amounts]
        await until(lambda: lane.queue.rows == 4, "four waiting rows")
        gate_file.touch()
        answers = await asyncio.gather(*held)

    assert [answer.status for answer in answers] == [200, 200, 500, 200, 200]
    assert answers[3].outputs["score"] == [3.0]
    assert "an amount of 666" in (answers[2].error or "")


async def test_a_rollback_moves_the_canarys_waiting_and_running_requests_to_stable(
    start: Start, gate: tuple[str, Path], registry: Registry, artifacts: list[Path]
) -> None:
    architecture, gate_file = gate
    registry.register("gate", artifacts[0], lineage={}, profile=None, metrics={})
    registry.set_alias("gate", "stable", 2)
    service = await start(architectures=(architecture,))
    status, _ = await call(service, "POST", "/api/v1/models/gate/canary", {"version": 1, "weight": 1.0})
    assert status == 200
    gate_file.unlink()  # the canary hangs from here on
    lane = service.deployments["gate"].versions[1].lane
    async with client_of(service) as client:
        held = [asyncio.create_task(client.infer("gate", GOOD)) for _ in range(10)]
        await until(lambda: lane.busy, "a running batch")
        held += [asyncio.create_task(client.infer("gate", GOOD)) for _ in range(10)]
        await until(lambda: lane.queue.rows >= 10, "ten waiting rows")
        status, answer = await call(service, "POST", "/api/v1/models/gate/rollback", {})
        answers = await asyncio.gather(*held)
    gate_file.touch()

    assert (status, answer["rolled_back"]) == (200, 1)
    assert [(a.status, a.version, a.arm) for a in answers] == [(200, "2", "stable")] * 20
    assert all(a.outputs["score"] == pytest.approx([11.0], abs=1e-5) for a in answers)


async def test_promtool_accepts_the_live_metrics(start: Start) -> None:
    service = await start()
    await control(service, "canary", {"version": 2, "weight": 0.5})
    async with client_of(service) as client:
        for _ in range(10):
            await client.infer("fares", GOOD)
    async with httpx.AsyncClient(trust_env=False) as http:
        page = await http.get(f"http://127.0.0.1:{service.port}/metrics")
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    checked = await asyncio.to_thread(
        subprocess.run, [promtool, "check", "metrics"], input=page.content, capture_output=True, check=False
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert 'inference_batches_total{close_reason="idle",model="fares",version="1"}' in page.text


async def test_a_collector_that_is_away_costs_no_request_and_what_is_dropped_is_counted(
    collector: Collector, start: Start
) -> None:
    collector.away = True
    service = await start(collector_url=collector.url)
    async with client_of(service) as client:
        answers = [await client.infer("fares", GOOD, id=f"n{n}") for n in range(50)]
        assert all(answer.ok for answer in answers)
        await until(lambda: value(service, names.TELEMETRY_RETRIES, signal="events") >= 1, "a retry")
        collector.away = False
        await until(lambda: len(collector.events) == 50, "the events after the outage")
    assert {event["id"] for event in collector.events} == {f"n{n}" for n in range(50)}

    collector.away = True
    async with client_of(service) as client:
        await client.infer("fares", GOOD)
    await service.drain()
    dropped = service.metrics.registry.get_sample_value(
        "telemetry_dropped_rows_total", {"signal": "events", "reason": "closed"}
    )
    assert dropped == 1


@pytest.mark.slow
async def test_a_switch_under_open_loop_load_fails_no_request_and_ends_the_canarys_answers(
    collector: Collector, start: Start
) -> None:
    service = await start(collector_url=collector.url)
    answers: list[Any] = []

    async with client_of(service, max_connections=200, timeout=60) as client:

        async def one(number: int) -> None:
            answers.append(await client.infer("fares", GOOD, id=f"o{number}"))

        async def load(requests: int) -> None:
            tasks = []
            for number in range(requests):
                tasks.append(asyncio.create_task(one(number)))
                await asyncio.sleep(1 / 250)
            await asyncio.gather(*tasks)

        running = asyncio.create_task(load(1000))
        await until(lambda: len(answers) > 100, "the first answers")
        await control(service, "canary", {"version": 2, "weight": 0.3})
        await until(lambda: sum(answer.arm == "canary" for answer in answers) > 40, "canary answers")
        rollback = await control(service, "rollback", {})
        await running
    await until(lambda: len(collector.events) == 1000, "an event a request")

    assert [answer for answer in answers if not answer.ok] == []
    assert len(answers) == 1000
    canary = [event for event in collector.events if event["arm"] == "canary"]
    assert len(canary) == sum(answer.arm == "canary" for answer in answers) > 40
    assert max(event["time"].timestamp() for event in canary) <= rollback["completed_at"]
    assert len({event["id"] for event in collector.events}) == 1000
