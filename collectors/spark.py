"""The profile of a table of any size: counted by Spark's workers with the same code, merged on the way to the driver.

Each partition becomes one profile of a few kilobytes a column; partitions and their order change no count. On a
cluster the workers need this package, numpy and pyarrow.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from collectors.spark_files import ENDINGS, parquet_files, profile_of_files, reads_files, row_groups
from observability.cells import Kind, ProfileError
from observability.columns import NUM_CATEGORIES, CategoricalColumn, NumericColumn
from observability.profile import Profile
from observability.scout import widened

# Above so many partitions their profiles are first added up by the workers, in groups of about the square root.
MERGED_BY_DRIVER = 64
SAMPLE_ROWS, _SAMPLE_VALUES, _SAMPLE_FLOOR = 262_144, 4 << 20, 16_384
_SEED = 7
_FORMATS = {".csv": "csv", ".tsv": "csv", ".orc": "orc", ".json": "json", ".jsonl": "json", ".ndjson": "json"}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "csv": {"header": True, "inferSchema": True, "mode": "FAILFAST"},
    "json": {"mode": "FAILFAST"},
    "parquet": {"mergeSchema": True},
}
Types = Mapping[str, pa.DataType]


class SparkError(ValueError):
    """Spark cannot read the table; the message says what is wrong with it, and how to mend it."""


def profile_of_lake(
    path: str | Path, reference: Profile, session: Any = None, *, format: str | None = None, **options: Any
) -> Profile:
    """The profile of all rows under `path` in the reference's layout; counts equal numpy's to the unit.

    `path` is what Spark reads: a file, a folder with all below it, a pattern, an object store's URL; Parquet, or what
    `format` or the name's ending says (CSV has a header and its types are inferred, unless `options` say else). Files
    may have different columns; a column that some lack is missing in their rows. Without a `session` the active one is
    taken, or a local one on all cores is made and stopped. Raises SparkError for what cannot be read or has none of
    the reference's columns, ProfileError for a column whose values are not of its kind.
    """
    with lake_session(session) as spark, _reading(spark, str(path)):
        if (total := _counted_from_files(spark, str(path), reference, format, options)) is not None:
            return total
        total = reference.empty()
        for frame, types in _frames(spark, str(path), format, options):
            total = total + _counted(frame, reference, types, str(path))
        return total


def columns_of_lake(path: str | Path, session: Any = None, *, format: str | None = None, **options: Any) -> list[str]:
    """The names of the columns of the files under `path`. Arguments and errors as in `profile_of_lake`."""
    with lake_session(session) as spark, _reading(spark, str(path)):
        return list(
            dict.fromkeys(name for frame, _ in _frames(spark, str(path), format, options) for name in frame.columns)
        )


def profile_of_frame(frame: Any, reference: Profile) -> Profile:
    """The profile of a Spark data frame in the reference's layout. Errors as in `profile_of_lake`."""
    with _reading(frame.sparkSession, "the data frame"):
        return _counted(frame, reference, {}, "the data frame")


def reference_of_lake(
    path: str | Path,
    kinds: Mapping[str, Kind] | None = None,
    session: Any = None,
    *,
    joint: bool = False,
    distinct: bool = False,
    format: str | None = None,
    **options: Any,
) -> Profile:
    """A reference profile made by Spark, as `Profile.of` makes it: kinds, bins and categories, then exact counts.

    Bins are the quantiles of a sample of about 262,144 rows, between the exact least and largest value; categories
    are the most frequent of all rows, exactly. `path`, `format`, `options` and errors are those of `profile_of_lake`.
    """
    with lake_session(session) as spark, _reading(spark, str(path)):
        frames = _frames(spark, str(path), format, options)
        counts = [frame.count() for frame, _ in frames]
        if not sum(counts):
            raise SparkError(f"{path} has no rows: a reference needs some")
        sampled = [_sample(frame, types, sum(counts)) for frame, types in frames]
        table = _together(str(path), sampled)
        layout = Profile.of(table, kinds, joint=joint, distinct=distinct).empty()
        columns: dict[str, Any] = dict(layout.columns)
        if len(frames) == 1 and table.num_rows < counts[0]:
            frame, types = frames[0]
            columns |= _exact_ranges(frame, layout, types) | _exact_categories(frame, layout)
        layout = Profile(columns, layout.joint, layout.distinct, layout.left_out)
        if (total := _counted_from_files(spark, str(path), layout, format, options)) is not None:
            return total
        total = layout.empty()
        for frame, types in frames:
            total = total + _counted(frame, layout, types, str(path))
        return total


def local_session(threads: int | None = None) -> Any:
    """A quiet Spark on this machine, on `threads` cores or all of them, with this Python for its workers."""
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master(f"local[{threads or '*'}]")
        .appName("trimtab-profile")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")
    # PySpark takes the workers' Python from the environment alone, and falls back on any `python3`.
    session.sparkContext.pythonExec = sys.executable
    return session


@contextmanager
def lake_session(given: Any = None) -> Iterator[Any]:
    """The session that is given, or the active one, or a local one that is stopped behind."""
    from pyspark.sql import SparkSession

    if found := given or SparkSession.getActiveSession():
        yield found
        return
    session = local_session()
    try:
        yield session
    finally:
        session.stop()


@contextmanager
def settings(spark: Any, wanted: Mapping[str, str]) -> Iterator[None]:
    """The session with these settings, which it had not asked for: they are put back."""
    before = {name: spark.conf.get(name, None) for name in wanted}
    for name, value in wanted.items():
        spark.conf.set(name, value)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                spark.conf.unset(name)
            else:
                spark.conf.set(name, old)


# Event times are nanoseconds, which Spark has no type for: without this it refuses the whole file.
READING = {"spark.sql.legacy.parquet.nanosAsLong": "true"}


@contextmanager
def _reading(spark: Any, name: str) -> Iterator[None]:
    """Spark set up to read; what goes wrong in Java or in a worker becomes one clear error."""
    with settings(spark, READING):
        try:
            yield
        except (SparkError, ProfileError):
            raise
        except Exception as error:
            if not type(error).__module__.startswith(("pyspark", "py4j")):
                raise
            raise clear_error(error, name) from error


def clear_error(error: Exception, name: str) -> ValueError:
    """What one of Spark's errors says about the table `name`, as a ProfileError or a SparkError."""
    text = str(error)
    if found := re.search(r"ProfileError: (.+)", text):
        return ProfileError(found[1].strip())
    if "PATH_NOT_FOUND" in text:
        return SparkError(f"there is nothing at {name}")
    if "UNABLE_TO_INFER_SCHEMA" in text:
        return SparkError(f"{name} holds no files with rows to profile")
    if broken := re.search(r"(\S+) is not a Parquet file", text):
        return SparkError(f"{broken[1]} is not a Parquet file: it is damaged, or something else; take it out of {name}")
    if broken := re.search(r"(?:FAILED_READ_FILE|CANNOT_READ_FILE_FOOTER)\S* .*?(\S+?:/\S+?)[.,]?\s", text):
        return SparkError(
            f"the file {broken[1]} cannot be read: it is damaged, or something else; take it out of {name}"
        )
    if clash := re.search(r'Failed to merge incompatible data types "(.+?)" and "(.+?)"', text):
        return SparkError(f"the files of {name} have a column as {clash[1]} in one and as {clash[2]} in another")
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return SparkError(f"Spark cannot read {name}: {first}")


def _frames(spark: Any, path: str, format: str | None, options: Mapping[str, Any]) -> list[tuple[Any, Types]]:
    """The table as frames with the Arrow types that Spark has no word for; several where files do not fit together."""
    chosen = format or _FORMATS.get(Path(path).suffix.lower(), "parquet")
    found: dict[str, Any] = {"recursiveFileLookup": "true"}
    if chosen == "parquet" and Path(path).is_dir() and all(f.suffix in ENDINGS for f in parquet_files(path)):
        # A note or a log may lie beside them.
        found["pathGlobFilter"] = f"*{{{','.join(ENDINGS)}}}"
    reader = spark.read.format(chosen).options(**{**found, **_DEFAULTS.get(chosen, {}), **options})
    try:
        return [(reader.load(path), _temporal_types(path, chosen))]
    except Exception as error:
        if chosen != "parquet" or "CANNOT_MERGE" not in str(error):
            raise
    # A column that is of integers in one file and of floats in another: each kind of file is read by itself.
    names = spark.read.format("binaryFile").options(**found).load(path).select("path").collect()
    groups: dict[str, list[str]] = {}
    for (name,) in names:
        groups.setdefault(spark.read.parquet(name).schema.json(), []).append(name)
    return [(spark.read.parquet(*group), _temporal_types(path, chosen)) for group in groups.values()]


def _temporal_types(path: str, format: str) -> Types:
    """Of local Parquet, the times that Spark gives as plain numbers: what its own types cannot hold."""
    if format != "parquet":
        return {}
    import pyarrow.parquet as pq

    is_a = pa.types
    found: dict[str, pa.DataType] = {}
    for file in parquet_files(path):
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowException, OSError):
            # Spark says what is wrong with it.
            continue
        found |= {f.name: f.type for f in schema if is_a.is_timestamp(f.type) or is_a.is_duration(f.type)}
    return found


def _counted_from_files(
    spark: Any, path: str, reference: Profile, format: str | None, options: Mapping[str, Any]
) -> Profile | None:
    """The profile of Parquet that the workers can read by themselves; None where Spark must read it, or refuse."""
    chosen = format or _FORMATS.get(Path(path).suffix.lower(), "parquet")
    if chosen != "parquet" or options or not reads_files(spark):
        return None
    try:
        groups, present = row_groups(parquet_files(path), list(reference.columns))
    except (pa.ArrowException, OSError):
        return None
    return profile_of_files(spark, groups, reference.empty()) if groups and present else None


def _counted(frame: Any, reference: Profile, types: Types, name: str) -> Profile:
    present = [column for column in reference.columns if column in frame.columns]
    if not present:
        wanted = ", ".join(reference.columns)
        raise SparkError(f"{name} has none of the reference's columns ({wanted}): it has {', '.join(frame.columns)}")
    work = PartitionProfile(reference.empty().to_json(), present, types)
    with settings(frame.sparkSession, batches_of(len(present))):
        # `mapInArrow` takes a dot in a name for a field of a struct, so that columns travel by number.
        numbered = frame.selectExpr(*(f"{quoted(column)} AS c{place}" for place, column in enumerate(present)))
        parts = numbered.mapInArrow(work, work.schema)
        partitions = numbered.rdd.getNumPartitions() if hasattr(frame, "rdd") else 1
        while partitions > MERGED_BY_DRIVER:
            partitions = math.isqrt(partitions)
            parts = parts.repartition(partitions).mapInArrow(merged_profiles, work.schema)
        collected = parts.collect()
    total = reference.empty()
    for part in collected:
        total = total + Profile.from_json(bytes(part["profile"]))
    return total


def batches_of(columns: int) -> dict[str, str]:
    """The setting for Arrow batches of about eight megabytes, which is what a profile is updated with best."""
    rows = max(4_096, min(65_536, (8 << 20) // (8 * columns)))
    return {"spark.sql.execution.arrow.maxRecordsPerBatch": str(rows)}


class PartitionProfile:
    """The work of one partition; carries the layout as JSON, so that it pickles small."""

    schema = "profile binary"

    def __init__(self, layout: bytes, names: list[str], types: Types) -> None:
        self._layout, self._names, self._types = layout, names, dict(types)

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        profile = Profile.from_json(self._layout)
        for batch in batches:
            profile = profile.updated(self.named(profile, batch))
        yield one_profile(profile)

    def named(self, profile: Profile, batch: pa.RecordBatch) -> pa.Table:
        """The batch with the columns' names, and as times what Spark could only give as numbers."""
        columns = {}
        for name, values in zip(self._names, batch.columns, strict=False):
            column = profile.columns[name]
            columns[name] = as_time(values, self._types.get(name), column.kind)
        return pa.table(columns)


def as_time(values: pa.Array, wanted: pa.DataType | None, kind: str) -> pa.Array:
    """Whole numbers that stand for times as such: nanoseconds unless `wanted` says else."""
    if not pa.types.is_int64(values.type) or (wanted is None and kind != "datetime"):
        return values
    return values.view(wanted or pa.timestamp("ns"))


def merged_profiles(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The sum of the profiles of a partition; nothing of an empty one."""
    total: Profile | None = None
    for batch in batches:
        for body in batch.column(0).to_pylist():
            profile = Profile.from_json(body)
            total = profile if total is None else total + profile
    if total is not None:
        yield one_profile(total)


def one_profile(profile: Profile) -> pa.RecordBatch:
    """The profile as the one row that a worker hands on."""
    return pa.record_batch({"profile": pa.array([profile.to_json()], pa.binary())})


def quoted(name: str) -> str:
    """A column's name in Spark's SQL."""
    return "`" + name.replace("`", "``") + "`"


def _sample(frame: Any, types: Types, rows: int) -> pa.Table:
    """About as many rows as the bins need, always the same of the same files."""
    wanted = min(SAMPLE_ROWS, max(_SAMPLE_FLOOR, _SAMPLE_VALUES // max(len(frame.columns), 1)))
    drawn = frame if rows <= wanted else frame.sample(False, min(1.0, wanted / rows), _SEED)
    table = drawn.toArrow()
    for place, field in enumerate(table.schema):
        if field.name in types and pa.types.is_int64(field.type):
            times = pa.chunked_array(
                [chunk.view(types[field.name]) for chunk in table.column(place).chunks], types[field.name]
            )
            table = table.set_column(place, field.name, times)
    return table


def _together(name: str, tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all tables. SparkError for a column of types that have none in common.

    A column without a value has any type: a file whose writer knew none has it as whole numbers, for Spark.
    """
    typed: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for field, values in zip(table.schema, table.columns, strict=True):
            if values.null_count < len(values):
                typed.setdefault(field.name, set()).add(field.type)
    same = []
    for table in tables:
        for place, field in enumerate(table.schema):
            if field.name in typed and field.type not in typed[field.name]:
                table = table.set_column(place, field.name, pa.nulls(table.num_rows))
        same.append(table)
    try:
        return pa.concat_tables(same, promote_options="permissive")
    except pa.ArrowException as error:
        raise SparkError(
            f"the files of {name} have a column in types that do not fit together: {error}; "
            "write it in one type, or use the numpy engine"
        ) from error


def _exact_ranges(frame: Any, layout: Profile, types: Types) -> dict[str, NumericColumn]:
    """The numeric columns with the exact range of all finite values in place of the sample's."""
    from pyspark.sql import functions as sql

    # What is no number to Spark (durations, in seconds) keeps the sample's range.
    numeric = {name: column for name, column in layout.columns.items() if isinstance(column, NumericColumn)}
    chosen = [name for name in numeric if name not in types]
    wanted = []
    for name in chosen:
        value = sql.col(quoted(name)).cast("double")
        finite = sql.when(sql.abs(value) < math.inf, value)
        wanted += [sql.min(finite), sql.max(finite)]
    found = frame.agg(*wanted).collect()[0] if wanted else []
    ranges = zip(chosen, found[::2], found[1::2], strict=True)
    return {
        name: NumericColumn.over(widened(numeric[name].edges, low, high))
        for name, low, high in ranges
        if low is not None
    }


def _exact_categories(frame: Any, layout: Profile) -> dict[str, CategoricalColumn]:
    """The categorical columns with the most frequent values of all rows in place of the sample's."""
    from pyspark.sql import functions as sql

    found = {}
    for name, column in layout.columns.items():
        if not isinstance(column, CategoricalColumn) or dict(frame.dtypes)[name] not in ("string", "bigint", "int"):
            continue
        value = sql.col(quoted(name)).cast("string").alias("value")
        counted = frame.select(value).where("value IS NOT NULL").groupBy("value").count()
        # Ties in the order of the bytes, which is that of code points.
        rows = counted.orderBy(sql.desc("count"), "value").limit(NUM_CATEGORIES + 1).collect()
        texts = tuple(row["value"] for row in rows)
        found[name] = CategoricalColumn.over(texts[:NUM_CATEGORIES], len(texts) > NUM_CATEGORIES)
    return found
