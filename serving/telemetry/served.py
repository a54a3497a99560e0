"""Events of the shortcut's batches, built column by column: what Python does does not grow with the rows.

The recorder shares the interpreter with the event loop, so a group of thousands of answers must hold it for well under
a millisecond: ids are written as one block of digits, constants are slices of arrays made once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from observability.events import FEATURE, METADATA, PREDICTION, TIME
from serving.protocol.signature import Input, Signature, Values
from serving.protocol.tensors import WIRE_TYPES, Array
from serving.router import Choice
from serving.telemetry.accounts import Served

# Values a row of an input that events still carry.
_MAX_VECTOR = 4096
# Digits of a number that are copied from a table.
_DIGITS = 4
_CONSTANTS = ("model", "version", "arm", "release", "propensity", "outcome", "trace_id", "attributes")
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ServedGroup:
    """Batches of the shortcut that were answered by one choice; `first` is the number of their first request."""

    model: str
    choice: Choice
    served: Sequence[Served]
    first: int

    @property
    def count(self) -> int:
        """Rows of all batches."""
        return sum(len(batch.column) for batch in self.served)


@dataclass(slots=True)
class EventForm:
    """What the events of one choice and signature have in common: their schema, and the columns that never change."""

    model: str
    choice: Choice
    signature: Signature
    prefix: bytes
    left_out: frozenset[str] = frozenset()
    """Columns of features that events go without."""
    _schema: pa.Schema | None = None
    _constants: dict[str, pa.Array] = field(default_factory=dict)
    _capacity: int = 0

    def events(self, group: ServedGroup, unix: float) -> pa.RecordBatch:
        """One event a row. `unix` is what has to be added to the clock of calls for unix time, seconds."""
        served = group.served
        requests = np.concatenate([np.asarray(batch.rows, np.int64) for batch in served])
        done = np.repeat([batch.done for batch in served], [len(batch.rows) for batch in served])
        latency = done - np.concatenate([batch.arrived for batch in served])
        rows = len(requests)
        if requests.max(initial=1) > 1 or requests.min(initial=1) < 1:
            rows = int(requests.sum())
            done, latency = np.repeat(done, requests), np.repeat(latency, requests)
        # Whole microseconds: beyond them the sum of two clocks as floats says nothing.
        times = ((done + unix) * 1e6).astype(np.int64) * 1000
        values: dict[str, pa.Array] = {}
        column = self.signature.inputs[0]
        if recorded(column) and FEATURE + column.name not in self.left_out:
            values[FEATURE + column.name] = feature(column, [batch.column for batch in served])
        for place, output in enumerate(self.signature.outputs):
            found = np.concatenate([batch.outputs[place].reshape(len(batch.column), -1) for batch in served])
            by_output = np.ascontiguousarray(found.T, np.float64)
            values |= {
                PREDICTION + name: pa.array(by_output[k])
                for k, name in enumerate(names_of(output.name, len(by_output)))
            }
        constants = self._repeated(rows)
        arrays = [
            row_ids(self.prefix, group.first, requests), pa.array(times).view(TIME), *constants[:6], pa.array(latency),
            *constants[6:], *values.values(),
        ]  # fmt: skip
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


def row_ids(prefix: bytes, first: int, requests: Integers) -> pa.Array:
    """`PREFIX-NUMBER` of each request from the `first` number on, with `/ROW` behind it where it has several rows."""
    parts: list[Array] = []
    lengths: list[Array] = []
    ends = [*(np.flatnonzero(np.diff(requests)) + 1).tolist(), len(requests)]
    begin = 0
    for end in ends:
        for number, count, digits in _runs(first + begin, end - begin):
            block, widths = _id_block(prefix, number, count, digits, int(requests[begin]))
            parts.append(block.reshape(-1))
            lengths.append(np.tile(widths, count))
        begin = end
    widths = np.concatenate(lengths) if lengths else np.zeros(0, np.int32)
    offsets = np.zeros(len(widths) + 1, np.int32)
    np.cumsum(widths, out=offsets[1:])
    text = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    return pa.Array.from_buffers(pa.utf8(), len(widths), [None, pa.py_buffer(offsets), pa.py_buffer(text)])


def _runs(first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Numbers from the first on in runs that differ in their last digits only: (first, how many, digits)."""
    last = first + count
    while first < last:
        digits = min(len(str(first)), _DIGITS)
        # Up to the next number with other digits before, or with more digits.
        size = min(last, first - first % 10**digits + 10**digits) - first
        yield first, size, digits
        first += size


def _id_block(prefix: bytes, first: int, count: int, digits: int, rows: int) -> tuple[Array, Array]:
    """The ids of so many requests, as bytes [requests, all rows' ids], and how long each row's id is."""
    number = b"%b-%d" % (prefix, first)
    ids = [number] if rows == 1 else [number + b"/" + text.encode() for text in row_texts(rows)]
    widths = np.array([len(id) for id in ids], np.int32)
    block = np.empty((count, int(widths.sum())), np.uint8)
    block[:] = np.frombuffer(b"".join(ids), np.uint8)
    low = first % 10**_DIGITS
    endings = _endings()[low : low + count, _DIGITS - digits :]
    row = start = 0
    while row < rows:
        # The rows whose ids are equally long: those before the next power of ten.
        same, width = min(rows, 10 ** len(str(row))) - row, int(widths[row])
        part = block[:, start : start + same * width].reshape(count, same, width)
        part[:, :, len(number) - digits : len(number)] = endings[:, None, :]
        row, start = row + same, start + same * width
    return block, widths


@lru_cache(64)
def row_texts(rows: int) -> tuple[str, ...]:
    """What ends the ids of a request's rows."""
    return tuple(map(str, range(rows)))


@lru_cache(1)
def _endings() -> Array:
    """The last digits of all numbers, a row each."""
    size = 10**_DIGITS
    return np.frombuffer(b"".join(b"%0*d" % (_DIGITS, number) for number in range(size)), np.uint8).reshape(size, -1)


def names_of(output: str, width: int) -> list[str]:
    """The names of an output's values in an event: one column a value."""
    return [output] if width == 1 else [f"{output}.{k}" for k in range(width)]


def recorded(column: Input) -> bool:
    """A vector of texts, of varying length, or too long to be compared with others, is not part of an event."""
    return not column.shape or (column.codes is None and 0 < column.size <= _MAX_VECTOR)


def feature(column: Input, parts: Sequence[Values]) -> pa.Array:
    """A feature's values in the type that events have."""
    if column.datatype == "BYTES":
        return pa.array([text for part in parts for text in part], pa.utf8())
    alike = all(isinstance(part, np.ndarray) and part.dtype == WIRE_TYPES.get(column.datatype) for part in parts)
    values: Array = np.concatenate(parts).reshape(-1) if alike else column.joined(parts)
    if column.shape:
        kind = np.float32 if column.datatype in ("FP16", "FP32") else np.float64
        return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(kind, copy=False)), column.size)
    return pa.array(values.astype(np.bool_ if column.datatype == "BOOL" else np.float64))
