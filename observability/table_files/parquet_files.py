"""Parquet read piece by piece: some columns and some thousand rows at a time, whatever the size of its row groups.

Arrow's own scan of a data set holds a row group in memory, and writers make row groups of a million rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from observability.kinds import is_string

# Columns that are read together, and of very many: each has a reader, which holds megabytes.
_TOGETHER, _OF_MANY = 4, (16, 256)
# The columns are read in so many turns a thread, or more, so that no thread has long to wait for the last.
_TURNS = 4
# About so many bytes a batch, in so many rows; of very many columns in more, where the memory is in other things.
_BATCH_BYTES, _BATCH_ROWS, _ROWS_OF_MANY = 4 << 20, (4_096, 16_384), 32_768
_BUFFER = 1 << 18
# Small files are read together until they have so many values, or are so many: to meet after each would cost more.
_STEP_VALUES, _STEP_FILES = 4_000_000, 16
# How some writers keep text (Spark and Rust among them); Arrow does not read these as codes.
_NO_CODES = {"DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"}

Lane = Iterator[pa.RecordBatch]


@dataclass(frozen=True, slots=True)
class _File:
    """One file: its metadata, its columns' names, and what the names of its folders say."""

    path: str
    metadata: Any
    names: frozenset[str]
    texts: tuple[str, ...]
    folders: Mapping[str, Any]


def coded_texts(metadata: Any) -> list[str]:
    """The columns of text in a file that can be read as codes into each distinct value: all, in most files."""
    schema = metadata.schema
    names = [field.name for field in schema.to_arrow_schema() if is_string(field.type)]
    places = {schema.column(place).path: place for place in range(len(schema))} if names else {}
    groups = range(metadata.num_row_groups)

    def has_codes(name: str) -> bool:
        return all(_NO_CODES.isdisjoint(metadata.row_group(g).column(places[name]).encodings) for g in groups)

    return list(filter(has_codes, names))


def parquet_lanes(dataset: Any, columns: Sequence[str], lanes: int) -> Iterator[list[Lane]]:
    """All rows of the `columns` in batches of the dataset's types; a batch has some of the columns.

    They come in steps of a file or a few small ones. The lanes of a step, at most `lanes`, may be read at once: each
    takes the next columns that none has read, and reads their rows in order. Raises pa.ArrowException and OSError where
    a file cannot be read to its end.
    """
    groups = _groups([dataset.schema.field(name) for name in columns], lanes)
    for files in _steps(dataset, columns):
        waiting = deque(groups)
        yield [_lane(files, waiting) for _ in range(min(lanes, len(groups)))]


def _groups(fields: Sequence[pa.Field], lanes: int) -> list[Sequence[pa.Field]]:
    most = _OF_MANY[0] if len(fields) >= _OF_MANY[1] else _TOGETHER
    together = max(1, min(most, len(fields) // (_TURNS * lanes)))
    return [fields[first : first + together] for first in range(0, len(fields), together)]


def _steps(dataset: Any, columns: Sequence[str]) -> Iterator[list[_File]]:
    # Parquet and data sets take longer to load than all else here.
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    files: list[_File] = []
    values = 0
    for fragment in dataset.get_fragments():
        folders: Mapping[str, Any] = ds.get_partition_keys(fragment.partition_expression)
        metadata = pq.read_metadata(fragment.path)
        names = frozenset(fragment.physical_schema.names) - folders.keys()
        files.append(_File(fragment.path, metadata, names, tuple(coded_texts(metadata)), folders))
        values += metadata.num_rows * len(columns)
        if values >= _STEP_VALUES or len(files) >= _STEP_FILES:
            yield files
            files, values = [], 0
    if files:
        yield files


def _lane(files: Sequence[_File], waiting: deque[Sequence[pa.Field]]) -> Lane:
    """The rows of columns that are waiting, until none is."""
    import pyarrow.parquet as pq

    with ExitStack() as stack:
        readers: list[Any] = []
        while waiting:
            try:
                fields = waiting.popleft()
            except IndexError:
                # Another lane was quicker.
                return
            schema = pa.schema(fields)
            for place, file in enumerate(files):
                if place == len(readers):
                    opened = pq.ParquetFile(
                        file.path,
                        metadata=file.metadata,
                        read_dictionary=file.texts,
                        buffer_size=_BUFFER,
                        pre_buffer=False,
                    )
                    readers.append(stack.enter_context(opened))
                here = [field.name for field in fields if field.name in file.names]
                for rows in _batches(readers[place], here, len(fields)):
                    arrays = [_read(rows, field, file.folders) for field in fields]
                    yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _batches(file: Any, names: Sequence[str], columns: int) -> Iterator[pa.RecordBatch]:
    """The file's rows of the columns that it has; rows without a column where it has none of them."""
    low, high = _BATCH_ROWS
    high = _ROWS_OF_MANY if columns >= _OF_MANY[0] else high
    size = max(low, min(high, _BATCH_BYTES // (8 * max(columns, 1))))
    if names:
        yield from file.iter_batches(batch_size=size, columns=list(names), use_threads=False)
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
