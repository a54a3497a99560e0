"""Profiles that were made apart, with bins and categories of their own: compared over the reference's, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.drift.compare import compare
from collectors.drift.source import InputError
from observability.profile import Profile

RANDOM = np.random.default_rng(11)


def both(before: Any, now: Any) -> tuple[Profile, Profile]:
    """Two profiles, as two runs save them."""
    return tuple(Profile.from_json(Profile.of({"x": values}).to_json()) for values in (before, now))  # type: ignore[return-value]


@pytest.mark.parametrize("shift", [0.0, 0.3, 3.0, 30.0])
def test_numbers_over_bins_of_their_own_drift_as_their_rows_do(shift: float) -> None:
    before, now = RANDOM.normal(size=5_000), RANDOM.normal(size=4_000) + shift

    found = compare(*both(before, now)).columns["x"]
    rows = compare({"x": before}, {"x": now}, mode="profile").columns["x"]

    assert found.drifted == rows.drifted == (shift > 0)
    assert found.ks == pytest.approx(rows.ks, abs=0.01)
    assert found.missing == rows.missing
    assert ("bins of its own: its shares are off by up to 0.8%" in found.reason) == (shift < 30)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=30, max_size=200),
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=30, max_size=200),
)
def test_no_value_is_lost_between_the_bins_and_the_distance_is_within_what_is_said(
    one: list[float], other: list[float]
) -> None:
    before, now = both(one, other)

    try:
        found = compare(before, now).columns["x"]
    except InputError:
        return

    rows = compare({"x": one}, {"x": other}, mode="profile").columns["x"]
    assert found.cells is not None
    assert found.cells.current.rows == len(other)
    assert found.ks is not None
    assert rows.ks is not None
    assert abs(found.ks - rows.ks) <= 0.05 + 1 / len(other)


def test_a_bin_of_many_that_an_edge_cuts_is_refused() -> None:
    with pytest.raises(InputError, match="lies across an edge; give the rows of the current table instead"):
        compare(*both([0.0, 1.0, 2.0] * 100, [0.0, 2.0] * 100))


def test_categories_are_known_by_their_names() -> None:
    before, now = ["a", "b", "b"] * 100, ["c", "b", "c", None] * 100

    found = compare(*both(before, now)).columns["x"]
    rows = compare({"x": before}, {"x": now}).columns["x"]

    assert found.total_variation == pytest.approx(rows.total_variation)
    assert (found.drifted, found.missing) == (True, rows.missing)
    assert not compare(*both(["a", "b"] * 100, ["b", "a"] * 100)).drifted


def test_long_lists_of_categories_that_differ_are_refused() -> None:
    many = [f"k{number}" for number in range(1_000)]

    before, now = both(many * 2 + many[:300], many * 2 + many[500:] * 3)

    with pytest.raises(InputError, match="list of categories of its own"):
        compare(before, now)


def test_a_column_that_is_refused_leaves_the_others() -> None:
    many = [f"k{number}" for number in range(1_000)]
    before = Profile.of({"id": many * 2 + many[:300], "x": np.arange(2_300.0)})
    now = Profile.of({"id": many * 2 + many[700:], "x": np.arange(2_300.0) + 5_000})

    found = compare(before, now)

    assert found.columns["x"].drifted
    assert found.columns["id"].type == "unknown"
    assert "list of categories of its own" in found.columns["id"].reason


def test_vectors_need_the_kernel_of_the_reference() -> None:
    vectors = [list(row) for row in RANDOM.normal(size=(300, 4))]
    moved = [list(row) for row in RANDOM.normal(size=(300, 4)) * 2]

    with pytest.raises(InputError, match="kernels of their own"):
        compare(*both(vectors, moved))
    assert not compare(*both(vectors, vectors)).drifted


@pytest.mark.parametrize("now", [RANDOM.normal(size=300), ["a", "b"] * 150])
def test_a_reference_without_values_is_told(now: Any) -> None:
    nothing = [None] * 300

    before = Profile.of({"x": np.full(300, np.nan)} if isinstance(now, np.ndarray) else {"x": nothing}, {
        "x": "numeric" if isinstance(now, np.ndarray) else "categorical"
    })  # fmt: skip

    found = compare(before, Profile.of({"x": now})).columns["x"]

    assert found.drifted
    assert "the reference has no values" in found.reason


def test_counts_without_a_reference_meet_those_with_one() -> None:
    before, now = RANDOM.normal(size=2_000), RANDOM.normal(size=2_000) + 1
    with_bins, without = Profile.of({"x": before}), Profile.without_reference({"x": now})

    assert compare(with_bins, without).columns["x"].drifted
    assert compare(without, with_bins).columns["x"].drifted
    assert not compare(without, Profile.of({"x": now})).drifted
