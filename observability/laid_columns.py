"""Arrow streams in pieces: columns are sent from where they lie, and only headers are written. Arrow is not needed.

Arrow's own writer calls Python for each piece that it writes, and each call takes the interpreter's lock from whoever
holds it: some fifty times a body. Here one pass over the columns, in one hold of the lock, finds the pieces. Headers
are RecordBatch messages (format/Message.fbs, version 5) with a fixed layout of their flatbuffer.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from observability.stream_schema import Field, schema_message

if TYPE_CHECKING:
    import pyarrow as pa

# Values and nulls of each of a column's arrays, and the buffers that Arrow has (an empty one where there is no null).
Laid: TypeAlias = tuple[Sequence[int], Sequence[memoryview]]
Mask: TypeAlias = npt.NDArray[np.bool_]
END = memoryview(struct.pack("<Ii", 0xFFFFFFFF, 0))
_ZEROS = memoryview(bytes(8))
_NOTHING = memoryview(b"")
# Prefix: a mark, the header's size. Root. Message: its vtable (sizes, places of version, kind, header and of
# the body's size), its table (way to the vtable, version 5, kind RecordBatch, size of the body, way to the header).
# RecordBatch: its vtable (sizes, places of length, nodes, buffers), its table (ways to vtable, nodes; length; way to
# buffers).
_HEAD = struct.Struct("<Ii I4x 6H4x ihBxqI 5H2x iIqI")
_HEAD_BYTES = _HEAD.size - 8
# What texts' ends are counted in.
_MOST_TEXT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class LaidRows:
    """A record batch that is only to be sent: making Arrow's of it takes longer than sending it.

    `schema_message` is the schema as a stream begins with it; `pieces` are the batch's message, all of bytes.
    """

    schema_message: memoryview
    num_rows: int
    pieces: Sequence[memoryview]

    @property
    def nbytes(self) -> int:
        """Bytes of the message."""
        return sum(piece.nbytes for piece in self.pieces)

    @property
    def schema(self) -> pa.Schema:
        """The schema as Arrow has it."""
        import pyarrow as pa

        return pa.ipc.read_schema(pa.py_buffer(self.schema_message))

    def arrow(self) -> pa.RecordBatch:
        """The same as Arrow has it, copied."""
        import pyarrow as pa

        return pa.ipc.open_stream(b"".join([self.schema_message, *self.pieces, END])).read_next_batch()


def laid_rows(rows: int, fields: Sequence[Field], columns: Sequence[Laid]) -> LaidRows:
    """A batch of at least one row, whose columns are in the order of the fields."""
    nodes = [number for of_column, _ in columns for number in of_column]
    buffers = [buffer for _, of_column in columns for buffer in of_column]
    return LaidRows(memoryview(schema_message(fields)), rows, message(rows, nodes, buffers))


def message(rows: int, nodes: Sequence[int], buffers: Sequence[memoryview]) -> list[memoryview]:
    """A batch: header, and its buffers, each filled up to eight bytes. `nodes` are values and nulls by array, buffers
    those that Arrow has (an empty one where there is no null).
    """
    sizes = np.array([buffer.nbytes for buffer in buffers], np.int64)
    ends = np.cumsum(sizes + -sizes % 8)
    places = np.stack((np.concatenate(([0], ends[:-1])), sizes), 1)
    pieces = [memoryview(head(rows, int(ends[-1]), nodes, places.tobytes()))]
    for buffer in buffers:
        pieces.append(buffer)
        if buffer.nbytes % 8:
            pieces.append(_ZEROS[: -buffer.nbytes % 8])
    return pieces


def head(rows: int, body: int, nodes: Sequence[int], places: bytes) -> bytes:
    """The header of a batch whose buffers take `body` bytes; `places` are where each begins and its size, as int64.

    The rows are in byte 72, the bytes of the body in byte 40, nodes in byte 88, all as int64, places at the end.
    """
    of_nodes = 8 * len(nodes)
    start = _HEAD.pack(
        0xFFFFFFFF, _HEAD_BYTES + 4 + of_nodes + 8 + len(places), 24,
        12, 20, 4, 6, 16, 8, 16, 4, 3, body, 16,
        10, 20, 8, 4, 16, 12, 16, rows, 12 + of_nodes,
    )  # fmt: skip
    return start + struct.pack(f"<I{len(nodes)}q4xI", len(nodes) // 2, *nodes, len(places) // 16) + places


def numbers(values: npt.NDArray[Any], null: Mask | None = None) -> Laid:
    """A column of numbers, which are not copied; there is none in the rows that are `null`."""
    return _valued(len(values), null, as_bytes(values))


def flags(values: Mask) -> Laid:
    """A column of true and false."""
    return _valued(len(values), None, as_bytes(np.packbits(values, bitorder="little")))


def vectors(values: npt.NDArray[Any], size: int) -> Laid:
    """A column of vectors of so many floats each, `values` behind each other, which are not copied."""
    return (len(values) // size, 0, len(values), 0), (_NOTHING, _NOTHING, as_bytes(values))


def texts(values: Sequence[str | None], times: npt.NDArray[np.int64] | None = None) -> Laid:
    """A column of texts, null for None, each in as many rows as `times` says. Raises ValueError beyond 2 GB of them."""
    written = [b"" if value is None else value.encode() for value in values]
    sizes = np.fromiter(map(len, written), np.int64, len(written))
    null = np.fromiter((value is None for value in values), np.bool_, len(written)) if None in values else None
    if times is not None:
        written = [text * count for text, count in zip(written, times.tolist(), strict=True)]
        sizes = np.repeat(sizes, times)
        null = None if null is None else np.repeat(null, times)
    ends = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=ends[1:])
    if ends[-1] > _MOST_TEXT:
        raise ValueError(f"texts of {ends[-1]} bytes do not fit in one column")
    return _valued(len(sizes), null, as_bytes(ends.astype(np.int32)), memoryview(b"".join(written)))


def same_texts(value: str | None, rows: int) -> Laid:
    """A column that has one text, or null, in all of so many rows. Raises ValueError beyond 2 GB of it."""
    text = b"" if value is None else value.encode()
    if len(text) * rows > _MOST_TEXT:
        raise ValueError(f"texts of {len(text) * rows} bytes do not fit in one column")
    ends = np.arange(rows + 1, dtype=np.int32) * np.int32(len(text))
    null = np.ones(rows, np.bool_) if value is None else None
    return _valued(rows, null, as_bytes(ends), memoryview(text * rows))


def as_bytes(values: npt.NDArray[Any]) -> memoryview:
    """The memory of contiguous values."""
    return values.data.cast("B") if values.size else _NOTHING


def _valued(rows: int, null: Mask | None, *buffers: memoryview) -> Laid:
    nulls = 0 if null is None else int(np.count_nonzero(null))
    valid = as_bytes(np.packbits(~null, bitorder="little")) if null is not None and nulls else _NOTHING
    return (rows, nulls), (valid, *buffers)
