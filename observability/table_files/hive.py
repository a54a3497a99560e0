"""Columns that the names of folders give to the files in them: `name=value`, as Hive writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

_NOTHING = "__HIVE_DEFAULT_PARTITION__"
Values = Mapping[str, str | None]


def folder_values(file: Path, root: Path | None) -> Values:
    """What the folders between `root` and a file say; None is a missing value."""
    if root is None:
        return {}
    pairs = (part.partition("=") for part in file.relative_to(root).parts[:-1] if "=" in part)
    return {unquote(name): None if value == _NOTHING else unquote(value) for name, _, value in pairs}


def folder_types(values: Sequence[Values]) -> dict[str, pa.DataType]:
    """The type of each such column: whole numbers where all values are."""
    names = dict.fromkeys(name for one in values for name in one)
    found = {name: [text for one in values if (text := one.get(name)) is not None] for name in names}
    return {name: pa.int64() if texts and all(map(_is_whole, texts)) else pa.string() for name, texts in found.items()}


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and text.isascii() and len(text) < 19


def with_folders(table: pa.Table, values: Values, types: Mapping[str, pa.DataType]) -> pa.Table:
    """The rows of one file with the columns of its folders, which are in the place of the file's own."""
    for name, kind in types.items():
        column = repeated(values.get(name), table.num_rows, kind)
        place = table.schema.get_field_index(name)
        table = table.append_column(name, column) if place < 0 else table.set_column(place, name, column)
    return table


def with_folders_each(
    batches: Iterator[pa.RecordBatch], values: Values, types: Mapping[str, pa.DataType], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Batches of one file as batches of the `columns`, some of them its folders'."""
    for batch in batches:
        arrays = [
            repeated(values.get(name), batch.num_rows, types[name]) if name in types else batch.column(name)
            for name in columns
        ]
        yield pa.RecordBatch.from_arrays(arrays, names=list(columns))


def repeated(text: str | None, rows: int, kind: pa.DataType) -> pa.Array:
    """One value of a folder's name for all rows."""
    return pa.repeat(pa.scalar(text, pa.string()).cast(kind), rows)


def dataset_partitioning(files: Sequence[Path], root: Path | None, schema: pa.Schema) -> Any:
    """The partitioning of a data set under `root`. A column that the files have too, of `schema`, keeps its type."""
    import pyarrow.dataset as ds

    if root is None:
        return None
    names = dict.fromkeys(name for file in files for name in folder_values(file, root))
    if not names.keys() & set(schema.names):
        return ds.HivePartitioning.discover(infer_dictionary=True)
    text = pa.dictionary(pa.int32(), pa.string())
    types = [(name, schema.field(name).type if name in schema.names else text) for name in names]
    return ds.partitioning(pa.schema(types), dictionaries="infer", flavor="hive")
