"""The profile: a commutative monoid whose sums are the profile of all rows."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observability.columns import CategoricalColumn, NumericColumn, ProfileError
from observability.events import event_batch
from observability.profile import Profile, distribution

NUMBERS = st.one_of(
    st.none(),
    st.floats(width=64, min_value=-1e100, max_value=1e100),
    st.sampled_from([0.0, -0.0, 1.0, 2.0, math.nan, math.inf, -math.inf]),
    st.integers(-5, 5).map(float),
)
ROWS = st.lists(
    st.tuples(NUMBERS, st.one_of(st.none(), st.sampled_from("abcdef"), st.text(max_size=3)), st.none() | st.booleans()),
    max_size=40,
)


def table(rows: list[tuple[Any, Any, Any]]) -> pa.Table:
    numbers, texts, booleans = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {"x": pa.array(numbers, pa.float64()), "c": pa.array(texts, pa.utf8()), "b": pa.array(booleans, pa.bool_())}
    )


def numeric(profile: Profile, name: str = "x") -> NumericColumn:
    column = profile.columns[name]
    assert isinstance(column, NumericColumn)
    return column


def categorical(profile: Profile, name: str = "c") -> CategoricalColumn:
    column = profile.columns[name]
    assert isinstance(column, CategoricalColumn)
    return column


def assert_same(left: Profile, right: Profile) -> None:
    """Equal to the bit in all that is counted; moments to 1e-9 of the column's scale."""
    one, other = json.loads(left.to_json())["columns"], json.loads(right.to_json())["columns"]
    for moments in (one["x"], other["x"]):
        for moment in ("mean", "m2"):
            moments.pop(moment)
    assert one == other
    a, b = numeric(left), numeric(right)
    scale = max(abs(a.minimum), abs(a.maximum)) if a.count else 1.0
    # The smallest numbers have few digits: a difference of their last one is none.
    assert a.mean == pytest.approx(b.mean, rel=1e-9, abs=1e-9 * scale + 1e-300)
    assert a.m2 == pytest.approx(b.m2, rel=1e-9, abs=1e-9 * max(a.count, 1) * scale**2 + 1e-300)


@settings(deadline=None)
@given(ROWS, ROWS, ROWS)
def test_adding_is_associative_and_commutative_and_empty_is_its_identity(r1: Any, r2: Any, r3: Any) -> None:
    reference = Profile.of(table(r1))
    a, b, c = reference, reference.empty().updated(table(r2)), reference.empty().updated(table(r3))

    assert_same((a + b) + c, a + (b + c))
    assert_same(a + b, b + a)
    assert a + a.empty() == a
    assert a.empty() + a == a


@settings(deadline=None)
@given(ROWS, ROWS, ROWS)
def test_the_profile_of_two_tables_is_the_sum_of_their_profiles(r1: Any, r2: Any, r3: Any) -> None:
    empty = Profile.of(table(r1)).empty()

    whole = empty.updated(table(r2 + r3))

    assert_same(whole, empty.updated(table(r2)) + empty.updated(table(r3)))
    assert_same(whole, empty.updated(table(r2)).updated(table(r3)))


@settings(deadline=None)
@given(ROWS, ROWS)
def test_json_brings_it_back_to_the_bit(r1: Any, r2: Any) -> None:
    profile = Profile.of(table(r1)).updated(table(r2))

    assert Profile.from_json(profile.to_json()) == profile
    assert Profile.from_json(profile.to_json()).to_json() == profile.to_json()


@settings(deadline=None)
@given(ROWS, ROWS)
def test_every_row_is_counted_once_in_every_column(r1: Any, r2: Any) -> None:
    profile = Profile.of(table(r1)).empty().updated(table(r2))

    assert {column.rows for column in profile.columns.values()} == {len(r2)}
    assert profile.rows == len(r2)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6) | st.integers(-3, 3).map(float), min_size=1), st.lists(st.floats(-1e6, 1e6)))
def test_bins_are_a_plain_search_of_each_value_among_the_edges(reference: list[float], values: list[float]) -> None:
    empty = Profile.of(pa.table({"x": reference})).empty()
    column = numeric(empty.updated(pa.table({"x": pa.array(values, pa.float64())})))

    expected = np.zeros(len(column.counts), np.int64)
    for value in values:
        # The last closed bin holds the maximum as well.
        cell = sum(value >= edge for edge in column.edges)
        expected[cell - 1 if value == column.edges[-1] else cell] += 1
    assert column.counts.tolist() == expected.tolist()


def test_moments_are_those_of_numpy_also_far_from_zero() -> None:
    values = np.random.default_rng(1).normal(1e9, 1.0, 10_001)
    parts = np.array_split(values, 97)
    profile = Profile.of(pa.table({"x": parts[0]}))
    for part in parts[1:]:
        profile = profile + profile.empty().updated(pa.table({"x": part}))

    column = numeric(profile)
    assert column.mean == pytest.approx(values.mean(), rel=1e-12)
    assert column.variance == pytest.approx(values.var(), rel=1e-6)
    assert (column.minimum, column.maximum, column.count) == (values.min(), values.max(), 10_001)


def test_quantile_bins_hold_equal_shares_of_the_reference_and_none_in_the_tails() -> None:
    values = np.random.default_rng(2).lognormal(size=128_000)
    column = numeric(Profile.of(pa.table({"x": values})))

    assert len(column.counts) == 130
    assert column.counts[0] == column.counts[-1] == 0
    assert column.counts[1:-1].min() >= 999
    assert column.counts[1:-1].max() <= 1001
    assert column.out_of_range == 0


def test_values_outside_the_reference_lie_in_the_tails() -> None:
    reference = Profile.of(pa.table({"x": [1.0, 2.0, 3.0]}))
    column = numeric(
        reference.empty().updated(pa.table({"x": [0.999, 1.0, 3.0, 3.001, math.inf, -math.inf, math.nan]}))
    )

    assert (column.counts[0], column.counts[-1]) == (1, 1)
    assert column.out_of_range == 4
    assert (column.positive_infinite, column.negative_infinite, column.nan, column.count) == (1, 1, 1, 4)


def test_repeated_quantiles_collapse_and_a_constant_keeps_a_bin() -> None:
    few = numeric(Profile.of(pa.table({"x": [0] * 900 + [1] * 90 + [5] * 10})))
    constant = numeric(Profile.of(pa.table({"x": [7.0] * 10})))

    # The greatest value is a cell of its own, too: counted with the next below, a change between them would not show.
    assert few.edges.tolist() == [0, 1, 5, math.nextafter(5, math.inf)]
    assert few.counts.tolist() == [0, 900, 90, 10, 0]
    assert few.zeros == 900
    assert constant.counts.tolist() == [0, 10, 0]
    assert constant.out_of_range == 0


def test_a_column_without_a_value_still_gives_a_profile() -> None:
    column = numeric(Profile.of(pa.table({"x": pa.nulls(5, pa.float64())})))
    grown = column.updated(pa.chunked_array([[1.0, math.nan]]))

    assert (column.count, column.missing, column.counts.tolist()) == (0, 5, [0])
    assert (grown.counts.tolist(), grown.nan, grown.out_of_range) == ([1], 1, 0)
    assert distribution(column).tolist() == [0.0]


def test_categories_are_the_most_frequent_and_the_rest_is_unseen() -> None:
    reference = Profile.of(pa.table({"c": ["b", "a", "a", "c", None]}))
    column = categorical(reference.empty().updated(pa.table({"c": ["a", "z", "unseen", None]})))

    assert categorical(reference).categories == ("a", "b", "c")
    assert column.counts.tolist() == [1, 0, 0, 2, 0]
    assert (column.unseen, column.missing, column.labels[-2:]) == (2, 1, ("unseen", "other"))


def test_categories_beyond_the_bound_are_other_since_nobody_knows_whether_they_are_new() -> None:
    values = [f"c{number}" for number in range(300)] + ["c7"]
    column = categorical(Profile.of(pa.table({"c": values})))

    assert (len(column.categories), column.categories[0], column.truncated) == (256, "c7", True)
    assert (column.counts[-2], column.counts[-1]) == (0, 44)
    assert categorical(Profile({"c": column}).updated(pa.table({"c": ["new"]}))).counts[-1] == 45


def test_of_events_the_features_and_predictions_are_profiled() -> None:
    batch = event_batch(
        ids=["a"], time_ns=1, model="m", version="1", features={"f": [1.0], "c": ["x"]}, predictions={"p": [0.5]}
    )

    assert list(Profile.of(batch).columns) == ["feature.f", "feature.c", "prediction.p"]


def test_kinds_choose_the_columns_and_what_they_are() -> None:
    codes = pa.table({"code": [1, 2, 2], "x": [1.0, 2.0, 3.0]})

    profile = Profile.of(codes, {"code": "categorical"})

    assert list(profile.columns) == ["code"]
    assert categorical(profile, "code").categories == ("2", "1")
    with pytest.raises(ProfileError, match="'y' is not in the table"):
        Profile.of(codes, {"y": "numeric"})


def test_a_column_that_a_table_lacks_is_missing_in_all_its_rows() -> None:
    reference = Profile.of(pa.table({"x": [1.0], "c": ["a"]})).empty()

    assert numeric(reference.updated(pa.table({"c": ["a", "a"]}))).missing == 2


def test_what_does_not_fit_is_refused_with_the_name_of_its_column() -> None:
    one, other = Profile.of(pa.table({"x": [1.0, 2.0]})), Profile.of(pa.table({"x": [1.0, 3.0]}))
    texts = Profile.of(pa.table({"x": ["a"]}))

    with pytest.raises(ProfileError, match="column 'x': the bins differ"):
        one + other
    with pytest.raises(ProfileError, match="column 'x' is numeric in one profile and categorical"):
        one + texts
    with pytest.raises(ProfileError, match="only one of the profiles has the columns y"):
        one + Profile.of(pa.table({"x": [1.0], "y": [1.0]}))
    with pytest.raises(ProfileError, match="column 'x' of type string is not numeric"):
        one.updated(pa.table({"x": ["warm"]}))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"format":1}',
        b'{"format":3,"columns":{}}',
        b'{"format":1,"columns":{"x":{"kind":"odd"}}}',
        b'{"format":1,"columns":{"x":{"kind":"boolean","counts":[1],"missing":0}}}',
        b'{"format":1,"columns":{"x":{"kind":"categorical","categories":["a"],"truncated":false,"counts":[],"missing":0}}}',
    ],
)
def test_a_body_that_is_no_profile_is_refused(body: bytes) -> None:
    with pytest.raises(ProfileError):
        Profile.from_json(body)


def test_counts_cannot_be_changed_in_place() -> None:
    column = numeric(Profile.of(pa.table({"x": [1.0, 2.0]})))

    with pytest.raises(ValueError, match="read-only"):
        column.counts[0] = 5


def test_a_column_takes_a_few_kilobytes() -> None:
    values = np.random.default_rng(3).normal(size=50_000)

    assert len(Profile.of(pa.table({"x": values})).to_json()) < 5000


@given(st.lists(st.sampled_from("abc"), min_size=1))
def test_a_distribution_sums_to_one(values: list[str]) -> None:
    assert distribution(Profile.of(pa.table({"c": values})).columns["c"]).sum() == pytest.approx(1)
