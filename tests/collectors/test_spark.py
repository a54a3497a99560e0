"""Spark over small lakes: the counts of its profiles are numpy's to the unit, and bad input gets a clear answer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from collectors import spark as engine
from collectors.drift.compare import compare
from collectors.drift.source import InputError
from collectors.spark import SparkError, profile_of_frame, profile_of_lake, reference_of_lake
from collectors.spark_files import dealt, parquet_files, profile_of_files, row_groups
from observability.cells import ProfileError
from observability.columns import NumericColumn
from observability.lake import write_events
from observability.profile import Profile

Events = Callable[..., pa.RecordBatch]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def every_kind(rows: int, seed: int) -> pa.Table:
    draw = np.random.default_rng(seed)
    numbers = draw.normal(size=rows)
    numbers[:4] = [np.nan, np.inf, -np.inf, 0.0]
    words = np.array(["alpha", "beta", "gamma", "delta eps", "zeta"])
    return pa.table(
        {
            "x.y": pa.array(numbers, mask=draw.random(rows) < 0.1),
            "odd`name": draw.integers(0, 50, rows),
            "small": draw.normal(size=rows).astype(np.float32),
            "cat": draw.choice(["a", "b", "c"], rows, p=[0.6, 0.3, 0.1]),
            "flag": pa.array(draw.random(rows) < 0.3, mask=draw.random(rows) < 0.05),
            "nanoseconds": pa.array(draw.integers(16 * 10**17, 17 * 10**17, rows), pa.timestamp("ns")),
            "micros": pa.array(draw.integers(16 * 10**14, 17 * 10**14, rows), pa.timestamp("us", tz="UTC")),
            "day": pa.array(draw.integers(0, 20_000, rows).astype(np.int32)).cast(pa.date32()),
            "took": pa.array(draw.integers(0, 10**9, rows), pa.duration("us")),
            "text": [" ".join(draw.choice(words, 5)) + str(row) for row in range(rows)],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(draw.normal(size=rows * 3).astype(np.float32)), 3),
        }
    )


def assert_same(found: Profile, wanted: Profile) -> None:
    assert list(found.columns) == list(wanted.columns)
    for name, column in found.columns.items():
        other = wanted.columns[name]
        assert column.kind == other.kind
        assert column.counts.tolist() == other.counts.tolist(), name
        assert (column.missing, column.rows) == (other.missing, other.rows)
        if isinstance(column, NumericColumn) and isinstance(other, NumericColumn):
            assert column.mean == pytest.approx(other.mean, rel=1e-9)
            assert column.m2 == pytest.approx(other.m2, rel=1e-9)
            for name in ("nan", "positive_infinite", "negative_infinite", "zeros", "minimum", "maximum"):
                assert getattr(column, name) == getattr(other, name)


@pytest.fixture(scope="module")
def tables() -> list[pa.Table]:
    # The last file lacks a column.
    return [every_kind(700, 0), every_kind(600, 1), every_kind(500, 2).drop_columns("small")]


@pytest.fixture(scope="module")
def lake(tables: list[pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lake")
    for number, table in enumerate(tables):
        (folder / f"part={number}").mkdir()
        pq.write_table(table, folder / f"part={number}" / "rows.parquet", row_group_size=200)
    return folder


def test_every_kind_of_column_is_counted_as_numpy_counts_it(spark: Any, lake: Path, tables: list[pa.Table]) -> None:
    reference = Profile.of(tables[0], joint=True)
    wanted = reference.empty()
    for table in tables:
        wanted = wanted.updated(table)
    nanos = spark.conf.get("spark.sql.legacy.parquet.nanosAsLong")

    found = profile_of_lake(lake, reference, spark)

    assert_same(found, wanted)
    assert found.joint is not None
    assert wanted.joint is not None
    np.testing.assert_allclose(found.joint.covariance.comoment, wanted.joint.covariance.comoment, rtol=1e-9)
    assert spark.conf.get("spark.sql.legacy.parquet.nanosAsLong") == nanos


def test_the_workers_read_parquet_themselves_and_count_the_same(
    spark: Any, lake: Path, tables: list[pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = Profile.of(tables[0])

    groups, present = row_groups(parquet_files(str(lake)), list(reference.columns))
    tasks = dealt(groups, 4)
    found = profile_of_lake(lake, reference, spark)
    monkeypatch.setattr(engine, "reads_files", lambda session: False)
    by_rows = profile_of_lake(lake, reference, spark)
    elsewhere = Profile({"nowhere": NumericColumn.over(np.array([0.0, 1.0]))})

    assert present == list(reference.columns)
    assert [2 <= sum(len(group.numbers) for group in task) <= 3 for task in tasks] == [True] * 4
    assert sorted((g.file, n) for task in tasks for g in task for n in g.numbers) == [
        (group.file, number) for group in groups for number in group.numbers
    ]
    assert_same(found, by_rows)
    assert profile_of_files(spark, groups, elsewhere).columns["nowhere"].missing == 1800
    assert parquet_files("s3://bucket/lake") == []


def test_a_frame_of_many_partitions_is_merged_by_the_workers(spark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MERGED_BY_DRIVER", 2)
    frame = spark.range(0, 1000, 1, 9).selectExpr("id AS n", "id % 3 = 0 AS third")
    table = pa.table({"n": np.arange(1000), "third": np.arange(1000) % 3 == 0})
    reference = Profile.of(table.slice(0, 500))

    assert_same(profile_of_frame(frame, reference), reference.empty().updated(table))


def test_spark_makes_the_reference_that_numpy_makes(
    spark: Any, lake: Path, tables: list[pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pa.concat_tables(
        [table.drop_columns(["small"]) if "small" in table.schema.names else table for table in tables]
    )

    chosen = {name: column.kind for name, column in Profile.of(whole).columns.items()}
    assert_same(reference_of_lake(lake, chosen, spark), Profile.of(whole))

    # From a sample: bins differ a little, but the range, the categories and every count are exact.
    monkeypatch.setattr(engine, "SAMPLE_ROWS", 300)
    found, wanted = reference_of_lake(lake, chosen, spark), Profile.of(whole)
    numbers = found.columns["x.y"]
    assert isinstance(numbers, NumericColumn)
    assert (numbers.minimum, numbers.maximum) == (numbers.edges[0], numbers.edges[-1])
    assert numbers.counts[0] == numbers.counts[-1] == 0
    assert found.columns["cat"] == wanted.columns["cat"]
    assert {name: column.rows for name, column in found.columns.items()} == dict.fromkeys(chosen, 1800)


def test_the_lake_of_events_and_the_drift_of_two_files(tmp_path: Path, spark: Any, events: Events) -> None:
    reference = Profile.of(pa.Table.from_batches([events(2000)]))
    parts = [
        pa.Table.from_batches([events(500, seed=i, prefix=str(i), time_s=1.363e9 + 3600 * i, shift=i / 3)])
        for i in range(3)
    ]
    wanted = reference.empty()
    for table in parts:
        write_events(tmp_path / "lake", table)
        wanted = wanted.updated(table)
    for name in ("a", "b"):
        pq.write_table(pa.table({"x": np.random.default_rng(len(name)).normal(size=500)}), tmp_path / f"{name}.parquet")

    # No session is given: the active one is used, and not stopped.
    assert_same(profile_of_lake(tmp_path / "lake" / "events", reference), wanted)
    verdict = compare(tmp_path / "a.parquet", tmp_path / "b.parquet", engine="spark")

    assert not verdict.drifted


def test_columns_of_one_side_are_left_out_as_without_spark(tmp_path: Path, spark: Any) -> None:
    rng = np.random.default_rng(4)
    before = pa.table({"x": rng.normal(size=400), "gone": rng.normal(size=400), "list": [[1]] * 400})
    now = pa.table({"x": rng.normal(size=300), "new": rng.normal(size=300), "list": [[2]] * 300})
    paths = tmp_path / "before.parquet", tmp_path / "now.parquet"
    for path, table in zip(paths, (before, now), strict=True):
        pq.write_table(table, path)

    by_spark, here = (compare(*paths, engine=name, mode="profile") for name in ("spark", "numpy"))

    assert (by_spark.only_in_reference, by_spark.only_in_current) == (("gone",), ("new",))
    assert (here.only_in_reference, here.only_in_current) == (("gone",), ("new",))
    assert by_spark.columns["x"].threshold == here.columns["x"].threshold
    assert list(by_spark.columns) == list(here.columns)
    with pytest.raises(InputError, match="'gone' is not in the current table: there are x, new, list"):
        compare(*paths, engine="spark", columns=["x", "gone"])
    assert list(compare(*paths, engine="spark", columns=["x"]).columns) == ["x"]


def test_times_are_times_though_a_note_lies_beside_the_files(tmp_path: Path, spark: Any) -> None:
    at = pa.array(np.arange(3_000) * 7_200_000_000_000, pa.timestamp("ns"))
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "README.md").write_text("made on Monday")
    for part in range(2):
        pq.write_table(pa.table({"at": at.slice(1_500 * part, 1_500)}), tmp_path / "lake" / f"{part}.parquet")

    found = compare(tmp_path / "lake", f"{tmp_path}/lake/*.parquet", engine="spark")

    assert found.columns["at"].type == "datetime"
    assert found.columns == compare(tmp_path / "lake", tmp_path / "lake", mode="profile").columns


def test_files_whose_types_do_not_fit_together_and_other_formats(tmp_path: Path, spark: Any) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    parts = [pa.table({"v": [1, 2, 3]}), pa.table({"v": [1.5, 2.5], "w": ["a", "b"]})]
    for number, table in enumerate(parts):
        pq.write_table(table, mixed / f"{number}.parquet")
    (mixed / "readme.md").write_text("What lies beside the rows is left alone.")
    pyarrow.csv.write_csv(parts[1], tmp_path / "rows.csv")
    (tmp_path / "rows.jsonl").write_text('{"v": 1.5, "w": "a"}\n{"v": 2.5, "w": "b"}\n')
    reference = Profile.of(pa.table({"v": [1.0, 2.0], "w": ["a", "a"]}))

    assert_same(profile_of_lake(mixed, reference, spark), reference.empty().updated(parts[0]).updated(parts[1]))
    wanted = reference.empty().updated(parts[1])
    assert_same(profile_of_lake(tmp_path / "rows.csv", reference, spark), wanted)
    assert_same(profile_of_lake(tmp_path / "rows.jsonl", reference, spark), wanted)

    lines = [f"{number};{number % 7}" for number in range(300)]
    (tmp_path / "divided.csv").write_text("\n".join(["v;k", *lines]))
    divided = compare(tmp_path / "divided.csv", tmp_path / "divided.csv", engine="spark")
    assert {name: column.type for name, column in divided.columns.items()} == {"v": "numeric", "k": "numeric"}
    (tmp_path / "commas.csv").write_text("v;k\n" + "1,5;2\n" * 20)
    with pytest.raises(InputError, match="writes numbers with a comma, which Spark does not read"):
        compare(tmp_path / "divided.csv", tmp_path / "commas.csv", engine="spark")


def test_a_column_without_values_fits_every_other() -> None:
    values = pa.table({"truth": [True, None], "text": ["a", "b"]})
    # What Spark makes of a file that pandas wrote of nothing but None.
    empty = pa.table(
        {"truth": pa.nulls(3, pa.int32()), "text": pa.nulls(3, pa.int32()), "none": pa.nulls(3, pa.int32())}
    )
    together = engine._together("lake", [empty, values, empty])
    assert together.select(["truth", "text"]).slice(3, 2).equals(values)
    assert together.column("truth").null_count == 7
    assert together.schema.field("none").type == pa.int32()
    with pytest.raises(SparkError, match="the files of lake have a column in types that do not fit together"):
        engine._together("lake", [values, pa.table({"truth": [1, 2]})])


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, spark: Any, lake: Path) -> None:
    reference = Profile.of(pa.table({"v": [1.0, 2.0]}))
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "bad.parquet").write_bytes(b"this is no Parquet file, however long it may be")
    shutil.copy(lake / "part=0" / "rows.parquet", broken / "good.parquet")
    pq.write_table(pa.table({"v": ["one", "two"]}), tmp_path / "texts.parquet")

    for path, message in (
        (tmp_path / "nowhere", "there is nothing at .*nowhere"),
        (empty, "empty holds no files with rows"),
        (broken, "bad.parquet is not a Parquet file: it is damaged"),
        (lake, r"none of the reference's columns \(v\): it has x.y, "),
    ):
        with pytest.raises(SparkError, match=message):
            profile_of_lake(path, reference, spark)
    with pytest.raises(ProfileError, match="column 'v' of type string is not numeric"):
        profile_of_lake(tmp_path / "texts.parquet", reference, spark)
