"""Arrow's other ways to keep a column, as the ones that everything here reads.

Polars hands text and bytes over as views; lists may lie anywhere among their values; a dictionary may itself hold
nulls; equal values may be kept once a run; an extension (JSON, a tensor) is a name for another type. None of these is
known to all of Arrow's own functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from collectors.drift.source import Source


def with_plain_types(source: Source) -> Source:
    """The same rows in plain types. Without a column in another one it is the source itself."""
    schema = pa.schema([field.with_type(plain_type(field.type)) for field in source.schema])
    if schema == source.schema and not any(pa.types.is_dictionary(field.type) for field in schema):
        return source
    steps = source.lanes

    def scan(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return _batches(source.scan(columns))

    return replace(
        source,
        schema=schema,
        scan=scan,
        read=lambda columns: plain_table(source.read(columns)),
        lanes=None if steps is None else lambda columns, most: (list(map(_batches, s)) for s in steps(columns, most)),
    )


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type that values of `kind` are read in."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(kind.value_type)
    if pa.types.is_dictionary(kind) and (value := plain_type(kind.value_type)) != kind.value_type:
        return pa.dictionary(kind.index_type, value, kind.ordered)
    return kind


def plain_table(table: pa.Table) -> pa.Table:
    """The table with every column in its plain type, and no null in a dictionary."""
    for place, field in enumerate(table.schema):
        values = table.column(place)
        if any(map(_is_odd, values.chunks)) or plain_type(field.type) != field.type:
            chunks = list(map(_plain, values.chunks))
            table = table.set_column(place, field.name, pa.chunked_array(chunks, plain_type(field.type)))
    return table


def _batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield from plain_table(pa.Table.from_batches([batch])).to_batches() or [batch]


def _is_odd(chunk: pa.Array) -> bool:
    return bool(pa.types.is_dictionary(chunk.type) and chunk.dictionary.null_count)


def _plain(chunk: pa.Array) -> pa.Array:
    if isinstance(chunk, pa.ExtensionArray):
        return _plain(chunk.storage)
    kind = plain_type(chunk.type)
    if pa.types.is_list_view(chunk.type) or pa.types.is_large_list_view(chunk.type):
        return _in_order(chunk)
    if pa.types.is_run_end_encoded(chunk.type):
        return _plain(pc.run_end_decode(chunk))
    if not pa.types.is_dictionary(kind):
        return chunk.cast(kind)
    words, codes = chunk.dictionary.cast(kind.value_type), chunk.indices
    if words.null_count:
        anew = words.take(codes).dictionary_encode()
        words, codes = anew.dictionary, anew.indices.cast(kind.index_type)
    return pa.DictionaryArray.from_arrays(codes, words, ordered=kind.ordered)


def _in_order(chunk: pa.Array) -> pa.Array:
    """Lists that lie anywhere among their values, one after another; Arrow's own cast refuses some of them."""
    lengths = pc.fill_null(pc.list_value_length(chunk), 0).cast(pa.int64())
    ends = pc.cumulative_sum(lengths)
    starts = pa.concat_arrays([pa.array([0], pa.int64()), ends])
    return pa.LargeListArray.from_arrays(starts, chunk.flatten(), mask=chunk.is_null())
