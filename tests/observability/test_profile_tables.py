"""What a profile is made from, in memory and in pieces, with and without a reference, and what it says of bad input."""

from __future__ import annotations

import base64
import json
import math
import re
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observability import CategoricalColumn, LogLinearColumn, NumericColumn, Profile, ProfileError
from observability.blocks import BLOCK
from observability.scout import stretch_places

FINITE = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1e-310, 1.7e308, -1.7e308, 3.0])
ANY = FINITE | st.sampled_from([math.nan, math.inf, -math.inf])


def numeric(profile: Profile, name: str = "x") -> NumericColumn:
    column = profile.columns[name]
    assert isinstance(column, NumericColumn)
    return column


def counted(profile: Profile) -> dict[str, tuple[list[int], int, int]]:
    return {name: (column.counts.tolist(), column.missing, column.rows) for name, column in profile.columns.items()}


@pytest.fixture(scope="module")
def flights() -> pa.Table:
    generator = np.random.default_rng(11)
    rows = 30_000
    delays = generator.normal(5, 30, rows)
    return pa.table(
        {
            "delay": pa.array(delays, mask=generator.random(rows) < 0.05),
            "distance": generator.integers(80, 5_000, rows),
            "carrier": pa.array(generator.choice(["UA", "AA", "DL", "B6"], rows)),
            "late": delays > 15,
            "time": pa.array(generator.integers(1.35e18, 1.38e18, rows), pa.timestamp("ns", "UTC")),
        }
    )


@pytest.fixture(scope="module")
def parquet(flights: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flights")
    pq.write_table(flights.slice(0, 20_000), folder / "a.parquet", row_group_size=7_000)
    (folder / "later").mkdir()
    pq.write_table(flights.slice(20_000), folder / "later" / "b.parquet")
    (folder / "_unfinished.parquet").write_bytes(b"")
    return folder


def test_every_source_gives_the_same_counts(flights: pa.Table, parquet: Path) -> None:
    reference = Profile.of(flights)
    frame = flights.to_pandas()
    sources: list[Any] = [
        flights,
        flights.combine_chunks().to_batches()[0],
        flights.to_reader(max_chunksize=999),
        frame,
        {name: flights.column(name) for name in flights.schema.names},
        {name: frame[name].array for name in ("distance", "carrier", "late")}
        | {"delay": flights["delay"], "time": flights["time"]},
        str(parquet),
        parquet / "**" / "[ab].parquet",
        ds.dataset(parquet),
        flights.set_column(2, "carrier", flights["carrier"].dictionary_encode()),
    ]
    for source in sources:
        assert counted(reference.empty().updated(source)) == counted(reference), type(source)
    assert counted(reference.empty().updated(flights, threads=2)) == counted(reference)
    assert counted(reference.empty().updated(str(parquet), threads=2)) == counted(reference)


def test_free_text_in_files_is_text_and_not_categories(tmp_path: Path) -> None:
    words = np.random.default_rng(2).choice(["kalt", "naß", "grau", "windig"], (3_000, 7))
    table = pa.table({"note": [" ".join(row) for row in words], "word": words[:, 0]})
    pq.write_table(table, tmp_path / "notes.parquet")
    in_memory = Profile.of(table)
    assert [column.kind for column in in_memory.columns.values()] == ["text", "categorical"]

    assert counted(Profile.of(tmp_path / "notes.parquet")) == counted(in_memory)
    free = Profile.without_reference(tmp_path / "notes.parquet")
    assert [column.kind for column in free.columns.values()] == ["text", "categorical"]


def test_text_that_is_not_utf_8_is_told_by_its_column() -> None:
    offsets = pa.py_buffer(np.arange(901, dtype=np.int32))
    latin_1 = pa.Array.from_buffers(pa.utf8(), 900, [None, offsets, pa.py_buffer(b"\xfc" * 900)])

    for values in (latin_1, latin_1.dictionary_encode()):
        with pytest.raises(ProfileError, match=r"column 'ort' of type .*utf-8"):
            Profile.of(pa.table({"ort": values}))


def test_a_folder_is_all_of_its_parquet_however_it_is_named(tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(100.0)})
    (tmp_path / "spark.parquet").mkdir()
    for name in ("a.parquet", "B.PARQUET", "c.pq", "spark.parquet/part-0.snappy.parquet"):
        pq.write_table(table, tmp_path / name)
    (tmp_path / "notes.txt").write_text("no Parquet")

    assert Profile.of(tmp_path).columns["x"].rows == 400


def test_a_reference_from_files_is_that_of_the_table(flights: pa.Table, parquet: Path) -> None:
    in_memory = Profile.of(flights, joint=True, threads=2)

    for source in (parquet, ds.dataset(parquet)):
        streamed = Profile.of(source, joint=True, threads=2)
        assert counted(streamed) == counted(in_memory)
        assert streamed.joint is not None
        assert in_memory.joint is not None
        np.testing.assert_allclose(
            streamed.joint.covariance.comoment, in_memory.joint.covariance.comoment, rtol=1e-9, atol=1e-6
        )


def test_a_sampled_reference_has_exact_counts_and_range_and_nearly_equal_bins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One value in the whole file is far out; a sample of 4,096 rows will hardly hold it.
    values = np.random.default_rng(5).normal(size=60_000)
    values[31_234] = 1e6
    pq.write_table(pa.table({"x": values}), tmp_path / "x.parquet")
    monkeypatch.setattr("observability.scout._ROWS", 4_096)

    column = numeric(Profile.of(tmp_path / "x.parquet"))

    assert (column.edges[0], column.edges[-1], column.out_of_range) == (values.min(), 1e6, 0)
    assert column.count == 60_000
    shares = column.counts[1:-1] / 60_000
    # A bin's share is off by about √(128 / 4,096) = 18 % of itself.
    assert np.sqrt(np.mean((shares * 128 - 1) ** 2)) < 0.25


def test_rows_are_drawn_one_from_each_stretch() -> None:
    places = stretch_places(1_000_003, 5_000)

    assert len(places) == 5_000
    assert (np.diff(places) > 0).all()
    assert (places * 5_000 // 1_000_003 >= np.arange(5_000) - 1).all()
    assert places[-1] < 1_000_003
    assert stretch_places(3, 10).tolist() == [0, 1, 2]


def test_a_file_is_read_in_pieces(tmp_path: Path) -> None:
    generator = np.random.default_rng(6)
    pq.write_table(pa.table({f"x{i}": generator.normal(size=200_000) for i in range(8)}), tmp_path / "wide.parquet")
    reference = Profile.of({f"x{i}": generator.normal(size=1_000) for i in range(8)})
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    profile = reference.empty().updated(tmp_path / "wide.parquet")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert profile.rows == 200_000
    assert peak < 4e6
    assert pa.total_allocated_bytes() - before < 1e6


@settings(deadline=None)
@given(st.lists(ANY, max_size=60), st.lists(ANY, max_size=60))
def test_counts_without_a_reference_merge_exactly_and_make_one(one: list[float], other: list[float]) -> None:
    def of(values: list[float]) -> Profile:
        return Profile.without_reference({"x": np.array(values, np.float64)})

    whole, total = of(one + other).columns["x"], (of(one) + of(other)).columns["x"]
    assert isinstance(whole, LogLinearColumn)
    assert isinstance(total, LogLinearColumn)
    assert (total.cells.tolist(), total.counts.tolist()) == (whole.cells.tolist(), whole.counts.tolist())
    assert total.rows == len(one) + len(other)

    reference = numeric(of(one + other).as_reference())
    direct = reference.empty().updated(pa.array(np.array(one + other, np.float64)))
    assert reference.counts.tolist() == direct.counts.tolist()
    assert (reference.zeros, reference.nan, reference.positive_infinite) == (
        direct.zeros,
        direct.nan,
        direct.positive_infinite,
    )
    assert Profile.from_json(of(one).to_json()) == of(one)


def test_rebinning_is_off_by_no_more_than_it_says() -> None:
    generator = np.random.default_rng(8)
    before, now = generator.lognormal(size=20_000), generator.lognormal(0.2, 1.0, size=20_000)
    reference = Profile.of({"x": before})
    free = Profile.without_reference({"x": now})
    column = free.columns["x"]
    assert isinstance(column, LogLinearColumn)

    found, direct = numeric(free.rebinned(reference)), numeric(reference.empty().updated({"x": now}))

    error = np.abs(np.cumsum(found.counts) - np.cumsum(direct.counts)).max() / 20_000
    assert 0 < error <= column.rebinning_error(numeric(reference).edges) < 0.01
    assert (found.count, found.mean, found.missing) == (direct.count, pytest.approx(direct.mean), 0)


def test_a_column_far_from_zero_says_that_it_is_coarse() -> None:
    times = np.random.default_rng(9).normal(1.7e9, 1e5, 5_000)
    free = Profile.without_reference({"x": times, "y": times - 1.7e9})

    assert free.columns["x"].coarse  # type: ignore[union-attr]
    assert not free.columns["y"].coarse  # type: ignore[union-attr]
    with pytest.raises(ProfileError, match=r"column 'x': .* lie in one log-linear cell that a bin's edge cuts"):
        free.rebinned(Profile.of({"x": times}))


def test_categories_without_a_reference_are_kept_while_they_are_few() -> None:
    parts = [Profile.without_reference({"c": list(text)}) for text in ("abab", "bcz", "b")]
    total = parts[0] + parts[1] + parts[2]
    reference = total.as_reference().columns["c"]
    known = Profile.of({"c": ["a", "b"]})

    assert isinstance(reference, CategoricalColumn)
    assert reference.categories == ("b", "a", "c", "z")
    assert reference.counts.tolist() == [4, 2, 1, 1, 0, 0]
    assert total.rebinned(known) == known.empty().updated({"c": list("ababbczb")})
    many = Profile.without_reference({"c": [str(number) for number in range(500)]})
    with pytest.raises(ProfileError, match="column 'c': it has more categories than the 64"):
        many.rebinned(known)


def test_distinct_values_are_counted_alike_in_any_order() -> None:
    generator = np.random.default_rng(10)
    numbers, texts = generator.integers(0, 20_000, 50_000).astype(float), [f"t{i}" for i in range(3_000)] * 2
    data = {"x": numbers[:6_000], "c": texts}
    profile = Profile.of(data, distinct=True)
    a = profile.empty().updated({"x": numbers[6_000:20_000]})
    b = profile.empty().updated({"x": numbers[20_000:], "c": pa.array(["new"] * 30_000).dictionary_encode()})
    assert profile.distinct is not None

    sums = [(profile + a) + b, b + (a + profile), profile.updated({"x": numbers[6_000:20_000]}) + b]
    found = [{name: sketch.estimate for name, sketch in (total.distinct or {}).items()} for total in sums]
    assert found[0] == found[1] == found[2]
    assert found[0]["x"] == pytest.approx(len(np.unique(numbers)), rel=0.05)
    assert found[0]["c"] == pytest.approx(3_001, rel=0.05)
    assert Profile.from_json(sums[0].to_json()) == sums[0]


def test_distinct_values_need_datasketches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketches", None)

    with pytest.raises(ProfileError, match=r"pip install 'trimtab\[sketches\]'"):
        Profile.of({"x": [1.0]}, distinct=True)


@settings(deadline=None, max_examples=60)
@given(st.lists(ANY, min_size=1, max_size=40), st.lists(ANY, max_size=40), st.sampled_from(["f8", "f4", "f2"]))
def test_large_and_small_blocks_count_alike(reference: list[float], values: list[float], width: str) -> None:
    with np.errstate(over="ignore"):
        edges = Profile.of({"x": np.array(reference, width)}).empty()
        few = np.array(values, width)
    # Enough copies of them that the block is sorted as float32.
    many = np.tile(few, 600 // max(len(few), 1) + 1)

    small, large = numeric(edges.updated({"x": few})), numeric(edges.updated({"x": many}))

    times = len(many) // max(len(few), 1)
    assert large.counts.tolist() == (small.counts * times).tolist()
    assert (large.zeros, large.nan, large.rows) == (small.zeros * times, small.nan * times, small.rows * times)
    assert (large.minimum, large.maximum) == (small.minimum, small.maximum)


def test_values_between_an_edge_and_its_rounding_are_counted_where_they_belong() -> None:
    edge = 1.0 + 2.0**-30
    reference = Profile.of({"x": [0.0, edge, 2.0]}).empty()
    generator = np.random.default_rng(12)
    near = np.concatenate(
        [generator.uniform(0, 2, BLOCK + 50), [edge, np.nextafter(edge, 0), 1.0, np.nextafter(2.0, 3)]]
    )

    column = numeric(reference.updated({"x": near}))

    assert column.counts.tolist() == [0, int((near < edge).sum()), int(((near >= edge) & (near < 2)).sum()), 1, 0]
    assert column.mean == pytest.approx(near.mean(), rel=1e-12)
    assert column.variance == pytest.approx(near.var(), rel=1e-12)


@pytest.mark.parametrize(("offset", "digits"), [(0.0, 1e-12), (1e3, 1e-12), (-1e6, 1e-10), (1e9, 1e-7)])
def test_moments_keep_their_digits_far_from_zero(offset: float, digits: float) -> None:
    values = np.random.default_rng(13).normal(offset, 1.0, 100_000)
    column = numeric(Profile.of({"x": values}))
    exact = values - offset

    assert column.mean - offset == pytest.approx(exact.mean(), abs=1e-15 * max(abs(offset), 1))
    assert column.variance == pytest.approx(exact.var(), rel=digits)


def test_sums_that_overflow_leave_a_finite_mean() -> None:
    column = numeric(Profile.of({"x": [1.7e308] * 3 + [-1.7e308]}))

    assert column.mean == pytest.approx(0.85e308)
    assert column.m2 == math.inf
    assert Profile.from_json(Profile({"x": column}).to_json()).columns["x"] == column


BAD: list[tuple[Any, str]] = [
    (pa.table([[1], [2], [3]], names=["x", "y", "x"]), "several columns are named 'x': rename or drop"),
    (pd.DataFrame([[1, 2]], columns=["x", "x"]), "several columns are named 'x'"),
    ({"x": [1, 2], "y": [1]}, "different lengths: x 2, y 1"),
    ({"x": 5}, "column 'x' is a int, not an array or a list"),
    ({"x": [1, "a", None]}, "column 'x' holds values that go into no Arrow type"),
    ({"x": np.zeros((2, 2, 2))}, "column 'x' holds values that go into no Arrow type"),
    ([1, 2, 3], "a list is no table: give an Arrow table"),
    ("/nowhere/at/all.parquet", "there is no Parquet at /nowhere/at/all.parquet"),
    (pa.table({"x": [1.0]}).to_reader(), "a stream that is read once makes no reference"),
    (
        {"e": pa.array([], pa.list_(pa.float64()))},
        "column 'e': there is no vector to take",
    ),
]


@pytest.mark.parametrize(("data", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_tables_are_refused_with_what_is_wrong(data: Any, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        Profile.of(data)


def test_what_is_not_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"not parquet at all")

    with pytest.raises(ProfileError, match=r"x.parquet is not Parquet that can be read"):
        Profile.of(tmp_path / "x.parquet")


def test_empty_tables_give_profiles_of_no_rows(tmp_path: Path) -> None:
    nothing = pa.table(
        {"x": pa.array([], pa.float64()), "c": pa.array([], pa.utf8()), "t": pa.array([], pa.timestamp("s"))}
    )
    pq.write_table(nothing, tmp_path / "nothing.parquet")

    for source in (nothing, tmp_path / "nothing.parquet"):
        profile = Profile.of(source, joint=True)
        assert (profile.rows, profile.joint) == (0, None)
        assert profile.updated({"x": [1.0], "c": ["a"], "t": pa.array([0], pa.timestamp("s"))}).rows == 1
    assert Profile.without_reference(nothing).rows == 0
    assert Profile.of({}).rows == 0


def test_files_of_different_columns_are_missing_where_they_lack_them(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.0, 2.0]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [3.0], "y": [1.0]}), tmp_path / "b.parquet")

    profile = Profile.of(tmp_path)

    assert [(column.count, column.missing) for column in profile.columns.values()] == [(3, 0), (1, 2)]
    assert Profile.of({"z": [1.0]}).updated(tmp_path).columns["z"].missing == 3


def test_the_first_format_is_still_read() -> None:
    old = {
        "format": 1,
        "columns": {
            "x": {
                "kind": "numeric",
                "edges": [1.0, 2.0, 3.5],
                "counts": [0, 2, 1, 0],
                "missing": 1,
                "nan": 0,
                "positive_infinite": 0,
                "negative_infinite": 0,
                "zeros": 0,
                "mean": 2.0,
                "m2": 1.5,
                "minimum": 1.0,
                "maximum": "inf",
            },
            "c": {"kind": "categorical", "categories": ["a"], "truncated": False, "counts": [4, 0, 0], "missing": 0},
            "b": {"kind": "boolean", "counts": [1, 3], "missing": 0},
        },
    }

    profile = Profile.from_json(json.dumps(old).encode())

    assert numeric(profile).edges.tolist() == [1.0, 2.0, 3.5]
    assert (profile.rows, profile.columns["c"].counts.tolist()) == (4, [4, 0, 0])
    assert json.loads(profile.to_json())["format"] == 2


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_damaged_profile_is_refused_and_never_a_traceback(data: st.DataObject) -> None:
    table = {"x": [1.0, 2.0, None], "c": ["a", "b", "b"], "e": np.eye(3), "t": pa.array([0, 1, 2], pa.timestamp("s"))}
    value = json.loads(Profile.of(table, joint=True).to_json())
    node: Any = value
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    odd = st.sampled_from([None, -1, 1.5, "x", [], {}, True, 10**30, "AAAA", math.inf, [None], [-5], {"a": "b"}])
    node[key] = data.draw(odd)

    try:
        profile = Profile.from_json(json.dumps(value).encode())
    except ProfileError:
        return
    profile.to_json()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"m2": -1.0}, "m2 is a sum of squares"),
        ({"minimum": 5.0, "maximum": -5.0}, "above the maximum"),
        ({"minimum": "inf", "maximum": "-inf"}, "above the maximum"),
    ],
)
def test_moments_that_no_numbers_have_are_refused(changed: dict[str, Any], told: str) -> None:
    value = json.loads(Profile.of({"x": [1.0, 2.0]}).to_json())
    value["columns"]["x"] |= changed

    with pytest.raises(ProfileError, match=told):
        Profile.from_json(json.dumps(value).encode())


def test_deeply_nested_json_is_refused() -> None:
    with pytest.raises(ProfileError):
        Profile.from_json(b'{"format":2,"columns":' + b"[" * 100_000)
    with pytest.raises(ProfileError):
        Profile.from_json(b'{"format":2,"columns":{"x":\xff}}')


def test_a_numeric_column_is_two_kilobytes_of_state() -> None:
    profile = Profile.of({"x": np.random.default_rng(14).normal(size=50_000)})
    column = numeric(profile)

    assert column.counts.nbytes + 10 * 8 <= 2_048
    assert len(base64.b64decode(json.loads(profile.to_json())["columns"]["x"]["edges"])) == 8 * 129
    assert len(profile.to_json()) < 3_000


def test_few_values_of_a_file_have_a_cell_each(tmp_path: Path) -> None:
    draw = np.random.default_rng(8)
    table = pa.table({f"of {values}": draw.integers(0, values, 5_000) for values in (1, 2, 3, 100, 127, 128)})
    pq.write_table(table, tmp_path / "x.parquet")

    found, known = Profile.of(tmp_path / "x.parquet"), Profile.of(table)

    for name, column in found.columns.items():
        expected = known.columns[name]
        assert isinstance(column, NumericColumn)
        assert isinstance(expected, NumericColumn)
        assert column.edges.tolist() == expected.edges.tolist(), name
        assert column.counts.tolist() == expected.counts.tolist()


def test_columns_read_in_groups_have_one_joint_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("observability.scout._FLOOR", 64)
    monkeypatch.setattr("observability.scout._BYTES", 8 * 32 * 100)
    table = pa.table({f"x{i}": np.random.default_rng(i).normal(size=500) for i in range(40)})
    pq.write_table(table, tmp_path / "x.parquet")

    profile = Profile.of(tmp_path / "x.parquet", joint=True)

    assert list(profile.columns) == table.schema.names
    assert profile.joint is not None
    assert (len(profile.joint.columns), profile.joint.count, profile.rows) == (40, 500, 500)


def written(table: pa.Table, folder: Path) -> dict[str, Path]:
    """The table in every format that a path may have."""
    names = ("a.parquet", "a.csv", "a.csv.gz", "a.tsv", "a.arrow", "a.arrows", "a.feather")
    paths = {name: folder / name for name in names}
    frame = table.to_pandas()
    pq.write_table(table, paths["a.parquet"])
    frame.to_csv(paths["a.csv"], index=False)
    frame.to_csv(paths["a.csv.gz"], index=False)
    frame.to_csv(paths["a.tsv"], index=False, sep="\t")
    with pa.ipc.new_file(paths["a.arrow"], table.schema) as file:
        file.write_table(table)
    with pa.ipc.new_stream(paths["a.arrows"], table.schema) as stream:
        stream.write_table(table, max_chunksize=100)
    feather.write_feather(table, paths["a.feather"])
    return paths


def test_a_path_may_be_of_any_format_that_comparisons_read(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    table = pa.table({"größe": random.normal(size=300), "名": random.choice(["ä", "b"], 300), "n": [None, 2, 5] * 100})
    known = Profile.of(table)

    for name, path in written(table, tmp_path).items():
        found = Profile.of(path)
        assert list(found.columns) == list(known.columns), name
        np.testing.assert_array_equal(numeric(found, "größe").counts, numeric(known, "größe").counts, name)
        assert (found.columns["n"].missing, found.columns["名"].rows) == (100, 300), name
        assert known.updated(path).rows == 600, name
    assert Profile.of(tmp_path / "*.csv*").rows == 600


def test_the_names_of_folders_are_columns_of_a_profile(tmp_path: Path) -> None:
    for land, rows in (("de", 30), ("fr", 20)):
        (tmp_path / f"land={land}").mkdir()
        pq.write_table(pa.table({"x": np.arange(rows, dtype=float)}), tmp_path / f"land={land}" / "a.parquet")

    profile = Profile.of(tmp_path)

    column = profile.columns["land"]
    assert isinstance(column, CategoricalColumn)
    assert dict(zip(column.categories, column.counts, strict=False)) == {"de": 30, "fr": 20}
    # A column of which a table has nothing is missing in all its rows.
    assert Profile.of({"z": [1.0]}).updated(tmp_path).columns["z"].missing == 50


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere.csv", "nowhere.csv does not exist"),
        ("no*.csv", "no file matches"),
        ("saved.json", "is a saved profile: give its bytes to Profile.from_json"),
        ("p_*.parquet", "p_2.parquet is not Parquet that can be read"),
        ("latin.csv", "latin.csv is not UTF-8: byte 0xe9"),
        ("half.arrow", "half.arrow is not a readable Arrow or Feather file"),
        ("[phl]*", "holds files of several formats"),
        ("notes.txt", "notes.txt is of no known format"),
    ],
)
def test_a_path_that_cannot_be_profiled_is_told(tmp_path: Path, path: str, said: str) -> None:
    table = pa.table({"x": [1.0, 2.0]})
    (tmp_path / "saved.json").write_bytes(Profile.of(table).to_json())
    pq.write_table(table, tmp_path / "p_1.parquet")
    (tmp_path / "p_2.parquet").write_bytes((tmp_path / "p_1.parquet").read_bytes()[:40])
    (tmp_path / "latin.csv").write_bytes("x\né\n".encode("latin1"))
    (tmp_path / "half.arrow").write_bytes(b"ARROW1 and no more")
    (tmp_path / "notes.txt").write_text("no table")

    with pytest.raises(ProfileError, match=re.escape(said)):
        Profile.of(tmp_path / path)
