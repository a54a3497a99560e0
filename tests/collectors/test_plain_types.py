"""Columns kept in Arrow's less usual ways, and tables without a column to compare, through `compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pytest

from collectors.drift.compare import compare, saved_profile
from collectors.drift.plain_types import plain_type
from collectors.drift.source import InputError

ROWS = 600
MODES = pytest.mark.parametrize("mode", ["exact", "profile"])
RANDOM = np.random.default_rng(5)
BEFORE, NOW = (RANDOM.choice(["a", "b", None], ROWS, p=p) for p in ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]))


def odd(values: Any, way: str) -> pa.Array:
    """The values as Arrow keeps them in one of its less usual ways."""
    plain = pa.array(values, pa.string())
    if way == "view":
        return plain.cast(pa.string_view())
    if way == "null in the dictionary":
        return plain.dictionary_encode("encode")
    if way == "view in the dictionary":
        coded = plain.dictionary_encode()
        return pa.DictionaryArray.from_arrays(coded.indices, coded.dictionary.cast(pa.string_view()))
    return pa.RunEndEncodedArray.from_arrays(pa.array(range(1, ROWS + 1), pa.int32()), plain)


@MODES
@pytest.mark.parametrize("way", ["view", "null in the dictionary", "view in the dictionary", "runs"])
def test_a_column_is_the_same_however_arrow_keeps_it(way: str, mode: Any, tmp_path: Path) -> None:
    plain = [pa.table({"v": pa.array(values, pa.string())}) for values in (BEFORE, NOW)]
    tables = [pa.table({"v": odd(values, way)}) for values in (BEFORE, NOW)]
    expected = compare(*plain, mode=mode).columns
    assert expected["v"].missing.reference == sum(value is None for value in BEFORE) > 0
    assert expected["v"].drifted
    assert compare(*tables, mode=mode).columns == expected
    assert compare(tables[0], plain[1], mode=mode).columns == expected
    if "dictionary" not in way and way != "runs":
        paths = [tmp_path / "before.feather", tmp_path / "now.feather"]
        for table, path in zip(tables, paths, strict=True):
            feather.write_feather(table, path)
        assert compare(*paths, mode=mode).columns == expected


@MODES
@pytest.mark.parametrize("view", [pa.list_view, pa.large_list_view])
def test_vectors_may_lie_anywhere_among_their_values(mode: Any, view: Any) -> None:
    drawn = np.random.default_rng(2).normal([[[0.0]], [[0.6]]], 1, (2, ROWS, 4))
    listed = [[None if row % 9 == 4 else list(vector) for row, vector in enumerate(side)] for side in drawn]
    plain = [pa.table({"v": pa.array(side, pa.list_(pa.float64()))}) for side in listed]
    backwards = pa.array(range(ROWS)[::-1])
    odd_ones = [pa.table({"v": pa.array(side[::-1], view(pa.float64())).take(backwards)}) for side in listed]

    found = compare(*odd_ones, mode=mode).columns

    assert found == compare(*plain, mode=mode).columns
    assert found["v"].drifted
    assert found["v"].missing.reference == ROWS // 9 + 1


@MODES
def test_bytes_may_be_views(mode: Any) -> None:
    words = [pa.array(values, pa.string()) for values in (BEFORE, NOW)]
    tables = [pa.table({"v": values.cast(pa.binary()).cast(pa.binary_view())}) for values in words]

    found = compare(*tables, mode=mode, kinds={"v": "categorical"}).columns["v"]
    unnamed = compare(*tables, mode=mode).columns["v"]

    assert found == compare(*(pa.table({"v": values}) for values in words), mode=mode).columns["v"]
    assert "is bytes" in unnamed.reason


def test_types_that_are_plain_stay() -> None:
    for kind in (pa.int8(), pa.string(), pa.dictionary(pa.int16(), pa.large_string()), pa.list_(pa.float32(), 3)):
        assert plain_type(kind) == kind
    assert plain_type(pa.run_end_encoded(pa.int32(), pa.string_view())) == pa.large_string()


@MODES
def test_tables_with_nothing_to_compare_say_why(mode: Any) -> None:
    table = pa.table({"raw": pa.array([b"\xff"] * 50)})
    found = compare(table, table, mode=mode)
    assert not found.drifted
    assert "bytes" in found.columns["raw"].reason
    assert json.loads(found.json_text())["drifted_share"] == 0.0
    with pytest.raises(InputError, match=r"no column of the reference can be profiled: 'raw'.*bytes"):
        saved_profile(table)


@MODES
def test_the_intervals_that_pandas_cuts_are_categories(mode: Any) -> None:
    edges = [-9, -1, 0, 1, 9]
    frames = [pd.DataFrame({"cut": pd.cut(RANDOM.normal(shift, 1, ROWS), edges)}) for shift in (0.0, 1.0)]
    found = compare(*frames, mode=mode).columns["cut"]
    assert (found.type, found.drifted) == ("categorical", True)
    assert not compare(frames[0], frames[0], mode=mode).drifted


@pytest.mark.parametrize(
    ("values", "told"), [(np.zeros((5, 2, 2)), "3 dimensions"), (5, "a int"), (np.float64(2), "0 dimensions")]
)
def test_what_is_no_column_is_told(values: Any, told: str) -> None:
    with pytest.raises(InputError, match=f"column 'x' of the reference is .*{told}"):
        compare({"x": values}, {"x": values})


@MODES
def test_a_side_with_only_infinite_numbers_is_told(mode: Any) -> None:
    infinite, finite = (pa.table({"x": values}) for values in (np.full(ROWS, np.inf), RANDOM.normal(size=ROWS)))
    for tables, told in (
        ((infinite, finite), "the reference has no finite values"),
        ((finite, infinite), "the current table has no finite values"),
        ((infinite, infinite), "neither table has a finite value"),
    ):
        found = compare(*tables, mode=mode).columns["x"]
        assert found.reason.startswith(told)
        assert found.drifted == (tables[0] is not tables[1])
