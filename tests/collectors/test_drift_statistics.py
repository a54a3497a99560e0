"""Each statistic against the reference implementation of its formula."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial import distance

from collectors.drift import (
    Test,
    chi_square,
    chi_square_each,
    chi_square_fit,
    cramer_von_mises,
    cramer_von_mises_bound,
    cramer_von_mises_each,
    cvm_rows,
    equal_mass_groups,
    g_test,
    g_test_each,
    hellinger,
    hellinger_each,
    jensen_shannon,
    jensen_shannon_each,
    kolmogorov_smirnov,
    kolmogorov_smirnov_bound,
    kolmogorov_smirnov_each,
    kolmogorov_smirnov_pvalue,
    ks_rows,
    null_expectation,
    psi,
    psi_each,
    regroup_categories,
    regroup_ordered,
    total_variation,
    total_variation_each,
    two_proportion_z,
    wasserstein,
    wasserstein_bound,
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


@given(PAIRS)
def test_hellinger_and_total_variation_are_their_formulas(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, window = pair
    if not reference.sum() or not window.sum():
        assert hellinger(reference, window) == total_variation(reference, window) == 0
        return
    r, w = reference / reference.sum(), window / window.sum()

    assert hellinger(reference, window) == pytest.approx(np.sqrt(max(1 - np.sum(np.sqrt(r * w)), 0)), abs=3e-8)
    assert total_variation(reference, window) == pytest.approx(distance.cityblock(r, w) / 2, abs=1e-14)
    # Le Cam's inequalities tie the two together.
    h, tv = hellinger(reference, window), total_variation(reference, window)
    assert h * h <= tv + 1e-12
    assert tv <= h * np.sqrt(2 - h * h) + 1e-12


@given(PAIRS)
def test_chi_square_and_g_are_scipys_contingency_tests(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, window = pair
    held = reference + window > 0
    for test, name in ((chi_square, "pearson"), (g_test, "log-likelihood")):
        found = test(reference, window)
        if not reference.sum() or not window.sum():
            assert np.isnan([found.statistic, found.pvalue]).all()
            continue
        expected = stats.chi2_contingency([reference[held], window[held]], correction=False, lambda_=name)
        assert found.statistic == pytest.approx(expected.statistic, rel=1e-9, abs=1e-10)
        assert found.pvalue == pytest.approx(expected.pvalue, rel=1e-8)


@given(PAIRS)
def test_goodness_of_fit_is_scipys_chisquare(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, window = pair
    reference = reference + 1
    if not window.sum() or len(window) < 2:
        return
    expected = stats.chisquare(window, reference * (window.sum() / reference.sum()))

    found = chi_square_fit(reference, window)

    assert found.statistic == pytest.approx(expected.statistic, rel=1e-9, abs=1e-12)
    assert found.pvalue == pytest.approx(expected.pvalue, rel=1e-9)


def test_degenerate_tables_have_a_defined_answer() -> None:
    none, one, split = np.array([0, 0]), np.array([5, 0]), np.array([3, 4])

    for test in (chi_square, g_test, chi_square_fit):
        assert np.isnan(test(none, split).pvalue)
        assert np.isnan(test(split, none).statistic)
        assert test(one, 9 * one) == Test(0.0, 1.0)
    assert chi_square_fit(one, split) == Test(np.inf, 0.0)
    assert chi_square(np.array([10**9, 0]), np.array([0, 10**9])).pvalue == 0
    for measure in (psi, jensen_shannon, hellinger, total_variation, kolmogorov_smirnov, cramer_von_mises):
        assert measure(none, split) == measure(split, none) == measure(none, none) == 0
        assert measure(one, 7 * one) == pytest.approx(0, abs=1e-12)
    assert two_proportion_z(0, 5, 0, 9) == two_proportion_z(5, 5, 9, 9) == Test(0.0, 1.0)
    assert np.isnan(two_proportion_z(0, 0, 3, 9).pvalue)
    with pytest.raises(ValueError, match="between 0 and the rows"):
        two_proportion_z(6, 5, 3, 9)


@given(st.integers(1, 500), st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_the_z_test_is_the_two_by_two_chi_square_and_evidentlys(n: int, m: int, p: float, q: float) -> None:
    a, b = round(p * n), round(q * m)
    found = two_proportion_z(a, n, b, m)
    table = chi_square(np.array([a, n - a]), np.array([b, m - b]))

    assert found.statistic**2 == pytest.approx(table.statistic, rel=1e-9, abs=1e-12)
    assert found.pvalue == pytest.approx(table.pvalue, rel=1e-8)
    if 0 < a + b < n + m:
        pooled = (a + b) / (n + m)
        z = (a / n - b / m) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
        # evidently.legacy.calculations.stattests.z_stattest, which loses the far tail to 1 − cdf.
        assert found.pvalue == pytest.approx(2 * (1 - stats.norm.cdf(abs(z))), abs=1e-14)


@settings(max_examples=50)
@given(
    st.integers(1, 12).flatmap(
        lambda cells: st.lists(
            st.tuples(*(st.lists(st.integers(0, 9), min_size=cells, max_size=cells) for _ in range(2))),
            min_size=1,
            max_size=5,
        )
    ),
    st.integers(0, 4),
)
def test_many_columns_at_once_and_padded_are_each_by_itself(
    columns: list[tuple[list[int], list[int]]], padding: int
) -> None:
    reference, window = (np.array([column[side] for column in columns]) for side in (0, 1))
    padded = [np.pad(side, ((0, 0), (0, padding))) for side in (reference, window)]
    pairs = [
        (psi, psi_each),
        (jensen_shannon, jensen_shannon_each),
        (hellinger, hellinger_each),
        (total_variation, total_variation_each),
        (kolmogorov_smirnov, kolmogorov_smirnov_each),
        (cramer_von_mises, cramer_von_mises_each),
    ]
    for one, each in pairs:
        expected = [one(r, w) for r, w in zip(reference, window, strict=True)]
        np.testing.assert_allclose(each(*padded), expected, rtol=1e-9, atol=1e-12)
    for test, each_test in ((chi_square, chi_square_each), (g_test, g_test_each)):
        found = [test(r, w) for r, w in zip(reference, window, strict=True)]
        statistics, pvalues = each_test(*padded)
        np.testing.assert_allclose(statistics, [one.statistic for one in found], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(pvalues, [one.pvalue for one in found], rtol=1e-9)


@given(st.permutations(range(40)), st.integers(1, 39))
def test_over_cells_of_single_values_ks_and_cramer_von_mises_are_exact(order: list[int], cut: int) -> None:
    a, b = np.sort(order[:cut]).astype(float), np.sort(order[cut:]).astype(float)
    reference, window = np.isin(np.arange(40), a).astype(int), np.isin(np.arange(40), b).astype(int)

    exact = ks_rows(a, b)
    assert kolmogorov_smirnov(reference, window) == pytest.approx(exact.statistic, abs=1e-12)
    assert kolmogorov_smirnov_pvalue(exact.statistic, len(a), len(b)) == exact.pvalue
    if 1 < cut < 39:
        scale = 40 / (len(a) * len(b))
        assert cramer_von_mises(reference, window) == pytest.approx(cvm_rows(a, b).statistic * scale, rel=1e-9)


SHAPES = {
    "normal": lambda g, n: g.normal(size=n),
    "lognormal": lambda g, n: g.lognormal(size=n),
    "student 3": lambda g, n: g.standard_t(3, n),
    "uniform": lambda g, n: g.uniform(size=n),
    "half zeros": lambda g, n: np.where(g.random(n) < 0.5, 0.0, g.exponential(size=n)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.2, 1.0), (0.0, 1.5), (3.0, 0.5)])
def test_scores_of_profiles_are_those_of_rows_within_their_stated_bounds(
    shape: str, shift: float, scale: float
) -> None:
    generator = np.random.default_rng(13)
    before = SHAPES[shape](generator, 6000)
    now = SHAPES[shape](generator, 4000) * scale + shift + generator.uniform(0, 1e-9, 4000)
    reference, window = profiles(before, now)
    before, now = np.sort(before), np.sort(now)

    ks, bound = (measure(reference.counts, window.counts) for measure in (kolmogorov_smirnov, kolmogorov_smirnov_bound))
    exact = ks_rows(before, now)
    assert ks - 1e-12 <= exact.statistic <= ks + bound + 1e-12
    assert kolmogorov_smirnov_pvalue(ks, 6000, 4000) >= exact.pvalue - 1e-12

    pooled = np.sort(np.concatenate([before, now]))
    gap = np.searchsorted(before, pooled, "right") / 6000 - np.searchsorted(now, pooled, "right") / 4000
    cells = cramer_von_mises(reference.counts, window.counts)
    assert abs(cells - np.mean(gap**2)) <= cramer_von_mises_bound(reference.counts, window.counts) + 1e-12

    values = np.unique(np.concatenate([before, now]))
    exact_js = jensen_shannon(*(np.histogram(side, np.append(values, np.inf))[0] for side in (before, now)))
    assert jensen_shannon(reference.counts, window.counts) <= exact_js + 1e-12


@pytest.mark.parametrize("value", [1e6, -1e6])
@pytest.mark.parametrize("spoilt_side", ["reference", "current"])
def test_one_value_of_a_million_moves_no_score_by_a_twentieth(value: float, spoilt_side: str) -> None:
    generator = np.random.default_rng(21)
    before, now = generator.normal(size=50_000), generator.normal(0.5, 1, size=50_000)
    clean = profiles(before, now)
    (before if spoilt_side == "reference" else now)[7] = value
    dirty = profiles(before, now)

    for measure in (psi, jensen_shannon, hellinger, total_variation, kolmogorov_smirnov, cramer_von_mises):
        few = [regroup_ordered(*(side.counts for side in pair), 10) for pair in (clean, dirty)]
        fine = [tuple(side.counts for side in pair) for pair in (clean, dirty)]
        for expected, found in (few, fine):
            assert measure(*found) == pytest.approx(measure(*expected), rel=0.05), measure


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.1, 1.0), (1.0, 1.0), (0.0, 1.4), (0.0, 0.6)])
def test_wasserstein_of_cells_keeps_its_bound_and_its_mean(shape: str, shift: float, scale: float) -> None:
    generator = np.random.default_rng(17)
    before = SHAPES[shape](generator, 20_000)
    unit = float(before.std())
    now = SHAPES[shape](generator, 15_000) * scale + shift * unit
    reference, window = profiles(before, now)
    ranges = (reference.minimum, reference.maximum), (window.minimum, window.maximum)
    arguments = (reference.counts, window.counts, reference.edges, unit, *ranges)
    exact = stats.wasserstein_distance(before, now) / unit

    even, with_means = wasserstein(*arguments), wasserstein(*arguments, (float(before.mean()), float(now.mean())))
    bound = wasserstein_bound(*arguments)

    assert abs(even - exact) <= bound + 1e-12
    assert abs(with_means - exact) <= bound + 1e-12
    if np.isfinite(bound):
        # A transport plan moves the mean at least as far as the means are apart.
        assert with_means >= abs(before.mean() - now.mean()) / unit * (1 - 1e-9)
    if shape in ("normal", "lognormal", "uniform") and shift:
        assert with_means == pytest.approx(exact, rel=0.02)
    elif shape in ("normal", "uniform"):
        assert with_means == pytest.approx(exact, rel=0.1, abs=0.002)


def test_wasserstein_with_means_sees_a_shift_inside_a_cell() -> None:
    generator = np.random.default_rng(1)
    before = generator.integers(0, 20, 20_000).astype(float)
    reference, window = profiles(before, before + 0.4)
    ranges = (reference.minimum, reference.maximum), (window.minimum, window.maximum)
    arguments = (reference.counts, window.counts, reference.edges, 1.0, *ranges)

    assert wasserstein(*arguments, (float(before.mean()), float(before.mean()) + 0.4)) == pytest.approx(0.4, rel=0.01)
    assert abs(wasserstein(*arguments) - 0.4) <= wasserstein_bound(*arguments)


def test_a_cut_tail_has_no_bound_and_changes_little() -> None:
    generator = np.random.default_rng(2)
    before, now = generator.normal(size=50_000), generator.normal(0.5, 1, size=50_000)
    spoilt = np.append(now[1:], 1e6)
    scores = []
    for current in (now, spoilt):
        reference, window = profiles(before, current)
        ranges = (reference.minimum, reference.maximum), (window.minimum, window.maximum)
        arguments = (reference.counts, window.counts, reference.edges, 1.0, *ranges)
        scores.append(wasserstein(*arguments, (float(before.mean()), float(current.mean()))))
        assert np.isfinite(wasserstein_bound(*arguments)) == (current is now)

    assert scores[1] == pytest.approx(scores[0], rel=0.05)
