"""Batches of events or labels as Arrow IPC streams: those that are laid out without loading Arrow, others by Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from observability.event_names import BadBatch
from observability.laid_columns import END, LaidRows, message

if TYPE_CHECKING:
    import pyarrow as pa

Rows: TypeAlias = "pa.RecordBatch | LaidRows"
Batches: TypeAlias = "Rows | Sequence[Rows]"
_NOTHING = memoryview(b"")


def same_columns(first: Rows, other: Rows) -> bool:
    """Whether both have the same columns."""
    if isinstance(first, LaidRows) and isinstance(other, LaidRows):
        return first.schema_message is other.schema_message or first.schema_message == other.schema_message
    known, found = first.schema, other.schema
    return known is found or bool(known.equals(found))


def ipc_body(batches: Batches) -> memoryview:
    """One Arrow IPC stream, written once: a large body takes the interpreter's lock for as long as its copy takes.

    Columns that some lack are null there. Raises BadBatch if types clash.
    """
    several = _of_one_schema(batches)
    laid = _laid(several)
    if laid is not None:
        return memoryview(b"".join(laid))
    import pyarrow as pa

    arrow = _arrow(several)
    # A stream that grows copies what it holds, and touches new memory, each time.
    counted = pa.MockOutputStream()
    _write_stream(counted, arrow)
    buffer = pa.allocate_buffer(counted.size())
    _write_stream(pa.FixedSizeBufferWriter(buffer), arrow)
    return memoryview(buffer)


def ipc_pieces(batches: Batches) -> list[memoryview]:
    """The same in pieces that are to be sent behind each other: columns stay where they are, and must not change."""
    several = _of_one_schema(batches)
    pieces = _laid(several) or _found(several)
    if pieces is not None:
        return pieces
    import pyarrow as pa

    kept = _Pieces()
    _write_stream(pa.PythonFile(kept, "w"), _arrow(several))
    return kept.pieces


class _Pieces:
    """A file that keeps what is written to it as it is."""

    closed = False

    def __init__(self) -> None:
        self.pieces: list[memoryview] = []

    def write(self, piece: bytes | pa.Buffer) -> int:
        view = memoryview(piece)
        self.pieces.append(view)
        return view.nbytes

    def flush(self) -> None:
        """Nothing is on its way."""

    def close(self) -> None:
        """The pieces are read later."""


def _of_one_schema(batches: Batches) -> Sequence[Rows]:
    """The batches, with the columns of all where they differ."""
    several = list(batches) if isinstance(batches, Sequence) else [batches]
    if not several:
        raise BadBatch("there is no batch to write: an Arrow stream needs a schema")
    if all(same_columns(several[0], batch) for batch in several[1:]):
        return several
    import pyarrow as pa

    tables = [pa.Table.from_batches([batch]) for batch in _arrow(several)]
    try:
        return pa.concat_tables(tables, promote_options="default").to_batches()  # type: ignore[no-any-return]
    except (pa.ArrowException, TypeError) as error:
        raise BadBatch(f"batches whose columns have different types do not fit in one stream: {error}") from error


def _arrow(batches: Sequence[Rows]) -> list[pa.RecordBatch]:
    return [batch.arrow() if isinstance(batch, LaidRows) else batch for batch in batches]


def _write_stream(sink: pa.NativeFile, batches: Sequence[pa.RecordBatch]) -> None:
    import pyarrow as pa

    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _laid(batches: Sequence[Rows]) -> list[memoryview] | None:
    """The stream of batches that are all laid out; None where one is Arrow's."""
    pieces: list[memoryview] = []
    for batch in batches:
        if not isinstance(batch, LaidRows):
            return None
        pieces += batch.pieces if pieces else (batch.schema_message, *batch.pieces)
    return [*pieces, END]


def _found(batches: Sequence[Rows]) -> list[memoryview] | None:
    """The stream of batches of one schema, of which some are Arrow's; None where a column is not of a plain kind.

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
    return [*pieces, END]


def _lay(column: pa.Array, nodes: list[int], buffers: list[memoryview]) -> bool:
    """Adds a column's arrays and buffers; False when it is not plain."""
    import pyarrow as pa

    rows, nulls, kind = len(column), column.null_count, column.type
    known = column.buffers()
    if column.offset or (nulls and known[0] is None):
        return False
    nodes += rows, nulls
    buffers.append(memoryview(known[0])[: (rows + 7) // 8] if nulls else _NOTHING)
    if pa.types.is_string(kind):
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
