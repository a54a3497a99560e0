"""Events of the shortcut's batches: what Python does does not grow with the rows.

The recorder shares the interpreter with the event loop, so a group of thousands of answers must hold it for well under
a millisecond: one compiled call writes the whole message without the interpreter, but for features, which stay where
the model read them. Without a compiler numpy writes the same, column by column.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from observability.event_names import EVENT_FIELDS, FEATURE, PREDICTION
from observability.laid_columns import (
    Laid,
    LaidRows,
    as_bytes,
    flags,
    head,
    message,
    numbers,
    same_texts,
    texts,
    vectors,
)
from observability.native import extension
from observability.stream_schema import Field, schema_message
from serving.protocol.signature import Input, Signature, Values
from serving.protocol.tensors import WIRE_TYPES, Array
from serving.router import Choice
from serving.telemetry.columns import names_of, recorded
from serving.telemetry.memory import Memory
from serving.telemetry.rows import written
from serving.telemetry.runs import Run

# Of the columns that are the same in all rows: model, version, arm, release, propensity, outcome, trace, attributes.
_TRACE_ID = 6
_NOTHING = memoryview(b"")
# Inputs that events have as float32.
_SINGLE = ("FP16", "FP32")
# What the compiled function takes: outputs of these types, so many at most.
_COMPILED, _MOST_OUTPUTS = (np.dtype(np.float32), np.dtype(np.float64)), 64
_TEXTS = [one.kind for one in EVENT_FIELDS].count("utf8")
# The most that two numbers, what stands before them, and a trace's id take.
_ID_BYTES, _TRACE_BYTES = 42, 32


@cache
def native() -> ModuleType | None:
    """The compiled function; None where there is no compiler."""
    return extension(Path(__file__).with_name("rows.c"))


@dataclass(slots=True)
class EventForm:
    """What the events of one choice and signature have in common: their schema, and the columns that never change."""

    model: str
    choice: Choice
    signature: Signature
    prefix: bytes
    left_out: frozenset[str] = frozenset()
    """Columns of features that events go without."""
    memory: Memory = field(default_factory=Memory)
    _schema_message: memoryview = _NOTHING
    # Values a row of each output, as the schema has them.
    _widths: list[int] = field(default_factory=list)
    _kept: Sequence[int] = ()
    _head: bytes = b""
    _capacity: int = 0
    _laid: list[Laid] = field(default_factory=list)

    def events(self, run: Run, first: int, unix: float) -> LaidRows:
        """One event a row of a run whose first request has the number `first`.

        `unix` is what has to be added to the clock of calls for unix time, seconds.
        """
        column, outputs, rows = self.signature.inputs[0], run.outputs, run.column.rows
        told = recorded(column) and FEATURE + column.name not in self.left_out
        feature = _feature(column, run.column.array()) if told else None
        widths = [output.size // rows for output in outputs]
        if not self._schema_message or (widths, run.kept) != (self._widths, self._kept):
            fields = self._fields(told, run.kept, widths)
            self._widths, self._kept = widths, run.kept
            self._schema_message = memoryview(schema_message(fields))
            # Per column its array, and the texts' own buffers; a list's values are an array of their own.
            lists = int(told and bool(column.shape))
            nodes, buffers = len(fields) + lists, 2 * len(fields) + _TEXTS + lists
            self._head = head(0, 0, [0] * 2 * nodes, bytes(16 * buffers))
        library = native()
        if library is None or len(outputs) > _MOST_OUTPUTS:
            pieces = self._written(run, feature, first, unix)
        else:
            pieces = self._compiled(library, run, outputs, feature, first, unix)
        return LaidRows(self._schema_message, rows, pieces)

    def _compiled(
        self, library: ModuleType, run: Run, outputs: Sequence[Array], feature: Laid | None, first: int, unix: float
    ) -> Sequence[memoryview]:  # fmt: skip
        rows, choice, column = run.column.rows, self.choice, self.signature.inputs[0]
        values = None if feature is None else feature[1][-1]
        texts = tuple(
            None if text is None else text.encode()
            for text in (self.model, str(choice.version), choice.arm, choice.release, "ok")
        )
        places, ids = run.traces()
        # Eight bytes a prediction; a row's id, its texts and their ends, three numbers, the bits of nulls, a trace.
        row = len(self.prefix) + _ID_BYTES + sum(len(text) for text in texts if text) + 4 * (_TEXTS + 1) + 24 + 2
        traces = rows * _TRACE_BYTES if ids else 0
        block = self.memory.take(len(self._head) + rows * (8 * sum(self._widths) + row) + traces + 1024).data
        begin, end, filled, over = library.message(
            block, self._head, self.prefix, first, unix, run.answered,
            (array("q", places), "".join(ids).encode()), texts, choice.propensity,
            -1 if values is None else values.nbytes, column.size if column.shape else 0,
            tuple(output if output.dtype in _COMPILED else output.astype(np.float64) for output in outputs),
        )  # fmt: skip
        return [block[begin:end], *([] if values is None else [values]), block[filled:over]]

    def _written(self, run: Run, feature: Laid | None, first: int, unix: float) -> Sequence[memoryview]:
        """The same by numpy."""
        told, count = run.told(), run.column.rows
        rows = written(run, told, self.prefix, first, unix)
        constants = self._repeated(count)
        places, ids = run.traces()
        if ids:
            constants = [*constants]
            constants[_TRACE_ID] = _sparse(told[0], places, ids)
        columns: list[Laid] = [
            ((count, 0), (_NOTHING, as_bytes(rows.offsets), as_bytes(rows.text))), numbers(rows.times), *constants[:6],
            numbers(rows.latencies), *constants[6:],
        ]  # fmt: skip
        if feature is not None:
            columns.append(feature)
        columns += [numbers(values) for of_output in rows.values for values in of_output]
        nodes = [number for of_column, _ in columns for number in of_column]
        return message(count, nodes, [buffer for _, of_column in columns for buffer in of_column])

    def _fields(self, told: bool, kept: Sequence[int], widths: Sequence[int]) -> list[Field]:
        """The columns, with the input if it is `told` and so many values of each output that is kept."""
        fields, column = [*EVENT_FIELDS], self.signature.inputs[0]
        if told:
            fields.append(feature_field(column))
        for place, width in zip(kept, widths, strict=True):
            output = self.signature.outputs[place]
            fields += [Field(PREDICTION + name, "float64") for name in names_of(output.name, width)]
        return fields

    def _repeated(self, rows: int) -> list[Laid]:
        """The columns that are the same in all rows, in their order."""
        if rows > self._capacity:
            self._capacity = capacity = max(1024, 1 << (rows - 1).bit_length())
            choice = self.choice
            before, behind = (self.model, str(choice.version), choice.arm, choice.release), ("ok", None, None)
            self._laid = [
                *(same_texts(text, capacity) for text in before), numbers(np.full(capacity, choice.propensity)),
                *(same_texts(text, capacity) for text in behind),
            ]  # fmt: skip
        return [_first(of_column, self._capacity, rows) for of_column in self._laid]


def _first(constant: Laid, capacity: int, rows: int) -> Laid:
    """The first rows of a column that is the same in all `capacity` rows."""
    (_, nulls), (valid, *others) = constant
    kept = [valid[: (rows + 7) // 8]]
    if len(others) == 2:
        kept.append(others.pop(0)[: 4 * (rows + 1)])
    # Texts, or numbers: all equally long.
    kept.append(others[0][: others[0].nbytes // capacity * rows])
    return (rows, rows if nulls else 0), kept


def _feature(column: Input, values: Array) -> Laid:
    """The float input of the shortcut, as `feature` has it."""
    if not column.shape:
        return numbers(values.astype(np.float64).reshape(-1))
    values = values.astype(np.float64 if column.datatype == "FP64" else np.float32, copy=False).reshape(-1)
    return vectors(values, column.size)


def _sparse(requests: npt.NDArray[np.int64], places: Sequence[int], ids: Sequence[str]) -> Laid:
    """A text in all rows of the requests in some places, null in the others."""
    of_requests: list[str | None] = [None] * len(requests)
    for place, id in zip(places, ids, strict=True):
        of_requests[place] = id
    return texts(of_requests, requests)


def feature_field(column: Input) -> Field:
    """The column that events have of an input."""
    name = FEATURE + column.name
    if column.datatype == "BYTES":
        return Field(name, "utf8")
    if column.shape:
        return Field(name, "float32" if column.datatype in _SINGLE else "float64", size=column.size)
    return Field(name, "bool" if column.datatype == "BOOL" else "float64")


def feature(column: Input, parts: Sequence[Values]) -> Laid:
    """A feature's values as that column has them."""
    if column.datatype == "BYTES":
        told: list[Any] = list(chain.from_iterable(parts))
        return texts(told)
    kind = WIRE_TYPES.get(column.datatype)
    alike = [part for part in parts if isinstance(part, np.ndarray) and part.dtype == kind]
    values = _joined(alike).reshape(-1) if len(alike) == len(parts) else column.joined(parts)
    if column.shape:
        recorded_as = np.float32 if column.datatype in _SINGLE else np.float64
        return vectors(np.ascontiguousarray(values, recorded_as).reshape(-1), column.size)
    if column.datatype == "BOOL":
        return flags(values.astype(np.bool_))
    return numbers(np.ascontiguousarray(values, np.float64))


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
