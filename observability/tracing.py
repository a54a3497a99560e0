"""Traces by OpenTelemetry: W3C propagation, live spans for rare work, and retroactive spans for hot paths.

A hot path takes timestamps and asks for span identities (`context`, about a microsecond); spans are built after the
answer is out, and only for sampled traces (`record`). A live SDK span costs tens of microseconds even when it is
sampled out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import INVALID_SPAN_CONTEXT, Link, SpanContext, SpanKind, TraceFlags, Tracer, TraceState
from opentelemetry.trace.status import Status, StatusCode
from opentelemetry.util.types import AttributeValue

from observability.exporter import Backoff, Exporter
from observability.metrics import Metrics
from observability.sinks import Batch, HttpSink
from observability.span_encoding import encode_spans

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
_SCOPE = InstrumentationScope("trimtab")
_PATTERN = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
# A member of a tracestate header: W3C, section 3.3.1.3.
_MEMBER = re.compile(
    r"([a-z][_0-9a-z*/-]{0,255}|[a-z0-9][_0-9a-z*/-]{0,240}@[a-z][_0-9a-z*/-]{0,13})"
    r"=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])"
)
_MOST_MEMBERS = 32
_SAMPLED, _NOT_SAMPLED = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.DEFAULT)
_UNSET = Status(StatusCode.UNSET)
Attributes = Mapping[str, AttributeValue]


class Tracing:
    """A service's tracer: `span` for live spans, `context` and `record` for retroactive ones. See `setup_tracing`."""

    def __init__(self, service: str, exporter: SpanExporter, sample_ratio: float = 1.0) -> None:
        if not 0.0 <= sample_ratio <= 1.0:
            raise ValueError(f"the sample ratio is {sample_ratio}: give a share from 0 to 1")
        self._resource = Resource.create({"service.name": service})
        self.sample_ratio = sample_ratio
        self._bound = round(sample_ratio * 2**64)
        self._processor = BatchSpanProcessor(exporter, schedule_delay_millis=1000)
        sampler = ParentBased(TraceIdRatioBased(sample_ratio))
        self.provider = TracerProvider(sampler=sampler, resource=self._resource)
        self.provider.add_span_processor(self._processor)
        self.tracer: Tracer = self.provider.get_tracer(_SCOPE.name)

    def context(self, parent: SpanContext | None = None) -> SpanContext:
        """The identity of a new span: in its parent's trace and as sampled as it, or the root of a new trace."""
        span_id = int.from_bytes(os.urandom(8)) or 1
        if parent is not None and parent.is_valid:
            return SpanContext(parent.trace_id, span_id, False, parent.trace_flags, parent.trace_state)
        # The system's randomness: `random` is the host's to seed, and a fork would repeat its ids.
        trace_id = int.from_bytes(os.urandom(16)) or 1
        sampled = trace_id & (2**64 - 1) < self._bound
        return SpanContext(trace_id, span_id, False, _SAMPLED if sampled else _NOT_SAMPLED)

    def root(self) -> SpanContext:
        """The identity of the root of a new trace that is kept, for hosts that draw with `sample_ratio` themselves."""
        low = int.from_bytes(os.urandom(8)) * max(self._bound, 1) >> 64
        trace_id = int.from_bytes(os.urandom(8)) << 64 | low or 1
        return SpanContext(trace_id, int.from_bytes(os.urandom(8)) or 1, False, _SAMPLED)

    def kept(self, trace_id: int, span_id: int) -> SpanContext:
        """The identity of a span of a trace that is kept, for hosts that draw traces and their numbers themselves."""
        return SpanContext(trace_id, span_id, False, _SAMPLED)

    def record(
        self,
        name: str,
        start_ns: int,
        end_ns: int,
        parent: SpanContext | None = None,
        attributes: Attributes | None = None,
        links: Sequence[SpanContext] = (),
        kind: SpanKind = SpanKind.INTERNAL,
        *,
        context: SpanContext | None = None,
        error: str | None = None,
    ) -> SpanContext:
        """Records a span that is over, from `start_ns` to `end_ns` (unix time, ns), if its trace is sampled.

        `context` is the identity that was made for it with `self.context(parent)`; without one it gets a new one.
        `links` are the spans of other traces that it worked for. `error` marks it as failed and says why.
        """
        if context is None:
            if parent is not None and not parent.trace_flags & TraceFlags.SAMPLED:
                return parent
            context = self.context(parent)
        if not context.trace_flags & TraceFlags.SAMPLED:
            return context
        span = ReadableSpan(
            name=name,
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=dict(attributes or {}),
            links=[Link(link) for link in links],
            kind=kind,
            status=_UNSET if error is None else Status(StatusCode.ERROR, error),
            start_time=start_ns,
            end_time=end_ns,
            instrumentation_scope=_SCOPE,
        )
        self._processor.on_end(span)
        return context

    @contextmanager
    def span(
        self, name: str, attributes: Attributes | None = None, kind: SpanKind = SpanKind.INTERNAL
    ) -> Iterator[SpanContext]:
        """A live span around rare work, current inside the block, so that logs and children find it."""
        with self.tracer.start_as_current_span(name, attributes=attributes, kind=kind) as span:
            yield span.get_span_context()

    def flush(self) -> bool:
        """Hands all ended spans to the exporter."""
        return self._processor.force_flush()

    def close(self) -> None:
        """Flushes and ends the background threads. Later spans are dropped."""
        self.provider.shutdown()


class NoTracing(Tracing):
    """The do-nothing twin: keeps a caller's trace id, records nothing."""

    def __init__(self) -> None:
        self.sample_ratio = 0.0
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.tracer = self.provider.get_tracer(_SCOPE.name)

    def context(self, parent: SpanContext | None = None) -> SpanContext:
        return INVALID_SPAN_CONTEXT if parent is None else parent

    def root(self) -> SpanContext:
        return INVALID_SPAN_CONTEXT

    def kept(self, trace_id: int, span_id: int) -> SpanContext:
        return INVALID_SPAN_CONTEXT

    def record(
        self,
        name: str,
        start_ns: int,
        end_ns: int,
        parent: SpanContext | None = None,
        attributes: Attributes | None = None,
        links: Sequence[SpanContext] = (),
        kind: SpanKind = SpanKind.INTERNAL,
        *,
        context: SpanContext | None = None,
        error: str | None = None,
    ) -> SpanContext:
        return context or self.context(parent)

    @contextmanager
    def span(
        self, name: str, attributes: Attributes | None = None, kind: SpanKind = SpanKind.INTERNAL
    ) -> Iterator[SpanContext]:
        yield INVALID_SPAN_CONTEXT

    def flush(self) -> bool:
        return True

    def close(self) -> None:
        return None


def setup_tracing(
    service: str,
    endpoint: str | None = None,
    *,
    sample_ratio: float = 1.0,
    exporter: SpanExporter | None = None,
    metrics: Metrics | None = None,
) -> Tracing:
    """Tracing of `service` to an OTLP/HTTP `endpoint` (such as http://127.0.0.1:4318), or to any `exporter`.

    `sample_ratio` is the share of new traces that are kept; a caller's decision is followed. Without an endpoint and an
    exporter it does nothing.
    """
    if exporter is None and endpoint is None:
        return NoTracing()
    return Tracing(service, exporter or OtlpSpanExporter(endpoint or "", metrics=metrics), sample_ratio)


def parse_traceparent(value: str | bytes | None, state: str | bytes | None = None) -> SpanContext | None:
    """The remote span of a W3C `traceparent` header (level 1, section 3.2); None if there is no valid one.

    `state` is the `tracestate` header beside it, several of them joined by commas; one that is not as the standard
    says is left out.
    """
    if not value:
        return None
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest):
        return None
    sampled = int(flags, 16) & TraceFlags.SAMPLED
    context = SpanContext(
        int(trace_id, 16), int(span_id, 16), True, _SAMPLED if sampled else _NOT_SAMPLED,
        _trace_state(state) if state and sampled else None,
    )  # fmt: skip
    return context if context.is_valid else None


def _trace_state(value: str | bytes) -> TraceState | None:
    """What tracing systems on the way have noted; None where it breaks the standard, which says to drop it whole.

    OpenTelemetry's own reader logs a warning for each such header, as often as a client likes.
    """
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    found = [(match[1], match[2]) for member in members[: _MOST_MEMBERS + 1] if (match := _MEMBER.fullmatch(member))]
    if not found or len(found) != len(members) or len(found) > _MOST_MEMBERS or len(dict(found)) != len(found):
        return None
    return TraceState(found)


def format_traceparent(context: SpanContext) -> str:
    """The W3C `traceparent` header that hands `context` on."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & TraceFlags.SAMPLED:02x}"


def format_trace_id(context: SpanContext | None) -> str | None:
    """The 32 hex digits of a sampled trace, for events, logs and exemplars; None when nobody could look it up."""
    if context is None or not context.trace_flags & TraceFlags.SAMPLED:
        return None
    return f"{context.trace_id:032x}"


class OtlpSpanExporter(SpanExporter):
    """Encodes spans as OTLP's protobuf and delivers them with our exporter.

    The official HTTP exporter drops a batch after ten seconds, blocks its shutdown on retries and logs each failure;
    this one keeps a bounded queue through an outage, counts what it drops, and is silent.
    """

    def __init__(self, endpoint: str, *, metrics: Metrics | None = None, backoff: Backoff | None = None) -> None:
        sink = HttpSink(otlp_url(endpoint, "traces"), content_type="application/x-protobuf")
        self._exporter = Exporter(sink, signal="traces", max_batches=500, metrics=metrics, backoff=backoff)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._exporter.put(Batch(encode_spans(spans), len(spans)))
        return SpanExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 5000) -> bool:
        return self._exporter.flush(timeout_millis / 1000)

    def shutdown(self) -> None:
        self._exporter.close(timeout=2.0)


def otlp_url(endpoint: str, signal: str) -> str:
    """The full URL of an OTLP/HTTP signal: the endpoint with /v1/<signal>, unless it names that already."""
    return endpoint if urlsplit(endpoint).path.endswith(f"/v1/{signal}") else f"{endpoint.rstrip('/')}/v1/{signal}"
