"""A profile a micro-batch of a folder that fills with Parquet, kept so that a restart counts nothing twice.

Spark's checkpoint gives each micro-batch a number and, after a crash, the same rows for the same number. A batch's
profiles are one file named by that number: written again, it replaces itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from collectors.spark import (
    READING,
    PartitionProfile,
    SparkError,
    Types,
    as_time,
    batches_of,
    clear_error,
    quoted,
    settings,
)
from observability.profile import Profile

# So many batches are kept apart; then all but the last are added up into one file.
KEPT_BATCHES = 100
_ANY_AGE = "36500d"
_MERGED = "merged.json"
_SCHEMA = "schema.json"
# Times of nanoseconds are plain numbers to Spark, and so are then those of other files, whatever they count.
_FILE = "`file that the row is of`"
Windows = dict[datetime | None, Profile]


def stream_profiles(
    session: Any,
    folder: str | Path,
    reference: Profile,
    checkpoint: str | Path,
    sink: str | Path,
    *,
    time: str | None = None,
    window_seconds: float = 3600.0,
    every: str | None = None,
    schema: Any = None,
    max_files: int | None = None,
) -> Any:
    """Starts a stream that profiles each Parquet file that comes into `folder`; gives Spark's StreamingQuery.

    Each micro-batch, of at most `max_files` files, leaves its profile in the local folder `sink`; with `time`, one for
    each window of that column (start in UTC; rows without a time, and all rows without `time`, are under None). With
    `every` ("10 seconds") it goes on until stopped, else it ends when it has what is there. Start it again with the
    same `checkpoint` and `sink` to go on, also after a crash: no row is counted twice. Files must come into the folder
    whole (move them in), of any age; one that comes again under its name changes nothing. Columns are those of the
    files that are there at the start, or `schema`. Started again where a file has come whose types do not go with the
    others', or that is damaged, it keeps the columns of its last start; the stream itself ends with an error at a file
    that cannot be read so, whose name is in it, and goes on once that is replaced, or taken away.

    Raises SparkError where there are neither, where `time` or all of the reference's columns are not in the files, and
    where `sink` belongs to another checkpoint.
    """
    with settings(session, READING):
        schema = schema or _schema(session, str(folder), Path(sink) / _SCHEMA)
        # Else it leaves out files a week older than the latest, and forgets which of these it has had.
        frame = session.readStream.schema(schema).options(recursiveFileLookup="true", maxFileAge=_ANY_AGE)
        frame = frame.options(**({} if max_files is None else {"maxFilesPerTrigger": max_files})).parquet(str(folder))
        present = [name for name in reference.columns if name in frame.columns]
        if not present:
            raise SparkError(f"the files in {folder} have none of the reference's columns: {', '.join(frame.columns)}")
        if time is not None and time not in frame.columns:
            raise SparkError(f"the files in {folder} have no column {time!r} for the time: {', '.join(frame.columns)}")
        Path(sink).mkdir(parents=True, exist_ok=True)
        _keep(Path(sink) / _SCHEMA, schema if isinstance(schema, str) else schema.json())
        clocks = [name for name in present if reference.columns[name].kind == "datetime"] + ([time] if time else [])
        numbered = any(frame.schema[name].dataType.typeName() == "long" for name in clocks)
        if numbered:
            frame = frame.selectExpr("*", f"_metadata.file_path AS {_FILE}")
        work = _Batch(reference, present, time, window_seconds, Path(sink), numbered, str(folder))
        writer = frame.writeStream.foreachBatch(work).option("checkpointLocation", str(checkpoint))
        return (writer.trigger(processingTime=every) if every else writer.trigger(availableNow=True)).start()


def profiles_of_stream(sink: str | Path) -> Windows:
    """What the stream has counted, by the start of the window; later batches have amended earlier windows.

    SparkError if `sink` holds nothing, ProfileError if the batches have different references.
    """
    total: Windows = {}
    merged = _read(Path(sink) / _MERGED)
    for batch in ([merged] if merged else []) + _batches(Path(sink), -1 if merged is None else merged["batch"]):
        _add(total, batch["windows"])
    if not total:
        raise SparkError(f"{sink} holds no profiles of a stream: has it finished a batch?")
    return total


def profile_of_stream(sink: str | Path) -> Profile:
    """The profile of all that the stream has counted. Errors as in `profiles_of_stream`."""
    first, *others = profiles_of_stream(sink).values()
    for profile in others:
        first = first + profile
    return first


class _Batch:
    """What the driver does with each micro-batch."""

    def __init__(
        self,
        reference: Profile,
        names: list[str],
        time: str | None,
        window_seconds: float,
        sink: Path,
        numbered: bool,
        folder: str,
    ) -> None:
        self._empty, self._sink, self._time, self._folder = reference.empty(), sink, time, folder
        layout = self._empty.to_json()
        self._columns = [*map(quoted, names), *([quoted(time)] if time else []), *([_FILE] if numbered else [])]
        self._work = _StreamProfiles(layout, names, time, window_seconds, numbered)

    def __call__(self, frame: Any, number: int) -> None:
        session = frame.sparkSession
        stream = session.sparkContext.getLocalProperty("sql.streaming.queryId")
        merged = _read(self._sink / _MERGED)
        held = merged or next(map(_read, sorted(self._sink.glob("batch-*.json"))), None)
        if held and held["stream"] != stream:
            raise SparkError(f"{self._sink} holds the profiles of another checkpoint: give this stream its own sink")
        if merged and number <= merged["batch"]:
            return
        with settings(session, batches_of(len(self._columns))):
            numbered = frame.selectExpr(*(f"{name} AS c{place}" for place, name in enumerate(self._columns)))
            try:
                rows = numbered.mapInArrow(self._work, self._work.schema).collect()
            except Exception as error:
                if not type(error).__module__.startswith(("pyspark", "py4j")):
                    raise
                # The stream ends with its words, in Java's and in the query's own exception.
                raise clear_error(error, self._folder) from error
        windows: Windows = {}
        for row in rows:
            start = row["window"] if self._time else None
            key = None if start is None else datetime.fromtimestamp(start / 1e6, UTC)
            _add(windows, {key: Profile.from_json(bytes(row["profile"]))})
        _write(self._sink / f"batch-{number:012}.json", stream, number, windows or {None: self._empty})
        _compact(self._sink, stream)


class _StreamProfiles(PartitionProfile):
    """A profile a window of a partition, or one of all its rows.

    Behind the named columns comes the time, if there is one, then the row's file, where times come as plain numbers.
    """

    schema = "window bigint, profile binary"

    def __init__(self, layout: bytes, names: list[str], time: str | None, seconds: float, numbered: bool) -> None:
        super().__init__(layout, names, {})
        self._time, self._width, self._numbered = time, round(seconds * 1e6), numbered
        self._known: dict[str, Types] = {}

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        empty = Profile.from_json(self._layout)
        found: dict[int | None, Profile] = {}
        for batch in batches:
            for part, types in self._by_file(batch):
                self._types = dict(types)
                table = self.named(empty, part)
                for start, rows in self._by_window(part, table):
                    found[start] = found.get(start, empty).updated(rows)
        bodies = [profile.to_json() for profile in found.values()]
        yield pa.record_batch({"window": pa.array(list(found), pa.int64()), "profile": pa.array(bodies, pa.binary())})

    def _by_window(self, part: pa.RecordBatch, table: pa.Table) -> Iterator[tuple[int | None, pa.Table]]:
        if self._time is None:
            yield None, table
            return
        times = as_time(part.column(len(self._names)), self._types.get(self._time), "datetime")
        starts = _starts(times, self._width)
        for start in pc.unique(starts).to_pylist():
            chosen = pc.is_null(starts) if start is None else pc.fill_null(pc.equal(starts, start), False)
            yield start, table.filter(chosen)

    def _by_file(self, batch: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, Types]]:
        """The rows of each file, and what its times count."""
        if not self._numbered:
            yield batch, {}
            return
        files = batch.column(batch.num_columns - 1)
        for file in pc.unique(files).to_pylist():
            if file not in self._known:
                self._known[file] = _times_of(file)
            yield batch.filter(pc.equal(files, file)), self._known[file]


def _times_of(file: str) -> Types:
    """The columns of times in a Parquet file of this machine; of another, nanoseconds are taken for granted."""
    import pyarrow.parquet as pq

    where = urlsplit(file)
    if where.scheme not in ("", "file"):
        return {}
    schema = pq.read_schema(unquote(where.path))
    return {field.name: field.type for field in schema if pa.types.is_timestamp(field.type)}


def _starts(times: pa.Array, width: int) -> pa.Array:
    """The start of each time's window in microseconds since 1970, null where there is no time."""
    micros = times.cast(pa.timestamp("us", times.type.tz if pa.types.is_timestamp(times.type) else None), safe=False)
    ticks = micros.cast(pa.int64())
    # Whole division rounds towards zero, but windows before 1970 begin below.
    whole = pc.divide(ticks, width)
    below = pc.if_else(pc.less(pc.subtract(ticks, pc.multiply(whole, width)), 0), 1, 0)
    return pc.multiply(pc.subtract(whole, below), width)


def _schema(session: Any, folder: str, kept: Path) -> Any:
    """The columns of all files; those of the last start where a file that came since does not go with the others."""
    try:
        return session.read.option("mergeSchema", "true").option("recursiveFileLookup", "true").parquet(folder).schema
    except Exception as error:
        if not type(error).__module__.startswith(("pyspark", "py4j")):
            raise
        if kept.exists():
            return _kept(kept)
        found = clear_error(error, folder)
        if "CANNOT_MERGE" in str(error):
            raise SparkError(f"{found}; give the schema that all can be read by, of the wider types") from error
        raise SparkError(f"{found}; to start before there are files, give their schema") from error


def _kept(path: Path) -> Any:
    from pyspark.sql.types import StructType

    text = path.read_text()
    return StructType.fromJson(json.loads(text)) if text.startswith("{") else text


def _keep(path: Path, text: str) -> None:
    """The whole text or none of it, also when the machine stops."""
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def _add(total: Windows, windows: Mapping[datetime | None, Profile]) -> None:
    for start, profile in windows.items():
        total[start] = total[start] + profile if start in total else profile


def _compact(sink: Path, stream: str) -> None:
    """Adds up all but the last batch, which is the one that Spark may ask for again, once there are many."""
    if len(list(sink.glob("batch-*.json"))) <= KEPT_BATCHES:
        return
    merged = _read(sink / _MERGED)
    total: Windows = dict(merged["windows"]) if merged else {}
    done = _batches(sink, -1 if merged is None else merged["batch"])[:-1]
    for batch in done:
        _add(total, batch["windows"])
    _write(sink / _MERGED, stream, done[-1]["batch"], total)
    # A crash before this leaves files that are known to be in the sum by their number.
    for path in sorted(sink.glob("batch-*.json"))[:-1]:
        path.unlink()


def _batches(sink: Path, after: int) -> list[dict[str, Any]]:
    found = [_read(path) for path in sorted(sink.glob("batch-*.json"))]
    return [batch for batch in found if batch is not None and batch["batch"] > after]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    windows = {
        None if start is None else datetime.fromisoformat(start): Profile.from_json(json.dumps(body).encode())
        for start, body in value["windows"]
    }
    return {**value, "windows": windows}


def _write(path: Path, stream: str, number: int, windows: Windows) -> None:
    ordered = sorted(windows.items(), key=lambda item: "" if item[0] is None else item[0].isoformat())
    bodies = [
        [None if start is None else start.isoformat(), json.loads(profile.to_json())] for start, profile in ordered
    ]
    _keep(path, json.dumps({"stream": stream, "batch": number, "windows": bodies}))
