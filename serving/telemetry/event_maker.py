"""Prediction events of answered requests, made and handed to an exporter on the recorder's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from math import prod
from typing import Protocol

import numpy as np
import numpy.typing as npt

from observability.event_names import EVENT_FIELDS, FEATURE, PREDICTION
from observability.laid_columns import Laid, LaidRows, laid_rows, numbers, same_texts, texts
from observability.stream_schema import Field
from observability.tracing import format_trace_id
from serving.calls import Call
from serving.protocol.tensors import Array
from serving.telemetry.columns import Anchor, ServedGroup, names_of, recorded
from serving.telemetry.memory import Memory
from serving.telemetry.rows import row_texts
from serving.telemetry.runs import Run, carried
from serving.telemetry.served import EventForm, feature, feature_field

_MAX_FORMS = 64
NOTHING: frozenset[str] = frozenset()
LeftOut = Callable[[str, int], frozenset[str]]


class EventSink(Protocol):
    """Where event batches go; `observability.EventExporter` is one."""

    def put(self, item: LaidRows) -> None: ...

    def close(self, timeout: float) -> object: ...


class EventMaker:
    """Makes events for one thread. `left_out` are features that are counted elsewhere: events go without them."""

    def __init__(self, sink: EventSink, instance: str = "", left_out: LeftOut | None = None) -> None:
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


def events_of(calls: Sequence[Call], anchor: Anchor, left_out: frozenset[str] = NOTHING) -> LaidRows:
    """One event a row of calls of one version and arm, as one record batch; predictions of failed calls are null.

    `left_out` are columns of features that events go without.
    """
    first = calls[0]
    choice, signature = first.choice, first.signature
    counts = np.array([call.rows for call in calls])
    rows = int(counts.sum())
    fields, columns = [*EVENT_FIELDS], [
        texts(list(chain.from_iterable(map(_ids, calls)))),
        numbers(np.repeat(np.array([anchor.unix(call.done) for call in calls], np.int64), counts)),
        *(same_texts(text, rows) for text in (first.model, str(choice.version), choice.arm, choice.release)),
        _propensity(calls, counts),
        _repeated([call.outcome for call in calls], counts),
        numbers(np.repeat([call.done - call.arrived for call in calls], counts)),
        _repeated([format_trace_id(call.span) for call in calls], counts),
        _repeated([call.attributes for call in calls], counts),
    ]  # fmt: skip
    for place, column in enumerate(signature.inputs):
        if recorded(column) and FEATURE + column.name not in left_out:
            fields.append(feature_field(column))
            columns.append(feature(column, [call.values[place] for call in calls]))
    failures = [call.outputs is None for call in calls]
    failed = np.repeat(failures, counts) if any(failures) else None
    for place, output in enumerate(signature.outputs):
        parts = [_prediction(call, place) for call in calls]
        # Failed calls alone do not show how many values a row has; the signature may say it.
        width = max(prod(output.shape), *(part.shape[1] for part in parts))
        if not carried(output, width):
            continue
        values = np.concatenate([part if part.shape[1] == width else _widened(part, width) for part in parts])
        fields += [Field(PREDICTION + name, "float64") for name in names_of(output.name, width)]
        columns += [numbers(of_name, failed) for of_name in np.ascontiguousarray(values.T, np.float64)]
    return laid_rows(rows, fields, columns)


def _propensity(calls: Sequence[Call], rows: npt.NDArray[np.int64]) -> Laid:
    """The probability of the arm; null for requests of units that had it already."""
    null = None if all(call.drawn for call in calls) else np.repeat([not call.drawn for call in calls], rows)
    return numbers(np.full(rows.sum(), calls[0].choice.propensity), null)


def _ids(call: Call) -> Sequence[str]:
    if (known := call.row_ids) is not None:
        return known
    if call.rows == 1:
        return [call.id]
    start = f"{call.id}/"
    return [start + row for row in row_texts(call.rows)]


def _repeated(values: Sequence[str | None], rows: npt.NDArray[np.int64]) -> Laid:
    """Each value for all rows of its call."""
    if values.count(values[0]) == len(values):
        return same_texts(values[0], int(rows.sum()))
    return texts(values, rows)


def _widened(part: Array, width: int) -> Array:
    return np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=np.nan)


def _prediction(call: Call, place: int) -> Array:
    """What the model gave for the call's rows, [rows, values]; NaN where it gave nothing."""
    if call.outputs is None:
        return np.full((call.rows, 1), np.nan)
    return call.outputs[place].reshape(call.rows, -1)
