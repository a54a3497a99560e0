"""Arrow streams in pieces: columns are sent from where they lie, and only headers are written.

Arrow's own writer calls Python for each piece that it writes, and each call takes the interpreter's lock from whoever
holds it: some fifty times a body. Here one pass over the columns, in one hold of the lock, finds the pieces. Headers
are RecordBatch messages (format/Message.fbs, version 5) with a fixed layout of their flatbuffer.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

_END = memoryview(struct.pack("<Ii", 0xFFFFFFFF, 0))
_ZEROS = memoryview(bytes(8))
_NOTHING = memoryview(b"")
# Prefix: a mark, the header's size. Root. Message: its vtable (sizes, places of version, kind, header and of
# the body's size), its table (way to the vtable, version 5, kind RecordBatch, size of the body, way to the header).
# RecordBatch: its vtable (sizes, places of length, nodes, buffers), its table (ways to vtable, nodes; length; way to
# buffers).
_HEAD = struct.Struct("<Ii I4x 6H4x ihBxqI 5H2x iIqI")
_HEAD_BYTES = _HEAD.size - 8
_TEXT = pa.utf8()


@dataclass(frozen=True, slots=True)
class LaidRows:
    """A record batch that is only to be sent: making Arrow's of it takes longer than sending it.

    `schema_message` is the schema as a stream begins with it; `pieces` are the batch's message, all of bytes.
    """

    schema: pa.Schema
    schema_message: memoryview
    num_rows: int
    pieces: Sequence[memoryview]

    @property
    def nbytes(self) -> int:
        """Bytes of the message."""
        return sum(piece.nbytes for piece in self.pieces)

    def arrow(self) -> pa.RecordBatch:
        """The same as Arrow has it, copied."""
        return pa.ipc.open_stream(b"".join([self.schema_message, *self.pieces, _END])).read_next_batch()


def laid(batches: Sequence[pa.RecordBatch | LaidRows]) -> list[memoryview] | None:
    """The stream of batches of one schema as pieces behind each other; None where a column is not of a plain kind.

    Plain are numbers, times, true and false, texts, and lists of a fixed size of numbers, from their arrays' start on.
    """
    first = batches[0]
    pieces = [first.schema_message if isinstance(first, LaidRows) else memoryview(first.schema.serialize())]
    for batch in batches:
        if isinstance(batch, LaidRows):
            pieces += batch.pieces
            continue
        nodes: list[int] = []
        buffers: list[memoryview] = []
        if not batch.num_rows or not all(_lay(column, nodes, buffers) for column in batch.columns):
            return None
        pieces += message(batch.num_rows, nodes, buffers)
    return [*pieces, _END]


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


def lay(column: pa.Array) -> tuple[list[int], list[memoryview]]:
    """An array's nodes and buffers. Raises ValueError where it is not plain."""
    nodes: list[int] = []
    buffers: list[memoryview] = []
    if not _lay(column, nodes, buffers):
        raise ValueError(f"an array of {column.type} cannot be laid out")
    return nodes, buffers


def _lay(column: pa.Array, nodes: list[int], buffers: list[memoryview]) -> bool:
    """Adds a column's arrays and buffers; False when it is not plain."""
    rows, nulls, kind = len(column), column.null_count, column.type
    known = column.buffers()
    if column.offset or (nulls and known[0] is None):
        return False
    nodes += rows, nulls
    buffers.append(memoryview(known[0])[: (rows + 7) // 8] if nulls else _NOTHING)
    if kind.equals(_TEXT):
        offsets = memoryview(known[1])[: 4 * (rows + 1)]
        ends = offsets.cast("i")
        buffers += offsets, memoryview(known[2])[: ends[rows]] if ends[rows] else _NOTHING
        return ends[0] == 0
    if pa.types.is_fixed_size_list(kind):
        return _lay(column.values, nodes, buffers) if len(column.values) == rows * kind.list_size else False
    if not pa.types.is_primitive(kind):
        return False
    buffers.append(memoryview(known[1])[: (rows * kind.bit_width + 7) // 8])
    return True
