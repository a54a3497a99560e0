"""The tables that a profile is made from: Arrow, pandas, arrays by name, files; each read where it lies."""

from __future__ import annotations

import glob
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from observability.cells import ProfileError
from observability.table_files.files import files_of, format_of, source_of_path
from observability.table_files.parquet_files import coded_texts
from observability.table_files.source import InputError

# A piece of a stream takes about so many bytes, in so many rows.
_BATCH_BYTES, _BATCH_ROWS = 8 << 20, (4_096, 65_536)

_PARQUET = (".parquet", ".pq")
# CSV that takes up to so many bytes is read at once.
_IN_MEMORY = 1 << 28

Data = Any
"""pa.Table, pa.RecordBatch, pa.RecordBatchReader (updates only), a pyarrow.dataset.Dataset, a pandas.DataFrame, arrays
or lists by name, a path (file, folder or pattern; Parquet, CSV, Arrow or Feather), or what speaks Arrow's C stream
interface (polars)."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A table in memory. A column becomes Arrow only when it is asked for."""

    names: tuple[str, ...]
    rows: int
    read: Callable[[str], pa.ChunkedArray]

    def column(self, name: str) -> pa.ChunkedArray:
        """The values of a column. ProfileError if they are of several types."""
        try:
            return self.read(name)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise ProfileError(f"column {name!r} holds values that go into no Arrow type: {error}") from error


@dataclass(frozen=True, slots=True)
class Stream:
    """A table that is read in pieces. `pieces` takes the columns to read; `rows` is None where it is read only once."""

    schema: pa.Schema
    rows: int | None
    pieces: Callable[[Sequence[str]], Iterator[Rows]]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.schema.names)


def opened(data: Data) -> Rows | Stream:
    """What `data` holds. ProfileError for two columns of one name, for what is no table and for what cannot be read."""
    if isinstance(data, pa.Table | pa.RecordBatch):
        return of_arrow(data)
    if isinstance(data, pa.RecordBatchReader):
        _unique(data.schema.names)
        return Stream(data.schema, None, lambda names: map(of_arrow, data))
    if isinstance(data, str | Path):
        return _of_path(data)
    if isinstance(data, Mapping):
        return _arrays(data)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(data, pandas.DataFrame):
        return _frame(data)
    if "pyarrow.dataset" in sys.modules and isinstance(data, sys.modules["pyarrow.dataset"].Dataset):
        return _dataset(data)
    if hasattr(data, "__arrow_c_stream__"):
        return of_arrow(pa.table(data))
    raise ProfileError(
        f"a {type(data).__name__} is no table: give an Arrow table, a pandas frame, arrays by name or a path of Parquet"
    )


def of_arrow(table: pa.Table | pa.RecordBatch) -> Rows:
    """The rows of an Arrow table or batch. ProfileError for two columns of one name."""
    names = table.schema.names
    _unique(names)
    places = {name: place for place, name in enumerate(names)}

    def read(name: str) -> pa.ChunkedArray:
        column = table.column(places[name])
        return column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])

    return Rows(tuple(names), table.num_rows, read)


def _arrays(data: Mapping[Any, Any]) -> Rows:
    names = [str(name) for name in data]
    _unique(names)
    by_name = dict(zip(names, data.values(), strict=True))
    lengths = {name: _length(name, values) for name, values in by_name.items()}
    if len(set(lengths.values())) > 1:
        raise ProfileError(
            "the columns have different lengths: " + ", ".join(f"{name} {length}" for name, length in lengths.items())
        )
    return Rows(tuple(names), next(iter(lengths.values()), 0), lambda name: _chunked(_array(by_name[name])))


def _length(name: str, values: Any) -> int:
    try:
        return len(values)
    except TypeError:
        raise ProfileError(f"column {name!r} is a {type(values).__name__}, not an array or a list") from None


def _array(values: Any) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)


def _chunked(values: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    return values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])


def _frame(frame: Any) -> Rows:
    names = [str(name) for name in frame.columns]
    _unique(names)
    places = {name: place for place, name in enumerate(names)}
    # What pandas writes as NaN is missing.
    return Rows(
        tuple(names), len(frame), lambda name: _chunked(pa.array(frame.iloc[:, places[name]], from_pandas=True))
    )


def _dataset(dataset: Any) -> Stream:
    _unique(dataset.schema.names)

    def pieces(names: Sequence[str]) -> Iterator[Rows]:
        scanner = dataset.scanner(
            columns=list(names), batch_size=_batch_rows(len(names)), batch_readahead=1, fragment_readahead=1
        )
        return map(of_arrow, scanner.to_batches())

    return Stream(dataset.schema, int(dataset.count_rows()), pieces)


def _of_path(path: str | Path) -> Rows | Stream:
    """The rows under a path. ProfileError where nothing is there, or what is there is broken or no table."""
    try:
        files = files_of(path)
    except InputError:
        if Path(path).suffix.lower() in _PARQUET:
            return _parquet(path)
        raise
    formats = {format_of(file) for file in files}
    if formats == {"profile"} and len(files) == 1:
        raise ProfileError(f"{path} is a saved profile: give its bytes to Profile.from_json")
    if formats == {"parquet"} and not any("=" in part for file in files for part in file.parts):
        return _parquet(path)
    source = source_of_path(path, in_memory=_IN_MEMORY)
    if source.in_memory:
        return of_arrow(source.read(source.columns))

    def pieces(names: Sequence[str]) -> Iterator[Rows]:
        if names:
            yield from map(of_arrow, source.scan(names))
            return
        # Of a table that is asked for nothing of its own the rows are counted.
        for batch in source.scan(source.columns[:1]):
            yield Rows((), batch.num_rows, partial(_nothing, Path(path)))

    return Stream(source.schema, source.rows, pieces)


def _parquet(path: str | Path) -> Stream:
    # Parquet takes as long to load as all else that `import observability` loads.
    import pyarrow.parquet as pq

    files, metadata, schemas = _files(path), [], []
    for file in files:
        try:
            metadata.append(pq.read_metadata(file))
            schemas.append(metadata[-1].schema.to_arrow_schema())
        except (pa.ArrowException, OSError) as error:
            raise ProfileError(f"{file} is not Parquet that can be read: {error}") from error
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        _unique(schema.names)
        for field in schema:
            if field.name not in fields or pa.types.is_null(fields[field.name].type):
                fields[field.name] = field

    def pieces(names: Sequence[str]) -> Iterator[Rows]:
        for file, one, schema in zip(files, metadata, schemas, strict=True):
            here = [name for name in names if name in schema.names]
            # The dictionaries that Parquet itself writes are counted by their codes.
            texts = coded_texts(one)
            with pq.ParquetFile(file, read_dictionary=texts, buffer_size=1 << 18, pre_buffer=False) as parquet:
                if here:
                    # Columns decoded side by side take half as much memory again, and no less time.
                    batches = parquet.iter_batches(batch_size=_batch_rows(len(here)), columns=here, use_threads=False)
                    yield from map(of_arrow, batches)
                else:
                    yield Rows((), parquet.metadata.num_rows, partial(_nothing, file))

    return Stream(pa.schema(list(fields.values())), sum(found.num_rows for found in metadata), pieces)


def _nothing(file: Path, name: str) -> pa.ChunkedArray:
    raise ProfileError(f"{file} has no column {name!r}")


def _files(path: str | Path) -> list[Path]:
    """The Parquet files of a path, in order of name. ProfileError where there is none."""
    given = Path(path)
    if given.is_dir():
        found: Iterable[Path] = (
            file
            for file in given.rglob("*")
            if file.suffix.lower() in _PARQUET
            and file.is_file()
            and not any(part.startswith(("_", ".")) for part in file.relative_to(given).parts)
        )
    elif given.exists():
        found = [given]
    else:
        found = (Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
    files = sorted(found)
    if not files:
        raise ProfileError(f"there is no Parquet at {path}: give a file, a folder of *.parquet or *.pq, or a pattern")
    return files


def _batch_rows(columns: int) -> int:
    low, high = _BATCH_ROWS
    return max(low, min(high, _BATCH_BYTES // (8 * max(columns, 1))))


def _unique(names: Sequence[str]) -> None:
    several = [name for name, times in Counter(names).items() if times > 1]
    if several:
        raise ProfileError(f"several columns are named {', '.join(map(repr, several))}: rename or drop all but one")
