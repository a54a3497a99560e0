"""Turns finished calls into prediction events and spans, on a thread of its own, behind a bounded queue."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from opentelemetry.trace import SpanKind

from observability import names
from observability.events import event_batch
from observability.metrics import Metrics
from observability.tracing import Tracing, format_trace_id
from serving.calls import Call
from serving.protocol.signature import Input, Signature, Values
from serving.protocol.tensors import Array
from serving.router import Choice
from serving.telemetry.accounts import Served

# Values a row of an input that events still carry.
_MAX_VECTOR = 4096


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
        self, events: EventSink | None, tracing: Tracing, metrics: Metrics, max_groups: int = 4096, instance: str = ""
    ) -> None:
        self._events = events
        # Whether every call is recorded, or traced ones only.
        self.records_all = events is not None
        self._tracing = tracing
        self._metrics = metrics
        self._instance = instance
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
        group = ServedGroup(model, choice, served[0].signature, self._instance, served, first)
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
                    self._events.put(events_of(calls, anchor))
                for call in calls:
                    if call.span is not None:
                        self._trace(call, anchor)
            except Exception:
                # Telemetry must not end with one odd batch; the counter says that something was lost.
                self._dropped("invalid", calls)

    def _record_served(self, group: ServedGroup, anchor: _Anchor) -> None:
        try:
            if self._events is not None:
                self._events.put(group.events(anchor))
        except Exception:
            self._dropped_rows("invalid", group.count)

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
        batch = record(names.SPAN_BATCH, started, ended, parent, {**model, "batch.rows": call.batch_rows})
        record(names.SPAN_MODEL, started, finished, batch, model, error=error)


@dataclass(frozen=True, slots=True)
class ServedGroup:
    """Batches of the shortcut that were answered by one choice."""

    model: str
    choice: Choice
    signature: Signature
    instance: str
    served: Sequence[Served]
    first: int

    @property
    def count(self) -> int:
        """Rows of all batches."""
        return sum(len(batch.column) for batch in self.served)

    def events(self, anchor: _Anchor) -> pa.RecordBatch:
        """One event a row."""
        served, choice = self.served, self.choice
        rows = [count for batch in served for count in batch.rows]
        done = np.repeat([batch.done for batch in served], [len(batch.rows) for batch in served])
        latency = done - np.concatenate([batch.arrived for batch in served])
        ids: list[str] = []
        for number, count in enumerate(rows, self.first):
            name = f"{self.instance}-{number}"
            ids += [name] if count == 1 else [f"{name}/{row}" for row in range(count)]
        column = self.signature.inputs[0]
        features = {column.name: _feature(column, [batch.column for batch in served])} if _recorded(column) else {}
        predictions: dict[str, Any] = {}
        for place, output in enumerate(self.signature.outputs):
            values = np.concatenate([np.asarray(batch.outputs[place], np.float64) for batch in served])
            values = values.reshape(len(ids), -1)
            named = [output.name] if values.shape[1] == 1 else [f"{output.name}.{k}" for k in range(values.shape[1])]
            predictions |= {name: pa.array(np.ascontiguousarray(values[:, k])) for k, name in enumerate(named)}
        return event_batch(
            ids=ids,
            time_ns=np.repeat(anchor.unix_ns + ((done - anchor.clock) * 1e9).astype(np.int64), rows),
            model=self.model,
            version=str(choice.version),
            arm=choice.arm,
            release=choice.release,
            propensity=choice.propensity,
            latency_seconds=np.repeat(latency, rows),
            features=features,
            predictions=predictions,
        )


def events_of(calls: Sequence[Call], anchor: _Anchor) -> pa.RecordBatch:
    """One event a row of calls of one version and arm, as one record batch; predictions of failed calls are null."""
    first = calls[0]
    choice, signature = first.choice, first.signature
    rows = [call.rows for call in calls]
    features = {
        column.name: _feature(column, [call.values[place] for call in calls])
        for place, column in enumerate(signature.inputs)
        if _recorded(column)
    }
    predictions: dict[str, Any] = {}
    for place, output in enumerate(signature.outputs):
        parts = [_prediction(call, place) for call in calls]
        # Failed calls alone do not show how many values a row has; the signature may say it.
        declared = 1 if -1 in output.shape else prod(output.shape)
        width = max(declared, *(part.shape[1] for part in parts))
        values = np.concatenate([part if part.shape[1] == width else _widened(part, width) for part in parts])
        failed = np.repeat([call.outputs is None for call in calls], rows)
        named = [output.name] if width == 1 else [f"{output.name}.{k}" for k in range(width)]
        predictions |= {name: pa.array(values[:, k], pa.float64(), mask=failed) for k, name in enumerate(named)}
    return event_batch(
        ids=list(chain.from_iterable(_ids(call) for call in calls)),
        time_ns=np.repeat([anchor.unix(call.done) for call in calls], rows),
        model=first.model,
        version=str(choice.version),
        arm=choice.arm,
        release=choice.release,
        propensity=choice.propensity,
        outcome=_repeated([call.outcome for call in calls], rows),
        latency_seconds=np.repeat([call.done - call.arrived for call in calls], rows),
        trace_ids=_repeated([format_trace_id(call.span) for call in calls], rows),
        attributes=_repeated([call.attributes for call in calls], rows),
        features=features,
        predictions=predictions,
    )


def _ids(call: Call) -> list[str]:
    return [call.id] if call.rows == 1 else [f"{call.id}/{row}" for row in range(call.rows)]


def _repeated(values: list[str | None] | list[str], rows: list[int]) -> pa.Array:
    return pa.array(
        list(chain.from_iterable([value] * count for value, count in zip(values, rows, strict=True))), pa.utf8()
    )


def _recorded(column: Input) -> bool:
    """A vector of texts, of varying length, or too long to be compared with others, is not part of an event."""
    return not column.shape or (column.codes is None and 0 < column.size <= _MAX_VECTOR)


def _feature(column: Input, parts: list[Values]) -> pa.Array:
    if column.datatype == "BYTES":
        return pa.array(chain.from_iterable(parts), pa.utf8())
    values = column.joined(parts)
    if column.shape:
        kind = np.float32 if column.datatype in ("FP16", "FP32") else np.float64
        return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(kind, copy=False)), column.size)
    return pa.array(values.astype(np.bool_ if column.datatype == "BOOL" else np.float64))


def _widened(part: Array, width: int) -> Array:
    return np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=np.nan)


def _prediction(call: Call, place: int) -> Array:
    if call.outputs is None:
        return np.full((call.rows, 1), np.nan)
    return call.outputs[place].reshape(call.rows, -1).astype(np.float64)
