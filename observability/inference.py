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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import uuid4

import numpy as np
from opentelemetry.trace import SpanContext, get_current_span

from observability import names
from observability.event_exporter import EventExporter
from observability.events import event_batch
from observability.metrics import Metrics
from observability.tracing import NoTracing, Tracing, format_trace_id

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class InferenceBatch:
    """What the block of `monitor.batch` fills in: the predictions, by name, one array each."""

    features: Mapping[str, Any]
    predictions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class MeasuredRequest:
    """The request being measured: a batch inside it tells it what became of it, and does not count it again."""

    outcome: str = "ok"


current_request: ContextVar[MeasuredRequest | None] = ContextVar("trimtab_request", default=None)


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
            self.observe_batch(features, {}, ids, latency_seconds=seconds, outcome=outcome_of(error))
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
        request = MeasuredRequest()
        token = current_request.set(request)
        start = time.perf_counter()
        try:
            yield
        except BaseException as error:
            request.outcome = outcome_of(error)
            raise
        finally:
            current_request.reset(token)
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
        trace = trace or get_current_span().get_span_context()
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
                trace_ids=format_trace_id(trace),
                attributes=json.dumps(attributes) if isinstance(attributes, Mapping) else attributes,
                features=features,
                predictions=predictions,
            )
        )

    def _count(self, rows: int, seconds: float, outcome: str, trace: SpanContext | None) -> None:
        self._rows.inc(rows)
        self._batch_rows.observe(rows)
        self._compute.observe(seconds)
        if (request := current_request.get()) is not None:
            request.outcome = outcome
        else:
            self.observe_request(outcome, seconds, trace)


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


def outcome_of(error: BaseException) -> str:
    # What is no Exception (asyncio's CancelledError, an interrupt) ended the request from outside.
    return "model_error" if isinstance(error, Exception) else "cancelled"
