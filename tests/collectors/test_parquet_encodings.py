"""Text in Parquet that is kept neither plain nor by codes, as Spark, Rust and Trino may write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collectors.drift.compare import compare
from collectors.spark_files import FileProfile, row_groups
from observability.profile import Profile

ENCODINGS = ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"]


def _table(seed: int, rows: int = 3_000) -> pa.Table:
    drawn = np.random.default_rng(seed)
    words = np.array(["red", "green", "blue", "grey"])[drawn.integers(0, 4 - seed, rows)]
    return pa.table({"x": drawn.normal(size=rows), "word": pa.array(words, mask=drawn.random(rows) < 0.1)})


def _write(table: pa.Table, path: Path, encoding: str) -> Path:
    pq.write_table(table, path, use_dictionary=False, column_encoding={"word": encoding}, row_group_size=700)
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("mode", ["exact", "profile"])
def test_text_without_codes_is_compared_as_in_memory(tmp_path: Path, encoding: str, mode: Any) -> None:
    before, now = _table(0), _table(1)
    beside = tmp_path / "current"
    beside.mkdir()
    _write(now.slice(0, 1_500), beside / "a.parquet", encoding)
    pq.write_table(now.slice(1_500), beside / "b.parquet")

    found = compare(_write(before, tmp_path / "reference.parquet", encoding), beside, mode=mode)

    expected = compare(before, now, mode=mode)
    assert found.columns == expected.columns
    assert found.columns["word"].drifted


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_profiles_count_text_without_codes(tmp_path: Path, encoding: str) -> None:
    table = _table(0)
    path = _write(table, tmp_path / "t.parquet", encoding)

    profile = Profile.of(path)
    groups, names = row_groups([path], table.schema.names)
    (counted,) = FileProfile(profile.empty().to_json(), names)(iter([groups]))

    assert profile.to_json() == Profile.of(table).to_json()
    assert Profile.from_json(counted).columns["word"] == profile.columns["word"]
