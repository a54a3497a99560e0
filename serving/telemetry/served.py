"""Events of the shortcut's batches, built column by column: what Python does does not grow with the rows.

The recorder shares the interpreter with the event loop, so a group of thousands of answers must hold it for well under
a millisecond: what differs is written by compiled code, constants are slices of arrays made once, and features stay
where the model read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from observability.events import FEATURE, METADATA, PREDICTION
from observability.laid_columns import LaidRows, lay
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
# The nodes and buffers of one column.
_Laid = tuple[Sequence[int], Sequence[memoryview]]


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
    _capacity: int = 0
    _laid: list[_Laid] = field(default_factory=list)

    def events(self, run: Run, first: int, unix: float) -> LaidRows:
        """One event a row of a run whose first request has the number `first`.

        `unix` is what has to be added to the clock of calls for unix time, seconds.
        """
        told_of = run.told()
        rows = written(run, told_of, self.prefix, first, unix, self.memory)
        count = run.column.rows
        constants = self._repeated(count)
        if (traced := run.trace_ids(told_of[0])) is not None:
            constants = [*constants]
            constants[_TRACE_ID] = lay(_sparse(count, *traced))
        columns: list[_Laid] = [
            ((count, 0), (_NOTHING, _bytes(rows.offsets), _bytes(rows.text))), _numbers(rows.times), *constants[:6],
            _numbers(rows.latencies), *constants[6:],
        ]  # fmt: skip
        column = self.signature.inputs[0]
        told = recorded(column) and FEATURE + column.name not in self.left_out
        if told:
            columns.append(_feature(column, run.column.array()))
        columns += [_numbers(values) for of_output in rows.values for values in of_output]
        if self._schema is None or len(self._schema) != len(columns):
            self._schema = self._columns(told, [len(of_output) for of_output in rows.values])
            self._schema_message = memoryview(self._schema.serialize())
        nodes = [number for of_column, _ in columns for number in of_column]
        buffers = [buffer for _, of_column in columns for buffer in of_column]
        return LaidRows(self._schema, self._schema_message, count, nodes, buffers)

    def _columns(self, told: bool, widths: Sequence[int]) -> pa.Schema:
        """The schema, with the input if it is `told` and so many values of each output."""
        fields: list[pa.Field] = [*METADATA]
        column = self.signature.inputs[0]
        if told:
            value = pa.float64() if column.datatype == "FP64" or not column.shape else pa.float32()
            fields.append(pa.field(FEATURE + column.name, pa.list_(value, column.size) if column.shape else value))
        for output, width in zip(self.signature.outputs, widths, strict=True):
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


def _sparse(rows: int, places: npt.NDArray[np.int64], texts: Sequence[str]) -> pa.Array:
    """Texts in some places, the first first, of so many rows; null in the others."""
    told, sizes = np.zeros(rows, np.bool_), np.zeros(rows + 1, np.int32)
    told[places], sizes[places + 1] = True, [len(text) for text in texts]
    offsets, bits = np.cumsum(sizes, dtype=np.int32), np.packbits(told, bitorder="little")
    text = "".join(texts).encode()
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
