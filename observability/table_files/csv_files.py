"""CSV files as Arrow: read whole, or block by block with the types that hold to the last row.

A column's type is what all its values are: an integer, a number, a truth value, a date, else text. An empty field and
the usual words for nothing (`NA`, `null`, `NaN`, …, as pandas has them) are missing values, also in text, and also in
quotes: many programs put every field in quotes. Fields may also be divided by semicolons, tabs or bars, and then
numbers be written with a decimal comma, as spreadsheets do it in half of the world.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv

from observability.table_files.source import InputError

BLOCK_BYTES = 1 << 24
# So many bytes and lines tell how a file is written.
_SNIFFED, _LINES = 1 << 16, 100
# So many of the last bytes tell whether a field has an end.
_COMPARED = 200
_SIGNS = (",", ";", "\t", "|")
_QUOTED = re.compile(r'"[^"]*"')
_NUMBERS = (r"[+-]?\d+,\d+", r"[+-]?\d*\.\d+")
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\x04\x22\x4d\x18": "lz4"}
_CONVERSION = re.compile(r"In CSV column #(\d+):.*conversion error to ([^:]+):", re.DOTALL)


def read_csv(path: Path) -> pa.Table:
    """The whole file. InputError when it is not a table, or not UTF-8."""
    try:
        dialect = dialect_of(path)
        table = csv.read_csv(_stream(path), parse_options=_parse(dialect), convert_options=_convert(dialect, {}))
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    except pa.ArrowException as error:
        raise _unreadable(path, error) from error
    _check_text(path, table.schema)
    _check_closed(path, table.slice(max(table.num_rows - 1, 0)))
    return table.cast(_with_known_types(table.schema))


def csv_schema(path: Path) -> tuple[pa.Schema, int]:
    """The types that all rows of the file have, and the number of rows; reads the file once or a few times."""
    types: dict[str, pa.DataType] = {}
    while True:
        try:
            with _opened(path, types) as reader:
                schema = reader.schema
                _check_text(path, schema)
                rows, last = 0, None
                for batch in reader:
                    rows, last = rows + batch.num_rows, batch if batch.num_rows else last
            if last is not None:
                _check_closed(path, last.slice(last.num_rows - 1))
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error
        except pa.ArrowException as error:
            found = _CONVERSION.search(str(error))
            if found is None:
                raise _unreadable(path, error) from error
            name = schema.names[int(found[1])]
            wider = _wider(schema.field(name).type)
            if wider is None:
                raise _not_utf8(path) from error
            types[name] = wider
        else:
            return _with_known_types(schema), rows


def scan_csv(path: Path, schema: pa.Schema, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The file's rows block by block, in the types of `schema`; a column that the file lacks is null."""
    types = {field.name: field.type for field in schema}
    with _opened(path, types, columns) as reader:
        yield from reader


def _opened(path: Path, types: dict[str, pa.DataType], columns: Sequence[str] | None = None) -> csv.CSVStreamingReader:
    dialect = dialect_of(path)
    return csv.open_csv(
        _stream(path),
        read_options=csv.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=_parse(dialect),
        convert_options=_convert(dialect, types, columns),
    )


def _stream(path: Path) -> pa.NativeFile:
    """The file's bytes, unpacked by what they begin with: its name may say something else."""
    with path.open("rb") as file:
        start = file.read(4)
    return pa.input_stream(
        str(path), compression=next((_PACKED[one] for one in _PACKED if start.startswith(one)), None)
    )


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a CSV file is written."""

    delimiter: str = ","
    decimal: str = "."


def dialect_of(path: Path) -> Dialect:
    """How the file is written, by its first lines: by the sign that divides all alike, and the header most."""
    tabs = ".tsv" in path.suffixes or ".tab" in path.suffixes
    with _stream(path) as file:
        text = bytes(file.read(_SNIFFED)).decode("utf-8", "replace")
    lines = [_QUOTED.sub("", line) for line in text.splitlines()[:_LINES] if line]
    # The last line may be cut, and a field of several lines makes lines that are none.
    whole = lines[:-1] if len(lines) > 1 else lines
    if not whole:
        return Dialect("\t" if tabs else ",")
    even = [sign for sign in _SIGNS if whole[0].count(sign) and len({line.count(sign) for line in whole}) == 1]
    present = [sign for sign in _SIGNS if whole[0].count(sign)]
    delimiter = "\t" if tabs else max(even or present, key=whole[0].count, default=",")
    if delimiter == ",":
        return Dialect()
    fields = [field.strip() for line in whole[1:] for field in line.split(delimiter)]
    commas, points = (any(re.fullmatch(number, field) for field in fields) for number in _NUMBERS)
    return Dialect(delimiter, "," if commas and not points else ".")


def _parse(dialect: Dialect) -> csv.ParseOptions:
    return csv.ParseOptions(delimiter=dialect.delimiter, newlines_in_values=True)


def _convert(
    dialect: Dialect, types: dict[str, pa.DataType], columns: Sequence[str] | None = None
) -> csv.ConvertOptions:
    return csv.ConvertOptions(
        decimal_point=dialect.decimal,
        column_types=types,
        include_columns=list(columns) if columns is not None else None,
        include_missing_columns=True,
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
    )


def _wider(kind: pa.DataType) -> pa.DataType | None:
    """The next type that takes more values; text takes all, so that None means broken text."""
    if pa.types.is_integer(kind):
        return pa.float64()
    if pa.types.is_null(kind):
        return pa.int64()
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return None
    return pa.string()


def _with_known_types(schema: pa.Schema) -> pa.Schema:
    """A column without any value is a number's, as in pandas."""
    return pa.schema([field.with_type(pa.float64()) if pa.types.is_null(field.type) else field for field in schema])


def _check_text(path: Path, schema: pa.Schema) -> None:
    """Arrow takes text that is not UTF-8 for bytes, and names in the header as they are."""
    try:
        _ = schema.names
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    if any(pa.types.is_binary(field.type) for field in schema):
        raise _not_utf8(path)


def _check_closed(path: Path, last: pa.Table | pa.RecordBatch) -> None:
    """InputError where a quotation mark is never closed: all that follows it is one field of the last row then."""
    texts = [values[0].as_py() for values in last.columns[-1:] if len(values) and pa.types.is_string(values.type)]
    field = texts[0] if texts else None
    if field is None or "\n" not in field:
        return
    end = b""
    with _stream(path) as file:
        while block := bytes(file.read(BLOCK_BYTES)):
            end = (end + block)[-_COMPARED:]
    # A field that is closed has a quotation mark behind it.
    if end.rstrip(b"\r\n").endswith(field.rstrip("\r\n").encode()[-_COMPARED // 2 :]):
        raise InputError(
            f"{path} has a quotation mark that is never closed, of the field that begins with "
            f"{field.splitlines()[0][:40]!r}: close it, or double it within a field"
        )


def _unreadable(path: Path, error: Exception) -> InputError:
    text = str(error).strip()
    if "straddles" in text:
        return InputError(f"{path} has a row of many megabytes: is a quotation mark left open in it?")
    with path.open("rb") as file:
        start = file.read(_SNIFFED)
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return _not_utf8(path)
    if b"\0" in start:
        return InputError(f"{path} is no CSV file: it holds zero bytes, which text in UTF-8 has not")
    if "Empty CSV file" in text:
        return InputError(f"{path} is empty: it has no header line")
    if "invalid UTF8" in text:
        return _not_utf8(path)
    if unequal := re.search(r"Expected (\d+) columns, got (\d+): (.{0,60})", text):
        return InputError(
            f"{path} has {unequal[1]} names in its header, but a row of {unequal[2]} fields: {unequal[3]!r}; is the "
            "header another line, does a sign end each row, or have the rows names of their own?"
        )
    return InputError(f"{path} is not a readable CSV file: {text}")


def _not_utf8(path: Path) -> InputError:
    """Says which byte is wrong and where, by reading the file once more."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line = 0, 1
    with _stream(path) as file:
        while block := file.read(BLOCK_BYTES):
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                place = offset - held + error.start
                line += block[: max(error.start - held, 0)].count(b"\n")
                return InputError(
                    f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {place} (line {line}); "
                    f"write it as UTF-8, for example: iconv -f {_guess(block)} -t utf-8 {path.name}"
                )
            offset += len(block)
            line += block.count(b"\n")
    return InputError(f"{path} has a column of bytes: text must be UTF-8")


def _guess(block: bytes) -> str:
    return "utf-16" if block[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
