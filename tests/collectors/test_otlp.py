"""OTLP against the unmodified exporters, and the corners of the protocol."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.metrics.v1.metrics_pb2 import ExponentialHistogramDataPoint
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from collectors.exponential import explicit_buckets
from collectors.otlp import IntakeError, decoded
from collectors.otlp_metrics import label_set, metric_name, translate

RESOURCE = Resource({"service.name": "shop", "service.namespace": "web", "service.instance.id": "i-1", "zone": "a"})
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_an_unmodified_span_exporter_delivers_a_trace(collector: Any) -> None:
    provider = TracerProvider(resource=RESOURCE)
    provider.add_span_processor(
        SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{collector.intake.base_url}/v1/traces"))
    )
    tracer = provider.get_tracer("test")
    with (
        tracer.start_as_current_span("outer", attributes={"n": 3, "ok": True}) as outer,
        tracer.start_as_current_span("inner") as inner,
    ):
        inner.add_event("half", {"way": 0.5})
    provider.shutdown()

    trace_id = f"{outer.get_span_context().trace_id:032x}"
    answer = collector.query.get(f"/api/traces/{trace_id}").json()

    (trace,) = answer["data"]
    spans = {span["operationName"]: span for span in trace["spans"]}
    assert set(spans) == {"outer", "inner"}
    assert spans["inner"]["references"] == [
        {"refType": "CHILD_OF", "traceID": trace_id, "spanID": spans["outer"]["spanID"]}
    ]
    assert {"key": "n", "type": "int64", "value": 3} in spans["outer"]["tags"]
    assert {"key": "ok", "type": "bool", "value": True} in spans["outer"]["tags"]
    assert spans["inner"]["logs"][0]["fields"][0]["value"] == "half"
    assert trace["processes"]["p1"]["serviceName"] == "shop"
    assert collector.query.get("/api/traces", params={"service": "shop"}).json()["total"] == 1
    assert collector.query.get("/api/traces", params={"service": "nobody"}).json()["total"] == 0
    assert collector.query.get("/api/traces/00ff").status_code == 404


def test_an_unmodified_metric_exporter_delivers_metrics_that_promql_reads(collector: Any, clock: Any) -> None:
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=f"{collector.intake.base_url}/v1/metrics"), export_interval_millis=3_600_000
    )
    provider = MeterProvider([reader], resource=RESOURCE)
    meter = provider.get_meter("test")
    meter.create_counter("http.requests", "1").add(5, {"http.route": "/a"})
    meter.create_gauge("queue.length", "{item}").set(7)
    histogram = meter.create_histogram("latency", "s", explicit_bucket_boundaries_advisory=[0.1, 1.0])
    for value in (0.05, 0.5, 5.0):
        histogram.record(value)
    provider.force_flush()
    (block, *_) = collector.collector.store.select_blocks([], 0, 2**62)
    at = float(block.t[-1]) / 1000 + 1
    provider.shutdown()

    ((labels, value),) = collector.values("http_requests_total", at).items()
    assert value == 5
    assert dict(labels)["http_route"] == "/a"
    assert (dict(labels)["job"], dict(labels)["instance"]) == ("web/shop", "i-1")
    assert list(collector.values("queue_length", at).values()) == [7]
    assert list(collector.values('latency_seconds_bucket{le="1.0"}', at).values()) == [2]
    assert list(collector.values('latency_seconds_bucket{le="+Inf"}', at).values()) == [3]
    assert list(collector.values("latency_seconds_count", at).values()) == [3]
    assert list(collector.values("histogram_quantile(0.5, latency_seconds_bucket)", at).values()) == [0.55]
    assert dict(next(iter(collector.values("target_info", at))))["zone"] == "a"
    assert collector.query.get("/api/v1/metadata").json()["data"]["latency_seconds"][0]["type"] == "histogram"


def test_ids_in_json_are_hexadecimal(collector: Any) -> None:
    span = {
        "traceId": TRACE,
        "spanId": SPAN,
        "name": "from json",
        "kind": 2,
        "startTimeUnixNano": "1544712660000000000",
        "endTimeUnixNano": "1544712661000000000",
        "attributes": [{"key": "traceId", "value": {"stringValue": "not an id"}}],
        "unknownField": {"is": "ignored"},
    }
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}

    answer = collector.intake.post("/v1/traces", json=body)

    assert (answer.status_code, answer.json()) == (200, {})
    (trace,) = collector.query.get(f"/api/traces/{TRACE}").json()["data"]
    assert trace["spans"][0]["spanID"] == SPAN
    assert trace["spans"][0]["duration"] == 1_000_000
    assert {"key": "traceId", "type": "string", "value": "not an id"} in trace["spans"][0]["tags"]


def test_a_span_sent_again_is_kept_once(collector: Any) -> None:
    span = {"traceId": TRACE, "spanId": SPAN, "name": "twice", "startTimeUnixNano": 1, "endTimeUnixNano": 2}
    for _ in range(2):
        collector.intake.post("/v1/traces", json={"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})

    (trace,) = collector.query.get(f"/api/traces/{TRACE}").json()["data"]
    assert len(trace["spans"]) == 1


def test_logs_are_kept_with_their_trace(collector: Any) -> None:
    record = {
        "timeUnixNano": "1544712660000000000",
        "severityText": "WARN",
        "severityNumber": 13,
        "body": {"stringValue": "too hot"},
        "traceId": TRACE,
        "spanId": SPAN,
        "attributes": [{"key": "degrees", "value": {"doubleValue": 99.5}}],
    }
    collector.intake.post("/v1/logs", json={"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]})

    (found,) = collector.query.get("/api/logs", params={"trace_id": TRACE}).json()["data"]
    assert (found["message"], found["severity"], found["attributes"]) == ("too hot", "WARN", {"degrees": 99.5})
    assert collector.query.get("/api/logs", params={"trace_id": "ff"}).json()["data"] == []


def test_spans_without_ids_are_refused_in_part(collector: Any) -> None:
    spans = [
        {"traceId": TRACE, "spanId": SPAN, "name": "good", "startTimeUnixNano": 1, "endTimeUnixNano": 2},
        {"traceId": "", "spanId": "", "name": "bad"},
    ]
    answer = collector.intake.post("/v1/traces", json={"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]})

    assert answer.status_code == 200
    assert answer.json()["partialSuccess"]["rejectedSpans"] == "1"


def sum_metric(temporality: int, name: str = "hits") -> dict[str, Any]:
    point = {"asInt": "4", "timeUnixNano": "1544712660000000000"}
    data = {"dataPoints": [point], "aggregationTemporality": temporality, "isMonotonic": True}
    return {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": name, "sum": data}]}]}]}


def test_delta_temporality_is_refused_in_part_and_protobuf_answers_in_protobuf(collector: Any) -> None:
    from google.protobuf.json_format import ParseDict

    request = ParseDict(sum_metric(1), ExportMetricsServiceRequest())
    answer = collector.intake.post(
        "/v1/metrics", content=request.SerializeToString(), headers={"Content-Type": "application/x-protobuf"}
    )

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-protobuf"
    partial = ExportMetricsServiceResponse.FromString(answer.content).partial_success
    assert partial.rejected_data_points == 1
    assert "cumulative" in partial.error_message


def test_an_empty_request_is_a_success(collector: Any) -> None:
    answer = collector.intake.post("/v1/traces", content=b"", headers={"Content-Type": "application/x-protobuf"})

    assert answer.status_code == 200
    assert not ExportTraceServiceResponse.FromString(answer.content).HasField("partial_success")


def test_gzip_is_accepted(collector: Any) -> None:
    body = gzip.compress(json.dumps(sum_metric(2)).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}

    assert collector.intake.post("/v1/metrics", content=body, headers=headers).status_code == 200
    assert list(collector.values("hits_total", 1544712661).values()) == [4]


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "application/x-protobuf"}, b"\xff\xff\xff", 400),
        ({"Content-Type": "application/json"}, b"{", 400),
        ({"Content-Type": "application/json"}, b'{"resourceSpans": 3}', 400),
        ({"Content-Type": "text/plain"}, b"hello", 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"not gzip", 400),
        ({"Content-Type": "application/json", "Content-Encoding": "br"}, b"", 415),
    ],
)
def test_errors_are_a_status_in_the_requests_type(
    collector: Any, headers: dict[str, str], body: bytes, status: int
) -> None:
    answer = collector.intake.post("/v1/traces", content=body, headers=headers)

    assert answer.status_code == status
    if headers["Content-Type"] == "application/json":
        assert answer.json()["message"]
    else:
        assert Status.FromString(answer.content).message


def test_a_gzip_bomb_is_never_unpacked() -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    assert len(bomb) < 100_000

    with pytest.raises(IntakeError) as refused:
        decoded(bomb, "gzip", 1_000_000)

    assert refused.value.status == 413


def test_members_of_a_gzip_body_are_joined_and_a_cut_one_is_refused() -> None:
    assert decoded(gzip.compress(b"one") + gzip.compress(b"two"), "gzip", 100) == b"onetwo"
    with pytest.raises(IntakeError, match="too early"):
        decoded(gzip.compress(b"one" * 100)[:-12], "gzip", 1000)
    with pytest.raises(IntakeError, match="not gzip"):
        decoded(zlib.compress(b"zlib"), "gzip", 1000)


@pytest.mark.parametrize(
    ("name", "unit", "kind", "expected"),
    [
        ("http.server.request.duration", "s", {}, "http_server_request_duration_seconds"),
        ("system.io", "By", {"monotonic": True}, "system_io_bytes_total"),
        ("requests.total", "1", {"monotonic": True}, "requests_total"),
        ("cpu.utilization", "1", {"gauge": True}, "cpu_utilization_ratio"),
        ("queue.length", "{item}", {"gauge": True}, "queue_length"),
        ("speed", "m/s", {"gauge": True}, "speed_meters_per_second"),
        ("latency_seconds", "s", {}, "latency_seconds"),
        ("room.temperature", "Cel", {"gauge": True}, "room_temperature_celsius"),
        ("load %% now", "%", {"gauge": True}, "load_now_percent"),
        ("0day", "", {}, "_0day"),
    ],
)
def test_names_follow_the_published_rules(name: str, unit: str, kind: dict[str, bool], expected: str) -> None:
    assert metric_name(name, unit, **kind) == expected


def test_values_of_attributes_that_become_one_label_are_joined_in_key_order() -> None:
    assert label_set({"a.b": "2", "a_b": "3", "a-b": "1"}) == {"a_b": "1;2;3"}
    assert label_set({"flag": True, "list": [1, "x"], "7up": 1}) == {"flag": "true", "list": '[1,"x"]', "key_7up": "1"}


def test_exemplars_of_a_histogram_go_to_their_bucket() -> None:
    from google.protobuf.json_format import ParseDict

    point = {
        "count": "2", "sum": 1.0, "bucketCounts": ["1", "1"], "explicitBounds": [0.5], "timeUnixNano": "2000000",
        "exemplars": [{"asDouble": 0.7, "timeUnixNano": "1000000", "traceId": "AAECAwQFBgcICQoLDA0ODw=="}],
    }  # fmt: skip
    data = {"dataPoints": [point], "aggregationTemporality": 2}
    request = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "t", "histogram": data}]}]}]}

    found = translate(ParseDict(request, ExportMetricsServiceRequest()))

    ((series, labels, value, t_ms),) = found.exemplars
    assert (series["__name__"], series["le"], value, t_ms) == ("t_bucket", "+Inf", 0.7, 1)
    assert labels == {"trace_id": "000102030405060708090a0b0c0d0e0f"}


def test_exponential_histograms_become_explicit_buckets(collector: Any) -> None:
    """Whatever scale the SDK has come to: counts by bucket are those of the recorded values."""
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(
            endpoint=f"{collector.intake.base_url}/v1/metrics",
            preferred_aggregation={Histogram: ExponentialBucketHistogramAggregation()},
        ),
        export_interval_millis=3_600_000,
    )
    provider = MeterProvider([reader], resource=RESOURCE)
    histogram = provider.get_meter("test").create_histogram("latency", "s")
    values = [0.0, 0.001, 0.0042, 0.01, 0.25, 0.25, 1.0, 3.7, 64.0, 5000.0]
    for value in values:
        histogram.record(value)
    provider.force_flush()
    (block, *_) = collector.collector.store.select_blocks([], 0, 2**62)
    at = float(block.t[-1]) / 1000 + 1
    provider.shutdown()

    buckets = {
        float(dict(labels)["le"]): count for labels, count in collector.values("latency_seconds_bucket", at).items()
    }
    assert len(buckets) > 20
    for bound, count in buckets.items():
        # The SDK's own rounding at a bound may put a value that is one into either bucket.
        assert sum(v < bound * (1 - 1e-9) for v in values) <= count <= sum(v <= bound * (1 + 1e-9) for v in values)
    assert buckets[float("inf")] == len(values)
    assert list(collector.values("latency_seconds_sum", at).values()) == [pytest.approx(sum(values))]
    median = next(iter(collector.values("histogram_quantile(0.5, latency_seconds_bucket)", at).values()))
    assert 0.25 / 1.2 < median < 0.25 * 1.2


@given(
    st.integers(-3, 8),
    st.dictionaries(st.integers(-40, 40), st.integers(1, 5), max_size=30),
    st.dictionaries(st.integers(-40, 40), st.integers(1, 5), max_size=30),
    st.integers(0, 3),
)
def test_buckets_of_any_scale_keep_their_counts(
    scale: int, above: dict[int, int], below: dict[int, int], zeros: int
) -> None:
    point = ExponentialHistogramDataPoint(scale=scale, zero_count=zeros)
    for buckets, counts in ((point.positive, above), (point.negative, below)):
        if counts:
            buckets.offset = min(counts)
            buckets.bucket_counts.extend(counts.get(k, 0) for k in range(min(counts), max(counts) + 1))

    bounds, counts = explicit_buckets(point)

    assert bounds == sorted(set(bounds))
    assert sum(counts) == zeros + sum(above.values()) + sum(below.values())
    base = 2.0 ** (2.0**-scale)
    middles = [(base ** (k + 0.5), n) for k, n in above.items()] + [(-(base ** (k + 0.5)), n) for k, n in below.items()]
    for k, bound in enumerate(bounds):
        expected = sum(n for middle, n in middles if middle <= bound) + (zeros if bound >= 0 else 0)
        assert sum(counts[: k + 1]) == expected


def test_the_scope_is_told_whole_and_a_bare_resource_has_no_target_info() -> None:
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "shop"
    scope = resource.scope_metrics.add(schema_url="https://example.com/schema")
    scope.scope.name, scope.scope.version = "library", "1.2"
    scope.scope.attributes.add(key="build.kind").value.string_value = "debug"
    scope.metrics.add(name="_odd", unit="1").sum.data_points.add(as_int=3, time_unix_nano=2_000_000)
    scope.metrics[0].sum.aggregation_temporality = 2
    scope.metrics[0].sum.data_points[0].attributes.add(key="_private").value.string_value = "x"

    found = translate(request)

    ((series, value),) = found.samples[next(iter(found.samples))]
    assert value == 3
    assert series == {
        "__name__": "odd",
        "job": "shop",
        "key_private": "x",
        "otel_scope_name": "library",
        "otel_scope_version": "1.2",
        "otel_scope_schema_url": "https://example.com/schema",
        "otel_scope_build_kind": "debug",
    }


def test_what_the_store_refuses_is_rejected_in_part(collector: Any) -> None:
    body = sum_metric(2)
    assert collector.intake.post("/v1/metrics", json=body).json() == {}
    body["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["sum"]["dataPoints"][0]["asInt"] = "5"
    partial = collector.query.post("/api/v1/otlp/v1/metrics", json=body).json()["partialSuccess"]

    assert partial["rejectedDataPoints"] == "1"
    assert "duplicate sample for timestamp" in partial["errorMessage"]
