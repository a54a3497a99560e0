"""Traces: W3C propagation, retroactive spans, delivery over OTLP."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from observability.exporter import Backoff
from observability.metrics import Metrics
from observability.tracing import (
    NoTracing,
    OtlpSpanExporter,
    Tracing,
    format_trace_id,
    format_traceparent,
    otlp_url,
    parse_traceparent,
    setup_tracing,
)

Receiver = Any  # conftest.py's
SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED = SAMPLED[:-1] + "0"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(spans: InMemorySpanExporter) -> Iterator[Tracing]:
    tracing = setup_tracing("test", exporter=spans)
    yield tracing
    tracing.close()


@pytest.mark.parametrize(
    ("header", "valid"),
    [
        (SAMPLED, True),
        (SAMPLED.encode(), True),
        (f"  {SAMPLED} ", True),
        (SAMPLED.replace("00-", "cc-", 1) + "-what-the-future-brings", True),
        (SAMPLED + "-more", False),
        (SAMPLED.replace("00-", "ff-", 1), False),
        (SAMPLED.upper(), False),
        (SAMPLED.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32), False),
        (SAMPLED.replace("b7ad6b7169203331", "0" * 16), False),
        (SAMPLED[:-1], False),
        (b"\xff\xfe", False),
        ("", False),
        (None, False),
    ],
)
def test_traceparent_is_read_as_the_standard_says(header: str | bytes | None, valid: bool) -> None:
    assert (parse_traceparent(header) is not None) == valid


@given(st.text(max_size=60) | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True))
def test_traceparent_is_read_as_opentelemetry_reads_it(header: str) -> None:
    from opentelemetry.trace import get_current_span

    theirs = get_current_span(TraceContextTextMapPropagator().extract({"traceparent": header})).get_span_context()
    ours = parse_traceparent(header)

    assert (ours is not None) == theirs.is_valid
    if ours is not None:
        assert (ours.trace_id, ours.span_id) == (theirs.trace_id, theirs.span_id)
        assert ours.trace_flags == theirs.trace_flags & TraceFlags.SAMPLED
        assert parse_traceparent(format_traceparent(ours)) == ours


_TEXT = st.text("abz019_-*/@=, \t~A", max_size=12)


@given(_TEXT | st.lists(st.from_regex(r"[a-c]{1,2}(@b)?=[ -~]{1,3}", fullmatch=True), max_size=4).map(" , ".join))
@example(",".join(f"k{number}=v" for number in range(32)))
@example(",".join(f"k{number}=v" for number in range(33)))
def test_tracestate_is_read_as_opentelemetry_reads_it(state: str) -> None:
    from opentelemetry.trace import TraceState

    theirs = TraceState.from_header([state])
    ours = parse_traceparent(SAMPLED, state.encode())

    assert ours is not None
    assert ours.trace_state.to_header() == theirs.to_header()
    unsampled = parse_traceparent(NOT_SAMPLED, state)
    assert unsampled is not None
    assert not unsampled.trace_state


def test_spans_of_a_callers_trace_bear_its_state(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    client = parse_traceparent(SAMPLED, "ot=th:8,vendor=a 1")
    tracing.record("request", 10, 20, client)
    tracing.flush()

    (span,) = spans.get_finished_spans()
    assert span.context.trace_state.to_header() == "ot=th:8,vendor=a 1"


def test_spans_are_made_afterwards_with_the_identity_that_was_given_out(
    tracing: Tracing, spans: InMemorySpanExporter
) -> None:
    client = parse_traceparent(SAMPLED)
    request = tracing.context(client)
    batch = tracing.record("batch", 20, 30, links=[request])
    tracing.record("queue", 10, 20, request, {"rows": 3})
    tracing.record("request", 5, 35, client, kind=SpanKind.SERVER, context=request, error="model_error")
    tracing.flush()

    made = {span.name: span for span in spans.get_finished_spans()}
    assert made["request"].context == request
    assert made["request"].parent == client
    assert (made["request"].start_time, made["request"].end_time) == (5, 35)
    assert made["request"].status.description == "model_error"
    assert made["request"].resource.attributes["service.name"] == "test"
    assert made["queue"].parent == request
    assert made["queue"].context.trace_id == client.trace_id  # type: ignore[union-attr]
    assert made["queue"].attributes == {"rows": 3}
    assert made["batch"].context == batch
    assert [link.context for link in made["batch"].links] == [request]


def test_what_the_caller_does_not_sample_is_not_recorded_and_keeps_its_trace(
    tracing: Tracing, spans: InMemorySpanExporter
) -> None:
    client = parse_traceparent(NOT_SAMPLED)

    context = tracing.context(client)
    assert tracing.record("a", 1, 2, client) is client
    assert tracing.record("b", 1, 2, client, context=context) is context
    tracing.flush()
    assert spans.get_finished_spans() == ()
    assert context.trace_id == client.trace_id  # type: ignore[union-attr]
    assert format_trace_id(context) is None


def test_the_sample_ratio_is_the_share_of_new_traces_that_are_kept(spans: InMemorySpanExporter) -> None:
    tracing = setup_tracing("test", exporter=spans, sample_ratio=0.25)

    kept = sum(tracing.context().trace_flags & TraceFlags.SAMPLED for _ in range(4000))
    tracing.close()

    assert 850 < kept < 1150
    with pytest.raises(ValueError, match=r"sample ratio is 1\.5"):
        setup_tracing("test", exporter=spans, sample_ratio=1.5)


def test_the_hosts_seed_does_not_repeat_trace_ids(tracing: Tracing) -> None:
    random.seed(0)
    first = tracing.context()
    random.seed(0)

    assert tracing.context().trace_id != first.trace_id


def test_live_and_retroactive_spans_join_in_one_trace(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    with tracing.span("live") as live:
        tracing.record("after", 1, 2, live)
    tracing.flush()

    after, outer = spans.get_finished_spans()
    assert after.parent == outer.context


def test_without_a_place_to_send_to_nothing_is_done() -> None:
    tracing = setup_tracing("test")
    client = parse_traceparent(SAMPLED)

    assert isinstance(tracing, NoTracing)
    assert tracing.context(client) is client
    assert tracing.record("a", 1, 2, client) is client
    assert not tracing.context().is_valid
    with tracing.span("b"):
        assert tracing.flush()
    tracing.close()


def test_spans_reach_a_collector_over_otlp(receiver: Receiver) -> None:
    tracing = setup_tracing("flights", receiver.url)
    context = tracing.record("request", 1_000, 2_000, attributes={"rows": 2})
    tracing.close()

    (sent,) = receiver.accepted
    assert (sent.path, sent.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
    resource = ExportTraceServiceRequest.FromString(sent.body).resource_spans[0]
    span = resource.scope_spans[0].spans[0]
    assert (span.name, span.trace_id.hex()) == ("request", format_trace_id(context))
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (1_000, 2_000)


def test_a_collector_that_is_away_makes_no_noise_and_gets_the_spans_when_it_is_back(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    receiver.kill()
    exporter = OtlpSpanExporter(
        receiver.url, metrics=Metrics(), backoff=Backoff(first_seconds=0.01, limit_seconds=0.05)
    )
    tracing = setup_tracing("flights", exporter=exporter)
    with caplog.at_level(logging.WARNING):
        for number in range(10):
            tracing.record(f"span-{number}", 1, 2)
            tracing.flush()
        assert not exporter.force_flush(200)
    receiver.start()

    assert exporter.force_flush(20_000)
    tracing.close()
    spans = [
        span.name
        for request in receiver.accepted
        for resource in ExportTraceServiceRequest.FromString(request.body).resource_spans
        for span in resource.scope_spans[0].spans
    ]
    assert sorted(spans) == [f"span-{number}" for number in range(10)]
    assert caplog.records == []
    assert capfd.readouterr().err == ""


def test_an_endpoint_may_name_the_signal_or_not() -> None:
    assert otlp_url("http://c:4318", "traces") == "http://c:4318/v1/traces"
    assert otlp_url("http://c:4318/", "logs") == "http://c:4318/v1/logs"
    assert otlp_url("http://c/otlp/v1/traces", "traces") == "http://c/otlp/v1/traces"
