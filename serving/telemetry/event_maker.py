"""Prediction events of answered requests, made and handed to an exporter on the recorder's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from observability.event_names import FEATURE
from observability.events import event_batch
from observability.laid_columns import LaidRows
from observability.tracing import format_trace_id
from serving.calls import Call
from serving.garbage import look_for_pandas
from serving.protocol.tensors import Array
from serving.telemetry.columns import Anchor, ServedGroup, names_of, recorded
from serving.telemetry.memory import Memory
from serving.telemetry.rows import row_texts
from serving.telemetry.runs import MAX_VALUES, Run
from serving.telemetry.served import EventForm, feature

_MAX_FORMS = 64
NOTHING: frozenset[str] = frozenset()
LeftOut = Callable[[str, int], frozenset[str]]


class EventSink(Protocol):
    """Where event batches go; `observability.EventExporter` is one."""

    def put(self, item: pa.RecordBatch | LaidRows) -> None: ...

    def close(self, timeout: float) -> object: ...


class EventMaker:
    """Makes events for one thread. `left_out` are features that are counted elsewhere: events go without them."""

    def __init__(self, sink: EventSink, instance: str = "", left_out: LeftOut | None = None) -> None:
        look_for_pandas()
        self._sink = sink
        self._instance = instance.encode()
        self._left_out = left_out or (lambda model, version: NOTHING)
        self._forms: dict[int, EventForm] = {}
        # For what is written of rows: blocks of other sizes than the rows'.
        self._written = Memory()

    def put(self, calls: Sequence[Call], anchor: Anchor) -> None:
        """Calls of one version and arm that ended together."""
        self._sink.put(events_of(calls, anchor, self._left_out(calls[0].model, calls[0].choice.version)))

    def put_served(self, group: ServedGroup, anchor: Anchor) -> None:
        """Batches of the shortcut."""
        first = group.first
        for run in group.served:
            self._sink.put(self._form(group, run).events(run, first, anchor.unix_ns / 1e9 - anchor.clock))
            first += run.requests

    def close(self) -> None:
        """Sends what waits, as far as it goes."""
        self._sink.close(timeout=2.0)

    def _form(self, group: ServedGroup, run: Run) -> EventForm:
        """What such events have in common; found by the choice, which the form keeps, so that no other gets its id."""
        form, signature = self._forms.get(id(group.choice)), run.signature
        left_out = self._left_out(group.model, group.choice.version)
        if form is None or form.signature is not signature or form.left_out != left_out:
            if len(self._forms) >= _MAX_FORMS:
                self._forms.clear()
            form = EventForm(group.model, group.choice, signature, self._instance, left_out, self._written)
            self._forms[id(group.choice)] = form
        return form


def events_of(calls: Sequence[Call], anchor: Anchor, left_out: frozenset[str] = NOTHING) -> pa.RecordBatch:
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
        if width > MAX_VALUES:
            continue
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


def _ids(call: Call) -> Sequence[str]:
    if (known := call.row_ids) is not None:
        return known
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
