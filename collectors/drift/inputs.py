"""Whatever a comparison is given, opened: rows as a `Source`, a saved profile as a `Profile`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from collectors.drift.kinds import kind_of
from collectors.drift.memory import free_memory
from collectors.drift.plain_types import with_plain_types
from collectors.drift.source import BATCH_ROWS, InputError, Source, checked_names
from observability.columns import ProfileError
from observability.profile import Profile
from observability.table_files.files import files_of, format_of, source_of_path

Data: TypeAlias = Any
"""An Arrow table, batch, reader or dataset, a pandas frame, a mapping of arrays, a path, a profile, or a `Source`."""
# CSV up to this share of the free memory is read at once.
MEMORY_SHARE = 0.125


def opened(data: Data, name: str) -> Source | Profile:
    """The rows or the profile that `data` is. `name` is what messages call it. InputError when it is neither."""
    if isinstance(data, Profile):
        return data
    found = data if isinstance(data, Source) else _opened(data, name)
    return found if isinstance(found, Profile) else with_plain_types(found)


def _opened(data: Data, name: str) -> Source | Profile:
    if isinstance(data, str | Path):
        return _of_path(data)
    if isinstance(data, pa.Table):
        return Source.of_table(name, data)
    if isinstance(data, pa.RecordBatch):
        return Source.of_table(name, pa.Table.from_batches([data]))
    if isinstance(data, pa.RecordBatchReader):
        return Source.of_table(name, data.read_all())
    if hasattr(data, "scanner") and hasattr(data, "count_rows"):
        return _of_dataset(name, data)
    if isinstance(data, Mapping):
        return Source.of_table(name, _of_mapping(name, data))
    if hasattr(data, "iloc") and hasattr(data, "columns"):
        return Source.of_table(name, _of_pandas(name, data))
    if hasattr(data, "__arrow_c_stream__"):
        return Source.of_table(name, _of_stream(name, data))
    raise InputError(
        f"{name} is a {type(data).__name__}: give a table (Arrow, pandas, a mapping of arrays), a path, or a profile"
    )


def _of_path(path: str | Path) -> Source | Profile:
    files = files_of(path)
    if len(files) == 1 and format_of(files[0]) == "profile":
        return read_profile(files[0])
    return source_of_path(path, in_memory=int(free_memory() * MEMORY_SHARE))


def read_profile(path: Path) -> Profile:
    """A saved profile. InputError when the file is something else."""
    try:
        return Profile.from_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ProfileError as error:
        raise InputError(f"{path} is not a saved profile: {error}") from error


def _of_dataset(name: str, data: Any) -> Source:
    checked_names(name, data.schema)
    rows = data.count_rows()

    def scan(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return iter(data.scanner(columns=list(columns), batch_size=BATCH_ROWS).to_batches())

    width = 16 * len(data.schema)
    return Source(name, data.schema, rows, rows * width, scan, lambda columns: data.to_table(columns=list(columns)))


def _of_stream(name: str, data: Any) -> pa.Table:
    """What speaks Arrow's C stream interface: a polars frame, a relation of DuckDB. A series is no table."""
    try:
        return pa.table(data)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(f"{name}, a {type(data).__name__}, cannot be read as a table: {error}") from error


def _of_mapping(name: str, data: Mapping[str, Any]) -> pa.Table:
    arrays = {str(column): _array(name, str(column), values) for column, values in data.items()}
    if len(arrays) < len(data):
        raise InputError(f"{name} has more than one column of a name: {', '.join(map(repr, data))}")
    lengths = {column: len(values) for column, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{column} {length}" for column, length in lengths.items())
        raise InputError(f"the columns of {name} have different lengths: {told}")
    return pa.table(arrays)


def _of_pandas(name: str, frame: Any) -> pa.Table:
    columns = [str(column) for column in frame.columns]
    arrays = [_array(name, column, frame.iloc[:, place]) for place, column in enumerate(columns)]
    return pa.Table.from_arrays(arrays, names=columns)


def _array(name: str, column: str, values: Any) -> pa.Array | pa.ChunkedArray:
    """One column as Arrow; NaN in a pandas column is a missing value, and objects of several types become text."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    dimensions = getattr(values, "ndim", 1)
    if hasattr(values, "detach"):
        values = _of_tensor(values)
    if dimensions == 2:
        return pa.array(list(values))
    if dimensions != 1 or not hasattr(values, "__iter__"):
        shape = f"an array of {dimensions} dimensions" if hasattr(values, "ndim") else f"a {type(values).__name__}"
        raise InputError(f"column {column!r} of {name} is {shape}: give a value, or a vector of numbers, for each row")
    try:
        found = pa.array(values, from_pandas=True)
        return _labelled(found, values) if pa.types.is_dictionary(found.type) else found
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass
    plain = np.asarray(values)
    if plain.ndim == 1 and plain.dtype.kind in "iuf":
        # Sparse, of the other byte order, or longer than Arrow has them.
        native = plain.astype(np.float64) if plain.dtype.itemsize > 8 else plain.astype(plain.dtype.newbyteorder("="))
        return pa.array(native, from_pandas=True)
    try:
        return pa.array([None if _is_missing(value) else str(value) for value in values], pa.string())
    except (TypeError, ValueError) as error:
        raise InputError(f"column {column!r} of {name} cannot be read: {error}") from error


def _of_tensor(values: Any) -> Any:
    """A tensor's numbers, wherever they lie; numpy has no bfloat16, of which float32 has every number."""
    values = values.detach().cpu()
    return (values.float() if "bfloat16" in str(values.dtype) else values).numpy()


def _labelled(found: pa.DictionaryArray, values: Any) -> pa.DictionaryArray:
    """Categories by their names where they are neither text nor numbers: the intervals of `pandas.cut`."""
    if kind_of(found.type) is not None:
        return found
    return pa.DictionaryArray.from_arrays(found.indices, pa.array(map(str, values.dtype.categories), pa.string()))


def _is_missing(value: object) -> bool:
    return value is None or value != value
