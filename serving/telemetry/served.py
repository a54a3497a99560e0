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
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from observability.events import FEATURE, METADATA, PREDICTION
from observability.laid_columns import LaidRows, head, lay, message
from observability.native import extension
from serving.protocol.signature import Input, Signature, Values
from serving.protocol.tensors import WIRE_TYPES, Array
from serving.router import Choice
from serving.telemetry.columns import names_of, recorded
from serving.telemetry.memory import Memory
from serving.telemetry.rows import written
from serving.telemetry.runs import Run

_CONSTANTS = ("model", "version", "arm", "release", "propensity", "outcome", "trace_id", "attributes")
_TRACE_ID = _CONSTANTS.index("trace_id")
_NOTHING = memoryview(b"")
# What the compiled function takes: outputs of these types, so many at most.
_COMPILED, _MOST_OUTPUTS = (np.dtype(np.float32), np.dtype(np.float64)), 64
_TEXTS = METADATA.types.count(pa.utf8())
# The most that two numbers, what stands before them, and a trace's id take.
_ID_BYTES, _TRACE_BYTES = 42, 32
# The nodes and buffers of one column.
_Laid = tuple[Sequence[int], Sequence[memoryview]]


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
    _schema: pa.Schema | None = None
    _schema_message: memoryview = _NOTHING
    # Values a row of each output, as the schema has them.
    _widths: list[int] = field(default_factory=list)
    _kept: Sequence[int] = ()
    _head: bytes = b""
    _capacity: int = 0
    _laid: list[_Laid] = field(default_factory=list)

    def events(self, run: Run, first: int, unix: float) -> LaidRows:
        """One event a row of a run whose first request has the number `first`.

        `unix` is what has to be added to the clock of calls for unix time, seconds.
        """
        column, outputs, rows = self.signature.inputs[0], run.outputs, run.column.rows
        told = recorded(column) and FEATURE + column.name not in self.left_out
        feature = _feature(column, run.column.array()) if told else None
        widths = [output.size // rows for output in outputs]
        if self._schema is None or (widths, run.kept) != (self._widths, self._kept):
            self._schema = self._columns(told, run.kept, widths)
            self._widths, self._kept = widths, run.kept
            self._schema_message = memoryview(self._schema.serialize())
            # Per column its array, and the texts' own buffers; a list's values are an array of their own.
            lists = int(told and bool(column.shape))
            nodes, buffers = len(self._schema) + lists, 2 * len(self._schema) + _TEXTS + lists
            self._head = head(0, 0, [0] * 2 * nodes, bytes(16 * buffers))
        library = native()
        if library is None or len(outputs) > _MOST_OUTPUTS:
            pieces = self._written(run, feature, first, unix)
        else:
            pieces = self._compiled(library, run, outputs, feature, first, unix)
        return LaidRows(self._schema, self._schema_message, rows, pieces)

    def _compiled(
        self, library: ModuleType, run: Run, outputs: Sequence[Array], feature: _Laid | None, first: int, unix: float
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

    def _written(self, run: Run, feature: _Laid | None, first: int, unix: float) -> Sequence[memoryview]:
        """The same by numpy."""
        told, count = run.told(), run.column.rows
        rows = written(run, told, self.prefix, first, unix)
        constants = self._repeated(count)
        places, ids = run.traces()
        if ids:
            constants = [*constants]
            constants[_TRACE_ID] = lay(_sparse(count, told[0], places, ids))
        columns: list[_Laid] = [
            ((count, 0), (_NOTHING, _bytes(rows.offsets), _bytes(rows.text))), _numbers(rows.times), *constants[:6],
            _numbers(rows.latencies), *constants[6:],
        ]  # fmt: skip
        if feature is not None:
            columns.append(feature)
        columns += [_numbers(values) for of_output in rows.values for values in of_output]
        nodes = [number for of_column, _ in columns for number in of_column]
        return message(count, nodes, [buffer for _, of_column in columns for buffer in of_column])

    def _columns(self, told: bool, kept: Sequence[int], widths: Sequence[int]) -> pa.Schema:
        """The schema, with the input if it is `told` and so many values of each output that is kept."""
        fields: list[pa.Field] = [*METADATA]
        column = self.signature.inputs[0]
        if told:
            value = pa.float64() if column.datatype == "FP64" or not column.shape else pa.float32()
            fields.append(pa.field(FEATURE + column.name, pa.list_(value, column.size) if column.shape else value))
        for place, width in zip(kept, widths, strict=True):
            output = self.signature.outputs[place]
            fields += [pa.field(PREDICTION + name, pa.float64()) for name in names_of(output.name, width)]
        return pa.schema(fields)

    def _repeated(self, rows: int) -> list[_Laid]:
        """The columns of `_CONSTANTS`, in the order of METADATA."""
        if rows > self._capacity:
            self._capacity = max(1024, 1 << (rows - 1).bit_length())
            choice = self.choice
            given: tuple[Any, ...] = (
                self.model, str(choice.version), choice.arm, choice.release, choice.propensity, "ok", None, None,
            )  # fmt: skip
            self._laid = [
                lay(pa.repeat(pa.scalar(value, METADATA.field(name).type), self._capacity))
                for name, value in zip(_CONSTANTS, given, strict=True)
            ]
        return [_first(of_column, self._capacity, rows) for of_column in self._laid]


def _bytes(values: Array) -> memoryview:
    return values.data.cast("B") if values.size else _NOTHING


def _numbers(values: Array) -> _Laid:
    return (len(values), 0), (_NOTHING, _bytes(values))


def _first(constant: _Laid, capacity: int, rows: int) -> _Laid:
    """The first rows of a column that is the same in all `capacity` rows."""
    (_, nulls), (valid, *others) = constant
    kept = [valid[: (rows + 7) // 8]]
    if len(others) == 2:
        kept.append(others.pop(0)[: 4 * (rows + 1)])
    # Texts, or numbers: all equally long.
    kept.append(others[0][: others[0].nbytes // capacity * rows])
    return (rows, rows if nulls else 0), kept


def _feature(column: Input, values: Array) -> _Laid:
    """The float input of the shortcut, as `feature` has it."""
    if not column.shape:
        return _numbers(values.astype(np.float64).reshape(-1))
    values = values.astype(np.float64 if column.datatype == "FP64" else np.float32, copy=False).reshape(-1)
    return (len(values) // column.size, 0, len(values), 0), (_NOTHING, _NOTHING, _bytes(values))


def _sparse(rows: int, requests: npt.NDArray[np.int64], places: Sequence[int], texts: Sequence[str]) -> pa.Array:
    """Texts in the rows of requests in some places, the first first, of so many rows; null in the others."""
    of_requests = np.zeros(len(requests), np.int32)
    of_requests[places] = [len(text) for text in texts]
    sizes = np.concatenate(([0], np.repeat(of_requests, requests)))
    offsets, bits = np.cumsum(sizes, dtype=np.int32), np.packbits(sizes[1:] > 0, bitorder="little")
    text = "".join(one * int(requests[place]) for place, one in zip(places, texts, strict=True)).encode()
    return pa.Array.from_buffers(pa.utf8(), rows, [pa.py_buffer(bits), pa.py_buffer(offsets), pa.py_buffer(text)])


def feature(column: Input, parts: Sequence[Values]) -> pa.Array:
    """A feature's values in the type that events have."""
    if column.datatype == "BYTES":
        return pa.array([text for part in parts for text in part], pa.utf8())
    kind = WIRE_TYPES.get(column.datatype)
    alike = [part for part in parts if isinstance(part, np.ndarray) and part.dtype == kind]
    values = _joined(alike).reshape(-1) if len(alike) == len(parts) else column.joined(parts)
    if column.shape:
        recorded_as = np.float32 if column.datatype in ("FP16", "FP32") else np.float64
        return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(recorded_as, copy=False)), column.size)
    return pa.array(values.astype(np.bool_ if column.datatype == "BOOL" else np.float64))


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
