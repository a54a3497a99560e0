"""Confidence sequences: the numbers of the authors' C++ (confseq, uniform_boundaries.h)."""

from __future__ import annotations

import numpy as np
import pytest

from alerts.evidence.confidence import (
    beta_binomial_bound,
    distribution_band,
    log_normal_mixture,
    normal_bound,
    rate_interval,
)


@pytest.mark.parametrize(
    ("observations", "alpha", "first", "expected"),
    [(100, 0.05, 1, 0.266721), (1000, 0.05, 1, 0.085806), (1000, 0.01, 1, 0.090561), (10000, 0.005, 100, 0.028834)],
)
def test_the_band_of_a_distribution(observations: float, alpha: float, first: float, expected: float) -> None:
    assert distribution_band(observations, alpha, first) == pytest.approx(expected, abs=1e-6)


def test_the_interval_of_a_rate() -> None:
    assert rate_interval(30, 1000) == pytest.approx((0.016111, 0.049007), abs=1e-6)


@pytest.mark.parametrize(("q", "t", "expected"), [(0.5, 1e3, 0.051843), (0.95, 1e4, 0.007308), (0.99, 1e5, 0.001158)])
def test_the_bound_of_the_beta_binomial_mixture(q: float, t: float, expected: float) -> None:
    scale = q * (1 - q)

    assert beta_binomial_bound(scale * t, 0.025, scale * 1000, q, 1 - q) / t == pytest.approx(expected, abs=1e-6)


def test_the_normal_mixture() -> None:
    assert log_normal_mixture(30, 100, 100) == pytest.approx(3.58056960, abs=1e-8)
    assert normal_bound(100, 0.05, 100) == pytest.approx(27.66070883, abs=1e-7)


def test_nothing_and_all() -> None:
    assert rate_interval(0, 0) == (0.0, 1.0)
    assert rate_interval(0, 100)[0] == 0.0
    assert rate_interval(100, 100)[1] == 1.0
    assert rate_interval(1, 1)[0] < 0.5
    with pytest.raises(ValueError, match="3 of 2"):
        rate_interval(3, 2)
    with pytest.raises(ValueError, match="begins at 100"):
        distribution_band(99, 0.05, 100)


def test_a_rate_is_within_its_interval_at_every_time() -> None:
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(60):
        events = np.cumsum(rng.random(2000) < 0.1)
        ends = [rate_interval(float(events[n - 1]), float(n)) for n in (10, 30, 100, 300, 1000, 2000)]
        missed += any(not low <= 0.1 <= high for low, high in ends)

    assert missed <= 9  # 5 % of 60 are 3
