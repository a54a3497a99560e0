"""Numbers of an Arrow column block by block, where they lie: nothing larger than a block is copied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from observability.cells import Floats

# So many float64 are 384 kB: a block and its sorted copy stay in a core's second cache.
BLOCK = 49_152
_PLAIN: dict[pa.DataType, type[np.generic]] = {
    pa.float64(): np.float64,
    pa.float32(): np.float32,
    pa.float16(): np.float16,
    pa.int64(): np.int64,
    pa.int32(): np.int32,
    pa.int16(): np.int16,
    pa.int8(): np.int8,
    pa.uint64(): np.uint64,
    pa.uint32(): np.uint32,
    pa.uint16(): np.uint16,
    pa.uint8(): np.uint8,
}
_SECONDS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}

Mask = NDArray[np.bool_]
Block = tuple[NDArray[Any], Mask | None]


def number_blocks(values: pa.ChunkedArray | pa.Array) -> Iterator[Block]:
    """The values of a column as blocks of at most `BLOCK` numbers, each with a mask of the rows that are not null.

    Numbers of a fixed width are views of the Arrow buffer. Decimals, booleans, dictionaries and texts that are
    numbers are cast to float64 a block at a time; durations and times of day become seconds.
    """
    for chunk in chunks(values):
        width = _PLAIN.get(chunk.type)
        if width is not None:
            numbers = buffer_view(chunk, width)
            for start in range(0, len(chunk), BLOCK):
                block = numbers[start : start + BLOCK]
                yield block, valid_rows(chunk, start, len(block)) if chunk.null_count else None
            continue
        for start in range(0, len(chunk), BLOCK):
            yield from number_blocks(_floats(chunk.slice(start, BLOCK)))


def chunks(values: pa.ChunkedArray | pa.Array) -> list[pa.Array]:
    """The Arrow arrays that hold the values, extension types unwrapped."""
    arrays = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
    return [array.storage if isinstance(array, pa.ExtensionArray) else array for array in arrays]


def buffer_view(array: pa.Array, width: type[np.generic]) -> NDArray[Any]:
    """The numbers of a fixed-width array as a view of its buffer; what stands at null rows is arbitrary."""
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.empty(0, width) if not len(array) else np.zeros(len(array), width)
    return np.frombuffer(buffer, width, len(array), array.offset * np.dtype(width).itemsize)


def valid_rows(array: pa.Array, start: int, length: int) -> Mask:
    """Which of the rows from `start` on are not null, from the array's bitmap."""
    bitmap = array.buffers()[0]
    if bitmap is None:
        return np.full(length, array.null_count == 0)
    first = array.offset + start
    bits = np.frombuffer(bitmap, np.uint8)[first // 8 : (first + length + 7) // 8]
    return np.unpackbits(bits, bitorder="little")[first % 8 : first % 8 + length].view(np.bool_)


def finite_numbers(values: pa.ChunkedArray | pa.Array) -> Floats:
    """A copy of all finite values as float64."""
    parts = []
    for block, valid in number_blocks(values):
        present = (block if valid is None else block[valid]).astype(np.float64, copy=False)
        finite = np.isfinite(present)
        parts.append(present if finite.all() else present[finite])
    return np.concatenate(parts) if parts else np.empty(0)


def _floats(array: pa.Array) -> pa.Array:
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _floats(array.dictionary_decode())
    if pa.types.is_run_end_encoded(kind):
        import pyarrow.compute as pc

        return _floats(pc.run_end_decode(array))
    if kind in _PLAIN:
        return array
    if pa.types.is_duration(kind) or pa.types.is_time(kind):
        whole = array.cast(pa.int32() if pa.types.is_time32(kind) else pa.int64())
        seconds = np.asarray(whole.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)) / _SECONDS[kind.unit]
        return pa.array(seconds, mask=np.asarray(array.is_null()) if array.null_count else None)
    return array.cast(pa.float64(), safe=False)
