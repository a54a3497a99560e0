"""`compare` on what other tools fall over: identifiers, a million new categories, infinite numbers, row numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from collectors.drift.compare import compare
from collectors.drift.comparison import ColumnComparison
from collectors.drift.contingency import NewRows, compare_tables
from collectors.drift.histogram import bars
from collectors.drift.page import page
from observability.profile import Profile

MODES = ["exact", "profile"]


def column(reference: Any, current: Any, mode: Any, **options: Any) -> ColumnComparison:
    return compare({"y": reference}, {"y": current}, mode=mode, **options).columns["y"]


def texts(prefix: str, number: int) -> pa.Array:
    return pa.array([f"{prefix}{place}" for place in range(number)])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [100, 1000, 20_000])
def test_a_few_categories_against_as_many_as_rows_have_drifted(mode: str, rows: int) -> None:
    few = pa.array(np.random.default_rng(rows).choice(["a", "b", "c"], rows))

    found = column(few, texts("id", 100_000), mode)

    assert found.drifted
    assert found.score is not None
    assert found.score > 1
    assert "every value is new" in found.reason


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("repeats", [30, 300, 30_000])
def test_identifiers_against_a_few_categories_have_drifted(mode: str, repeats: int) -> None:
    found = column(texts("id", 100_000), pa.array(["a", "b", "c"] * repeats), mode)

    assert found.drifted
    assert "an identifier?" not in found.reason


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [300, 100_000])
def test_identifiers_are_told_and_are_no_drift(mode: str, rows: int) -> None:
    found = column(texts("id", rows), texts("jd", rows), mode)

    assert not found.drifted
    assert found.score == 0
    assert "an identifier?" in found.reason


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("share", [0.0, 0.05])
def test_one_of_many_categories_that_becomes_frequent_has_drifted(mode: str, share: float) -> None:
    random, rows = np.random.default_rng(1), 20_000
    before, now = (random.integers(0, 2_000, rows).astype(str) for _ in range(2))
    last = sorted(Profile.of({"y": pa.array(before)}).columns["y"].categories)[-1]  # type: ignore[union-attr]
    grown = next(text for text in map(str, range(2_000)) if text > last and text not in before[:100])
    now[random.random(rows) < share] = grown

    assert column(pa.array(before), pa.array(now), mode).drifted == (share > 0)


@pytest.mark.parametrize("mode", MODES)
def test_parts_of_a_table_against_themselves_have_not_drifted(mode: Any) -> None:
    random, rows = np.random.default_rng(0), 30_000
    part = random.integers(0, 3, rows)
    # Each part has its own frequent values, most of them outside the list of the whole.
    code = np.minimum(random.zipf(1.1, rows), 1500) * 3 + part
    table = pa.table({"part": part, "code": [f"c{value}" for value in code.tolist()]})

    assert not compare(table, table, mode=mode, by="part").alarms


def test_new_categories_are_drift_no_more_often_than_their_level() -> None:
    random, alarms, draws = np.random.default_rng(0), 0, 400
    for share in (0.001, 0.01):
        law = np.append(1 - 20 * share, np.full(20, share))
        tables = []
        for _ in range(draws):
            before, now = random.multinomial(500, law), random.multinomial(50_000, law)
            listed = before > 0
            rest = int(now[~listed].sum())
            tables.append((np.append(before[listed], 0), np.append(now[listed], rest), int(listed.sum())))
        alarms += sum(test.p_value <= 0.05 for test in compare_tables(tables))

    assert alarms <= 1.5 * 0.05 * 2 * draws


def test_the_share_of_new_rows_is_past_its_quantile_where_its_p_value_says_so() -> None:
    law = NewRows.of(np.array([40, 3, 1, 1, 0]), 500, 5000)

    for level in (0.1, 1e-3, 1e-6):
        assert law.pvalue(law.quantile(level)) == pytest.approx(level, rel=1e-9)
    assert law.pvalue(0.0) == 1.0
    assert law.quantile(1e-300) == np.inf


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["auto", "psi", "ks"])
def test_infinite_numbers_are_counted_and_their_share_is_judged(mode: str, method: str) -> None:
    reference = np.random.default_rng(0).normal(size=3000)
    current = np.where(np.arange(3000) % 15 == 0, np.inf, reference)

    found = column(reference, current, mode, method=method)

    assert found.drifted
    assert found.to_json()["infinite"] == {"reference": 0, "current": 200}
    assert "infinite went from 0.00% to 6.67%" in found.reason
    same = column(current, current, mode, method=method)
    assert not same.drifted
    assert "infinite 6.67% and 6.67%" in same.reason


@pytest.mark.parametrize("mode", MODES)
def test_the_row_numbers_that_pandas_writes_are_no_column(mode: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=400)
    for name, start in (("r.parquet", 0), ("c.parquet", 10_000)):
        rows = np.arange(start, start + 400)
        pa.parquet.write_table(pa.table({"x": values, "__index_level_0__": rows}), tmp_path / name)
    pa.parquet.write_table(pa.table({"x": values}), tmp_path / "plain.parquet")

    found = compare(tmp_path / "r.parquet", tmp_path / "c.parquet", mode=mode)  # type: ignore[arg-type]

    assert list(found.columns) == ["x"]
    assert not found.drifted
    assert not compare(tmp_path / "r.parquet", tmp_path / "plain.parquet").only_in_reference


def test_above_the_only_value_of_the_reference_has_a_name_of_its_own() -> None:
    cells = column(np.full(50, 1.0), np.full(50, 7.0), "exact").cells
    assert cells is not None

    drawn = bars(cells, 16)

    assert drawn is not None
    assert drawn.labels == ("1", "> 1")


def test_a_profile_says_that_its_list_is_short() -> None:
    drawn = np.random.default_rng(8).normal(size=(2, 3_000)) + np.array([[0.0], [1.5]])
    texts = [{"k": [f"{number:.3f}" for number in side]} for side in drawn]

    found = compare(*texts, mode="profile").columns["k"]

    assert "of the values are none of the 256 categories that a profile lists" in found.reason
    assert compare(*texts, mode="exact").columns["k"].drifted
    assert "lists" not in compare(texts[0], texts[0], mode="exact").columns["k"].reason


def test_a_page_names_no_distance_that_no_number_holds() -> None:
    random = np.random.default_rng(2)
    before, now = random.normal(size=(2, 500)) * 1e307
    found = compare({"x": before}, {"x": now + 4e306})

    text = page(found, "large")

    assert found.columns["x"].drifted
    assert not re.search(r"<dd>[^<]*\b(nan|inf)\b", text)
    assert "<dt>PSI</dt>" in text
