"""The columns of events that differ row by row, without a compiler: ids, times, latencies and predictions of the
shortcut's batches, with no work of Python's a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from serving.protocol.tensors import Array
from serving.telemetry.memory import Bytes
from serving.telemetry.runs import Floats, Integers, Run

Integers32 = npt.NDArray[np.int32]
# Digits of a number that are copied from a table.
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Rows:
    """The columns, one value a row each: ids as Arrow has texts, times in unix nanoseconds, latencies in seconds.

    `values` are in the order of outputs, each [values a row, rows] of doubles.
    """

    offsets: Integers32
    text: Bytes
    times: Integers
    latencies: Floats
    values: list[Floats]


def written(run: Run, told: tuple[Integers, Floats, Floats], prefix: bytes, first: int, unix: float) -> Rows:
    """The columns of a run, which `told` of its requests, the first of which has the number `first`; ids begin with
    `prefix`.

    `unix` is what has to be added to the clock of calls for unix time, seconds.
    """
    requests, arrived, done = told
    # Whole microseconds: beyond them the sum of two clocks as floats says nothing.
    times = ((np.repeat(done, requests) + unix) * 1e6).astype(np.int64) * 1000
    outputs = [output.reshape(run.column.rows, -1) for output in run.outputs]
    return Rows(
        *row_ids(prefix, first, requests), times, np.repeat(done - arrived, requests),
        [np.ascontiguousarray(output.T, np.float64) for output in outputs],
    )  # fmt: skip


def row_ids(prefix: bytes, first: int, requests: Integers) -> tuple[Integers32, Bytes]:
    """Offsets and text of the ids: `PREFIX-NUMBER` of each request from the `first` number on, with `/ROW` behind it
    where it has several rows.
    """
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
    return offsets, np.concatenate(parts) if parts else np.zeros(0, np.uint8)


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
