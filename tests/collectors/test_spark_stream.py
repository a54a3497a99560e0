"""A stream of Parquet files: every row is counted once, whatever dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collectors import spark_stream
from collectors.spark import SparkError
from collectors.spark_stream import profile_of_stream, profiles_of_stream, stream_profiles
from observability.profile import Profile

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
START = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())


def rows(seed: int, hour: float = 0.0) -> pa.Table:
    draw = np.random.default_rng(seed)
    times = (START + hour * 3600 + draw.uniform(0, 3600, 300)) * 1e9
    return pa.table(
        {
            "x": draw.normal(size=300),
            "kind": draw.choice(["a", "b"], 300),
            "time": pa.array(times.astype(np.int64), pa.timestamp("ns")),
        }
    )


def put(folder: Path, name: str, table: pa.Table) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / f".{name}")
    os.replace(folder / f".{name}", folder / f"{name}.parquet")


def counts_of(profile: Profile) -> dict[str, list[int]]:
    return {name: column.counts.tolist() for name, column in profile.columns.items()}


def test_a_restart_counts_no_row_twice(tmp_path: Path, spark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Profile.of(rows(99).select(["x", "kind"]))
    folder, checkpoint, sink = tmp_path / "in", tmp_path / "checkpoint", tmp_path / "sink"
    tables = [rows(seed) for seed in range(6)]
    for number, table in enumerate(tables[:3]):
        put(folder, str(number), table)

    def run() -> None:
        stream_profiles(spark, folder, reference, checkpoint, sink, max_files=1).awaitTermination()

    # Dies after its file is written and before Spark knows that the batch is done: the batch comes again.
    really = spark_stream._write
    monkeypatch.setattr(spark_stream, "KEPT_BATCHES", 2)

    def write_and_die(path: Path, stream: str, number: int, windows: Any) -> None:
        really(path, stream, number, windows)
        if number == 1:
            raise OSError("killed")

    monkeypatch.setattr(spark_stream, "_write", write_and_die)
    with pytest.raises(Exception, match="killed"):
        run()
    assert profile_of_stream(sink).rows == 600
    monkeypatch.setattr(spark_stream, "_write", really)
    run()
    for number, table in enumerate(tables[3:], 3):
        put(folder, str(number), table)
    run()
    run()

    assert counts_of(profile_of_stream(sink)) == counts_of(reference.empty().updated(pa.concat_tables(tables)))
    # Old batches were added up into one file.
    assert len(list(sink.glob("batch-*.json"))) <= 2
    with pytest.raises(Exception, match="another checkpoint"):
        stream_profiles(spark, folder, reference, tmp_path / "fresh", sink).awaitTermination()
    assert profile_of_stream(sink).rows == 1800


def test_files_count_once_however_old_they_are_and_however_often_they_come(tmp_path: Path, spark: Any) -> None:
    reference = Profile.of(rows(99).select(["x", "kind"]))
    tables = [rows(seed) for seed in range(3)]

    def come(name: str, table: pa.Table, days: float) -> int:
        put(tmp_path / "in", name, table)
        then = time.time() - days * 86_400
        os.utime(tmp_path / "in" / f"{name}.parquet", (then, then))
        query = stream_profiles(spark, tmp_path / "in", reference, tmp_path / "checkpoint", tmp_path / "sink")
        query.awaitTermination()
        return profile_of_stream(tmp_path / "sink").rows

    assert [come("new", tables[0], 0), come("old", tables[1], 30), come("oldest", tables[2], 4_000)] == [300, 600, 900]
    assert [come("new", tables[0], -20), come("old", tables[1], 0)] == [900, 900]
    assert counts_of(profile_of_stream(tmp_path / "sink")) == counts_of(
        reference.empty().updated(pa.concat_tables(tables))
    )


def test_late_rows_amend_their_window(tmp_path: Path, spark: Any) -> None:
    reference = Profile.of(rows(99).select(["x", "kind"]))
    folder, checkpoint, sink = tmp_path / "in", tmp_path / "checkpoint", tmp_path / "sink"
    first, second, late = rows(1, 0), rows(2, 1), rows(3, 0)
    late = late.set_column(2, "time", pa.array([None, *late["time"].to_pylist()[1:]], pa.timestamp("ns")))
    for name, table in (("a", first), ("b", second)):
        put(folder, name, table)
    stream_profiles(spark, folder, reference, checkpoint, sink, time="time").awaitTermination()
    put(folder, "c", late)
    stream_profiles(spark, folder, reference, checkpoint, sink, time="time").awaitTermination()

    found = profiles_of_stream(sink)

    at = [datetime.fromtimestamp(START + 3600 * hour, UTC) for hour in range(2)]
    wanted = {None: [late.slice(0, 1)], at[0]: [first, late.slice(1)], at[1]: [second]}
    assert {start: counts_of(profile) for start, profile in found.items()} == {
        start: counts_of(reference.empty().updated(pa.concat_tables(parts))) for start, parts in wanted.items()
    }


def test_files_of_other_types_that_came_keep_no_stream_from_starting_again(tmp_path: Path, spark: Any) -> None:
    reference = Profile.of(rows(99).select(["x", "kind"]))
    folder, sink = tmp_path / "in", tmp_path / "sink"
    first, single, micros = rows(1), rows(2), rows(3)
    single = single.set_column(0, "x", single["x"].cast(pa.float32()))
    # What the first file's nanoseconds make of its schema must not make others of these.
    micros = micros.set_column(2, "time", micros["time"].cast(pa.timestamp("us"), safe=False))

    def run(name: str, table: pa.Table) -> None:
        put(folder, name, table)
        stream_profiles(spark, folder, reference, tmp_path / "c", sink, time="time").awaitTermination()

    run("a", first)
    run("b c", single)
    with pytest.raises(SparkError, match=r"as (DOUBLE|FLOAT) in one and as"):
        stream_profiles(spark, folder, reference, tmp_path / "c2", tmp_path / "s2")
    given = "x double, kind string"
    stream_profiles(spark, folder, reference, tmp_path / "c3", tmp_path / "s3", schema=given).awaitTermination()
    assert profile_of_stream(tmp_path / "s3").rows == 600
    run("d", micros)

    found = profiles_of_stream(sink)
    assert list(found) == [datetime.fromtimestamp(START, UTC)]
    whole = reference.empty().updated(first).updated(single).updated(micros)
    assert counts_of(profile_of_stream(sink)) == counts_of(whole)


def test_a_file_that_cannot_be_read_is_named_and_holds_up_nothing_once_it_is_gone(tmp_path: Path, spark: Any) -> None:
    reference = Profile.of(rows(99).select(["x", "kind"]))
    folder, sink = tmp_path / "in", tmp_path / "sink"

    def run(name: str, table: pa.Table) -> None:
        put(folder, name, table)
        stream_profiles(spark, folder, reference, tmp_path / "c", sink, max_files=1).awaitTermination()

    run("a", rows(1))
    (folder / "b.parquet").write_bytes(b"PAR1 no table" * 100)
    for name in ("c", "d"):
        with pytest.raises(
            Exception, match=r"SparkError: .*b\.parquet.* cannot be read|SparkError: .*b\.parquet is not"
        ):
            run(name, rows(2))
    (folder / "b.parquet").unlink()
    run("e", rows(3))

    assert counts_of(profile_of_stream(sink)) == counts_of(
        reference.empty().updated(pa.concat_tables([rows(1), rows(2), rows(2), rows(3)]))
    )


@pytest.mark.timeout(600)
def test_a_killed_process_is_continued(tmp_path: Path, spark: Any) -> None:
    reference = Profile.of(rows(99).select(["x", "kind"]))
    folder, checkpoint, sink = tmp_path / "in", tmp_path / "checkpoint", tmp_path / "sink"
    tables = [rows(seed) for seed in range(5)]
    for number, table in enumerate(tables):
        put(folder, str(number), table)
    (tmp_path / "reference.json").write_bytes(reference.to_json())
    code = (
        "import sys; from pathlib import Path; from observability.profile import Profile\n"
        "from collectors.spark import local_session; from collectors.spark_stream import stream_profiles\n"
        "base = Path(sys.argv[1]); reference = Profile.from_json((base / 'reference.json').read_bytes())\n"
        "arguments = base / 'in', reference, base / 'checkpoint', base / 'sink'\n"
        "stream_profiles(local_session(1), *arguments, every='1 second', max_files=1).awaitTermination()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 400
        while not list(sink.glob("batch-*.json")):
            assert process.poll() is None, "the stream ended"
            assert time.monotonic() < until, "the stream counted nothing"
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    stream_profiles(spark, folder, reference, checkpoint, sink).awaitTermination()

    assert counts_of(profile_of_stream(sink)) == counts_of(reference.empty().updated(pa.concat_tables(tables)))


def test_a_stream_of_nothing_says_so(tmp_path: Path, spark: Any) -> None:
    reference = Profile.of(rows(99).select(["x", "kind"]))
    (tmp_path / "in").mkdir()
    with pytest.raises(SparkError, match="give their schema"):
        stream_profiles(spark, tmp_path / "in", reference, tmp_path / "c", tmp_path / "s")
    put(tmp_path / "in", "a", rows(1))
    with pytest.raises(SparkError, match="no column 'when' for the time"):
        stream_profiles(spark, tmp_path / "in", reference, tmp_path / "c", tmp_path / "s", time="when")
    other = Profile.of(pa.table({"z": [1.0]}))
    with pytest.raises(SparkError, match="none of the reference's columns: x, kind, time"):
        stream_profiles(spark, tmp_path / "in", other, tmp_path / "c", tmp_path / "s")
    with pytest.raises(SparkError, match="holds no profiles"):
        profile_of_stream(tmp_path / "s")
