"""Monitors a server of your own: metrics, prediction events and request spans around any model.

monitor = InferenceMonitor("fraud", version="3", events=EventExporter(HttpSink(f"{collector}/v1/events")))
app = InferenceMiddleware(app, {"/predict": monitor})
…
with monitor.batch({"amount": amounts}) as batch:
    batch.predictions = {"probability": model(amounts)}
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import uuid4

import numpy as np
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, get_current_span, use_span

from observability import names
from observability.events import event_batch
from observability.exporter import EventExporter
from observability.metrics import Metrics, exposition
from observability.tracing import TRACEPARENT, NoTracing, Tracing, format_trace_id, parse_traceparent

_log = logging.getLogger(__name__)
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]
_OUTCOME_OF_STATUS = {429: "rejected", 503: "unavailable", 504: "expired", 408: "expired", 499: "cancelled"}


@dataclass(slots=True)
class InferenceBatch:
    """What the block of `monitor.batch` fills in: the predictions, by name, one array each."""

    features: Mapping[str, Any]
    predictions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Request:
    """The request being measured: a batch inside it tells it what became of it, and does not count it again."""

    outcome: str = "ok"


_request: ContextVar[_Request | None] = ContextVar("trimtab_request", default=None)


class InferenceMonitor:
    """Records what one version of a model does. Never raises into its host: what it cannot record it drops and counts.

    A request is counted once: by `request()` or the middleware where they are used, else by its batch.
    """

    def __init__(
        self,
        model: str,
        version: str = "1",
        *,
        metrics: Metrics | None = None,
        events: EventExporter | None = None,
        tracing: Tracing | None = None,
        arm: str = "stable",
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.model, self.version = model, version
        self.metrics = Metrics() if metrics is None else metrics
        self.tracing = NoTracing() if tracing is None else tracing
        self._events, self._arm, self._clock = events, arm, clock
        self._requests = self.metrics[names.INFERENCE_REQUESTS]
        labels = (model, version)
        self._duration = self.metrics[names.INFERENCE_DURATION].labels(*labels)
        self._compute = self.metrics[names.INFERENCE_COMPUTE].labels(*labels)
        self._batch_rows = self.metrics[names.INFERENCE_BATCH_ROWS].labels(*labels)
        self._rows = self.metrics[names.INFERENCE_ROWS].labels(*labels)
        self._dropped = self.metrics[names.TELEMETRY_DROPPED]

    @contextmanager
    def batch(self, features: Mapping[str, Any], *, ids: Sequence[str] | None = None) -> Iterator[InferenceBatch]:
        """Measures the block, in which the model works and `batch.predictions` is set; records it all at its end.

        An exception is recorded as `model_error`, and goes on to the caller.
        """
        batch = InferenceBatch(features)
        start = time.perf_counter()
        try:
            yield batch
        except BaseException as error:
            seconds = time.perf_counter() - start
            self.observe_batch(features, {}, ids, latency_seconds=seconds, outcome=_outcome_of(error))
            raise
        self.observe_batch(features, batch.predictions, ids, latency_seconds=time.perf_counter() - start)

    def observe_batch(
        self,
        features: Mapping[str, Any],
        predictions: Mapping[str, Any],
        ids: Sequence[str] | None = None,
        *,
        latency_seconds: float,
        outcome: str = "ok",
        trace: SpanContext | None = None,
        attributes: Mapping[str, Any] | str | None = None,
    ) -> None:
        """Records one inference batch: columns by name, one value a row. Rows with a NaN or infinite prediction
        get the outcome `non_finite`. `ids` are what labels will refer to; without them they are made up.
        """
        try:
            self._observe(features, predictions, ids, latency_seconds, outcome, trace, attributes)
        except Exception as error:  # the host's predictions matter more than our record of them
            self._dropped.labels("events", "invalid").inc()
            _log.warning("a batch of model %s could not be recorded: %s", self.model, error)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts and times the block as one request; an exception makes it a `model_error`, and goes on."""
        request = _Request()
        token = _request.set(request)
        start = time.perf_counter()
        try:
            yield
        except BaseException as error:
            request.outcome = _outcome_of(error)
            raise
        finally:
            _request.reset(token)
            self.observe_request(request.outcome, time.perf_counter() - start)

    def observe_request(self, outcome: str, seconds: float, trace: SpanContext | None = None) -> None:
        """Counts one request by its outcome (one of `names.OUTCOMES`) and its duration, with an exemplar if traced."""
        trace_id = format_trace_id(trace)
        self._requests.labels(self.model, self.version, outcome).inc()
        self._duration.observe(seconds, {"trace_id": trace_id} if trace_id else None)

    def close(self) -> None:
        """Delivers what waits, within seconds, and closes the exporter and the tracing that it was given."""
        self.tracing.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _observe(
        self,
        features: Mapping[str, Any],
        predictions: Mapping[str, Any],
        ids: Sequence[str] | None,
        seconds: float,
        outcome: str,
        trace: SpanContext | None,
        attributes: Mapping[str, Any] | str | None,
    ) -> None:
        rows = len(next(iter({**features, **predictions}.values()))) if ids is None else len(ids)
        outcomes = _outcomes(predictions, outcome, rows)
        self._count(rows, seconds, outcome if isinstance(outcomes, str) else "non_finite", trace)
        if self._events is None:
            return
        self._events.put(
            event_batch(
                ids=_made_up(rows) if ids is None else ids,
                time_ns=self._clock(),
                model=self.model,
                version=self.version,
                arm=self._arm,
                outcome=outcomes,
                latency_seconds=float(seconds),
                trace_ids=format_trace_id(trace or get_current_span().get_span_context()),
                attributes=json.dumps(attributes) if isinstance(attributes, Mapping) else attributes,
                features=features,
                predictions=predictions,
            )
        )

    def _count(self, rows: int, seconds: float, outcome: str, trace: SpanContext | None) -> None:
        self._rows.inc(rows)
        self._batch_rows.observe(rows)
        self._compute.observe(seconds)
        if (request := _request.get()) is not None:
            request.outcome = outcome
        else:
            self.observe_request(outcome, seconds, trace)


class InferenceMiddleware:
    """ASGI middleware: counts, times and traces the requests of the routes that have a monitor, and serves `/metrics`.

    `routes` are exact paths. A `traceparent` of the client is continued; logs and spans made inside a request carry its
    trace id. ValueError without a route, or when the monitors do not share one registry.
    """

    def __init__(
        self,
        app: Application,
        routes: Mapping[str, InferenceMonitor],
        *,
        metrics_path: str | None = "/metrics",
    ) -> None:
        if not routes:
            raise ValueError("there is no route to measure: give {path: InferenceMonitor}")
        self._metrics, *others = [monitor.metrics for monitor in routes.values()]
        if any(metrics.registry is not self._metrics.registry for metrics in others):
            raise ValueError("the monitors have several registries, a page has one: give them the same Metrics")
        self._app, self._routes, self._metrics_path = app, dict(routes), metrics_path

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope.get("path")
        if scope["type"] == "http" and path == self._metrics_path:
            await self._answer_metrics(scope, send)
        elif scope["type"] == "http" and path in self._routes:
            await self._measure(self._routes[path], scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer_metrics(self, scope: Message, send: Send) -> None:
        accept = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
        body, content_type = exposition(self._metrics, accept)
        headers = [(b"content-type", content_type.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _measure(self, monitor: InferenceMonitor, scope: Message, receive: Receive, send: Send) -> None:
        parent = parse_traceparent(dict(scope["headers"]).get(TRACEPARENT.encode()))
        context = monitor.tracing.context(parent)
        watch = _Watch(receive, send)
        request = _Request()
        token = _request.set(request)
        error: BaseException | None = None
        try:
            with use_span(NonRecordingSpan(context), record_exception=False, set_status_on_exception=False):
                await self._app(scope, watch.receive, watch.send)
        except BaseException as raised:
            error = raised
            raise
        finally:
            _request.reset(token)
            outcome = _outcome_of(error) if error is not None else _outcome_of_status(watch.status, request.outcome)
            monitor.observe_request(outcome, watch.seconds, context)
            attributes = {"model": monitor.model, "version": monitor.version, "outcome": outcome}
            failed = outcome if outcome in names.FAULTS else None
            end = watch.start_ns + int(watch.seconds * 1e9)
            monitor.tracing.record(
                names.SPAN_REQUEST,
                watch.start_ns,
                end,
                parent,
                attributes,
                kind=SpanKind.SERVER,
                context=context,
                error=failed,
            )


class _Watch:
    """Passes a request's messages on, and notes when its body was in and when its answer began."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.start_ns = time.time_ns()
        self._start = time.perf_counter()
        self._answered: float | None = None
        self.status = 500

    @property
    def seconds(self) -> float:
        return (self._answered or time.perf_counter()) - self._start

    async def receive(self) -> Message:
        message = await self._receive()
        if self._answered is None and message["type"] == "http.request" and not message.get("more_body", False):
            self.start_ns = time.time_ns()
            self._start = time.perf_counter()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._answered = time.perf_counter()
        await self._send(message)


def _made_up(rows: int) -> list[str]:
    """Ids in the form that a request with several rows has."""
    request = uuid4().hex
    return [request] if rows == 1 else [f"{request}/{row}" for row in range(rows)]


def _outcomes(predictions: Mapping[str, Any], outcome: str, rows: int) -> Any:
    """The outcome of all rows, or a list where some rows of an otherwise good batch are not finite."""
    if outcome != "ok":
        return outcome
    finite = np.ones(rows, bool)
    for values in predictions.values():
        array = np.asarray(values)
        if array.dtype.kind == "f":
            finite &= np.isfinite(array.reshape(rows, -1)).all(axis=1)
    return "ok" if finite.all() else ["ok" if fine else "non_finite" for fine in finite]


def _outcome_of(error: BaseException) -> str:
    # What is no Exception (asyncio's CancelledError, an interrupt) ended the request from outside.
    return "model_error" if isinstance(error, Exception) else "cancelled"


def _outcome_of_status(status: int, outcome: str) -> str:
    if status < 400:
        return outcome
    return _OUTCOME_OF_STATUS.get(status, "invalid" if status < 500 else "model_error")
