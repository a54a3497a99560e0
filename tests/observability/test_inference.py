"""The monitor of a server of one's own."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from observability import names
from observability.event_exporter import EventExporter
from observability.events import from_ipc, validate_events
from observability.inference import InferenceMonitor
from observability.metrics import Metrics
from observability.middleware import InferenceMiddleware
from observability.sinks import Batch, HttpSink
from observability.tracing import setup_tracing

Receiver = Any  # conftest.py's
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Kept:
    """A sink that keeps the events."""

    def __init__(self) -> None:
        self.tables: list[pa.Table] = []

    def send(self, batch: Batch) -> None:
        self.tables.append(from_ipc(batch.body))


def value(monitor: InferenceMonitor, metric: names.Metric, suffix: str = "", **labels: str) -> float | None:
    given = {"model": monitor.model, "version": monitor.version, **labels}
    return monitor.metrics.registry.get_sample_value(metric.name + suffix, given)


def kept_events(monitor: InferenceMonitor, kept: Kept) -> pa.Table:
    monitor.close()
    table = pa.concat_tables(kept.tables)
    validate_events(table)
    return table


def test_a_batch_becomes_metrics_and_events() -> None:
    kept = Kept()
    monitor = InferenceMonitor("fraud", "3", events=EventExporter(kept), clock=lambda: 42)
    with monitor.batch({"amount": [1.0, 2.0], "country": ["DE", "FR"]}, ids=["r/0", "r/1"]) as batch:
        batch.predictions = {"p": np.array([0.1, 0.2])}

    table = kept_events(monitor, kept)
    assert table.column("id").to_pylist() == ["r/0", "r/1"]
    assert table.column("time").cast(pa.int64()).to_pylist() == [42, 42]
    assert table.column("prediction.p").to_pylist() == [0.1, 0.2]
    assert set(table.column("version").to_pylist()) == {"3"}
    assert value(monitor, names.INFERENCE_ROWS) == 2
    assert value(monitor, names.INFERENCE_REQUESTS, outcome="ok") == 1
    assert value(monitor, names.INFERENCE_DURATION, "_count") == 1
    assert value(monitor, names.INFERENCE_COMPUTE, "_count") == 1


def test_rows_that_are_not_finite_are_marked_and_the_request_with_them() -> None:
    kept = Kept()
    monitor = InferenceMonitor("fraud", events=EventExporter(kept))
    predictions = {"p": np.array([[0.1, 0.2], [0.3, np.nan], [np.inf, 0.1]])[:, 1], "q": [0.0, 0.0, float("inf")]}
    monitor.observe_batch({"x": [1, 2, 3]}, predictions, latency_seconds=0.1)

    assert kept_events(monitor, kept).column("outcome").to_pylist() == ["ok", "non_finite", "non_finite"]
    assert value(monitor, names.INFERENCE_REQUESTS, outcome="non_finite") == 1


def test_a_model_that_raises_is_recorded_and_its_error_goes_on() -> None:
    kept = Kept()
    monitor = InferenceMonitor("fraud", events=EventExporter(kept))
    with pytest.raises(RuntimeError, match="boom"), monitor.batch({"x": [1.0]}):
        raise RuntimeError("boom")

    assert kept_events(monitor, kept).column("outcome").to_pylist() == ["model_error"]
    assert value(monitor, names.INFERENCE_REQUESTS, outcome="model_error") == 1


def test_what_cannot_be_recorded_does_not_reach_the_host_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    monitor = InferenceMonitor("fraud", events=EventExporter(Kept()))
    with caplog.at_level(logging.WARNING):
        monitor.observe_batch({"x": [1.0, 2.0]}, {"p": [1.0]}, latency_seconds=0.1)
    monitor.close()

    dropped = {"signal": "events", "reason": "invalid"}
    assert monitor.metrics.registry.get_sample_value(names.TELEMETRY_DROPPED.name, dropped) == 1
    assert "model fraud" in caplog.text


def test_a_request_around_batches_is_counted_once() -> None:
    monitor = InferenceMonitor("fraud")
    with monitor.request():
        monitor.observe_batch({"x": [1.0]}, {"p": [1.0]}, latency_seconds=0.1)
        monitor.observe_batch({"x": [1.0]}, {"p": [float("nan")]}, latency_seconds=0.1)
    with pytest.raises(asyncio.CancelledError), monitor.request():
        raise asyncio.CancelledError

    assert value(monitor, names.INFERENCE_REQUESTS, outcome="non_finite") == 1
    assert value(monitor, names.INFERENCE_REQUESTS, outcome="cancelled") == 1
    assert value(monitor, names.INFERENCE_REQUESTS, outcome="ok") is None
    assert value(monitor, names.INFERENCE_ROWS) == 2


def test_made_up_ids_are_unique_and_name_the_row() -> None:
    kept = Kept()
    monitor = InferenceMonitor("fraud", events=EventExporter(kept))
    for rows in (1, 2):
        monitor.observe_batch({"x": [1.0] * rows}, {"p": [1.0] * rows}, latency_seconds=0.1, attributes={"day": 1})

    table = kept_events(monitor, kept)
    ids = table.column("id").to_pylist()
    assert len(set(ids)) == 3
    assert [id.partition("/")[2] for id in ids] == ["", "0", "1"]
    assert table.column("attributes")[0].as_py() == '{"day": 1}'


async def asked(app: Any, *requests: tuple[str, dict[str, Any]]) -> list[httpx.Response]:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return [await client.post(path, json=body, headers={"traceparent": TRACEPARENT}) for path, body in requests]


def application(monitor: InferenceMonitor) -> Any:
    def model(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.log(x)

    async def predict(request: Request) -> JSONResponse:
        body = await request.json()
        if "status" in body:
            return JSONResponse({}, status_code=body["status"])
        with monitor.batch({"x": body["x"]}) as batch:
            batch.predictions = {"p": model(np.array(body["x"]))}
        return JSONResponse({"p": len(body["x"])})

    app = Starlette(routes=[Route("/predict", predict, methods=["POST"]), Route("/other", predict, methods=["POST"])])
    return InferenceMiddleware(app, {"/predict": monitor})


async def test_the_middleware_counts_times_and_traces_each_request_of_its_routes() -> None:
    kept, spans = Kept(), InMemorySpanExporter()
    monitor = InferenceMonitor(
        "fraud", events=EventExporter(kept), tracing=setup_tracing("server", exporter=spans), metrics=Metrics()
    )
    app = application(monitor)

    answers = await asked(
        app,
        ("/predict", {"x": [1.0, 2.0]}),
        ("/predict", {"status": 429}),
        ("/predict", {"status": 422}),
        ("/predict", {}),
        ("/missing", {}),
    )

    assert [answer.status_code for answer in answers] == [200, 429, 422, 500, 404]
    outcomes = {outcome: value(monitor, names.INFERENCE_REQUESTS, outcome=outcome) for outcome in names.OUTCOMES}
    assert {outcome: count for outcome, count in outcomes.items() if count} == {
        "ok": 1,
        "rejected": 1,
        "invalid": 1,
        "model_error": 1,
    }
    table = kept_events(monitor, kept)
    assert set(table.column("trace_id").to_pylist()) == {TRACEPARENT[3:35]}
    made = spans.get_finished_spans()
    assert {span.name for span in made} == {names.SPAN_REQUEST}
    assert {f"{span.parent.span_id:016x}" for span in made if span.parent} == {TRACEPARENT[36:52]}
    assert [span.status.description for span in made] == [None, None, None, "model_error"]


async def test_the_middleware_serves_metrics_with_exemplars_to_who_asks() -> None:
    monitor = InferenceMonitor("fraud", tracing=setup_tracing("server", exporter=InMemorySpanExporter()))
    app = application(monitor)
    await asked(app, ("/predict", {"x": [1.0]}))

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        text = await client.get("/metrics")
        openmetrics = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    monitor.close()

    assert 'inference_requests_total{model="fraud",outcome="ok",version="1"} 1.0' in text.text
    assert f'# {{trace_id="{TRACEPARENT[3:35]}"}}' in openmetrics.text


def test_monitors_behind_one_page_share_one_registry() -> None:
    with pytest.raises(ValueError, match="give them the same Metrics"):
        InferenceMiddleware(application, {"/a": InferenceMonitor("a"), "/b": InferenceMonitor("b")})
    with pytest.raises(ValueError, match="no route"):
        InferenceMiddleware(application, {})


def test_a_collector_that_is_away_is_not_noticed(receiver: Receiver) -> None:
    receiver.kill()
    exporter = EventExporter(HttpSink(f"{receiver.url}/v1/events"))
    monitor = InferenceMonitor("fraud", events=exporter)
    for _ in range(50):
        with monitor.batch({"x": [1.0]}) as batch:
            batch.predictions = {"p": [0.5]}
    exporter.close(timeout=0.1)

    assert value(monitor, names.INFERENCE_REQUESTS, outcome="ok") == 50
