"""Slices: planted segments are found, their shadows are not told, and nothing is told of rows without any."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from collectors.scores import ScoreError, SliceSettings, drifted_slices, worst_slices
from collectors.scores.segments import segmented

Columns = dict[str, npt.NDArray[np.generic]]


def rows(seed: int, count: int, extra: int = 6) -> Columns:
    generator = np.random.default_rng(seed)
    found: Columns = {
        "carrier": np.array(["AA", "B6", "DL", "EV", "UA"])[generator.integers(0, 5, count)],
        "origin": np.array(["EWR", "JFK", "LGA"])[generator.integers(0, 3, count)],
        "distance": generator.lognormal(6, 1, count),
    }
    return found | {f"other{place}": generator.normal(size=count) for place in range(extra)}


def mistakes(columns: Columns, seed: int, rate: float = 0.1) -> npt.NDArray[np.float64]:
    return (np.random.default_rng(seed).random(len(columns["carrier"])) < rate).astype(float)


def test_a_planted_segment_is_told_first_and_alone() -> None:
    columns = rows(0, 20_000)
    errors = mistakes(columns, 1)
    inside = columns["carrier"] == "EV"
    errors[inside] = np.random.default_rng(2).random(inside.sum()) < 0.3

    (found,) = worst_slices(columns, errors)

    assert found.conditions == ("carrier = EV",)
    assert found.rows == inside.sum()
    assert found.mean == pytest.approx(errors[inside].mean())
    assert found.rest == pytest.approx(errors[~inside].mean())
    assert found.contribution == pytest.approx(inside.sum() * (found.mean - found.rest) / errors.sum())
    assert found.qvalue < 1e-6
    assert np.isnan(found.drift)


def test_a_planted_pair_is_told_as_a_pair_and_not_as_its_two_columns() -> None:
    columns = rows(3, 30_000)
    errors = mistakes(columns, 4)
    inside = (columns["carrier"] == "DL") & (columns["origin"] == "LGA")
    errors[inside] = np.random.default_rng(5).random(inside.sum()) < 0.4

    found = worst_slices(columns, errors)

    assert found[0].conditions == ("carrier = DL", "origin = LGA")
    assert len(found) == 1


@pytest.mark.parametrize("share", [0.3, 0.5, 0.75])
def test_a_category_beyond_a_threshold_of_a_number_is_told_as_both(share: float) -> None:
    """Its bins are each a small part of it, so the category alone is stronger evidence than any pair."""
    columns = rows(40, 20_000)
    limit = np.quantile(columns["distance"], share)
    inside = (columns["carrier"] == "EV") & (columns["distance"] > limit)
    errors = (np.random.default_rng(41).random(20_000) < np.where(inside, 0.25, 0.1)).astype(float)

    (found,) = worst_slices(columns, errors)

    assert found.conditions[0] == "carrier = EV"
    assert found.conditions[1].startswith("distance >= ")
    assert np.mean(columns["distance"] < float(found.conditions[1].split()[-1])) == pytest.approx(share, abs=0.1)
    assert found.rest == pytest.approx(0.1, abs=0.01)


def test_bins_side_by_side_are_told_as_one_range() -> None:
    columns = rows(42, 20_000)
    low, high = np.quantile(columns["distance"], [0.25, 0.625])
    inside = (columns["distance"] >= low) & (columns["distance"] < high)
    errors = (np.random.default_rng(43).random(20_000) < np.where(inside, 0.2, 0.1)).astype(float)

    (found,) = worst_slices(columns, errors, reference=rows(44, 20_000))

    (condition,) = found.conditions
    assert " <= distance < " in condition
    assert found.rows == pytest.approx(inside.sum(), rel=0.1)
    assert abs(found.drift) < 0.02


def test_two_planted_segments_are_both_told() -> None:
    columns = rows(6, 30_000)
    errors = np.random.default_rng(7).exponential(1, 30_000)
    far = columns["distance"] > np.quantile(columns["distance"], 0.875)
    errors[far] += 1.0
    errors[columns["origin"] == "JFK"] += 0.4

    found = worst_slices(columns, errors)

    assert {item.conditions[0].split()[0] for item in found[:2]} == {"distance", "origin"}
    assert len(found) == 2


def test_rare_mistakes_that_double_in_a_twentieth_of_the_rows_are_told() -> None:
    generator = np.random.default_rng(30)
    segment = np.array([f"s{place}" for place in range(20)])[generator.integers(0, 20, 200_000)]
    errors = (generator.random(200_000) < 0.008 * (1 + (segment == "s7"))).astype(float)

    (found,) = worst_slices({"segment": segment}, errors)

    assert found.conditions == ("segment = s7",)
    assert found.effect < SliceSettings().min_effect
    assert worst_slices({"segment": segment}, errors, settings=SliceSettings(min_ratio=float("inf"))) == []
    assert worst_slices({"segment": segment}, errors - 0.5) == []  # below 0 a ratio means nothing


@pytest.mark.parametrize(
    ("slices", "rows", "rate"), [(10, 500, 0.1), (100, 50, 0.2), (100, 500, 0.01), (1_000, 50, 0.1)]
)
def test_of_the_slices_of_one_column_few_that_are_told_are_false(slices: int, rows: int, rate: float) -> None:
    """5 % at most on average; the bounds are four standard errors and more above it."""
    settings = SliceSettings(categories=slices, min_rows=5, min_share=1e-9, min_effect=0.0, min_ratio=1, limit=1_000)
    trials, nothing, false = 20, 0, []
    for seed in range(trials):
        generator = np.random.default_rng([seed, slices, rows])
        segment = generator.integers(0, slices, slices * rows)
        words = np.array([f"s{place}" for place in range(slices)])[segment]
        draws = generator.random(len(segment))
        bad = segment < max(1, slices // 20)
        nothing += bool(worst_slices({"s": words}, (draws < rate).astype(float), settings=settings))
        found = worst_slices({"s": words}, (draws < rate * (1 + bad)).astype(float), settings=settings)
        wrong = [item for item in found if int(item.conditions[0].removeprefix("s = s")) >= max(1, slices // 20)]
        false.append(len(wrong) / max(len(found), 1))

    assert nothing <= 5
    assert np.mean(false) <= 0.2


@pytest.mark.parametrize("kind", ["binary", "heavy", "rare"])
def test_nothing_is_told_of_errors_without_a_segment(kind: str) -> None:
    """The chance of any false slice is at most alpha: 5 % of 30 trials, and four standard errors more."""
    told = 0
    for seed in range(30):
        columns = rows(seed, 3_000)
        generator = np.random.default_rng(1_000 + seed)
        if kind == "heavy":
            errors = generator.lognormal(0, 1.5, 3_000)
        else:
            errors = mistakes(columns, 2_000 + seed, 0.2 if kind == "binary" else 0.01)
        told += bool(worst_slices(columns, errors, settings=SliceSettings(min_effect=0.0, min_rows=50)))

    assert told <= 6


def test_false_slices_are_few_among_many_told() -> None:
    columns = rows(8, 30_000, extra=10)
    errors = mistakes(columns, 9)
    for carrier in ("AA", "EV"):
        inside = columns["carrier"] == carrier
        errors[inside] = np.random.default_rng(10).random(inside.sum()) < 0.25

    found = worst_slices(columns, errors, settings=SliceSettings(min_effect=0.0))

    assert [item.conditions for item in found[:2]] in (
        [("carrier = AA",), ("carrier = EV",)], [("carrier = EV",), ("carrier = AA",)],
    )  # fmt: skip
    assert len(found) <= 3


def test_drifted_segments_are_those_whose_share_changed() -> None:
    before, after = rows(11, 20_000), rows(12, 10_000)
    swapped = np.random.default_rng(13).random(10_000) < 0.5
    after["carrier"] = np.where(swapped & (after["carrier"] == "UA"), "B6", after["carrier"])

    found = drifted_slices(before, after)

    assert {item.conditions for item in found} == {("carrier = UA",), ("carrier = B6",)}
    for item in found:
        carrier = item.conditions[0].split()[-1]
        now, was = np.mean(after["carrier"] == carrier), np.mean(before["carrier"] == carrier)
        assert (item.mean, item.rest, item.drift) == pytest.approx((now, was, now - was))
        assert item.contribution == pytest.approx((now - was) * np.log(now / was))
        assert item.rows == np.sum(after["carrier"] == carrier)


def test_a_new_category_and_missing_values_are_segments() -> None:
    before, after = rows(14, 5_000), rows(15, 5_000)
    after["carrier"][:1_000] = "ZZ"
    distance = after["distance"].astype(float)
    distance[-1_000:] = np.nan
    after["distance"] = distance

    found = {item.text for item in drifted_slices(before, after)}

    assert {"carrier = ZZ", "distance is missing"} <= found


def test_no_drift_is_told_of_draws_from_one_population() -> None:
    settings = SliceSettings(min_effect=0.0)
    told = sum(bool(drifted_slices(rows(s, 3_000), rows(s + 100, 2_000), settings=settings)) for s in range(20))

    assert told <= 5


def test_an_error_slice_says_how_its_share_changed() -> None:
    before, after = rows(16, 10_000), rows(17, 10_000)
    after["carrier"][:3_000] = "EV"
    errors = mistakes(after, 18)
    inside = after["carrier"] == "EV"
    errors[inside] = np.random.default_rng(19).random(inside.sum()) < 0.35

    found = worst_slices(after, errors, reference=before)[0]

    assert found.conditions == ("carrier = EV",)
    assert found.drift == pytest.approx(inside.mean() - np.mean(before["carrier"] == "EV"))


def test_segments_hold_every_row_once() -> None:
    table = pa.table(
        {
            "number": pa.array([1.5, None, 2.5, float("nan"), 9.0]),
            "word": pa.array(["a", "b", None, "a", "a"]).dictionary_encode(),
            "flag": [True, False, None, True, True],
            "few": [1, 2, 1, 2, 1],
            "empty": pa.nulls(5, pa.float64()),
            "when": pa.array([0, 1, 2, 3, 4], pa.timestamp("s")),
        }
    )
    found = {column.name: [column.words[code] for code in column.codes] for column in segmented(table, bins=2)}

    low, high, missing = "number < 2.5", "number >= 2.5", "number is missing"
    assert found["number"] == [low, missing, high, missing, high]
    assert found["word"] == ["word = a", "word = b", "word is missing", "word = a", "word = a"]
    assert found["flag"][2] == "flag is missing"
    assert found["few"][0] == "few = 1"
    assert set(found["empty"]) == {"empty is missing"}
    assert "when" not in found


def test_string_views_are_categories() -> None:
    table = pa.table({"word": pa.array(["a", "b", None] * 100, pa.string_view())})

    (found,) = segmented(table)

    assert found.words == ("word = a", "word = b", "word is missing")


def test_a_million_categories_are_cut_to_the_frequent_ones() -> None:
    columns = {"id": [str(place) for place in range(5_000)], "plan": ["a", "b"] * 2_500}
    errors = np.tile([0.0, 1.0], 2_500)

    (found,) = worst_slices(columns, errors)

    assert found.conditions == ("plan = b",)


def test_what_cannot_be_searched_is_said() -> None:
    with pytest.raises(ScoreError, match="2 errors for 3 rows"):
        worst_slices({"a": [1, 2, 3]}, np.zeros(2))
    with pytest.raises(ScoreError, match="unequal length"):
        worst_slices({"a": [1, 2, 3], "b": [1]}, np.zeros(3))
    with pytest.raises(ScoreError, match="at most 1e"):
        worst_slices({"a": ["x", "y"] * 100}, np.repeat([1.0, 1e300], 100))
    with pytest.raises(ScoreError, match="columns of unequal length"):
        drifted_slices({"a": [1.0, 2.0]}, {"a": [1.0, 2.0], "b": [1.0]})
    with pytest.raises(ScoreError, match="names occur twice"):
        drifted_slices({"a": [1.0]}, pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["a", "a"]))
    with pytest.raises(ScoreError, match="finite"):
        worst_slices({"a": [1, 2]}, np.array([0.0, np.nan]))
    with pytest.raises(ScoreError, match="no rows"):
        worst_slices({"a": []}, np.zeros(0))
    with pytest.raises(ScoreError, match="no column in common"):
        drifted_slices({"a": [1]}, {"b": [1]})
    with pytest.raises(ScoreError, match="occur twice"):
        worst_slices(pa.table([[1], [2]], names=["a", "a"]), np.zeros(1))
    with pytest.raises(ValueError, match="alpha"):
        SliceSettings(alpha=2)
    assert worst_slices({"a": [1, 2]}, np.ones(2)) == []
