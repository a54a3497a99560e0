"""Whatever is handed over: files, folders and patterns are read, and what cannot be compared is named and explained."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from collectors.drift import inputs
from collectors.drift.compare import compare, saved_profile
from collectors.drift.source import InputError
from observability.table_files.csv_files import csv_schema
from observability.table_files.files import source_of_path


def table(rows: int = 400, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table({"x": random.normal(size=rows), "kind": random.choice(["a", "b"], rows), "n": np.arange(rows)})


WRITERS: dict[str, Callable[[pa.Table, Path], object]] = {
    "t.parquet": pq.write_table,
    "t.csv": pyarrow.csv.write_csv,
    "t.csv.gz": lambda t, path: pyarrow.csv.write_csv(t, pa.output_stream(str(path), compression="gzip")),
    "t.csv.zst": lambda t, path: pyarrow.csv.write_csv(t, pa.output_stream(str(path), compression="zstd")),
    "t.feather": lambda t, path: pyarrow.feather.write_feather(t, str(path)),
    "t.arrow": lambda t, path: _ipc(t, path, pa.ipc.new_file),
    "stream.arrow": lambda t, path: _ipc(t, path, pa.ipc.new_stream),
    "parquet_without_ending": pq.write_table,
}


def _ipc(rows: pa.Table, path: Path, new: Callable[..., Any]) -> None:
    with new(str(path), rows.schema) as file:
        file.write_table(rows)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_read(tmp_path: Path, name: str) -> None:
    WRITERS[name](table(), tmp_path / name)

    found = compare(tmp_path / name, table())

    assert list(found.columns) == ["x", "kind", "n"]
    assert found.rows.reference == 400
    assert found.columns["x"].ks == 0
    assert not found.drifted


@pytest.mark.parametrize("ending", ["parquet", "csv", "arrow"])
def test_folders_patterns_and_partitions_are_read(tmp_path: Path, ending: str) -> None:
    for number in range(3):
        for folder in (tmp_path / "flat", tmp_path / "hive" / f"day={number}"):
            folder.mkdir(parents=True, exist_ok=True)
            WRITERS[f"t.{ending}"](table(seed=number), folder / f"part{number}.{ending}")
    (tmp_path / "flat" / "_SUCCESS").write_text("")
    (tmp_path / "flat" / ".hidden.parquet").write_text("no table")

    whole = compare(tmp_path / "flat", tmp_path / "flat" / f"*.{ending}")
    two = compare(tmp_path / "flat", str(tmp_path / "flat" / f"part[01].{ending}"))

    assert (whole.rows.reference, whole.rows.current, two.rows.current) == (1200, 1200, 800)
    assert whole.columns["x"].wasserstein == pytest.approx(0, abs=1e-12)
    if ending != "csv":
        split = compare(tmp_path / "hive", tmp_path / "hive", by="day")
        assert sorted(part.label for part in split.values) == ["0", "1", "2"]


def test_files_of_one_folder_may_differ_in_type_and_columns(tmp_path: Path) -> None:
    for folder, ending in ((tmp_path / "p", "parquet"), (tmp_path / "c", "csv")):
        folder.mkdir()
        WRITERS[f"t.{ending}"](pa.table({"x": [1, 2, 3], "k": ["a", "b", "c"]}), folder / f"1.{ending}")
        WRITERS[f"t.{ending}"](pa.table({"x": [1.5, 2.5], "extra": [1, 2]}), folder / f"2.{ending}")

        found = compare(folder, folder)

        assert found.columns["x"].type == "numeric"
        assert found.columns["k"].missing.reference == 2
        assert found.columns["extra"].missing.reference == 3


def test_flags_in_parquet_that_turned_have_drifted_in_both_modes(tmp_path: Path) -> None:
    for name, share in (("before", 0.2), ("now", 0.5)):
        pq.write_table(pa.table({"flag": (np.arange(1_000) < 1_000 * share).astype(int)}), tmp_path / f"{name}.parquet")

    exact, counted = (
        compare(tmp_path / "before.parquet", tmp_path / "now.parquet", mode=mode) for mode in ("exact", "profile")
    )

    assert exact.columns["flag"].drifted
    assert counted.columns["flag"].score == exact.columns["flag"].score
    assert counted.columns["flag"].psi == pytest.approx(exact.columns["flag"].psi)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_lanes_of_parquet_have_the_rows_of_its_files_in_order(tmp_path: Path, most: int) -> None:
    draw = np.random.default_rng(5)
    for place, rows in enumerate((33_000, 50_100, 5)):
        folder = tmp_path / f"day={place}" / ("country=de" if place else "country=__HIVE_DEFAULT_PARTITION__")
        folder.mkdir(parents=True)
        table = pa.table({f"x{i}": draw.normal(size=rows) for i in range(5)})
        table = table.append_column("n", pa.array(draw.integers(0, 9, rows), pa.int32() if place else pa.float64()))
        table = table.append_column("text", pa.array([f"t{i % 7}" for i in range(rows)], pa.large_string()))
        table = table.append_column("mixed", pa.array([f"{i}" for i in range(rows)] if place else [1] * rows))
        table = table.append_column("a.b", pa.FixedSizeListArray.from_arrays(pa.array(draw.normal(size=2 * rows)), 2))
        table = table.append_column(
            "only.now" if place else "a", pa.array([True, None] * (rows // 2) + [None] * (rows % 2))
        )
        pq.write_table(table, folder / "part.parquet", row_group_size=50_000)
    source = source_of_path(tmp_path, in_memory=0)

    assert source.lanes is not None
    steps = list(source.lanes(source.columns, most))
    # By turns, as threads would.
    pieces = [piece for step in steps for turn in zip_longest(*step) for piece in turn if piece is not None]
    whole = source.read(source.columns)

    assert max(map(len, steps)) == most
    assert max(piece.num_columns for piece in pieces) < len(source.columns)
    assert max(piece.num_rows for piece in pieces) <= 32_768
    for name in source.columns:
        found = pa.chunked_array([piece.column(name) for piece in pieces if name in piece.schema.names])
        assert found.type == whole.column(name).type == source.schema.field(name).type
        plain = found.type.value_type if pa.types.is_dictionary(found.type) else found.type
        assert found.cast(plain).equals(whole.column(name).cast(plain)), name


def test_csv_larger_than_memory_is_streamed_with_the_types_of_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["x,code,day,kind", *(f"{n},{n},2026-01-01,a" for n in range(20_000)), "0.5,x7,never,b", ",,,"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    whole = compare(tmp_path / "t.csv", tmp_path / "t.csv", mode="profile")
    monkeypatch.setattr(inputs, "MEMORY_SHARE", 0.0)
    monkeypatch.setattr("observability.table_files.csv_files.BLOCK_BYTES", 1 << 14)

    schema, rows = csv_schema(tmp_path / "t.csv")
    found = compare(tmp_path / "t.csv", tmp_path / "t.csv", mode="profile")

    assert [str(kind) for kind in schema.types] == ["double", "string", "string", "string"]
    assert rows == 20_002
    assert found.to_json()["columns"]["x"] == whole.to_json()["columns"]["x"]
    assert found.columns["kind"].missing.current == 1


def test_pandas_frames_with_objects_of_several_types_are_read() -> None:
    frame = pd.DataFrame({"mixed": [1, "a", None, 2.5] * 50, "cat": pd.Categorical(["u", "v"] * 100), "i": range(200)})

    found = compare(frame, frame)

    assert found.columns["mixed"].type == "categorical"
    assert found.columns["mixed"].missing.current == 50
    assert found.columns["cat"].distinct.to_json() == {"reference": 2, "current": 2}


def test_a_type_that_changed_is_compared_where_it_can_be_and_told_where_not() -> None:
    numbers = np.arange(500.0)
    before = pa.table({"a": numbers, "b": numbers, "c": numbers > 3, "d": numbers, "e": numbers.astype("i4")})
    words = ["w"] * 500
    texts = [str(number) for number in numbers[:-2]] + ["none", "?"]
    times = numbers.astype("datetime64[s]")
    now = pa.table({"a": texts, "b": words, "c": words, "d": times, "e": numbers.astype("f4")})

    found = compare(before, now)

    assert found.columns["a"].missing.current == 2
    assert "2 values of the current table are not numbers" in found.columns["a"].reason
    assert not found.columns["a"].drifted
    for name in ("b", "c", "d"):
        assert found.columns[name].drifted, name
    assert "type changed" in found.columns["d"].reason
    assert found.columns["e"].type == "numeric"
    assert not found.columns["e"].drifted


def test_columns_of_one_side_are_named_and_one_that_vanished_is_a_finding() -> None:
    found = compare(table(), table().rename_columns(["x", "sort", "n"]))
    added = compare(table().select(["x"]), table())

    assert (found.only_in_reference, found.only_in_current) == (("kind",), ("sort",))
    assert found.to_json()["only_in_current"] == ["sort"]
    assert found.drifted
    assert added.only_in_current == ("kind", "n")
    assert not added.drifted


def test_a_million_categories_are_counted() -> None:
    codes = np.arange(1_000_000).astype(str)
    half = np.where(np.arange(1_000_000) % 2, codes, "same")

    found = compare({"k": pa.array(codes)}, {"k": pa.array(half)}, columns=["k"])

    column = found.columns["k"]
    assert column.distinct is not None
    assert (column.distinct.reference, column.distinct.current) == (1_000_000, 500_001)
    assert column.total_variation == pytest.approx(0.5, abs=1e-9)
    assert column.drifted


BAD: dict[str, tuple[bytes, str]] = {
    "broken.parquet": (b"PAR1 no table at all", "not readable Parquet"),
    "broken.arrow": (b"ARROW1 no table at all", "not a readable Arrow or Feather"),
    "latin.csv": (b"a,b\n1,caf\xe9\n", r"not UTF-8: byte 0xe9 at offset 9 \(line 2\); write it as UTF-8"),
    "header.csv": (b"a,caf\xe9\n1,2\n", r"not UTF-8: byte 0xe9 at offset 5 \(line 1\)"),
    "packed.csv.gz": (gzip.compress(b"a,b\n1,caf\xe9\n"), r"byte 0xe9 at offset 9 \(line 2\)"),
    "wide.csv": ("a,b\n1,x\n".encode("utf-16"), "iconv -f utf-16 -t utf-8"),
    "empty.csv": (b"", "is empty"),
    "rows.csv": (b"x,kind,n\n", "has no rows"),
    "ragged.csv": (b"a,b\n1,2,3\n", "2 names in its header, but a row of 3 fields: '1,2,3'"),
    "twice.csv": (b"x,x\n1,2\n", "more than one column named 'x'"),
    "other.json": (b"{}", "not a saved profile"),
    "notes.txt": (b"hello", "of no known format"),
    "foreign.csv": (b"p,q\n1,2\n", "no column in common"),
    "wide_without_mark.csv": ("a,b\n1,x\n".encode("utf-16-le"), "holds zero bytes"),
    "table.csv": (b"PAR1\0,\n1\0,2,3,4\n", "holds zero bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, name: str) -> None:
    body, words = BAD[name]
    (tmp_path / name).write_bytes(body)

    with pytest.raises(InputError, match=words):
        compare(table(), tmp_path / name)


def test_what_is_not_there_or_no_table_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "mixed").mkdir()
    pq.write_table(table(), tmp_path / "mixed" / "a.parquet")
    pyarrow.csv.write_csv(table(), tmp_path / "mixed" / "b.csv")
    cases: list[tuple[Any, str]] = [
        (tmp_path / "none.csv", "does not exist"),
        (tmp_path / "folder", "folder without"),
        (str(tmp_path / "*.nothing"), "no file matches"),
        (tmp_path / "mixed", "several formats"),
        (table().slice(0, 0), "has no rows"),
        (pa.table({}), "has no columns"),
        (pa.table([pa.array([1]), pa.array([2])], names=["x", "x"]), "more than one column named 'x'"),
        (pd.DataFrame([[1, 2]], columns=["x", "x"]), "more than one column named 'x'"),
        ({"x": [1, 2], "kind": ["a"]}, "different lengths: x 2, kind 1"),
        (42, "is a int: give a table"),
        ("", "a path is empty"),
        ("a" * 5_000, "longer than the name of a file can be"),
    ]

    for current, words in cases:
        with pytest.raises(InputError, match=words):
            compare(table(), current)


def test_a_profile_cannot_do_what_needs_rows(tmp_path: Path) -> None:
    from collectors.drift.compare import saved_profile

    (tmp_path / "p.json").write_bytes(saved_profile(table()))
    profile = tmp_path / "p.json"

    for arguments, words in (
        ({"method": "evidently"}, "works on rows"),
        ({"mode": "exact"}, "has no rows"),
        ({"kinds": {"x": "categorical"}}, "is numeric in the profile"),
    ):
        with pytest.raises(InputError, match=words):
            compare(profile, table(), **arguments)
    with pytest.raises(InputError, match="give the reference as a profile"):
        compare(table(), profile)
    with pytest.raises(InputError, match="cannot be split"):
        compare(profile, profile, by="kind")
    assert not compare(profile, profile).drifted


def test_a_saved_profile_knows_which_columns_it_has_no_kind_for(tmp_path: Path) -> None:
    rows = pa.table({"x": [1.0, 2.0] * 50, "nested": [{"a": 1}] * 100})
    (tmp_path / "p.json").write_bytes(saved_profile(rows))

    found = compare(tmp_path / "p.json", rows.append_column("new", pa.array([1] * 100)))

    assert found.only_in_current == ("new",)
    assert found.columns["nested"].reason == compare(rows, rows).columns["nested"].reason
    assert not found.drifted


def test_no_rows_make_no_profile_to_be_saved(tmp_path: Path) -> None:
    empty = pa.table({"x": pa.array([], pa.float64())})
    pq.write_table(empty, tmp_path / "empty.parquet")

    for reference in (empty, tmp_path / "empty.parquet"):
        with pytest.raises(InputError, match="no rows"):
            saved_profile(reference)


@pytest.mark.parametrize("name", ["T.CSV.GZ", "packed.csv", "plain.csv.gz"])
def test_packed_csv_is_known_by_its_bytes_and_not_its_name(tmp_path: Path, name: str) -> None:
    text = b"x,k\n" + b"".join(b"%d,a\n" % number for number in range(100))
    (tmp_path / name).write_bytes(text if name.startswith("plain") else gzip.compress(text))

    assert compare(tmp_path / name, {"x": range(100)}, columns=["x"]).columns["x"].ks == 0


@pytest.mark.parametrize("in_memory", [1 << 30, 0])
def test_folders_of_csv_become_columns_too(tmp_path: Path, in_memory: int) -> None:
    for folder, seed in (("year=2025/of=a%20b", 1), ("year=2026/of=__HIVE_DEFAULT_PARTITION__", 2)):
        (tmp_path / folder).mkdir(parents=True)
        pyarrow.csv.write_csv(table(seed=seed), tmp_path / folder / "t.csv")

    source = source_of_path(tmp_path, in_memory=in_memory)

    assert source.columns == ["x", "kind", "n", "year", "of"]
    assert source.read(["of", "year"]).to_pydict() == {
        "of": ["a b"] * 400 + [None] * 400,
        "year": [2025] * 400 + [2026] * 400,
    }
    assert source.read(["year", "x"]).column("x").to_pylist() == [
        *table(seed=1).column("x").to_pylist(), *table(seed=2).column("x").to_pylist()
    ]  # fmt: skip
    assert source.rows == 800
    assert len(compare(tmp_path, tmp_path, by="year").values) == 2


@pytest.mark.parametrize("ending", ["parquet", "arrow", "csv"])
@pytest.mark.parametrize("values", [[1, 2], ["a", "b"]])
def test_a_folders_column_may_be_in_its_files_too(tmp_path: Path, ending: str, values: list[Any]) -> None:
    for value in values:
        (tmp_path / f"k={value}").mkdir()
        rows = table().append_column("k", pa.array([value] * 400))
        WRITERS[f"t.{ending}"](rows, tmp_path / f"k={value}" / f"t.{ending}")

    for mode in ("exact", "profile"):
        found = compare(tmp_path, tmp_path, mode=mode)  # type: ignore[arg-type]
        assert found.rows.reference == 800
        assert found.columns["k"].type == ("numeric" if values == [1, 2] else "categorical")
        assert not found.drifted
    assert [part.label for part in compare(tmp_path, tmp_path, by="k").values] == [str(value) for value in values]


@pytest.mark.parametrize("streamed", [False, True])
def test_fields_that_are_all_in_quotes_are_what_they_are_without(tmp_path: Path, streamed: bool) -> None:
    frame = pd.DataFrame(
        {
            "n": [1.5, None, 2.5] * 40,
            "flag": [True, None, False] * 40,
            "text": ["a", None, "NA"] * 40,
            "code": [7, 8, 9] * 40,
        }
    )
    frame.to_csv(tmp_path / "plain.csv", index=False)
    frame.to_csv(tmp_path / "quoted.csv", index=False, quoting=csv.QUOTE_ALL)
    found = [
        source_of_path(tmp_path / name, in_memory=0 if streamed else 1 << 20) for name in ("plain.csv", "quoted.csv")
    ]

    tables = [source.read(source.columns) for source in found]

    assert found[0].schema == found[1].schema
    assert tables[0].equals(tables[1])
    assert [column.null_count for column in tables[1].columns] == [40, 40, 80, 0]


def test_a_pattern_leaves_out_what_writers_put_beside_their_files(tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(300.0)})
    for name in ("part-0.parquet", "part-1.parquet", "_temporary/part-2.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / name)
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "_metadata").write_bytes(b"?")

    assert compare(table, f"{tmp_path}/*").rows.current == 600
    assert compare(table, f"{tmp_path}/_temp*").rows.current == 300


@pytest.mark.parametrize("name", ["january", "january.profile", "january.v2"])
def test_a_saved_profile_may_have_any_name(tmp_path: Path, name: str) -> None:
    table = pa.table({"x": np.arange(300.0)})
    (tmp_path / name).write_bytes(saved_profile(table))

    assert compare(tmp_path / name, table).columns["x"].score == 0

    (tmp_path / name).write_text('{"rows": 3}')
    with pytest.raises(InputError, match="is not a saved profile"):
        compare(tmp_path / name, table)


@pytest.mark.parametrize("mode", ["exact", "profile"])
def test_numbers_in_groups_of_thousands_are_numbers_where_the_kind_says_so(tmp_path: Path, mode: Any) -> None:
    values = [np.arange(400) * 37.25 + start for start in (-9_000, 1_091_000)]
    for name, side in zip("rc", values, strict=True):
        (tmp_path / f"{name}.csv").write_text("amount\n" + "".join(f'"{value:,.2f}"\n' for value in side))

    kinds = {"amount": "numeric"}
    found = compare(tmp_path / "r.csv", tmp_path / "c.csv", kinds=kinds, mode=mode).columns["amount"]

    plain = compare(*({"amount": side} for side in values), mode=mode).columns["amount"]
    assert (found.score, found.wasserstein, found.missing) == (plain.score, plain.wasserstein, plain.missing)
    assert found.drifted
