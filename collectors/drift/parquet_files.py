"""Parquet read piece by piece: some columns and some thousand rows at a time, whatever the size of its row groups.

Arrow's own scan of a data set holds a row group in memory, and writers make row groups of a million rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from observability.kinds import is_string

# Columns that are read together, and of very many: each has a reader, which holds megabytes.
_TOGETHER, _OF_MANY = 4, (16, 256)
# About so many bytes a batch, in so many rows.
_BATCH_BYTES, _BATCH_ROWS = 4 << 20, (4_096, 32_768)
_BUFFER = 1 << 18


def parquet_pieces(dataset: Any, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """All rows of the `columns` in batches of the dataset's types; a batch has some of the columns.

    File by file, and in each the first columns' rows before the next columns'. Raises pa.ArrowException and OSError
    where a file cannot be read to its end.
    """
    # Parquet and data sets take longer to load than all else here.
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    together = _OF_MANY[0] if len(columns) >= _OF_MANY[1] else _TOGETHER
    for fragment in dataset.get_fragments():
        folders: Mapping[str, Any] = ds.get_partition_keys(fragment.partition_expression)
        known = fragment.physical_schema
        texts = [field.name for field in known if is_string(field.type)]
        with pq.ParquetFile(fragment.path, read_dictionary=texts, buffer_size=_BUFFER, pre_buffer=False) as file:
            for first in range(0, len(columns), together):
                fields = [dataset.schema.field(name) for name in columns[first : first + together]]
                here = [field.name for field in fields if field.name in known.names and field.name not in folders]
                for rows in _batches(file, here, len(fields)):
                    arrays = [_read(rows, field, folders) for field in fields]
                    yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _batches(file: Any, names: Sequence[str], columns: int) -> Iterator[pa.RecordBatch]:
    """The file's rows of the columns that it has; rows without a column where it has none of them."""
    low, high = _BATCH_ROWS
    size = max(low, min(high, _BATCH_BYTES // (8 * max(columns, 1))))
    if names:
        yield from file.iter_batches(batch_size=size, columns=list(names))
        return
    for start in range(0, file.metadata.num_rows, size):
        rows = min(size, file.metadata.num_rows - start)
        yield pa.RecordBatch.from_arrays([pa.nulls(rows)], [""])


def _read(rows: pa.RecordBatch, field: pa.Field, folders: Mapping[str, Any]) -> pa.Array:
    if field.name in folders:
        return _repeated(folders[field.name], rows.num_rows, field.type)
    place = rows.schema.get_field_index(field.name)
    return _as(rows.column(place), field.type) if place >= 0 else pa.nulls(rows.num_rows, field.type)


def _repeated(value: Any, rows: int, kind: pa.DataType) -> pa.Array:
    """What the name of a folder says of all its rows."""
    if value is None:
        return pa.nulls(rows, kind)
    if not pa.types.is_dictionary(kind):
        return _as(pa.array([value]).take(pa.array([0] * rows)), kind)
    codes = pa.repeat(pa.scalar(0, kind.index_type), rows)
    return pa.DictionaryArray.from_arrays(codes, _as(pa.array([value]), kind.value_type))


def _as(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """The values in the type that all files have together."""
    if values.type == kind:
        return values
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), kind)
    if pa.types.is_dictionary(values.type):
        if pa.types.is_dictionary(kind):
            codes = values.indices.cast(kind.index_type)
            return pa.DictionaryArray.from_arrays(codes, values.dictionary.cast(kind.value_type))
        values = values.dictionary_decode()
    if pa.types.is_dictionary(kind):
        return values.cast(kind.value_type).dictionary_encode()
    return values.cast(kind)
