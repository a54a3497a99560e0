"""The event lake: atomic files, and labelled events read back."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from observability.events import METADATA, BadBatch, event_batch, label_batch
from observability.lake import (
    LABELLED,
    events_path,
    labels_path,
    read_events,
    read_labelled,
    read_labels,
    write_events,
    write_labels,
    write_table,
)

T0 = 1_362_398_400  # 2013-03-04 12:00:00 UTC


def events(ids: list[str], times: list[float], **changed: Any) -> pa.Table:
    given: dict[str, Any] = {
        "ids": ids,
        "time_ns": (np.array(times) * 1e9).astype(np.int64),
        "model": "delay",
        "version": "1",
        "features": {"temp": np.arange(len(ids), dtype=float)},
        "predictions": {"p": np.zeros(len(ids))},
    }
    return pa.Table.from_batches([event_batch(**(given | changed))])


def labels(ids: list[str], values: list[float], time: float, model: str = "delay") -> pa.Table:
    return pa.Table.from_batches([label_batch(ids, model, values, int(time * 1e9))])


def test_the_folders_are_those_of_the_contract() -> None:
    folder = events_path("lake", "delay", "2", T0)

    assert folder == Path("lake/events/model=delay/version=2/date=2013-03-04/hour=12")
    assert labels_path("lake", "delay", datetime(2013, 3, 4, 9, 30, tzinfo=UTC)) == Path(
        "lake/labels/model=delay/date=2013-03-04/hour=09"
    )


def test_a_model_name_cannot_leave_the_lake(tmp_path: Path) -> None:
    (path,) = write_events(tmp_path, events(["a"], [T0], model="../../evil/x"))

    assert path.resolve().is_relative_to(tmp_path / "events")
    write_labels(tmp_path, labels(["a"], [1], T0, model="../../evil/x"))
    assert read_labelled(tmp_path, "../../evil/x").num_rows == 1


def test_events_come_back_in_time_order_with_their_latest_label(tmp_path: Path) -> None:
    write_events(tmp_path, events(["c", "a", "b"], [T0 + 7200, T0, T0 + 1]))
    write_labels(tmp_path, labels(["a", "c"], [0, 1], T0 + 10_000))
    write_labels(tmp_path, labels(["a", "unknown"], [1, 1], T0 + 20_000))
    write_labels(tmp_path, labels(["a"], [0], T0 + 5_000))

    got = read_labelled(tmp_path, "delay")

    assert got.column("id").to_pylist() == ["a", "c"]
    assert got.column("label").to_pylist() == [1.0, 1.0]
    assert got.column("feature.temp").to_pylist() == [1.0, 0.0]
    assert read_events(tmp_path, "delay").column("id").to_pylist() == ["a", "b", "c"]
    assert read_labels(tmp_path, "delay").num_rows == 3


def test_an_empty_lake_gives_an_empty_table_with_the_columns(tmp_path: Path) -> None:
    assert read_labelled(tmp_path / "none", "delay").schema == LABELLED
    assert read_events(tmp_path, "delay").schema == METADATA


def test_the_window_includes_its_start_and_excludes_its_end(tmp_path: Path) -> None:
    times = [T0, T0 + 3599.5, T0 + 3600, T0 + 7200]
    write_events(tmp_path, events(["a", "b", "c", "d"], times))

    got = read_events(tmp_path, "delay", since=T0 + 3599.5, until=datetime.fromtimestamp(T0 + 7200, UTC))

    assert got.column("id").to_pylist() == ["b", "c"]
    with pytest.raises(ValueError, match="no time zone"):
        read_events(tmp_path, "delay", since=datetime(2013, 3, 4))


def test_versions_and_models_are_kept_apart(tmp_path: Path) -> None:
    write_events(tmp_path, events(["a", "b"], [T0, T0], version=["1", "2"]))
    write_events(tmp_path, events(["x"], [T0], model="other"))

    assert read_events(tmp_path, "delay", versions=["2"]).column("id").to_pylist() == ["b"]
    assert read_events(tmp_path, "delay", versions=[]).num_rows == 0
    assert read_events(tmp_path, "delay").num_rows == 2


def test_an_event_that_was_stored_twice_comes_once_and_an_answer_before_its_shadow(tmp_path: Path) -> None:
    write_events(tmp_path, events(["a"], [T0], arm="shadow", version="2"))
    write_events(tmp_path, events(["a"], [T0 + 1]))
    write_events(tmp_path, events(["a"], [T0 + 1]))

    got = read_events(tmp_path, "delay")

    assert got.column("arm").to_pylist() == ["stable"]
    assert read_events(tmp_path, "delay", versions=["2"]).column("arm").to_pylist() == ["shadow"]


def test_files_of_different_columns_are_unified(tmp_path: Path) -> None:
    write_events(tmp_path, events(["a"], [T0]))
    write_events(tmp_path, events(["b"], [T0 + 1], features={"wind": [3.0]}))

    got = read_events(tmp_path, "delay")

    assert got.column("feature.temp").to_pylist() == [0.0, None]
    assert got.column("feature.wind").to_pylist() == [None, 3.0]


def test_columns_whose_types_clash_are_an_error_that_names_the_place(tmp_path: Path) -> None:
    write_events(tmp_path, events(["a"], [T0]))
    write_events(tmp_path, events(["b"], [T0 + 1], features={"temp": ["warm"]}))

    with pytest.raises(BadBatch, match=r"model=delay have columns whose types do not go together"):
        read_events(tmp_path, "delay")


def test_the_same_name_writes_the_same_file_so_that_a_repetition_adds_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        write_events(tmp_path, events(["a", "b"], [T0, T0 + 3600]), name="batch-1")

    assert len(list(tmp_path.rglob("*.parquet"))) == 2


def test_unfinished_files_are_not_data(tmp_path: Path) -> None:
    (path,) = write_events(tmp_path, events(["a"], [T0]))
    (path.parent / "_half.parquet").write_bytes(b"PAR1 torn")
    (path.parent / ".hidden.parquet").write_bytes(b"")
    (path.parent / "_temporary.parquet.tmp").write_bytes(b"")

    assert read_events(tmp_path, "delay").num_rows == 1


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken.parquet").mkdir()

    with pytest.raises(OSError, match="taken"):
        write_table(events(["a"], [T0]), tmp_path, "taken")

    assert os.listdir(tmp_path) == ["taken.parquet"]


def test_the_files_are_those_that_any_hive_reader_understands(tmp_path: Path) -> None:
    write_events(tmp_path, events(["a", "b"], [T0, T0 + 3600], model="a/b"))

    keys = pa.schema([("model", pa.utf8()), ("version", pa.utf8()), ("date", pa.utf8()), ("hour", pa.int32())])
    partitioning = ds.partitioning(keys, flavor="hive")
    read = ds.dataset(tmp_path / "events", partitioning=partitioning).to_table(columns=["model", "hour", "date"])

    assert set(read.column("model").to_pylist()) == {"a/b"}
    assert sorted(read.column("hour").to_pylist()) == [12, 13]
    assert set(read.column("date").to_pylist()) == {"2013-03-04"}
