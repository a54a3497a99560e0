"""Columns whose type differs between two tables, in rows and against a saved profile: there is always an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collectors.drift.compare import compare, saved_profile
from collectors.drift.comparison import ColumnComparison
from collectors.drift.source import InputError
from observability.profile import Profile

ROWS = 400
TRUE = np.random.default_rng(1).random(ROWS) < 0.3
WAYS = ("exact", "profile", "saved")


def column(before: Any, now: Any, way: str) -> ColumnComparison:
    reference, current = {"x": before, "n": np.arange(ROWS)}, {"x": now, "n": np.arange(ROWS)}
    if way == "saved":
        return compare(Profile.from_json(saved_profile(reference)), current).columns["x"]
    return compare(reference, current, mode=way).columns["x"]  # type: ignore[arg-type]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("other", [[b"a"] * ROWS, [{"a": 1}] * ROWS, [["a"]] * ROWS])
@pytest.mark.parametrize("known", [np.arange(ROWS), ["a", "b"] * (ROWS // 2), TRUE])
def test_a_column_that_became_or_was_of_no_kind_has_drifted(way: str, other: list[Any], known: Any) -> None:
    for found in (column(known, other, way), column(other, known, way)):
        assert found.drifted
        assert "the type changed" in found.reason


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("nothing", [[None] * ROWS, np.full(ROWS, np.nan)])
def test_a_reference_without_values_is_told_whatever_follows(way: str, nothing: Any) -> None:
    for now in (
        ["a", "b"] * (ROWS // 2),
        ["1", "2"] * (ROWS // 2),
        [[1.0, 2.0]] * ROWS,
        ["true", "false"] * (ROWS // 2),
    ):
        assert column(nothing, now, way).drifted


@pytest.mark.parametrize("way", ["exact", "profile"])
def test_neither_table_has_a_vector(way: str) -> None:
    none = pa.nulls(ROWS, pa.list_(pa.float64()))

    found = column(pa.nulls(ROWS), none, way)

    assert not found.drifted
    assert found.reason == "neither table has a value"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("words", [("true", "false"), ("True", "False"), ("TRUE", "false"), ("1", "0")])
def test_truth_values_are_the_same_in_words(way: str, words: tuple[str, str]) -> None:
    written = pa.array(np.where(TRUE, *words))

    found = column(TRUE, written, way)

    assert found.type == "boolean"
    assert found.total_variation == 0
    assert not found.drifted
    assert column(TRUE, pa.array(np.where(~TRUE, *words)), way).drifted


@pytest.mark.parametrize("way", ["exact", "profile"])
def test_zeros_and_ones_are_the_words_true_and_false(way: str) -> None:
    found = column(TRUE.astype(np.int8), np.where(TRUE, "True", "False"), way)

    assert (found.type, found.drifted) == ("boolean", False)
    assert column(np.arange(ROWS), np.where(TRUE, "True", "False"), way).drifted
    assert column(TRUE.astype(np.int8), ["1", "0"] * (ROWS // 2), way).type == "numeric"


def test_a_saved_truth_value_may_be_a_number_now() -> None:
    assert not column(TRUE, TRUE.astype(np.int64), "saved").drifted
    assert "the type changed" in column(TRUE, np.arange(ROWS), "saved").reason


def test_texts_are_read_as_the_numbers_that_a_saved_profile_has() -> None:
    numbers = np.random.default_rng(2).normal(size=ROWS)

    found = column(numbers, [str(number) for number in numbers], "saved")

    assert (found.type, found.ks, found.drifted) == ("numeric", 0.0, False)
    assert column(numbers, ["none of them"] * ROWS, "saved").missing.current == ROWS


@pytest.mark.parametrize("mode", ["exact", "profile"])
def test_long_times_in_nanoseconds_are_rounded_and_not_refused(mode: Any) -> None:
    days = np.arange(ROWS) * 86_400_000_000_000 + 1

    found = compare({"took": pa.array(days * 60, pa.duration("ns"))}, {"took": days / 1e9 * 60}, mode=mode)

    assert found.columns["took"].ks == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize("mode", ["exact", "profile"])
def test_extensions_are_what_they_are_kept_in(mode: Any, tmp_path: Path) -> None:
    texts = pa.array(['{"a":1}', '{"a":2}'] * (ROWS // 2))
    table = pa.table({"x": pa.ExtensionArray.from_storage(pa.json_(pa.string()), texts), "n": np.arange(ROWS)})
    pq.write_table(table, tmp_path / "t.parquet")

    for rows in (table, tmp_path / "t.parquet"):
        found = compare(rows, {"x": texts, "n": np.arange(ROWS)}, mode=mode).columns["x"]
        assert (found.type, found.total_variation) == ("categorical", 0.0)


def test_what_only_looks_like_a_table_is_refused() -> None:
    class Series:
        """Speaks Arrow's interface, but is no table."""

        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            return pa.chunked_array([[1.0]]).__arrow_c_stream__()

    with pytest.raises(InputError, match="a Series, cannot be read as a table"):
        compare({"x": [1.0]}, Series())
    with pytest.raises(InputError, match="more than one column of a name"):
        compare({1: [1.0], "1": [2.0]}, {"1": [1.0]})


def test_names_that_are_numbers_and_tensors_are_read() -> None:
    torch = pytest.importorskip("torch")
    numbers = torch.arange(ROWS, dtype=torch.float32, requires_grad=True)

    found = compare({1: numbers, 2: torch.ones(ROWS, 3)}, {"1": numbers.bfloat16(), "2": np.ones((ROWS, 3))})

    assert found.columns["1"].type == "numeric"
    assert found.columns["2"].type == "embedding"
    assert not found.drifted


MOMENTS = np.datetime64("2024-03-01T00:00:00") + np.random.default_rng(4).integers(0, 30 * 86_400, ROWS)
WRITTEN = {
    "with T": "{}",
    "with a space and UTC": "{}+00:00",
    "Z": "{}Z",
    "fractions": "{}.250",
    "nanoseconds": "{}.250000001Z",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pattern", WRITTEN.values(), ids=WRITTEN)
def test_times_are_the_same_as_text(way: str, pattern: str) -> None:
    texts = [pattern.format(moment).replace("T", " " if "+" in pattern else "T") for moment in MOMENTS]

    pairs = [(MOMENTS, texts)] if way == "saved" else [(MOMENTS, texts), (texts, MOMENTS)]
    for before, now in pairs:
        found = column(before, now, way)

        assert (found.type, found.total_variation, found.drifted) == ("datetime", 0.0, False)


@pytest.mark.parametrize("way", ["exact", "profile"])
def test_days_that_are_text_in_one_table_are_days(way: str) -> None:
    days = MOMENTS.astype("datetime64[D]")

    found = column([str(day) for day in days], days, way)

    assert (found.type, found.drifted) == ("datetime", False)
    assert column([str(day) for day in days], days[:1].repeat(ROWS), way).drifted


@pytest.mark.parametrize("way", ["exact", "profile"])
def test_texts_that_are_no_times_count_as_missing_beside_times(way: str) -> None:
    texts = [str(moment) for moment in MOMENTS]
    texts[:40] = ["soon"] * 20 + ["2024-02-31T00:00:00"] * 20

    found = column(MOMENTS, texts, way)

    assert (found.type, found.missing.current) == ("datetime", 40)
    assert found.drifted
    assert "the type changed" in column(MOMENTS, ["soon"] * ROWS, way).reason
    with pytest.raises(InputError, match=r"'x' of .* cannot be read as datetime"):
        compare({"x": ["soon"] * ROWS}, {"x": texts}, mode=way, kinds={"x": "datetime"})  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["exact", "profile"])
def test_times_of_day_and_lengths_of_time_are_the_same_as_text(way: str) -> None:
    clock = MOMENTS - MOMENTS.astype("datetime64[D]")
    seconds = clock.astype(np.int64)
    of_day = pa.array(seconds.astype(np.int32), pa.time32("s"))
    texts = [str(time) for time in of_day.to_pylist()]
    long = [f"{second // 3600 % 5 - 2} days {time}" for second, time in zip(seconds, texts, strict=True)]
    lengths = (seconds // 3600 % 5 - 2) * 86_400 + seconds

    for before, now in (
        (of_day, texts),
        (texts, of_day),
        ([text[:5] for text in texts], pa.array((seconds // 60 * 60).astype(np.int32), pa.time32("s"))),
        (long, pa.array(lengths, pa.duration("s"))),
    ):
        found = column(before, now, way)

        assert (found.type, found.ks, found.drifted) == ("numeric", 0.0, False)
