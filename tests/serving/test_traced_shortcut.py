"""Requests of the compiled way whose trace is kept: answered with their batch, and told of one by one."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from observability import names
from serving import Input, Output, Registry, Signature, save_artifact
from serving.express import Express
from serving.telemetry.batches import Batches
from serving.telemetry.draws import Draws
from serving.transport.intake import native
from tests.serving.test_serving_service import Collector, Start, collector, until  # noqa: F401 (a fixture)

ROUNDS, CLIENTS = 12, 8


class Sum(torch.nn.Module):
    """The sum of a row, and its first value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack((x.sum(1), x[:, 0]), 1)


async def _asked(streams: list[tuple[Any, Any]], first: int, rows: int, version: str) -> list[tuple[int, list[float]]]:
    """One request of `rows` rows on each connection, all at once: the first value of each row is its own number."""
    for place, (_, writer) in enumerate(streams):
        data = [value for row in range(rows) for value in (first + place * rows + row, 0.5, 0.25)]
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 3], "data": data}]}).encode()
        writer.write(
            b"POST /v2/models/sum%b/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
            % (version.encode(), len(body), body)
        )
    answers = []
    for reader, _ in streams:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
        answers.append((int(head.split()[1]), json.loads(await reader.readexactly(length))["outputs"][0]["data"]))
    return answers


def _all(_draws: Draws, requests: int) -> list[int]:
    """Every request is traced."""
    return list(range(requests))[::-1]


@pytest.fixture
def summing(registry: Registry, tmp_path: Path) -> None:
    """A registered model with one vector in and out."""
    signature = Signature((Input("x", "FP32", shape=(3,)),), (Output("y", shape=(2,)),))
    save_artifact(tmp_path / "sum", Sum(), signature, {"x": [[0.1] * 3]})
    registry.register("sum", tmp_path / "sum", lineage={}, profile=None, metrics={})
    registry.set_alias("sum", "stable", 1)


@pytest.mark.skipif(native() is None, reason="without a compiler there is no compiled way")
@pytest.mark.usefixtures("summing")
@pytest.mark.parametrize("every", [False, True])
async def test_each_request_is_one_event_and_one_count_whether_its_trace_is_kept_or_not(
    collector: Collector,  # noqa: F811
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    every: bool,
) -> None:
    if every:
        monkeypatch.setattr(Draws, "of", _all)
    told: list[int] = []
    tell = Batches.add_traced

    def noted(self: Batches, traced: Any, *given: Any) -> None:
        told.append(len(traced))
        tell(self, traced, *given)

    monkeypatch.setattr(Batches, "add_traced", noted)
    service = await start(
        collector_url=collector.url, trace_sample_ratio=1e-9 if every else 0.25, trace_limit_per_second=100_000
    )
    streams = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(CLIENTS)]
    sent, requests = 0, 0
    try:
        for turn in range(ROUNDS):
            rows = (1, 3)[turn % 2]
            answers = await _asked(streams, sent, rows, "")
            numbers = iter(range(sent, sent + rows * CLIENTS))
            for status, data in answers:
                assert status == 200
                for total, number in np.reshape(data, (-1, 2)):
                    assert (number, total) == (expected := next(numbers), expected + 0.75)
            sent, requests = sent + rows * CLIENTS, requests + CLIENTS
    finally:
        for _, writer in streams:
            writer.close()
    assert sum(told) > 0, "no traced request went the compiled way"
    await until(lambda: len(collector.events) == sent, "an event a row")
    async with httpx.AsyncClient(trust_env=False) as http:
        page = (await http.get(f"http://127.0.0.1:{service.port}/metrics")).text

    events = collector.events
    assert len({event["id"] for event in events}) == sent
    assert sorted(event["feature.x"][0] for event in events) == list(range(sent))
    assert all(event["prediction.y.1"] == event["feature.x"][0] for event in events)
    assert all(event["outcome"] == "ok" and 0 < event["latency_seconds"] < 60 for event in events)
    assert f'inference_requests_total{{model="sum",outcome="ok",version="1"}} {requests}.0' in page
    assert f'inference_request_duration_seconds_count{{model="sum",version="1"}} {requests}.0' in page
    assert f'inference_queue_duration_seconds_count{{model="sum",version="1"}} {requests}.0' in page

    traced: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["trace_id"] is not None:
            traced[event["trace_id"]].append(event)
    assert sum(told) <= len(traced) <= requests
    await until(lambda: len(collector.spans) >= 4 * len(traced), "four spans a trace")
    spans: dict[str, dict[str, Any]] = defaultdict(dict)
    for span in collector.spans:
        spans[span.trace_id.hex()][span.name] = span
    assert set(spans) == set(traced)
    linked = 0
    for trace, found in spans.items():
        request, batch, model = (found[name] for name in (names.SPAN_REQUEST, names.SPAN_BATCH, names.SPAN_MODEL))
        queue = found[names.SPAN_QUEUE]
        known = {one.key: one.value for one in request.attributes}
        ids = {event["id"].partition("/")[0] for event in traced[trace]}
        assert ids == {known["request.id"].string_value}
        assert known["rows"].int_value == len(traced[trace])
        assert {one.key: one.value for one in batch.attributes}["batch.rows"].int_value >= len(traced[trace])
        assert queue.parent_span_id == batch.parent_span_id == request.span_id
        assert model.parent_span_id == batch.span_id
        assert request.start_time_unix_nano <= queue.start_time_unix_nano <= queue.end_time_unix_nano
        assert queue.end_time_unix_nano <= model.start_time_unix_nano <= model.end_time_unix_nano
        assert model.end_time_unix_nano <= request.end_time_unix_nano
        linked += len(batch.links)
        for link in batch.links:
            assert link.trace_id.hex() != trace
            assert link.span_id == spans[link.trace_id.hex()][names.SPAN_REQUEST].span_id
    assert linked > 0 or not every


@pytest.mark.skipif(native() is None, reason="without a compiler there is no compiled way")
@pytest.mark.usefixtures("summing")
async def test_a_traced_request_of_a_batch_that_fails_keeps_its_trace(
    collector: Collector,  # noqa: F811
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = await start(collector_url=collector.url, trace_sample_ratio=1e-9, trace_limit_per_second=100_000)
    monkeypatch.setattr(Draws, "of", _all)
    serve = Express._serve_taken
    failed: list[int] = []

    def failing(self: Express, count: int, rows: int, tags: Any) -> None:
        with monkeypatch.context() as patch:
            if not failed:
                patch.setattr(self._frames, "hows", lambda *_: None)
                failed.append(count)
            serve(self, count, rows, tags)

    streams = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(CLIENTS)]
    try:
        for turn in range(4):
            await _asked(streams, turn * CLIENTS, 1, "")
        monkeypatch.setattr(Express, "_serve_taken", failing)
        answers = await _asked(streams, 4 * CLIENTS, 1, "")
    finally:
        for _, writer in streams:
            writer.close()

    assert failed
    assert [status for status, _ in answers] == [200] * CLIENTS
    await until(lambda: len(collector.events) == 5 * CLIENTS, "all events")
    first = {event["feature.x"][0]: event["trace_id"] for event in collector.events}
    assert sorted(first) == list(range(5 * CLIENTS))
    assert len({first[number] for number in range(4 * CLIENTS, 5 * CLIENTS)} - {None}) == CLIENTS


@pytest.mark.skipif(native() is None, reason="without a compiler there is no compiled way")
@pytest.mark.usefixtures("summing")
async def test_what_the_compiled_way_gives_back_is_answered_though_its_length_was_never_met(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await start()
    spilled: list[int] = []

    def spills(self: Express) -> bool:
        spilled.append(self.intake.count)
        return False

    streams = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(CLIENTS)]
    try:
        for turn in range(4):
            await _asked(streams, turn * CLIENTS, 1, "")
        monkeypatch.setattr(Express, "_run_taken", spills)
        async with asyncio.timeout(60):
            answers = await _asked(streams, 10_000_000, 1, "")
    finally:
        for _, writer in streams:
            writer.close()

    assert sum(spilled) > 0
    assert [status for status, _ in answers] == [200] * CLIENTS
    assert [data[1] for _, data in answers] == list(range(10_000_000, 10_000_000 + CLIENTS))
