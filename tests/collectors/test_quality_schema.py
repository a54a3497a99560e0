"""Schemas inferred and edited, rows checked against them, duplicates, volume, and what is kept aside."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.database import open_database
from collectors.journal import Journal
from collectors.quality import (
    ColumnRules,
    QualityMonitor,
    RecentRows,
    Schema,
    SchemaEdit,
    SchemaError,
    Volume,
    became_constant,
    check,
    row_hashes,
)
from collectors.quality.aside import KeptAside, KeptRow
from observability.profile import Profile


def reference() -> Profile:
    generator = np.random.default_rng(1)
    return Profile.of(
        pa.table(
            {
                "feature.temp": generator.uniform(10.0, 90.0, 2_000),
                "feature.gust": pa.array([None, *generator.normal(0, 1, 1_999)]),
                "feature.carrier": generator.choice(["AA", "DL"], 2_000),
                "feature.night": generator.random(2_000) < 0.3,
                "prediction.p": generator.random(2_000),
            }
        )
    )


def broken(table: pa.Table, schema: Schema) -> dict[tuple[str, str], list[int]]:
    return {(item.column, item.rule): item.rows.tolist() for item in check(table, schema)}


def rows(**changed: object) -> pa.Table:
    columns = {
        "feature.temp": [50.0, 60.0, 70.0],
        "feature.gust": [0.0, None, 1.0],
        "feature.carrier": ["AA", "DL", "AA"],
        "feature.night": [True, False, True],
        "prediction.p": [0.1, 0.2, 0.3],
        "outcome": ["ok", "ok", "ok"],
    }
    columns |= {name.replace("__", "."): value for name, value in changed.items()}
    return pa.table({name: value for name, value in columns.items() if value is not None})


def test_the_inferred_schema_says_what_the_reference_showed() -> None:
    schema = Schema.inferred(reference())

    temp, carrier = schema.columns["feature.temp"], schema.columns["feature.carrier"]
    assert temp.required
    assert temp.finite
    assert temp.minimum is not None
    assert temp.maximum is not None
    assert -80 < temp.minimum < -60  # the range, doubled on each side: absurd values break it, new extremes do not
    assert 160 < temp.maximum < 180
    assert sorted(carrier.categories or ()) == ["AA", "DL"]
    assert not schema.columns["feature.gust"].required
    assert not schema.columns["prediction.p"].required
    assert schema.columns["feature.night"] == ColumnRules(type="boolean", required=True)


def test_rows_that_fit_break_nothing() -> None:
    assert broken(rows(), Schema.inferred(reference())) == {}
    assert check(rows().slice(0, 0), Schema.inferred(reference())) == []


def test_each_rule_names_the_rows_that_break_it() -> None:
    table = rows(
        feature__temp=[50.0, float("nan"), 5_000.0],
        feature__gust=[float("inf"), None, 1.0],
        feature__carrier=["AA", "ZZ", None],
        feature__night=["yes", "no", None],
        feature__new=[1, 2, 3],
    )

    assert broken(table, Schema.inferred(reference())) == {
        ("feature.temp", "required"): [1],
        ("feature.temp", "range"): [2],
        ("feature.gust", "finite"): [0],
        ("feature.carrier", "required"): [2],
        ("feature.carrier", "categories"): [1],
        ("feature.night", "type"): [0, 1],
        ("feature.night", "required"): [2],
        ("feature.new", "unexpected"): [0, 1, 2],
    }


def test_predictions_are_unexpected_only_where_the_reference_has_one() -> None:
    schema = Schema.inferred(reference())
    features = {name: rules for name, rules in schema.columns.items() if name.startswith("feature.")}

    assert broken(rows(prediction__other=[1.0, 2.0, 3.0]), schema) == {("prediction.other", "unexpected"): [0, 1, 2]}
    assert broken(rows(), replace(schema, columns=features)) == {}


def test_a_required_column_that_is_absent_is_missing_in_every_row() -> None:
    assert broken(rows(feature__temp=None), Schema.inferred(reference())) == {("feature.temp", "required"): [0, 1, 2]}


def test_dictionary_encoded_and_chunked_columns_are_checked_alike() -> None:
    schema = Schema.inferred(reference())
    plain = rows(feature__carrier=["AA", "ZZ", "ZZ"])
    coded = plain.set_column(
        plain.schema.get_field_index("feature.carrier"),
        "feature.carrier",
        plain.column("feature.carrier").dictionary_encode(),
    )
    chunked = pa.concat_tables([plain.slice(0, 2), plain.slice(2)])

    assert broken(plain, schema) == broken(coded, schema) == broken(chunked, schema)


def test_a_prediction_is_due_only_where_the_outcome_is_ok() -> None:
    schema = Schema(columns={"prediction.p": ColumnRules(type="numeric", required=True)})
    table = pa.table({"prediction.p": [None, None, 0.5], "outcome": ["ok", "model_error", "ok"]})

    assert broken(table, schema) == {("prediction.p", "required"): [0]}


def test_a_unique_column_names_the_later_rows() -> None:
    schema = Schema(columns={"feature.id": ColumnRules(type="categorical", unique=True)})
    table = pa.table({"feature.id": pa.chunked_array([["a", "b", None], ["a", None, "b", "c"]])})

    assert broken(table, schema) == {("feature.id", "unique"): [3, 5]}

    vectors = Schema(columns={"feature.e": ColumnRules(type="embedding", unique=True)})
    values = pa.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], None, None], pa.list_(pa.float64(), 2))
    assert broken(pa.table({"feature.e": values}), vectors) == {("feature.e", "unique"): [2]}


def test_an_edit_changes_what_it_names_and_keeps_the_rest() -> None:
    inferred = Schema.inferred(reference())
    edit = SchemaEdit.from_json(
        json.dumps(
            {
                "columns": {
                    "feature.temp": {"maximum": None, "required": False},
                    "feature.night": None,
                    "feature.id": {"type": "categorical", "unique": True},
                },
                "rows_per_second": 20,
            }
        ).encode()
    )

    edited = inferred.edited(edit)

    assert edited.columns["feature.temp"].maximum is None
    assert edited.columns["feature.temp"].minimum == inferred.columns["feature.temp"].minimum
    assert "feature.night" not in edited.columns
    assert edited.columns["feature.id"].unique
    assert edited.columns["feature.carrier"] == inferred.columns["feature.carrier"]
    assert edited.rows_per_second == 20
    assert SchemaEdit.from_json(edit.to_json()) == edit


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"[]", "the body is not a schema"),
        (b'{"colums": {}}', "colums"),
        (b'{"columns": {"x": {"maximun": 1}}}', "maximun"),
        (b'{"rows_per_second": -1}', "rows_per_second is -1"),
        (b'{"columns": {"feature.temp": {"minimum": "low"}}}', "minimum"),
    ],
)
def test_an_edit_that_cannot_be_read_says_why(body: bytes, says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        SchemaEdit.from_json(body)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"feature.temp": {"minimum": 5.0, "maximum": 1.0}}, "minimum 5.0 above its maximum 1.0"),
        ({"feature.temp": {"type": "number"}}, "known are numeric"),
        ({"feature.other": {"minimum": 5.0}}, "give its type"),
        ({"feature.carrier": {"categories": []}}, "allows no category"),
        ({"feature.carrier": {"maximum": 3.0}}, "only a numeric one has a minimum"),
        ({"feature.temp": {"dimensions": 3}}, "only vectors have dimensions"),
        ({"feature.temp": {"categories": ["1"]}}, "only a categorical one has categories"),
    ],
)
def test_an_edit_that_contradicts_itself_says_so(columns: dict[str, object], says: str) -> None:
    monitor = QualityMonitor(60.0, lambda _: None)
    monitor.set_reference("m", "1", reference())

    with pytest.raises(SchemaError, match=says):
        monitor.edit("m", SchemaEdit.from_json(json.dumps({"columns": columns}).encode()))

    assert monitor.schema("m", "1") == Schema.inferred(reference())


@given(
    st.lists(
        st.tuples(st.one_of(st.none(), st.floats(allow_nan=False)), st.one_of(st.none(), st.text(max_size=3))),
        min_size=1,
    ),
    st.integers(0, 10),
)
def test_rows_have_equal_hashes_exactly_where_they_are_equal(values: list[tuple[float, str]], cut: int) -> None:
    table = pa.table(
        {"a": pa.array([a for a, _ in values], pa.float64()), "b": pa.array([b for _, b in values], pa.utf8())}
    )
    chunked = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    same = {(None if a is None else np.float64(a).tobytes(), b) for a, b in values}

    hashes = row_hashes(table, ["a", "b"])

    assert len(np.unique(hashes)) == len(same)
    assert np.array_equal(hashes, row_hashes(chunked, ["a", "b"]))


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float64(), 2), pa.list_(pa.list_(pa.int8()))],
)
@given(values=st.data(), cut=st.integers(0, 10))
def test_vectors_have_equal_hashes_exactly_where_they_are_equal(
    kind: pa.DataType, values: st.DataObject, cut: int
) -> None:
    nested, fixed = pa.types.is_nested(kind.value_type), pa.types.is_fixed_size_list(kind)
    numbers = st.sampled_from([None, 0, 1, 3] if nested else [None, 0.0, -0.0, 1.5, math.nan])
    vectors = st.lists(numbers, min_size=2 * fixed, max_size=2 if fixed else 3)
    if nested:
        vectors = st.lists(vectors, max_size=2)
    drawn = values.draw(st.lists(st.one_of(st.none(), vectors), min_size=1))
    column = pa.array(drawn, kind)
    chunked = pa.chunked_array([column.slice(0, cut), column.slice(cut)], kind)

    hashes = row_hashes(pa.table({"vector": column}), ["vector"])

    assert len(np.unique(hashes)) == len({repr(value) for value in column.to_pylist()})
    assert np.array_equal(hashes, row_hashes(pa.table({"vector": chunked}), ["vector"]))


def test_the_order_of_a_vectors_numbers_and_a_small_difference_tell() -> None:
    grid = np.zeros((40_000, 8), np.float32)
    grid[:, 0], grid[:, 3] = np.arange(40_000) % 200, np.arange(40_000) // 200

    hashes = row_hashes(pa.table({"vector": pa.FixedSizeListArray.from_arrays(grid.ravel(), 8)}), ["vector"])

    assert len(np.unique(hashes)) == 40_000


def test_recent_rows_forget_the_oldest_batches() -> None:
    recent = RecentRows(limit=100)
    recent.add(np.zeros(100, np.uint64))
    assert recent.duplicated_ratio() == 0.99

    recent.add(np.arange(100, dtype=np.uint64))

    assert recent.rows == 100
    assert recent.duplicated_ratio() == 0


def test_a_few_rows_that_are_equal_say_nothing() -> None:
    recent = RecentRows()
    recent.add(np.zeros(99, np.uint64))
    assert recent.duplicated_ratio() == 0

    recent.add(np.zeros(1, np.uint64))

    assert recent.duplicated_ratio() == 0.99


def test_volume_is_measured_against_the_windows_before_it_and_versions_add_up() -> None:
    volume = Volume()
    for minute in range(1, 7):
        volume.closed(60.0 * minute, 500, 60)
        volume.closed(60.0 * minute, 100, 60)
    assert volume.ratio() == pytest.approx(1.0)

    volume.closed(420, 60, 60)

    assert volume.ratio() == pytest.approx(0.1)
    assert volume.ratio(expected=0.5) == pytest.approx(2.0)


def test_a_window_in_which_the_rows_ended_is_taken_up_to_the_last_of_them() -> None:
    volume = Volume()
    for minute in range(1, 8):
        volume.closed(60.0 * minute, 600, 60)

    def ended(last: float, rows: int, now: float = 540.0) -> float:
        latest = replace(volume, _rates=volume._rates.copy(), latest=last)
        latest.closed(480, rows, 60)
        return latest.ratio(now=now)

    # Evening: ten a second until five seconds into the window, then none.
    assert ended(425.0, 50) == pytest.approx(1.0)
    # Few from its beginning on.
    assert ended(475.0, 50) == pytest.approx(50 / 600 * 60 / 55)
    # Rows go on, or may do so.
    assert ended(481.0, 50) == pytest.approx(50 / 600)
    assert ended(425.0, 50, now=484.0) == pytest.approx(50 / 600)
    assert ended(425.0, 4_000) == pytest.approx(4_000 / 600)


def test_a_window_says_when_a_column_became_constant() -> None:
    known = reference()
    stuck = known.empty().updated(
        pa.table({"feature.temp": np.full(60, 20.0), "feature.carrier": ["AA"] * 60, "feature.night": [True] * 60})
    )
    few = known.empty().updated(pa.table({"feature.temp": np.full(10, 20.0)}))

    constant = [name for name, column in stuck.columns.items() if became_constant(known.columns[name], column)]

    assert constant == ["feature.temp", "feature.carrier", "feature.night"]
    assert not became_constant(known.columns["feature.temp"], few.columns["feature.temp"])


def test_rows_that_are_alike_by_chance_are_no_constant_column() -> None:
    """Of a column of 89 % zeros fifty rows are all zero in 3 windows of 1,000: three times a day, a window a minute."""
    zeros = np.where(np.arange(10_000) % 100 < 89, 0.0, np.arange(10_000))
    known = Profile.of({"x": zeros}).columns["x"]
    halves = Profile.of({"x": zeros % 2}).columns["x"]
    alike = {rows: known.empty().updated(pa.array(np.zeros(rows))) for rows in (60, 150)}

    assert not became_constant(known, alike[60])
    assert became_constant(known, alike[150])
    assert not became_constant(halves, halves.empty().updated(pa.array(np.zeros(60))))


@pytest.mark.parametrize(
    ("name", "values", "constant"),
    [
        ("number", [np.inf] * 20 + [3.0] * 60, False),
        ("number", [np.nan] * 20 + [3.0] * 60, True),
        ("category", ["new"] * 60, True),
        ("category", ["new", "newer"] * 30, False),
        ("category", ["new", "a"] * 30, False),
        ("note", ["ab cd ef", "gh ij klm no"] * 30, False),
        ("note", ["ab cd ef gh"] * 60, True),
    ],
)
def test_constant_is_a_column_of_one_value_and_not_of_one_cell(name: str, values: list[Any], constant: bool) -> None:
    notes = [f"{'word ' * (row % 9 + 2)}{row}" for row in range(1_000)]
    table = pa.table({"number": np.arange(1_000.0), "category": ["a", "b"] * 500, "note": notes})
    known = Profile.of(table)
    window = known.columns[name].empty().updated(pa.array(values))

    assert known.columns["note"].kind == "text"
    assert became_constant(known.columns[name], window) is constant


def test_the_monitor_counts_all_and_keeps_some_once(tmp_path: Path) -> None:
    journal = Journal(open_database(f"sqlite:///{tmp_path}/q.db"))
    aside = KeptAside(journal)
    monitor = QualityMonitor(60.0, aside.put)
    monitor.set_reference("m", "1", reference())
    events = pa.table(
        {
            "id": [f"r{number}" for number in range(100)],
            "time": pa.array(np.arange(100) * 1_000_000_000, pa.timestamp("ns", "UTC")),
            "outcome": ["ok"] * 100,
            "feature.temp": np.full(100, 1e6),
            "feature.carrier": ["AA"] * 100,
            "feature.night": [True] * 100,
        }
    )

    for _ in range(2):
        assert monitor.observe("m", "1", events) is None  # too few to be worth a check yet
        (observed,) = monitor.checked()
    aside.put([]).result()

    assert observed.counts == {("feature.temp", "range"): 100}
    kept = aside.latest("m", 100)
    assert len(kept) == 20
    assert kept[0] == KeptRow("m", "1", "r19", 19.0, "feature.temp", "range", "1000000.0")
    assert monitor.duplicated_ratio("m", "1") == 0.995
    assert monitor.age("m", 109.0) == 10
    assert monitor.age_limit("m") == 600
    aside.prune(5)
    assert [row.id for row in aside.latest("m", 100)] == ["r19", "r18", "r17", "r16", "r15"]
    journal.close()


def test_batches_whose_types_differ_are_checked_one_by_one() -> None:
    monitor = QualityMonitor(60.0, lambda _: None)
    monitor.set_reference("m", "1", reference())
    stamp = pa.array([0], pa.timestamp("ns", "UTC"))
    for value in (["hot"], [5.0]):
        monitor.observe("m", "1", pa.table({"id": ["a"], "time": stamp, "feature.temp": value}))

    (observed,) = monitor.checked()

    assert observed.counts[("feature.temp", "type")] == 1
    assert monitor.checked() == []


@pytest.mark.parametrize("together", [False, True])
def test_what_is_broken_does_not_depend_on_which_batches_wait_together(together: bool) -> None:
    monitor = QualityMonitor(60.0, lambda _: None)
    monitor.set_reference("m", "1", reference())
    monitor.edit("m", SchemaEdit.from_json(b'{"columns": {"feature.carrier": {"unique": true, "categories": null}}}'))
    stamp = pa.array([0] * 3, pa.timestamp("ns", "UTC"))
    shared = {"time": stamp, "feature.temp": [50.0] * 3, "feature.night": [True] * 3}
    carriers = pa.array(["AA", "DL", "UA"])
    batches = [
        pa.table({"id": list("abc"), **shared, "feature.carrier": carriers}),
        pa.table({"id": list("def"), **shared, "feature.carrier": carriers, "feature.new": [1.0] * 3}),
    ]
    found: Counter[tuple[str, str]] = Counter()
    for batch in batches:
        monitor.observe("m", "1", batch)
        if not together:
            found.update({key: n for observed in monitor.checked() for key, n in observed.counts.items()})
    found.update({key: n for observed in monitor.checked() for key, n in observed.counts.items()})

    assert found == {("feature.new", "unexpected"): 3}


def test_a_feature_that_no_schema_names_is_unexpected_only_where_it_came() -> None:
    monitor = QualityMonitor(60.0, lambda _: None)
    monitor.set_reference("m", "1", reference())
    stamp = pa.array([0] * 3, pa.timestamp("ns", "UTC"))
    shared = {"time": stamp, "feature.temp": [50.0] * 3, "feature.carrier": ["AA"] * 3, "feature.night": [True] * 3}
    monitor.observe("m", "1", pa.table({"id": list("abc"), **shared}))
    monitor.observe("m", "1", pa.table({"id": list("def"), **shared, "feature.new": [1.0] * 3}))

    (observed,) = monitor.checked()

    assert observed.counts == {("feature.new", "unexpected"): 3}


def test_rows_of_a_wrong_clock_do_not_make_the_data_young() -> None:
    monitor = QualityMonitor(60.0, lambda _: None)
    for seconds in (100, 9_000_000):
        stamp = pa.array([seconds * 1_000_000_000], pa.timestamp("ns", "UTC"))
        monitor.observe("m", "1", pa.table({"id": ["a"], "time": stamp}), until=400.0)

    assert monitor.age("m", 150.0) == 50


def test_an_edit_outlives_the_process_and_the_version(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/q.db"
    journal = Journal(open_database(url))
    edit = SchemaEdit.from_json(b'{"columns": {"feature.temp": {"maximum": 75}}, "max_age_seconds": 5}')
    KeptAside(journal).edit("m", edit, 1.0).result()
    journal.close()

    again = Journal(open_database(url))
    monitor = QualityMonitor(60.0, KeptAside(again).put, KeptAside(again).edits())
    monitor.set_reference("m", "2", reference())

    assert monitor.schema("m", "2").columns["feature.temp"].maximum == 75
    assert monitor.age_limit("m") == 5
    again.close()
