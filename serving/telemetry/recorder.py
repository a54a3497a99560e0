"""Turns finished calls into prediction events and spans, on a thread of its own, behind a bounded queue."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from opentelemetry.trace import SpanKind

from observability import names
from observability.events import FEATURE, event_batch
from observability.metrics import Metrics
from observability.tracing import Tracing, format_trace_id
from serving.calls import Call
from serving.protocol.tensors import Array
from serving.router import Choice
from serving.telemetry.accounts import Served
from serving.telemetry.served import EventForm, ServedGroup, feature, names_of, recorded, row_texts

_MAX_FORMS = 64
NOTHING: frozenset[str] = frozenset()
LeftOut = Callable[[str, int], frozenset[str]]


class EventSink(Protocol):
    """Where event batches go; `observability.exporter.EventExporter` is one."""

    def put(self, item: pa.RecordBatch) -> None: ...


@dataclass(frozen=True, slots=True)
class _Anchor:
    """Ties the clock of calls (perf_counter, s) to unix time (ns) at one moment."""

    clock: float
    unix_ns: int

    def unix(self, moment: float) -> int:
        return self.unix_ns + int((moment - self.clock) * 1e9)


class Recorder:
    """`put(calls)` takes microseconds and never blocks; when the thread is behind, groups are dropped and counted."""

    def __init__(
        self,
        events: EventSink | None,
        tracing: Tracing,
        metrics: Metrics,
        max_groups: int = 4096,
        instance: str = "",
        left_out: LeftOut | None = None,
    ) -> None:
        self._events = events
        # Whether every call is recorded, or traced ones only.
        self.records_all = events is not None
        self._tracing = tracing
        self._metrics = metrics
        self._instance = instance.encode()
        # Features that are counted elsewhere, by version: events go without them.
        self._left_out = left_out or (lambda model, version: NOTHING)
        self._forms: dict[int, EventForm] = {}
        self._groups: queue.Queue[tuple[Sequence[Call] | ServedGroup, _Anchor] | None] = queue.Queue(max_groups)
        self._thread = threading.Thread(target=self._work, name="trimtab-recorder", daemon=True)
        self._thread.start()

    def put(self, calls: Sequence[Call]) -> None:
        """Records calls of one version and arm that ended together."""
        try:
            self._groups.put_nowait((calls, _Anchor(time.perf_counter(), time.time_ns())))
        except queue.Full:
            self._dropped("recorder_full", calls)

    def put_served(self, model: str, choice: Choice, served: Sequence[Served], first: int) -> None:
        """Records batches of the shortcut; `first` is the number of their first request."""
        if self._events is None:
            return
        group = ServedGroup(model, choice, served, first)
        try:
            self._groups.put_nowait((group, _Anchor(time.perf_counter(), time.time_ns())))
        except queue.Full:
            self._dropped_rows("recorder_full", group.count)

    def close(self, timeout: float = 5.0) -> None:
        """Records what waits and ends the thread."""
        try:
            self._groups.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)

    def _work(self) -> None:
        while (entry := self._groups.get()) is not None:
            calls, anchor = entry
            if isinstance(calls, ServedGroup):
                self._record_served(calls, anchor)
                continue
            try:
                if self._events is not None:
                    self._events.put(events_of(calls, anchor, self._left_out(calls[0].model, calls[0].choice.version)))
                for call in calls:
                    if call.span is not None:
                        self._trace(call, anchor)
            except Exception:
                # Telemetry must not end with one odd batch; the counter says that something was lost.
                self._dropped("invalid", calls)

    def _record_served(self, group: ServedGroup, anchor: _Anchor) -> None:
        try:
            if self._events is not None:
                self._events.put(self._form(group).events(group, anchor.unix_ns / 1e9 - anchor.clock))
        except Exception:
            self._dropped_rows("invalid", group.count)

    def _form(self, group: ServedGroup) -> EventForm:
        """What such events have in common; found by the choice, which the form keeps, so that no other gets its id."""
        form, signature = self._forms.get(id(group.choice)), group.served[0].signature
        left_out = self._left_out(group.model, group.choice.version)
        if form is None or form.signature is not signature or form.left_out != left_out:
            if len(self._forms) >= _MAX_FORMS:
                self._forms.clear()
            form = EventForm(group.model, group.choice, signature, self._instance, left_out)
            self._forms[id(group.choice)] = form
        return form

    def _dropped(self, reason: str, calls: Sequence[Call]) -> None:
        self._dropped_rows(reason, sum(call.rows for call in calls))

    def _dropped_rows(self, reason: str, rows: int) -> None:
        self._metrics[names.TELEMETRY_DROPPED].labels("events", reason).inc()
        self._metrics[names.TELEMETRY_DROPPED_ROWS].labels("events", reason).inc(rows)

    def _trace(self, call: Call, anchor: _Anchor) -> None:
        record, parent = self._tracing.record, call.span
        model = {"model": call.model, "version": str(call.choice.version)}
        attributes: dict[str, Any] = {
            **model, "arm": call.choice.arm, "outcome": call.outcome, "rows": call.rows, "request.id": call.id,
        }  # fmt: skip
        error = None if call.outcome == "ok" else call.outcome
        begun, ended = anchor.unix(call.arrived), anchor.unix(call.done)
        record(
            names.SPAN_REQUEST, begun, ended, call.parent, attributes, (), SpanKind.SERVER, context=parent, error=error
        )
        if call.started is None or call.ended is None:
            record(names.SPAN_QUEUE, begun, ended, parent, model, error=error)
            return
        started, finished = anchor.unix(call.started), anchor.unix(call.ended)
        record(names.SPAN_QUEUE, begun, started, parent, model)
        # The request's own span is the batch's parent; the other traces that it worked for are links.
        others = [context for context in call.company if context != parent]
        batch = record(names.SPAN_BATCH, started, ended, parent, {**model, "batch.rows": call.batch_rows}, others)
        record(names.SPAN_MODEL, started, finished, batch, model, error=error)


def events_of(calls: Sequence[Call], anchor: _Anchor, left_out: frozenset[str] = NOTHING) -> pa.RecordBatch:
    """One event a row of calls of one version and arm, as one record batch; predictions of failed calls are null.

    `left_out` are columns of features that events go without.
    """
    first = calls[0]
    choice, signature = first.choice, first.signature
    rows = np.array([call.rows for call in calls])
    features = {
        column.name: feature(column, [call.values[place] for call in calls])
        for place, column in enumerate(signature.inputs)
        if recorded(column) and FEATURE + column.name not in left_out
    }
    failures = [call.outputs is None for call in calls]
    failed = np.repeat(failures, rows) if any(failures) else None
    predictions: dict[str, Any] = {}
    for place, output in enumerate(signature.outputs):
        parts = [_prediction(call, place) for call in calls]
        # Failed calls alone do not show how many values a row has; the signature may say it.
        declared = 1 if -1 in output.shape else prod(output.shape)
        width = max(declared, *(part.shape[1] for part in parts))
        values = np.concatenate([part if part.shape[1] == width else _widened(part, width) for part in parts])
        by_name = zip(names_of(output.name, width), np.ascontiguousarray(values.T, np.float64), strict=True)
        predictions |= {name: pa.array(of_name, pa.float64(), mask=failed) for name, of_name in by_name}
    return event_batch(
        ids=list(chain.from_iterable(map(_ids, calls))),
        time_ns=np.repeat([anchor.unix(call.done) for call in calls], rows),
        model=first.model,
        version=str(choice.version),
        arm=choice.arm,
        release=choice.release,
        propensity=_propensity(calls, rows),
        outcome=_repeated([call.outcome for call in calls], rows),
        latency_seconds=np.repeat([call.done - call.arrived for call in calls], rows),
        trace_ids=_repeated([format_trace_id(call.span) for call in calls], rows),
        attributes=_repeated([call.attributes for call in calls], rows),
        features=features,
        predictions=predictions,
    )


def _propensity(calls: Sequence[Call], rows: npt.NDArray[np.int64]) -> pa.Array | float:
    """The probability of the arm; null for requests of units that had it already."""
    propensity = calls[0].choice.propensity
    if all(call.drawn for call in calls):
        return propensity
    known = np.repeat([not call.drawn for call in calls], rows)
    return pa.array(np.full(len(known), propensity), mask=known)


def _ids(call: Call) -> list[str]:
    if call.rows == 1:
        return [call.id]
    start = f"{call.id}/"
    return [start + row for row in row_texts(call.rows)]


def _repeated(values: Sequence[str | None], rows: npt.NDArray[np.int64]) -> pa.Array | str | None:
    """Each value for all rows of its call; one value where it is the same for all."""
    if values.count(values[0]) == len(values):
        return values[0]
    return pa.array(np.repeat(np.array(values, object), rows), pa.utf8(), from_pandas=False)


def _widened(part: Array, width: int) -> Array:
    return np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=np.nan)


def _prediction(call: Call, place: int) -> Array:
    """What the model gave for the call's rows, [rows, values]; NaN where it gave nothing."""
    if call.outputs is None:
        return np.full((call.rows, 1), np.nan)
    return call.outputs[place].reshape(call.rows, -1)
