"""Each statistic against the reference implementation of its formula."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial import distance

from collectors.drift import (
    equal_mass_groups,
    jensen_shannon,
    kolmogorov_smirnov,
    null_expectation,
    psi,
    regroup_categories,
    regroup_ordered,
    wasserstein,
)
from observability.profile import Profile

COUNTS = st.lists(st.integers(0, 1000), min_size=2, max_size=30).map(lambda values: np.array(values, np.int64))
PAIRS = st.integers(2, 30).flatmap(
    lambda cells: st.tuples(
        *(st.lists(st.integers(0, 1000), min_size=cells, max_size=cells).map(np.array) for _ in range(2))
    )
)


@given(PAIRS)
def test_jensen_shannon_is_scipys(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, window = pair
    found = jensen_shannon(reference, window)

    if reference.sum() and window.sum():
        assert found == pytest.approx(distance.jensenshannon(reference, window), abs=1e-7)
    else:
        assert found == 0.0


def test_psi_is_the_published_formula() -> None:
    reference, window = np.array([50, 30, 20]), np.array([20, 30, 50])

    assert psi(reference, window) == pytest.approx((0.2 - 0.5) * np.log(0.2 / 0.5) + (0.5 - 0.2) * np.log(0.5 / 0.2))


@given(PAIRS)
def test_psi_is_never_negative_and_zero_for_equal_shares(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, window = pair

    assert psi(reference, window) >= 0
    assert psi(reference, 3 * reference) == pytest.approx(0, abs=1e-12)


def test_the_null_expectation_is_what_random_windows_show() -> None:
    generator = np.random.default_rng(7)
    shares = np.full(10, 0.1)
    seen = [psi(generator.multinomial(5000, shares), generator.multinomial(500, shares)) for _ in range(800)]

    assert np.mean(seen) == pytest.approx(null_expectation(10, 500, 5000), rel=0.08)


def profiles(reference: np.ndarray, window: np.ndarray) -> tuple:  # type: ignore[type-arg]
    first = Profile.of(pa.table({"x": reference}))
    return first.columns["x"], first.empty().updated(pa.table({"x": window})).columns["x"]


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 1.0), (1.0, 1.0), (0.0, 1.7), (-2.0, 0.5)])
def test_binned_ks_and_wasserstein_are_scipys_on_the_raw_values_to_a_cell(shift: float, scale: float) -> None:
    generator = np.random.default_rng(3)
    before, now = generator.normal(size=20_000), generator.normal(shift, scale, size=20_000)
    reference, window = profiles(before, now)

    ks = kolmogorov_smirnov(reference.counts, window.counts)
    ranges = (reference.minimum, reference.maximum), (window.minimum, window.maximum)
    w1 = wasserstein(reference.counts, window.counts, reference.edges, float(before.std()), *ranges)

    assert ks == pytest.approx(stats.ks_2samp(before, now).statistic, abs=1 / 128)
    # Rows are spread evenly inside a cell, and the outermost cells are wide.
    assert w1 == pytest.approx(stats.wasserstein_distance(before, now) / before.std(), rel=0.06, abs=0.02)


def test_one_absurd_value_does_not_blind_the_statistics() -> None:
    generator = np.random.default_rng(5)
    before, now = generator.normal(size=50_000), generator.normal(0.5, 1, size=50_000)
    spoilt = now.copy()
    spoilt[0] = 1e6

    clean, dirty = [
        (*regroup_ordered(reference.counts, window.counts, 10), kolmogorov_smirnov(reference.counts, window.counts))
        for reference, window in (profiles(before, now), profiles(before, spoilt))
    ]

    assert psi(dirty[0], dirty[1]) == pytest.approx(psi(clean[0], clean[1]), rel=0.01)
    assert dirty[2] == pytest.approx(clean[2], abs=1e-3)


@given(COUNTS, st.integers(2, 20))
def test_regrouping_keeps_every_row_and_makes_at_most_so_many_bins(counts: np.ndarray, groups: int) -> None:
    starts = equal_mass_groups(counts, groups)

    assert starts[0] == 0
    assert (np.diff(starts) > 0).all()
    assert len(starts) <= groups
    assert np.add.reduceat(counts, starts).sum() == counts.sum()


def test_equal_cells_are_regrouped_into_equal_bins() -> None:
    counts = np.full(130, 100)
    counts[[0, -1]] = 0

    reference, window = regroup_ordered(counts, counts, 8)

    assert reference.tolist() == window.tolist()
    assert len(reference) == 8
    assert reference.max() / reference.min() < 1.2


def test_values_below_a_constant_reference_are_seen() -> None:
    before, now = np.zeros(5000), np.concatenate([np.zeros(500), np.full(500, -1.0)])
    reference, window = profiles(before, now)

    assert psi(*regroup_ordered(reference.counts, window.counts, 10)) > 1


def test_rare_categories_are_pooled_with_the_unseen() -> None:
    reference, window = np.array([90, 5, 3, 2, 0]), np.array([10, 0, 0, 0, 90])

    few = regroup_categories(reference, window, 3)

    assert [counts.tolist() for counts in few] == [[90, 5, 5], [10, 0, 90]]
