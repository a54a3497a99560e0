"""Spans that are written without protobuf's library: it reads them, and finds what OpenTelemetry's encoder has."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as peer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from observability.span_encoding import encode_spans

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
PLAIN = TEXTS | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
VALUES = (
    PLAIN
    | st.lists(TEXTS, max_size=3)
    | st.tuples(st.booleans(), st.booleans())
    | st.lists(st.integers(-5, 5), max_size=3)
    | st.binary(max_size=20)
    | st.dictionaries(TEXTS, PLAIN, max_size=2)
)
ATTRIBUTES = st.dictionaries(TEXTS, VALUES, max_size=4)
TIMES = st.integers(0, 2**64 - 1)
STATES = st.sampled_from([TraceState(), TraceState([("a", "1"), ("b", "x y")])])
CONTEXTS = st.builds(
    SpanContext,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.booleans(),
    st.just(TraceFlags(1)),
    STATES,
)
RESOURCES = [Resource({"service.name": "serving", "n": 3}), Resource({}, "https://schema")]
SCOPES = [None, InstrumentationScope("trimtab"), InstrumentationScope("x", "1", "https://of-scope", {"a": "b"})]


@st.composite
def any_span(draw: st.DrawFn) -> ReadableSpan:
    events = st.builds(Event, TEXTS, ATTRIBUTES, TIMES)
    links = st.builds(Link, CONTEXTS, ATTRIBUTES)
    statuses = [Status(), Status(StatusCode.OK), Status(StatusCode.ERROR), Status(StatusCode.ERROR, "it is löst")]
    return ReadableSpan(
        name=draw(TEXTS),
        context=draw(CONTEXTS),
        parent=draw(st.none() | CONTEXTS),
        resource=draw(st.sampled_from(RESOURCES)),
        attributes=draw(st.none() | ATTRIBUTES),
        events=draw(st.lists(events, max_size=2)),
        links=draw(st.lists(links, max_size=2)),
        kind=draw(st.sampled_from(list(SpanKind))),
        status=draw(st.sampled_from(statuses)),
        start_time=draw(TIMES),
        end_time=draw(TIMES),
        instrumentation_scope=draw(st.sampled_from(SCOPES)),
    )


@given(st.lists(any_span(), max_size=4))
def test_spans_are_those_that_opentelemetrys_encoder_writes(spans: list[ReadableSpan]) -> None:
    assert ExportTraceServiceRequest.FromString(encode_spans(spans)) == peer(spans)


@pytest.mark.parametrize(
    ("value", "told"), [(2**70, str(2**70)), (SpanKind.CLIENT, "SpanKind.CLIENT"), ("\ud800", "?"), (None, None)]
)
def test_what_otlp_has_no_type_for_goes_as_text(value: Any, told: str | None) -> None:
    context = SpanContext(1, 2, False)
    span = ReadableSpan("s", context, resource=RESOURCES[0], attributes={"a": value})

    read = ExportTraceServiceRequest.FromString(encode_spans([span]))

    (written,) = read.resource_spans[0].scope_spans[0].spans
    assert [one.value.string_value for one in written.attributes] == ([] if told is None else [told])
