"""The law of the scores when nothing changed: against eigenvalues, scipy's exact laws and simulation."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from collectors.drift.auto import judge_cells
from collectors.drift.cells import Cells
from collectors.drift.contingency import compare_categories, compare_tables, needed_scores
from collectors.drift.fdr import e_value
from collectors.drift.laws import cramer_von_mises_sf
from collectors.drift.null import NullLaw, TwoCells, cells_of_sorted, edge_weights, effective_rows, ordered_test
from observability.profile import Profile

counts = hnp.arrays(np.int64, 9, elements=st.integers(0, 50))
DRAWS = 2000


def bridge_eigenvalues(reference: np.ndarray, window: np.ndarray) -> np.ndarray:
    pooled = np.cumsum(reference + window)[:-1] / (reference + window).sum()
    root = np.sqrt(edge_weights(reference))
    covariance = np.minimum.outer(pooled, pooled) - np.outer(pooled, pooled)
    return np.linalg.eigvalsh(root[:, None] * covariance * root[None, :])


def zipf(number: int) -> np.ndarray:
    shares = 1 / np.arange(1, number + 1)
    return shares / shares.sum()


def null_pvalues(shares: np.ndarray, rows: int, reference_rows: int, ordered: bool, draws: int = DRAWS) -> np.ndarray:
    random = np.random.default_rng([rows, reference_rows, len(shares), ordered])
    before, now = random.multinomial(reference_rows, shares, draws), random.multinomial(rows, shares, draws)
    found = judge_cells({str(i): (Cells(before[i], now[i], ordered),) for i in range(draws)})
    return np.array([verdict.p_value for verdict in found.values()])


def assert_calibrated(pvalues: np.ndarray) -> None:
    for level in (0.01, 0.05):
        error = 3 * math.sqrt(level * (1 - level) / len(pvalues))
        rate = float(np.mean(pvalues <= level))
        assert 0.5 * level - error <= rate <= 1.5 * level + error, (level, rate)


@given(reference=counts, window=counts)
@settings(max_examples=100, deadline=None)
def test_the_power_sums_are_those_of_the_eigenvalues(reference: np.ndarray, window: np.ndarray) -> None:
    reference[0], window[0] = reference[0] + 1, window[0] + 1
    _, law = ordered_test(reference[None], window[None])
    eigenvalues = bridge_eigenvalues(reference, window)

    for power, found in ((1, law.first), (2, law.second), (3, law.third)):
        assert found[0] == pytest.approx(np.sum(eigenvalues**power), rel=1e-9, abs=1e-15)
    assert law.largest[0] <= eigenvalues[-1] * (1 + 1e-9) + 1e-15
    assert law.largest[0] >= 0.98 * eigenvalues[-1] - 1e-15
    assert law.next_largest[0] <= eigenvalues[-2] * (1 + 1e-9) + 1e-15


def test_the_law_of_a_continuous_column_is_cramer_von_mises() -> None:
    counts = np.full((1, 128), 1000)
    _, law = ordered_test(counts, counts)

    for chance in (0.1, 0.05, 0.01, 1e-3, 1e-4, 1e-6):
        at = law.quantile(chance)
        assert law.pvalue(at)[0] == pytest.approx(chance, rel=1e-4)
        # Among hundreds of columns the smallest p-value decides.
        assert cramer_von_mises_sf(at)[0] == pytest.approx(chance, rel=0.001)


def weighted_chi_squares_sf(weights: np.ndarray, x: float) -> float:
    """`P(Σ λ_k χ²₁ > x)` by all of Smirnov's alternating integrals; the weights may be equal."""
    ordered = np.sort(np.maximum(weights, 0.0))[::-1]
    ordered = ordered[ordered > 1e-12 * ordered[0]]
    ordered = np.append(ordered, 0.0) if len(ordered) % 2 else ordered
    angles = (np.arange(200) + 0.5) * math.pi / 400
    total = 0.0
    for k in range(0, len(ordered), 2):
        unit = ordered[k] * np.cos(angles) ** 2 + ordered[k + 1] * np.sin(angles) ** 2
        rest = np.log(np.abs(1 - np.delete(ordered, [k, k + 1])[:, None] / unit)).sum(axis=0)
        total += (-1) ** (k // 2) * np.exp(-(x / unit + rest) / 2).mean()
    return float(total)


def test_the_exact_law_is_what_textbooks_give_for_equal_weights() -> None:
    for number in (1, 2):
        expected = stats.chi2.sf(2.1 / 0.3, number)
        assert weighted_chi_squares_sf(np.full(number, 0.3), 2.1) == pytest.approx(expected, rel=1e-9)
    # Two pairs are two exponential variables.
    pairs = (3 * math.exp(-9 / 6) - 2 * math.exp(-9 / 4)) / (3 - 2)
    assert weighted_chi_squares_sf(np.array([3.0, 3.0, 2.0, 2.0]), 9.0) == pytest.approx(pairs, rel=1e-9)


LAYOUTS = {
    "continuous": [1] * 128,
    "two rare, equal": [1, 98, 1],
    "two rare, nearly equal": [10, 81, 9],
    "two rare, one twice the other": [2, 97, 1],
    "zeros in the middle": [1] * 20 + [160] + [1] * 20,
    "most are zeros": [99] + [1 / 40] * 40,
    "more above zero than below": [1] * 10 + [60] + [1] * 50,
    "four, unequal": [149, 333, 427, 92],
    "two atoms": [2] * 10 + [480] + [1] * 10 + [480] + [1] * 10,
    "a few": [3, 1, 4, 1, 5, 9],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_p_values_are_the_exact_laws_down_to_the_smallest_of_many_columns(name: str) -> None:
    counts = (np.array(LAYOUTS[name]) * 1000).astype(np.int64)
    _, law = ordered_test(counts[None], counts[None])
    weights = bridge_eigenvalues(counts, counts)

    for chance in (0.3, 0.1, 0.05, 0.01, 1e-3, 1e-4, 1e-5):
        exact = weighted_chi_squares_sf(weights, float(law.quantile(chance)[0]))
        assert exact == pytest.approx(chance, rel=0.02), chance


@given(reference=counts, window=counts)
@settings(max_examples=100, deadline=None)
def test_p_values_are_within_a_twentieth_of_the_exact_laws_whatever_the_counts(
    reference: np.ndarray, window: np.ndarray
) -> None:
    reference[0], window[-1] = reference[0] + 1, window[-1] + 1
    _, law = ordered_test(reference[None], window[None])
    weights = bridge_eigenvalues(reference, window)

    for chance in (0.1, 0.01, 1e-5):
        assert weighted_chi_squares_sf(weights, float(law.quantile(chance)[0])) == pytest.approx(chance, rel=0.05)


@given(chance=st.floats(1e-12, 0.4), cells=st.integers(2, 40), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_quantile_is_the_inverse_of_pvalue(chance: float, cells: int, seed: int) -> None:
    table = np.random.default_rng(seed).integers(1, 100, (3, cells))
    _, law = ordered_test(table, table)

    assert law.pvalue(law.quantile(chance)) == pytest.approx(chance, rel=1e-3)


def test_the_score_is_in_the_same_units_at_any_size_and_for_any_direction() -> None:
    quantiles = stats.norm.ppf((np.arange(1, 200_000) - 0.5) / 199_999)
    for shift in (0.05, 0.1):
        before, now = cells_of_sorted(quantiles, quantiles + shift)
        score = ordered_test(before[None], now[None])[0][0]
        assert score == pytest.approx(0.303 * shift, rel=0.02)
        turned = ordered_test(before[None, ::-1], now[None, ::-1])[0][0]
        assert turned == pytest.approx(score, rel=1e-12)
        assert ordered_test(before[None] * 10, now[None] * 3)[0][0] == pytest.approx(score, rel=1e-12)


@given(table=counts, times=st.integers(1, 99))
def test_the_score_of_two_equal_distributions_is_exactly_zero(table: np.ndarray, times: int) -> None:
    table[0] += 1

    assert ordered_test(table[None], table[None] * times)[0][0] == 0.0


def test_one_absurd_value_hardly_moves_the_score() -> None:
    random = np.random.default_rng(0)
    before, now = np.sort(random.normal(0, 1, 50_000)), np.sort(random.normal(0.5, 1, 50_000))
    plain = ordered_test(*(one[None] for one in cells_of_sorted(before, now)))[0][0]

    outlying = np.append(now, 1e6)
    assert ordered_test(*(one[None] for one in cells_of_sorted(before, outlying)))[0][0] == pytest.approx(
        plain, rel=0.001
    )
    outlying = np.append(before, 1e6)
    assert ordered_test(*(one[None] for one in cells_of_sorted(outlying, now)))[0][0] == pytest.approx(plain, rel=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_cells_of_rows_are_the_cells_of_a_profile(seed: int) -> None:
    random = np.random.default_rng(seed)
    before = [random.normal(size=999), np.round(random.normal(size=500), 1), np.zeros(30), random.poisson(1, 77)][seed]
    before, now = before.astype(float), np.append(random.normal(size=400), [0.0, 99.0])
    profile = Profile.of(pa.table({"x": before}))
    window = profile.empty().updated(pa.table({"x": now}))

    found = cells_of_sorted(np.sort(before), np.sort(now))

    np.testing.assert_array_equal(found[0], profile.columns["x"].counts)
    np.testing.assert_array_equal(found[1], window.columns["x"].counts)


@given(n=st.integers(1, 60), other=st.integers(1, 200), share=st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_two_cells_have_fishers_law_with_half_the_observed_table(n: int, other: int, share: float) -> None:
    successes = round(share * (n + other))
    law = TwoCells.of(successes, n, other)
    inside = np.arange(max(0, successes - other), min(n, successes) + 1)
    chance = stats.hypergeom.pmf(inside, n + other, successes, n)
    differences = np.abs(inside / n - (successes - inside) / other)

    for difference in differences:
        beyond = chance[differences > difference + 1e-9].sum()
        same = chance[np.abs(differences - difference) <= 1e-9].sum()
        assert law.pvalue(float(difference)) == pytest.approx(beyond + same / 2, abs=1e-9)
    for level in (0.5, 0.1, 0.001):
        needed = law.quantile(level)
        assert needed == math.inf or law.pvalue(needed) <= level


ORDERED = {
    "continuous": np.ones(128) / 128,
    "few values": zipf(10),
    "zeros": np.append(0.6, np.full(51, 0.4 / 51)),
    "mostly zeros": np.append(0.95, np.full(6, 0.05 / 6)),
}


@pytest.mark.parametrize("rows", [50, 1000, 1_000_000])
@pytest.mark.parametrize("name", ORDERED)
def test_ordered_columns_alarm_at_the_nominal_rate_when_nothing_changed(name: str, rows: int) -> None:
    assert_calibrated(null_pvalues(ORDERED[name], rows, 5000, ordered=True))


@pytest.mark.parametrize("rows", [50, 500, 1_000_000])
@pytest.mark.parametrize("number", [2, 10, 100, 1000])
def test_categories_alarm_at_the_nominal_rate_when_nothing_changed(number: int, rows: int) -> None:
    law = zipf(number) if number % 3 else np.ones(number) / number
    assert_calibrated(null_pvalues(law, rows, 5000, ordered=False, draws=1000))


def test_unseen_categories_of_a_long_tail_are_not_drift() -> None:
    random, shares = np.random.default_rng(3), zipf(200)
    pvalues = []
    for _ in range(400):
        before, now = random.multinomial(2000, shares), random.multinomial(2000, shares)
        listed = before > 0
        unseen = int(now[~listed].sum())
        pvalues.append(
            compare_categories(np.append(before[listed], 0), np.append(now[listed], unseen), int(listed.sum())).p_value
        )

    assert_calibrated(np.array(pvalues))


def test_a_new_category_is_found_among_fifty_rows() -> None:
    before, now = np.append(np.full(10, 500), 0), np.append(np.full(10, 4), 10)

    found = compare_categories(before, now)

    assert found.p_value < 1e-6
    assert found.method == "rare_category"
    assert found.place == 10


def test_common_categories_are_pearsons_test() -> None:
    random = np.random.default_rng(0)
    before, now = random.multinomial(5000, zipf(8)), random.multinomial(900, zipf(8))
    expected = stats.chi2_contingency(np.stack([before, now]), correction=False)

    found = compare_categories(before, now)

    assert found.score**2 * found.effective == pytest.approx(expected.statistic, rel=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-2)
    assert found.effective == effective_rows(900, 5000)


@given(level=st.sampled_from([0.05, 0.01, 1e-4]), seed=st.integers(0, 300), rows=st.integers(20, 2000))
@settings(max_examples=60, deadline=None)
def test_a_score_is_past_its_threshold_exactly_when_its_p_value_is_small_enough(
    level: float, seed: int, rows: int
) -> None:
    random = np.random.default_rng(seed)
    number = int(random.integers(2, 60))
    tables = [
        (random.multinomial(900, zipf(number)), random.multinomial(rows, random.dirichlet(np.full(number, 5.0))), None)
    ]
    tests = compare_tables(tables)

    passed = tests[0].score >= needed_scores(tests, level)[0] * (1 - 1e-12)
    assert passed == (tests[0].p_value <= level * (1 + 1e-9))


def test_a_column_that_cannot_vary_has_no_p_value_below_one() -> None:
    constant = np.array([[0, 100, 0]])
    _, law = ordered_test(constant, constant)

    assert law.pvalue(np.zeros(1))[0] == 1.0
    assert isinstance(law[:1], NullLaw)
    assert compare_categories(np.array([0, 0]), np.array([0, 0])).p_value == 1.0
    assert compare_categories(np.array([5, 0]), np.array([7, 0])).testable is False


@pytest.mark.parametrize(("number", "rows"), [(300, 500), (1000, 500), (1000, 5000)])
def test_a_list_of_the_most_frequent_is_not_drift_for_having_been_chosen(number: int, rows: int) -> None:
    random, tables = np.random.default_rng(number), []
    for _ in range(300):
        before, now = (
            random.multinomial(5000, np.ones(number) / number),
            random.multinomial(rows, np.ones(number) / number),
        )
        order = np.argsort(-before, kind="stable")
        kept, others = order[:256], order[256:]
        tables.append((np.append(before[kept], before[others].sum()), np.append(now[kept], now[others].sum()), 256))
    p = np.array([test.p_value for test in compare_tables(tables)])

    assert np.mean(p <= 0.01) <= 0.03
    assert np.mean(p <= 0.05) <= 0.09
    # None of the known ones any more.
    before, now, rest = tables[0]
    assert compare_categories(before, np.append(np.zeros(256, int), rows), rest).p_value < 0.01


def test_identifiers_that_were_listed_by_chance_are_no_evidence_against_small_windows() -> None:
    """Of 20,000 identifiers out of a million some two hundred come twice, which puts them on the list; in a window of
    a hundred rows none of them comes again. Over many windows that added up."""
    random, evidence = np.random.default_rng(11), []
    for _ in range(5):
        texts, counts = np.unique(random.integers(1_000_000, size=20_000), return_counts=True)
        order = np.argsort(-counts, kind="stable")[:256]
        listed, before = texts[order], np.append(counts[order], 20_000 - counts[order].sum())
        for _ in range(60):
            window = random.integers(1_000_000, size=120)
            now = np.array([np.count_nonzero(window == text) for text in listed])
            found = compare_categories(before, np.append(now, 120 - now.sum()), 256)
            evidence.append(float(e_value(np.array([found.p_value]))[0]))

    assert np.mean(evidence) < 0.9
