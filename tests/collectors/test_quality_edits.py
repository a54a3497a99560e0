"""Vectors against a schema, and edits of schemas that some versions cannot keep."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from collectors.quality import ColumnRules, QualityMonitor, Schema, SchemaEdit, SchemaError, check
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


def vectors(rows: list[list[float] | None], length: int, kind: pa.DataType) -> pa.Array:
    return pa.array(rows, pa.list_(kind, length))


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_vectors_are_checked_for_their_length_missing_numbers_and_infinities(kind: pa.DataType) -> None:
    known = Profile.of(pa.table({"feature.v": vectors([[1.0, 2.0]] * 1_500, 2, kind)}))
    schema = Schema.inferred(known)
    given: list[list[float] | None] = [[0.0, 1.0], None, [np.nan, 1.0], [np.inf, -np.inf], [1.0, np.inf], [2.0, 0.0]]
    sliced = pa.table({"feature.v": vectors([[9.0, 9.0], *given], 2, kind)}).slice(1)

    found = {item.rule: item.rows.tolist() for item in check(sliced, schema)}
    longer = check(pa.table({"feature.v": vectors([[1.0, 2.0, 3.0], None], 3, kind)}), schema)

    assert schema.columns["feature.v"].dimensions == 2
    assert found == {"required": [1, 2], "finite": [3, 4]}
    assert {item.rule: item.rows.tolist() for item in longer} == {"type": [0], "required": [1]}


def test_what_a_profile_counts_for_a_column_is_of_its_type() -> None:
    """Events have numbers as float64 and no times: codes come as numbers, times as text."""
    days = pa.array(np.datetime64("2026-03-01") + np.arange(1_200) % 90)
    rows = pa.table({"feature.code": [1, 20, 300] * 400, "feature.day": days})
    known = Profile.of(rows, kinds={"feature.code": "categorical", "feature.day": "datetime"})
    schema = Schema.inferred(known)

    def broken(**columns: pa.Array) -> dict[tuple[str, str], list[int]]:
        table = pa.table({f"feature.{name}": values for name, values in columns.items()})
        return {(item.column.removeprefix("feature."), item.rule): item.rows.tolist() for item in check(table, schema)}

    assert broken(code=pa.array([1.0, 20.0]), day=pa.array(["2026-03-01", "2026-03-02T10:00"])) == {}
    assert broken(code=pa.array([1.0, 1.5, None, 7.0]), day=pa.array(["2026-03-01", "soon", None, "soon"])) == {
        ("code", "type"): [1, 3],
        ("code", "required"): [2],
        ("day", "type"): [1, 3],
        ("day", "required"): [2],
    }
    assert broken(code=pa.nulls(2, pa.float64()), day=pa.nulls(2, pa.utf8())) == {
        ("code", "required"): [0, 1],
        ("day", "required"): [0, 1],
    }
    assert broken(code=pa.array([True]), day=pa.array([5.0])) == {("code", "type"): [0], ("day", "type"): [0]}
    free = schema.edited(SchemaEdit.from_json(b'{"columns": {"feature.code": {"categories": null}}}'))
    assert check(pa.table({"feature.code": [7.0]}).append_column("feature.day", pa.array(["2026-03-01"])), free) == []


def test_infinities_of_both_signs_are_looked_at_without_bounds() -> None:
    schema = Schema(columns={"feature.x": ColumnRules(type="numeric")})

    found = check(pa.table({"feature.x": [-np.inf, 0.0, np.inf]}), schema)

    assert [(item.rule, item.rows.tolist()) for item in found] == [("finite", [0, 2])]


def test_an_edit_of_the_type_leaves_out_what_was_inferred_of_the_other_one() -> None:
    edit = SchemaEdit.from_json(b'{"columns": {"feature.temp": {"type": "categorical"}}}')

    rules = Schema.inferred(reference()).edited(edit).columns["feature.temp"]

    assert (rules.type, rules.minimum, rules.maximum, rules.required) == ("categorical", None, None, True)


def test_an_edit_that_no_version_can_keep_is_refused_before_there_is_a_version() -> None:
    monitor = QualityMonitor(60.0, lambda _: None)

    with pytest.raises(SchemaError, match="give its type"):
        monitor.edit("m", SchemaEdit.from_json(b'{"columns": {"feature.temp": {"minimum": 3}}}'))

    assert monitor.schema("m", "1") == Schema()


def test_an_edit_that_a_later_version_cannot_keep_leaves_that_version_its_own_rules() -> None:
    monitor = QualityMonitor(60.0, lambda _: None)
    monitor.set_reference("m", "1", reference())
    monitor.edit("m", SchemaEdit.from_json(b'{"columns": {"feature.temp": {"minimum": 3}}, "max_age_seconds": 7}'))
    monitor.set_reference("m", "2", Profile.of(pa.table({"feature.temp": ["warm", "cold"] * 1_000})))
    stamp = pa.array([0] * 2, pa.timestamp("ns", "UTC"))
    monitor.observe("m", "2", pa.table({"id": ["a", "b"], "time": stamp, "feature.temp": ["warm", "odd"]}))

    (observed,) = monitor.checked()
    schema = monitor.schema("m", "2")

    assert observed.counts == {("feature.temp", "categories"): 1}
    assert schema.columns == Schema.inferred(Profile.of(pa.table({"feature.temp": ["warm", "cold"] * 1_000}))).columns
    assert "only a numeric one has a minimum" in schema.to_json()["not_applied"]["feature.temp"]
    # What fits one of the versions is no mistake.
    monitor.edit("m", SchemaEdit.from_json(b'{"columns": {"feature.temp": {"categories": ["warm"]}}}'))
    assert monitor.schema("m", "2").columns["feature.temp"].categories == ("warm",)


def test_a_column_that_an_edit_stops_checking_is_not_unexpected() -> None:
    edit = SchemaEdit.from_json(b'{"columns": {"feature.night": null, "feature.new": null}}')
    schema = Schema.inferred(reference()).edited(edit)
    table = pa.table({"feature.temp": [50.0], "feature.carrier": ["AA"], "feature.night": ["?"], "feature.new": [1.0]})

    assert check(table, schema) == []
    assert schema.to_json()["unchecked"] == ["feature.new", "feature.night"]
    assert [item.rule for item in check(table.append_column("feature.newer", [[2.0]]), schema)] == ["unexpected"]
