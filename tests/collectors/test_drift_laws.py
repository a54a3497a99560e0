"""Distribution functions against scipy's, far into the tails."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from collectors.drift import cramer_von_mises_law, kolmogorov_law
from collectors.drift.laws import (
    chi2_cdf,
    chi2_isf,
    chi2_sf,
    cramer_von_mises_sf,
    kolmogorov_sf,
    normal_cdf,
    normal_isf,
    normal_ppf,
    normal_sf,
)

TAILS = np.concatenate([10.0 ** -np.arange(1, 300, 7.0), np.linspace(0.001, 0.999, 99)])


def test_normal_functions_are_scipys() -> None:
    z = np.linspace(-37, 37, 401)

    np.testing.assert_allclose(normal_cdf(z), stats.norm.cdf(z), rtol=1e-12)
    np.testing.assert_allclose(normal_sf(z), stats.norm.sf(z), rtol=1e-12)
    np.testing.assert_allclose(normal_ppf(TAILS), special.ndtri(TAILS), rtol=1e-14)
    np.testing.assert_allclose(normal_isf(TAILS), -special.ndtri(TAILS), rtol=1e-14)
    np.testing.assert_array_equal(normal_ppf([0, 0.5, 1, -1, 2]), [-np.inf, 0, np.inf, np.nan, np.nan])


@pytest.mark.parametrize("degrees", [1, 2, 3, 7.5, 20, 127, 1000, 20_000])
def test_chi_square_is_scipys_down_to_1e_300(degrees: float) -> None:
    x = np.concatenate([[0.0, 1e-300, 1e-5], degrees + np.linspace(-6, 40, 200) * math.sqrt(2 * degrees)])
    x = x[x >= 0]
    upper, lower = stats.chi2.sf(x, degrees), stats.chi2.cdf(x, degrees)

    np.testing.assert_allclose(chi2_sf(x, degrees)[upper > 1e-300], upper[upper > 1e-300], rtol=1e-10)
    np.testing.assert_allclose(chi2_cdf(x, degrees)[lower > 1e-300], lower[lower > 1e-300], rtol=1e-9)


@pytest.mark.parametrize("degrees", [1, 2, 3, 7.5, 127, 1000, 100_000])
def test_chi_square_quantiles_are_scipys_and_come_back(degrees: float) -> None:
    found = chi2_isf(TAILS, degrees)

    np.testing.assert_allclose(found, stats.chi2.isf(TAILS, degrees), rtol=1e-10)
    # A relative error of 1e-16 in x is one of x · 1e-16 in the logarithm of the tail.
    np.testing.assert_allclose(chi2_sf(found, degrees), TAILS, rtol=1e-10)


def test_chi_square_at_its_ends() -> None:
    np.testing.assert_array_equal(chi2_sf([0, -1, np.inf, np.nan, 1], [3, 3, 3, 3, 0]), [1, 1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(chi2_isf([0, 1, -0.1, 0.5], [3, 3, 3, 0]), [np.inf, 0, np.nan, np.nan])
    assert chi2_sf(np.ones((2, 3)), np.arange(1, 4)).shape == (2, 3)
    assert chi2_sf(5000.0, 1) == 0


def test_kolmogorovs_limit_is_scipys() -> None:
    x = np.linspace(0.02, 18.5, 700)

    np.testing.assert_allclose(kolmogorov_sf(x), special.kolmogorov(x), rtol=1e-12)
    np.testing.assert_array_equal(kolmogorov_sf([-1, 0, np.inf, np.nan]), [1, 1, 0, np.nan])


def test_the_cramer_von_mises_limit_is_the_published_law() -> None:
    # Csörgő & Faraway 1996, table 1 (infinite n): upper quantiles.
    quantiles = {0.1: 0.34730, 0.05: 0.46136, 0.01: 0.74346, 0.001: 1.16786, 0.5: 0.11888}
    for tail, x in quantiles.items():
        assert cramer_von_mises_sf(x) == pytest.approx(tail, rel=1e-4)
    # Beyond, the first eigenvalue rules: the tail falls by exp(−π²/2) a unit and more.
    far = cramer_von_mises_sf(np.array([10.0, 11.0, 100.0, 101.0]))
    assert far[1] / far[0] == pytest.approx(math.exp(-(math.pi**2) / 2), rel=0.06)
    assert far[3] / far[2] == pytest.approx(math.exp(-(math.pi**2) / 2), rel=0.006)
    np.testing.assert_array_equal(cramer_von_mises_sf([0.0, np.nan]), [1, np.nan])


@pytest.mark.parametrize("n", [1, 2, 5, 60, 140, 141, 500, 5000, 100_001, 3_000_000])
def test_the_one_sample_law_is_scipys_kstwo(n: int) -> None:
    for z in [0.01, 0.1, 0.3, 0.5, 0.8, 0.87, 1.0, 1.36, 1.48, 1.9, 2.5, 4, 8, 15]:
        d = z / math.sqrt(n)
        expected = float(stats.kstwo.sf(d, n))
        if expected > 1e-290 or d >= 1:
            assert kolmogorov_law.one_sample_sf(d, n) == pytest.approx(expected, rel=1e-9), (n, z)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.001, 1))
def test_lattice_paths_are_counted_as_scipy_counts_them(n: int, m: int, d: float) -> None:
    common = math.gcd(n, m)
    steps = max(1, round(d * n * m / common))
    expected = stats._stats_py._attempt_exact_2kssamp(n, m, common, steps * common / (n * m), "two-sided")[2]

    assert kolmogorov_law.two_sample_pvalue(steps * common, n, m) == pytest.approx(min(expected, 1), rel=1e-9)


def test_no_distance_has_a_p_value_of_one() -> None:
    assert kolmogorov_law.two_sample_pvalue(0, 5, 7) == 1
    assert math.isnan(kolmogorov_law.two_sample_pvalue(0, 0, 7))
    assert math.isnan(cramer_von_mises_law.two_sample_pvalue(0.1, 0, 7))


def test_many_distances_at_once_have_the_p_values_that_they_have_alone() -> None:
    random = np.random.default_rng(1)
    n = (10 ** random.uniform(0, 5.3, 100)).astype(np.int64)  # scipy takes a time in proportion to n
    d = np.concatenate([np.minimum(random.uniform(0, 5, 96) / np.sqrt(n[:96]), 1.0), [0.0, 0.5, 1.0, 0.25]])

    together = kolmogorov_law.one_sample_sf_each(d, n)

    np.testing.assert_allclose(together, stats.kstwo.sf(d, n), rtol=1e-6, atol=1e-13)
    alone = [kolmogorov_law.one_sample_sf(float(a), int(b)) for a, b in zip(d, n, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize("n", [1500, 4000, 30_000, 200_000])
def test_the_stride_through_smirnovs_sum_loses_nothing(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    at = [math.sqrt(square / n) for square in (2.2, 4, 20, 100, 360)]
    strided = [kolmogorov_law.smirnov_sf(d, n) for d in at]
    monkeypatch.setattr(kolmogorov_law, "_TERMS", 10**9)

    assert strided == pytest.approx([kolmogorov_law.smirnov_sf(d, n) for d in at], rel=1e-11)
