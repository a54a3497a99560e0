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
from serving.protocol.signature import Input, Signature, Values
from serving.protocol.tensors import WIRE_TYPES, Array
from serving.router import Choice
from serving.telemetry.columns import names_of, recorded
from serving.telemetry.memory import Memory
from serving.telemetry.rows import written
from serving.telemetry.runs import Run

_CONSTANTS = ("model", "version", "arm", "release", "propensity", "outcome", "trace_id", "attributes")

_TRACE_ID = _CONSTANTS.index("trace_id")


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
    _constants: dict[str, pa.Array] = field(default_factory=dict)
    _capacity: int = 0

    def events(self, run: Run, first: int, unix: float) -> pa.RecordBatch:
        """One event a row of a run whose first request has the number `first`.

        `unix` is what has to be added to the clock of calls for unix time, seconds.
        """
        rows = written(run, self.prefix, first, unix, self.memory)
        values: dict[str, pa.Array] = {}
        column = self.signature.inputs[0]
        if recorded(column) and FEATURE + column.name not in self.left_out:
            values[FEATURE + column.name] = feature(column, [run.column.array()])
        for output, columns in zip(self.signature.outputs, rows.values, strict=True):
            named = zip(names_of(output.name, len(columns)), columns, strict=True)
            values |= {PREDICTION + name: of_name for name, of_name in named}
        constants = self._repeated(len(rows.ids))
        if (traced := run.trace_ids()) is not None:
            constants[_TRACE_ID] = _sparse(len(rows.ids), *traced)
        arrays = [rows.ids, rows.times, *constants[:6], rows.latencies, *constants[6:], *values.values()]
        if self._schema is None or len(self._schema) != len(arrays):
            kinds = [pa.field(name, array.type) for name, array in values.items()]
            self._schema = pa.schema([*METADATA, *kinds])
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _repeated(self, rows: int) -> list[pa.Array]:
        """The columns of `_CONSTANTS`, in the order of METADATA."""
        if rows > self._capacity:
            self._capacity = max(1024, 1 << (rows - 1).bit_length())
            choice = self.choice
            given: tuple[Any, ...] = (
                self.model, str(choice.version), choice.arm, choice.release, choice.propensity, "ok", None, None,
            )  # fmt: skip
            self._constants = {
                name: pa.repeat(pa.scalar(value, METADATA.field(name).type), self._capacity)
                for name, value in zip(_CONSTANTS, given, strict=True)
            }
        return [array.slice(0, rows) for array in self._constants.values()]


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
