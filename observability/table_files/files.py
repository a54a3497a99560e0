"""Files and folders of rows: which files a path means, what format they have, and one schema for all of them.

A path is a file, a folder (all files of rows below it; `name=value` folders become columns, as Hive writes them), or a
pattern with `*`. Names that begin with `_` or `.` are no data.
"""

from __future__ import annotations

import glob
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa

from observability.kinds import is_string
from observability.table_files.csv_files import csv_schema, read_csv, scan_csv
from observability.table_files.hive import (
    dataset_partitioning,
    folder_types,
    folder_values,
    with_folders,
    with_folders_each,
)
from observability.table_files.parquet_files import Lane, coded_texts, parquet_lanes
from observability.table_files.source import BATCH_ROWS, InputError, Source, checked_names

T = TypeVar("T")
Format = Literal["parquet", "csv", "arrow", "profile"]

FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
    ".json": "profile",
}
_COMPRESSED = {".gz", ".zst", ".bz2", ".lz4"}
_MAGIC: dict[bytes, Format] = {b"PAR1": "parquet", b"ARRO": "arrow", b"FEA1": "arrow"}
# A CSV file takes about so many times its own bytes in memory.
_CSV_GROWTH = 2.0
_UNPACKED = 5.0
_BUFFER = 1 << 18
_LONGEST_NAME = 255


def source_of_path(path: str | Path, *, in_memory: int) -> Source:
    """The rows under a path or pattern. CSV that takes up to `in_memory` bytes is read at once, more is streamed.

    InputError when nothing is there, or the files are no tables, of several formats or broken.
    """
    files = files_of(path)
    formats = {file: format_of(file) for file in files}
    kinds = sorted(set(formats.values()))
    if len(kinds) > 1:
        raise InputError(
            f"{path} holds files of several formats ({', '.join(kinds)}): name those of one, with a pattern"
        )
    if kinds == ["profile"]:
        raise InputError(f"{path} has a profile among several files: name one profile by itself")
    root = Path(path) if Path(path).is_dir() else None
    if kinds == ["csv"]:
        return _csv_source(str(path), files, in_memory, root)
    if kinds == ["arrow"] and not any("=" in part for file in files for part in file.parts):
        return Source.of_table(str(path), _joined(str(path), [_arrow_table(file) for file in files]))
    return _dataset_source(str(path), files, kinds[0], root)


def files_of(path: str | Path) -> list[Path]:
    """The files that a path or pattern means, in order. InputError when there are none."""
    text = str(path)
    here = Path(path)
    if not text:
        raise InputError("a path is empty: name a file, a folder or a pattern")
    if len(here.name.encode()) > _LONGEST_NAME:
        raise InputError(f"{text[:40]}… is longer than the name of a file can be")
    if here.is_dir():
        found = sorted(file for file in here.rglob("*") if file.is_file() and _is_data(file.relative_to(here)))
        files = [file for file in found if _suffix(file) in FORMATS and _suffix(file) != ".json"]
        if not files:
            raise InputError(f"{path} is a folder without Parquet, CSV, Arrow or Feather files")
        return files
    if here.exists():
        return [here]
    if glob.has_magic(text):
        found = [Path(match) for match in sorted(glob.glob(text, recursive=True)) if _is_meant(match, text)]
        matches = [file for match in found for file in _below(match)]
        if not matches:
            raise InputError(f"no file matches {text}")
        return matches
    raise InputError(f"{path} does not exist")


def format_of(path: Path) -> Format:
    """What a file holds, by its name, else by its first bytes. InputError when neither says."""
    known = FORMATS.get(_suffix(path))
    if known is not None:
        return known
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if magic in _MAGIC:
        return _MAGIC[magic]
    if magic.startswith(b"{"):
        # A saved profile may have any name.
        return "profile"
    raise InputError(
        f"{path} is of no known format: give Parquet (.parquet), CSV (.csv, .csv.gz, .csv.zst), Arrow (.arrow), "
        "Feather (.feather), a folder of them, or a saved profile (.json)"
    )


def _below(path: Path) -> list[Path]:
    return files_of(path) if path.is_dir() else [path]


def _is_meant(match: str, pattern: str) -> bool:
    """Whether what a pattern matches is data: an end in `_SUCCESS` or so only where the pattern says it."""
    return not Path(match).name.startswith("_") or Path(pattern).name.startswith("_")


def _is_data(relative: Path) -> bool:
    return not any(part.startswith(("_", ".")) for part in relative.parts)


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in _COMPRESSED:
        return suffixes[-2]
    return suffixes[-1] if suffixes else ""


def _csv_source(name: str, files: Sequence[Path], in_memory: int, root: Path | None) -> Source:
    size = int(sum(_csv_bytes(file) for file in files))
    folders = [folder_values(file, root) for file in files]
    types = folder_types(folders)
    if size <= in_memory:
        tables = [with_folders(_guarded(file, read_csv), one, types) for file, one in zip(files, folders, strict=True)]
        return Source.of_table(name, _joined(name, tables))
    found = [_guarded(file, csv_schema) for file in files]
    schema = unified(name, [schema for schema, _ in found])
    checked_names(name, schema)
    own = schema
    for column, kind in types.items():
        place = schema.get_field_index(column)
        field = pa.field(column, kind)
        schema = schema.append(field) if place < 0 else schema.set(place, field)

    def scan(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        inside = [column for column in columns if column not in types]
        for file, one in zip(files, folders, strict=True):
            # Of a file that is asked for nothing of its own the rows are counted.
            batches = scan_csv(file, own, inside or own.names[:1])
            yield from with_folders_each(batches, one, types, columns) if types else batches

    return Source(
        name=name,
        schema=schema,
        rows=sum(rows for _, rows in found),
        size=size,
        scan=scan,
        read=lambda columns: pa.Table.from_batches(scan(columns), pa.schema([schema.field(c) for c in columns])),
    )


def _csv_bytes(path: Path) -> float:
    packed = path.suffix.lower() in _COMPRESSED
    return path.stat().st_size * _CSV_GROWTH * (_UNPACKED if packed else 1.0)


def _arrow_table(path: Path) -> pa.Table:
    """One Arrow file, mapped and not copied. IPC has a file and a stream format, and one ending for both."""
    try:
        with pa.memory_map(str(path)) as mapped:
            if mapped.read(4) == b"FEA1":
                return _first_feather(path)
            mapped.seek(0)
            try:
                return pa.ipc.open_file(mapped).read_all()
            except pa.ArrowInvalid:
                mapped.seek(0)
                return pa.ipc.open_stream(mapped).read_all()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Arrow or Feather file: {error}") from error


def _first_feather(path: Path) -> pa.Table:
    """The first version of the format, which Arrow will not read for ever. InputError when it does not any more."""
    import pyarrow.feather as feather

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return feather.read_table(path)
        except pa.ArrowException as error:
            raise InputError(f"{path} is of the first version of Feather: write it again in the second") from error


def _dataset_source(name: str, files: Sequence[Path], format_name: str, root: Path | None) -> Source:
    # It imports pandas, which takes longer than all else here.
    import pyarrow.dataset as ds

    kind: Any = "ipc" if format_name == "arrow" else "parquet"
    label = {"ipc": "Arrow", "parquet": "Parquet"}[kind]
    paths = [str(file) for file in files]
    try:
        first = ds.dataset(paths[:1], format=kind).schema if root is not None else pa.schema([])
        partitioning = dataset_partitioning(files, root, first)
        plain = ds.dataset(paths, format=kind, partitioning=partitioning, partition_base_dir=str(root or ""))
    except (pa.ArrowException, OSError, ValueError) as error:
        _check_first_names(files, kind)
        raise InputError(f"{name} is not readable {label}: {error}") from error
    schemas = [_guarded_schema(fragment, label) for fragment in plain.get_fragments()]
    for schema in schemas:
        checked_names(name, schema)
    schema = unified(name, [plain.schema, *schemas])
    if kind == "parquet":
        mixed = {field.name for one in schemas for field in one if not is_string(field.type)}
        mixed |= _uncoded(plain)
        schema = pa.schema([field if field.name in mixed else _as_dictionary(field) for field in schema])
        texts = [field.name for field in schema if pa.types.is_dictionary(field.type)]
        # What is buffered ahead is kept until the last row group: a file larger than memory must not be.
        unbuffered = ds.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True, buffer_size=_BUFFER)
        kind = ds.ParquetFileFormat(dictionary_columns=texts, default_fragment_scan_options=unbuffered)
    dataset = ds.dataset(
        paths, schema=schema, format=kind, partitioning=partitioning, partition_base_dir=str(root or "")
    )
    rows = dataset.count_rows()

    def scan(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with _to_its_end(name):
            for piece in _pieces(dataset):
                # The whole schema: a file may lack a column, and a folder's name may be one.
                found = piece.scanner(schema=dataset.schema, columns=list(columns), batch_size=BATCH_ROWS)
                yield from found.to_batches()

    def read(columns: Sequence[str]) -> pa.Table:
        with _to_its_end(name):
            return dataset.to_table(columns=list(columns))

    def lane(batches: Lane) -> Lane:
        with _to_its_end(name):
            yield from batches

    def lanes(columns: Sequence[str], most: int) -> Iterator[Sequence[Lane]]:
        with _to_its_end(name):
            for step in parquet_lanes(dataset, columns, most):
                yield list(map(lane, step))

    size = rows * _row_bytes(schema)
    return Source(name, schema, rows, size, scan, read, lanes if format_name == "parquet" else None)


@contextmanager
def _to_its_end(name: str) -> Iterator[None]:
    """InputError where the rows of `name` cannot be read."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{name} cannot be read to its end: {error}") from error


def _check_first_names(files: Sequence[Path], kind: str) -> None:
    """InputError where the first of the files has two columns of one name, which is all that Arrow may not read."""
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(files[0]) if kind == "parquet" else pa.ipc.open_file(str(files[0])).schema
    except (pa.ArrowException, OSError):
        return
    checked_names(str(files[0]), schema)


def _pieces(dataset: Any) -> Iterator[Any]:
    """A row group each, of Parquet: a scan of more reads as far ahead as it can, whatever memory there is."""
    for fragment in dataset.get_fragments():
        yield from fragment.split_by_row_group() if hasattr(fragment, "split_by_row_group") else (fragment,)


def _guarded_schema(fragment: Any, label: str) -> pa.Schema:
    try:
        return fragment.physical_schema
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{fragment.path} is not a readable {label} file: {error}") from error


def _guarded(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _uncoded(dataset: Any) -> set[str]:
    """The columns of text that some file keeps in a way that Arrow does not read as codes."""
    found: set[str] = set()
    for fragment in dataset.get_fragments():
        texts = {field.name for field in fragment.physical_schema if is_string(field.type)}
        found |= texts.difference(coded_texts(fragment.metadata)) if texts else set()
    return found


def _as_dictionary(field: pa.Field) -> pa.Field:
    """Text is read as Parquet keeps it: each distinct value once, and codes."""
    if is_string(field.type):
        return field.with_type(pa.dictionary(pa.int32(), pa.string()))
    return field


def _row_bytes(schema: pa.Schema) -> int:
    return sum(_value_bytes(field.type) for field in schema)


def _value_bytes(kind: pa.DataType) -> int:
    if pa.types.is_dictionary(kind):
        return 8
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _value_bytes(kind.value_type)
    try:
        return max(int(kind.bit_width) // 8, 1)
    except ValueError:
        return 32


def unified(name: str, schemas: Sequence[pa.Schema]) -> pa.Schema:
    """One schema for all files: the wider type where they differ, text where no number is wide enough."""
    fields: dict[str, list[pa.DataType]] = {}
    for schema in schemas:
        for field in schema:
            fields.setdefault(field.name, []).append(field.type)
    return pa.schema([(column, _widest(name, column, types)) for column, types in fields.items()])


def _widest(name: str, column: str, types: Sequence[pa.DataType]) -> pa.DataType:
    distinct = list(Counter(types))
    kind = distinct[0]
    for other in distinct[1:]:
        if pa.types.is_timestamp(kind) and pa.types.is_timestamp(other):
            kind = _finer(kind, other)
            continue
        pair = [pa.schema([(column, kind)]), pa.schema([(column, other)])]
        try:
            kind = pa.unify_schemas(pair, promote_options="permissive").field(0).type
        except pa.ArrowException:
            if any(pa.types.is_nested(one) or pa.types.is_binary(one) for one in (kind, other)):
                raise InputError(f"column {column!r} of {name} is {kind} in one file and {other} in another") from None
            kind = pa.string()
    return kind


def _finer(first: pa.TimestampType, second: pa.TimestampType) -> pa.TimestampType:
    """The smaller unit of two, in UTC if only one has a zone or they differ: times without a zone are taken for UTC."""
    unit = max(first.unit, second.unit, key=["s", "ms", "us", "ns"].index)
    return pa.timestamp(unit, first.tz if first.tz == second.tz else "UTC")


def _joined(name: str, tables: Sequence[pa.Table]) -> pa.Table:
    if len(tables) == 1:
        return tables[0]
    for table in tables:
        checked_names(name, table.schema)
    schema = unified(name, [table.schema for table in tables])
    return pa.concat_tables([_conformed(table, schema) for table in tables])


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.schema.names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
