"""Tables as others write them: semicolons, nothing but nulls, codes with NaN, vectors of many lengths, old Feather."""

from __future__ import annotations

import io
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from collectors.drift import column_scores, inputs
from collectors.drift.compare import compare
from collectors.drift.evidently_method import sturges_edges
from collectors.drift.inputs import opened
from collectors.drift.source import InputError, Source
from collectors.drift.terminal import rendered


@pytest.mark.parametrize(
    ("header", "line"),
    [("x;y;k", "{x};{n};a"), ("x;y, in m;k", "{x};{n};a"), ("x\ty\tk", "{x}\t{n}\ta"), ("x|y|k", "{x}|{n}|a")],
)
@pytest.mark.parametrize("decimal", [".", ","])
def test_csv_may_be_divided_by_other_signs(tmp_path: Path, header: str, line: str, decimal: str) -> None:
    rows = [line.format(x=f"{n / 8}".replace(".", decimal), n=n) for n in range(300)]
    (tmp_path / "t.csv").write_text("\n".join([header, *rows]) + "\n")

    found = compare(tmp_path / "t.csv", tmp_path / "t.csv")

    assert list(found.columns) == header.replace(";", "\t").replace("|", "\t").split("\t")
    assert [column.type for column in found.columns.values()] == ["numeric", "numeric", "categorical"]
    assert compare(tmp_path / "t.csv", {"x": np.arange(300) / 8}, columns=["x"]).columns["x"].ks == 0


def test_commas_divide_when_a_header_has_them(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,k\n" + '1.5,"a;b"\n2.5,c;d\n' * 50)

    assert list(compare(tmp_path / "t.csv", tmp_path / "t.csv").columns) == ["x", "k"]


@pytest.mark.parametrize("mode", ["exact", "profile"])
def test_lengths_and_times_of_day_have_seconds_in_whatever_unit_they_are_kept(mode: Any) -> None:
    drawn = np.random.default_rng(3).integers(0, 80_000, (2, 900))

    def written(seconds: Any, place: int) -> dict[str, pa.Array]:
        whole = pa.array(seconds * (1_000_000, 1_000_000_000)[place])
        time_of_day = pa.array(seconds.astype(np.int32)).cast(pa.time32("s"))
        unit = ("us", "ns")[place]
        return {
            "took": whole.cast(pa.duration(unit)),
            "at": time_of_day.cast((pa.time32("ms"), pa.time64("ns"))[place]),
        }

    found = compare(written(drawn[0], 0), written(drawn[1], 1), mode=mode)
    plain = compare({"took": drawn[0], "at": drawn[0]}, {"took": drawn[1], "at": drawn[1]}, mode=mode)

    for name in ("took", "at"):
        assert found.columns[name].ks == plain.columns[name].ks
        assert found.columns[name].wasserstein == pytest.approx(plain.columns[name].wasserstein, rel=1e-12)


@pytest.mark.parametrize("mode", ["exact", "profile"])
@pytest.mark.parametrize("size", [1e-310, 1e-300, 1e300, 8e307])
def test_the_smallest_and_the_largest_numbers_are_compared_and_shown(mode: Any, size: float) -> None:
    drawn = np.clip(np.random.default_rng(4).normal(size=(2, 1_000)), -2.2, 2.2)

    found = compare({"x": size * drawn[0]}, {"x": size * drawn[1]}, mode=mode)

    column, plain = found.columns["x"], compare({"x": drawn[0]}, {"x": drawn[1]}, mode=mode).columns["x"]
    assert column.ks == pytest.approx(plain.ks)
    assert column.psi == pytest.approx(plain.psi)
    assert json.loads(found.json_text()) == json.loads(json.dumps(found.to_json(), allow_nan=False))
    Console(file=io.StringIO()).print(rendered(found))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("mode", ["exact", "profile"])
@pytest.mark.parametrize("scale", [2.0**1021, 2.0**1000, 2.0**530, 2.0**-900, 2.0**-1030])
def test_distances_of_huge_and_tiny_numbers_are_those_of_others(
    mode: Any, scale: float, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(column_scores, "cell_sums", lambda *columns: None)
    draw = np.random.default_rng(4)
    before, now = (draw.integers(-900, 900, rows) / 256 + shift for rows, shift in ((3_000, 0.0), (2_000, 0.5)))
    plain, scaled = (
        compare(*(pa.table({"x": side * by}) for side in (before, now)), mode=mode).columns["x"] for by in (1.0, scale)
    )

    assert plain.wasserstein is not None
    assert scaled.wasserstein is not None
    assert plain.wasserstein_error is None or scaled.wasserstein_error == plain.wasserstein_error * scale
    assert scaled.wasserstein == pytest.approx(plain.wasserstein * scale, rel=1e-9, abs=1e-323)
    assert (scaled.ks, scaled.psi, scaled.drifted) == (plain.ks, plain.psi, True)
    if scale > 1 and mode == "exact":
        assert scaled.wasserstein_normed == pytest.approx(plain.wasserstein_normed, rel=1e-9)


def test_a_distance_that_no_number_holds_is_told() -> None:
    ends = np.linspace(1.6e308, 1.7e308, 50)
    found = compare(pa.table({"x": -ends}), pa.table({"x": ends}), mode="exact").columns["x"]

    assert "wasserstein" not in found.to_json()
    assert "above the largest number" in found.reason
    assert found.drifted


@pytest.mark.parametrize(("size", "score"), [(1e307, None), (1e200, 0.0)])
def test_a_variance_that_evidently_cannot_hold_is_told(size: float, score: float | None) -> None:
    draw = np.random.default_rng(5)
    before, now = draw.normal(size=2_000) * size, draw.normal(size=2_000) * size + size
    found = compare(pa.table({"x": before}), pa.table({"x": now}), method="evidently").columns["x"]

    # Evidently's own answers; pandas' mean of the first is infinite already.
    assert (found.score, found.drifted) == (score, False)
    assert "variance is too large" in found.reason


def test_evidentlys_bins_of_a_range_that_has_no_width_are_even() -> None:
    edges = sturges_edges(-1.5e308, 1.5e308, 64, integers=False)

    assert (edges[0], edges[-1], len(edges)) == (-1.5e308, 1.5e308, 8)
    np.testing.assert_allclose(np.diff(edges / 2), 1.5e308 / 7)


def test_two_columns_of_one_name_in_parquet_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table([[1.0, 2.0], [3.0, 4.0]], names=["x", "x"]), tmp_path / "t.parquet")

    with pytest.raises(InputError, match="more than one column named 'x': rename"):
        compare(tmp_path / "t.parquet", tmp_path / "t.parquet")


@pytest.mark.parametrize("mode", ["exact", "profile"])
@pytest.mark.parametrize("nothing", [pa.nulls(600), pa.nulls(600, pa.float64()), pa.array([np.nan] * 600)])
def test_a_column_of_texts_that_emptied_has_drifted(mode: Any, nothing: pa.Array) -> None:
    full, empty = pa.table({"k": ["u", "v", "w"] * 200}), pa.table({"k": nothing})

    lost, appeared = (compare(*sides, mode=mode).columns["k"] for sides in ((full, empty), (empty, full)))

    assert lost.drifted
    assert lost.missing.to_json() == {"reference": 0, "current": 600}
    assert appeared.drifted
    assert appeared.missing.to_json() == {"reference": 600, "current": 0}


@pytest.mark.parametrize("mode", ["exact", "profile"])
def test_a_reference_without_categories_meets_more_than_are_kept(mode: Any) -> None:
    found = compare({"k": pa.nulls(500, pa.string())}, {"k": [f"a {n % 400}" for n in range(4000)]}, mode=mode)

    assert found.columns["k"].drifted


@pytest.mark.parametrize("mode", ["exact", "profile"])
def test_codes_that_are_not_numbers_are_missing_categories(mode: Any) -> None:
    codes = pa.array([1.0, 2.0, np.nan, None] * 100)

    found = compare({"code": codes}, {"code": codes}, mode=mode, kinds={"code": "categorical"}).columns["code"]

    assert found.missing.to_json() == {"reference": 200, "current": 200}
    assert found.cells is not None
    assert set(found.cells.reference.categories) == {"1", "2"}  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["exact", "profile"])
@pytest.mark.parametrize("written", [[0, 1, None], ["0", " TRUE", None], [0.0, 1.0, np.nan]])
def test_truth_values_are_read_as_they_are_written(mode: Any, written: list[Any]) -> None:
    found = compare({"b": [False, True, None] * 50}, {"b": written * 50}, mode=mode, kinds={"b": "boolean"})

    assert found.columns["b"].psi == 0
    assert found.columns["b"].missing.current == 50


@pytest.mark.parametrize("mode", ["exact", "profile"])
@pytest.mark.parametrize(
    ("values", "kind", "told"),
    [
        ([0, 1, 2], "boolean", "'2' is no truth value"),
        (["a", "b", "c"], "boolean", "'a' is no truth value"),
        ([b"\xff", b"a", b"b"], "categorical", "column 'c' of type binary cannot be read as categorical"),
        ([{"a": 1}, {"a": 2}, {"a": 3}], "text", "column 'c' of type struct<a: int64> cannot be read as text"),
    ],
)
def test_a_kind_that_the_values_are_not_of_is_refused(mode: Any, values: list[Any], kind: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        compare({"c": values * 50}, {"c": values * 50}, mode=mode, kinds={"c": kind})


@pytest.mark.parametrize("mode", ["exact", "profile"])
def test_vectors_of_another_length_count_as_missing(mode: Any) -> None:
    random = np.random.default_rng(0)
    vectors = [list(vector) for vector in random.normal(size=(400, 3))]
    shorter = [vector[:2] if place % 4 == 0 else vector for place, vector in enumerate(vectors)]

    found = compare({"e": pa.array(vectors)}, {"e": pa.array(shorter)}, mode=mode).columns["e"]

    assert found.missing.current == 100
    assert found.missing_changed
    assert found.drifted


def test_feather_of_the_first_version_is_read(tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(300.0)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pyarrow.feather.write_feather(table, str(tmp_path / "old.feather"), version=1)

    assert compare(tmp_path / "old.feather", table).columns["x"].ks == 0


@pytest.mark.parametrize("mode", ["exact", "profile"])
def test_files_may_differ_in_how_they_write_codes_and_times(tmp_path: Path, mode: Any) -> None:
    moments = np.arange(300) * 3_600_000_000
    first = pa.table({"k": np.arange(300), "t": pa.array(moments, pa.timestamp("us"))})
    texts = pa.array(list(map(str, range(300))))
    second = pa.table({"k": texts, "t": pa.array(moments * 1000, pa.timestamp("ns", "UTC"))})
    pq.write_table(first, tmp_path / "1.parquet")
    pq.write_table(second, tmp_path / "2.parquet")

    found = compare(tmp_path, tmp_path, mode=mode)

    assert found.rows.current == 600
    assert {name: column.type for name, column in found.columns.items()} == {"k": "categorical", "t": "datetime"}
    assert not any(column.missing.current for column in found.columns.values())


@pytest.mark.parametrize("written", [">f8", "<g", "sparse"])
def test_numbers_that_arrow_has_no_word_for_are_numbers(written: str) -> None:
    numbers = np.random.default_rng(0).normal(size=300)
    values: Any = pd.arrays.SparseArray(numbers) if written == "sparse" else numbers.astype(written)

    found = compare({"x": numbers}, pd.DataFrame({"x": values})).columns["x"]

    assert found.type == "numeric"
    assert found.ks == 0


@pytest.mark.parametrize("mode", ["exact", "profile"])
def test_integers_that_are_rounded_are_told(mode: Any) -> None:
    large, small = np.arange(300, dtype=np.uint64) + np.uint64(2**63), np.arange(300)

    found = compare(
        {"n": large, "signed": small, "small": small},
        {"n": large + np.uint64(300), "signed": -(2**62) + small, "small": small},
        mode=mode,
    )

    assert [name for name, column in found.columns.items() if "beyond 2^53" in column.reason] == ["n", "signed"]


@pytest.mark.parametrize(
    ("theirs", "ours"), [("jensenshannon", "jensen_shannon"), ("chisquare", "chi2"), ("TVD", None)]
)
def test_methods_have_the_names_of_other_tools_too(theirs: str, ours: str | None) -> None:
    table = {"k": ["a", "b"] * 100}

    assert compare(table, table, method=theirs).columns["k"].method == (ours or "total_variation")


def test_a_file_is_not_read_further_ahead_than_a_few_row_groups(tmp_path: Path) -> None:
    groups, rows = 96, 65_536
    table = pa.table({"x": np.random.default_rng(0).normal(size=groups * rows)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=rows, use_dictionary=False)
    source = opened(tmp_path / "t.parquet", "the reference")
    assert isinstance(source, Source)

    before, most = pa.total_allocated_bytes(), 0
    for _ in source.scan(["x"]):
        # Whoever reads ahead has the time to.
        time.sleep(0.01)
        most = max(most, pa.total_allocated_bytes() - before)

    assert most < table.nbytes / 2


@pytest.mark.parametrize("different", [3, 40_000])
def test_codes_are_counted_block_by_block_as_texts_are(different: int) -> None:
    drawn = np.random.default_rng(6).integers(0, different, (2, 70_000))
    labels = pa.array([f"label {number}" for number in range(different)])
    coded = [pa.DictionaryArray.from_arrays(codes.astype(np.int32), labels) for codes in drawn]

    first, second = (
        compare({"k": before}, {"k": now}) for before, now in (coded, [one.cast("string") for one in coded])
    )

    codes, texts = first.columns["k"], second.columns["k"]
    # Added up in another order.
    assert (codes.psi, codes.js_distance) == pytest.approx((texts.psi, texts.js_distance), rel=1e-12)
    assert codes.distinct == texts.distinct
    assert codes.distinct is not None
    assert codes.distinct.reference == len(np.unique(drawn[0]))


def test_a_quotation_mark_that_is_never_closed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rows = tmp_path / "a.csv", "1,2,x\n" * 100
    told = "quotation mark that is never closed, of the field that begins with 'y'"
    for share in (inputs.MEMORY_SHARE, 0.0):
        monkeypatch.setattr(inputs, "MEMORY_SHARE", share)
        path.write_text(f'a,b,c\n{rows}1,2,"y\n{rows}')
        with pytest.raises(InputError, match=told):
            compare(path, path)
        for line in ('1,2,"y\nz"', '1,2,"y\n""z"""', '1,2,5" long', '1,2,5" long\n1,2,"y\nz"'):
            path.write_text(f"a,b,c\n{rows}{line}\n")
            assert compare(path, path).rows.current == 101 + line.count("\n1")


def test_nothing_left_to_compare_beside_the_parts_is_told() -> None:
    table = pa.table({"k": ["a", "b"] * 50, "v": range(100)})
    with pytest.raises(InputError, match="nothing is left to compare beside 'k'"):
        compare(table, table, by="k", columns=["k"])
