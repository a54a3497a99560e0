"""Exact statistics on sorted rows against scipy's: ties, duplicates, constants, unequal sizes, huge and tiny values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from collectors.drift import Test, cvm_rows, ks_rows, rows, wasserstein_rows

FEW = st.sampled_from([-1.0, 0.0, 0.1, 1.0, 2.0])
REAL = st.floats(-1e9, 1e9) | st.floats(-1e-200, 1e-200) | st.floats(-1e280, 1e280)
SIDE = st.lists(FEW, min_size=2, max_size=60) | st.lists(REAL, min_size=2, max_size=60)
SIDES = st.tuples(SIDE, SIDE).map(lambda pair: tuple(np.sort(np.array(side, np.float64)) for side in pair))


# Where its exact p-value rounds to a little above 1, scipy warns and takes the asymptotic one.
@pytest.mark.filterwarnings("ignore:ks_2samp. Exact calculation unsuccessful")
@settings(max_examples=60, deadline=None)
@given(SIDES)
def test_all_three_are_scipys(sides: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = sides
    ks, cvm = ks_rows(a, b), cvm_rows(a, b)
    expected = stats.ks_2samp(a, b)
    expected_cvm = stats.cramervonmises_2samp(a, b)

    assert ks.statistic == pytest.approx(expected.statistic, abs=1e-14)
    # An exact 1 that scipy's rounding takes to above 1 is where it falls back on its asymptotic law.
    assert ks.pvalue == pytest.approx(expected.pvalue, rel=1e-9 if ks.pvalue < 1 else 0.01)
    assert cvm.statistic == pytest.approx(expected_cvm.statistic, rel=1e-9, abs=1e-12)
    assert cvm.pvalue == pytest.approx(expected_cvm.pvalue, abs=1e-11)
    largest = max(abs(a[0]), abs(a[-1]), abs(b[0]), abs(b[-1]))
    expected_w1 = stats.wasserstein_distance(a, b)
    assert wasserstein_rows(a, b) == pytest.approx(expected_w1, rel=1e-9, abs=1e-14 * largest)
    assert wasserstein_rows(b, a) == pytest.approx(wasserstein_rows(a, b), rel=1e-12, abs=1e-15 * largest)


DRAWS = {
    "normal": lambda g, n: g.normal(size=n),
    "heavy tails": lambda g, n: g.standard_cauchy(n) * 1e6,
    "rounded": lambda g, n: np.round(g.normal(size=n), 1),
    "counts": lambda g, n: g.poisson(3, n).astype(float),
    "constant": lambda g, n: np.full(n, 3.5),
    "half zeros": lambda g, n: np.where(g.random(n) < 0.5, 0.0, g.lognormal(size=n)),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(("n", "m", "shift"), [(5000, 5000, 0.05), (7001, 3000, 0.0), (40_000, 12_345, 0.02)])
def test_large_samples_are_scipys_too(name: str, n: int, m: int, shift: float) -> None:
    generator = np.random.default_rng(n)
    a, b = np.sort(DRAWS[name](generator, n)), np.sort(DRAWS[name](generator, m) + shift)
    ks, cvm = ks_rows(a, b), cvm_rows(a, b)
    expected, expected_cvm = stats.ks_2samp(a, b), stats.cramervonmises_2samp(a, b)

    assert ks.statistic == pytest.approx(expected.statistic, rel=1e-12)
    assert ks.pvalue == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-300)
    assert cvm.statistic == pytest.approx(expected_cvm.statistic, rel=1e-9)
    assert cvm.pvalue == pytest.approx(expected_cvm.pvalue, abs=1e-11)
    assert wasserstein_rows(a, b) == pytest.approx(stats.wasserstein_distance(a, b), rel=1e-9, abs=1e-15)


@pytest.mark.filterwarnings("ignore:ks_2samp. Exact calculation unsuccessful")
@pytest.mark.parametrize("kind", ["same", "nearly the same", "a few apart", "interleaved", "disjoint"])
def test_the_search_for_the_largest_gap_never_passes_it_by(kind: str) -> None:
    generator = np.random.default_rng(11)
    a = np.sort(generator.normal(size=30_000))
    b = {
        "same": a,
        "nearly the same": a + 1e-9,
        "a few apart": np.sort(np.concatenate([a[:20_000], a[20_000:20_040] + 3, a[20_040:]])),
        "interleaved": np.sort(np.concatenate([a[::2], a[::3] + 1e-7])),
        "disjoint": a + 100,
    }[kind]

    assert ks_rows(a, b).statistic == pytest.approx(stats.ks_2samp(a, b).statistic, abs=1e-14)
    assert ks_rows(b, a).statistic == pytest.approx(stats.ks_2samp(a, b).statistic, abs=1e-14)


def test_unequal_sizes_too_large_for_exact_products_in_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    a, b = np.sort(generator.normal(size=1003)), np.sort(generator.normal(size=997))
    exact = wasserstein_rows(a, b)
    monkeypatch.setattr(rows, "_EXACT_PRODUCT", 0)

    assert wasserstein_rows(a, b) == pytest.approx(exact, rel=1e-14)
    assert exact == pytest.approx(stats.wasserstein_distance(a, b), rel=1e-9)


def test_the_largest_floats_do_not_overflow() -> None:
    edge = np.finfo(np.float64).max

    assert wasserstein_rows(np.array([-edge / 2, 0.0]), np.array([0.0, edge / 2])) == pytest.approx(edge / 2)
    assert wasserstein_rows(np.array([-edge]), np.array([edge])) == math.inf
    assert wasserstein_rows(np.array([5e-324]), np.array([0.0, 0.0])) >= 0


def test_an_empty_side_is_undefined() -> None:
    none, some = np.zeros(0), np.arange(3.0)

    for a, b in ((none, some), (some, none), (none, none)):
        assert math.isnan(ks_rows(a, b).statistic)
        assert math.isnan(cvm_rows(a, b).pvalue)
        assert math.isnan(wasserstein_rows(a, b))
    assert ks_rows(some[:1], some[:1]) == Test(0.0, 1.0)
    assert math.isnan(cvm_rows(some[:1], some).statistic)
