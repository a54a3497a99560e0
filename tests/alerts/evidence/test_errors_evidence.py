"""E-processes on errors: the formula against brute force, validity under the null, and how soon harm is found."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.evidence import HARM_RATIOS, Segment, log_evidence, log_rate_safety, log_ratio_safety, log_safety

ALPHA_LOG = math.log(100)

segments = st.lists(
    st.builds(
        lambda rho, canary, stable: Segment(rho, canary, canary + stable),
        st.floats(0.01, 0.99),
        st.integers(0, 40),
        st.integers(0, 40),
    ),
    max_size=4,
)


def brute_force(events: list[tuple[float, int]], ratios: list[float], null: float) -> float:
    """The mixture, event by event, as the formula is written."""
    total = 0.0
    for ratio in ratios:
        product = 1.0
        for rho, is_canary in events:
            moved = (ratio if is_canary else 1.0) / (1 - rho + rho * ratio)
            stayed = (null if is_canary else 1.0) / (1 - rho + rho * null)
            product *= moved / stayed
        total += product / len(ratios)
    return total


@pytest.mark.parametrize("tolerance", [1.0, 1.25, 2.0])
def test_evidence_equals_the_formula_event_by_event(tolerance: float) -> None:
    events = [(0.1, 1), (0.1, 0), (0.1, 1), (0.25, 0), (0.25, 1), (0.5, 1)]
    counted = [Segment(0.1, 2, 3), Segment(0.25, 1, 2), Segment(0.5, 1, 1)]

    expected = brute_force(events, [r * tolerance for r in HARM_RATIOS], tolerance)

    assert math.exp(log_evidence(counted, tolerance=tolerance)) == pytest.approx(expected, rel=1e-12)


def test_the_grid_has_16_ratios_from_1_15_to_60() -> None:
    assert len(HARM_RATIOS) == 16
    assert HARM_RATIOS[0] == pytest.approx(1.15)
    assert HARM_RATIOS[-1] == pytest.approx(60)
    assert np.diff(np.log(HARM_RATIOS)) == pytest.approx([math.log(60 / 1.15) / 15] * 15)


@given(segments)
def test_one_more_event_leaves_the_mean_of_the_e_value_under_the_null(counted: list[Segment]) -> None:
    rho, before = 0.2, log_evidence(counted)
    if_canary = log_evidence([*counted, Segment(rho, 1, 1)])
    if_stable = log_evidence([*counted, Segment(rho, 0, 1)])

    mean = rho * math.exp(if_canary - before) + (1 - rho) * math.exp(if_stable - before)

    assert mean == pytest.approx(1.0, rel=1e-9)


@given(segments, st.floats(1.0, 8.0))
def test_with_a_tolerance_the_mean_is_at_most_1_for_every_ratio_within_it(counted: list[Segment], ratio: float) -> None:
    rho, before = 0.2, log_evidence(counted, tolerance=8.0)
    chance = rho * ratio / (1 - rho + rho * ratio)

    mean = chance * math.exp(log_evidence([*counted, Segment(rho, 1, 1)], tolerance=8.0) - before)
    mean += (1 - chance) * math.exp(log_evidence([*counted, Segment(rho, 0, 1)], tolerance=8.0) - before)

    assert mean <= 1.0 + 1e-9


def test_nothing_and_certain_labels_are_no_evidence() -> None:
    assert log_evidence([]) == 0.0
    assert log_evidence([Segment(0.0, 5, 5), Segment(1.0, 9, 9), Segment(0.5, 0, 0)]) == 0.0
    assert log_rate_safety(0, 0, 0.01) == pytest.approx(0.0)


def test_impossible_counts_are_refused_with_the_value() -> None:
    with pytest.raises(ValueError, match="got 1"):
        Segment(1.5, 0, 0)
    with pytest.raises(ValueError, match="3 of 2"):
        Segment(0.5, 3, 2)
    with pytest.raises(ValueError, match="errors must lie within requests"):
        log_rate_safety(3, 2, 0.01)


def test_huge_counts_stay_finite() -> None:
    assert math.isfinite(log_evidence([Segment(0.1, 1e9, 2e9)]))
    assert math.isfinite(log_rate_safety(10, 1e9, 0.01))


def first_crossings(
    rng: np.random.Generator,
    runs: int,
    seconds: int,
    rates: tuple[float, float],
    rps: float,
    shares: np.ndarray,
    common: np.ndarray | float = 1.0,
) -> np.ndarray:
    """For each run the second at which the evidence of harm first reaches 100; `seconds` when never.

    Vectorised over runs: the sum of each ratio's log likelihood ratio is a cumulative sum over seconds.
    """
    canary_rate, stable_rate = rates
    n_canary = rng.poisson(rps * shares * canary_rate * common, (runs, seconds))
    n_stable = rng.poisson(rps * (1 - shares) * stable_rate * common, (runs, seconds))
    crossed = np.full((runs, seconds), -np.inf)
    for ratio in HARM_RATIOS:
        steps = n_canary * np.log(ratio) - (n_canary + n_stable) * np.log1p(shares * (ratio - 1))
        crossed = np.logaddexp(crossed, np.cumsum(steps, axis=1))
    over = crossed - np.log(len(HARM_RATIOS)) >= ALPHA_LOG
    return np.where(over.any(axis=1), over.argmax(axis=1) + 1, seconds)


def test_peeking_each_second_rolls_at_most_1_percent_of_harmless_releases_back() -> None:
    runs, seconds = 400, 1200

    times = first_crossings(np.random.default_rng(1), runs, seconds, (0.005, 0.005), 100.0, np.full(seconds, 0.1))

    # 1 % of 400 is 4; the exact binomial bound at 99.9 % for a true 1 % is 11.
    assert (times < seconds).sum() <= 11


def test_a_ramp_and_an_incident_common_to_both_arms_roll_nothing_back_either() -> None:
    runs, seconds = 300, 900
    shares = np.repeat([0.01, 0.05, 0.1, 0.25, 0.5], seconds // 5)
    incident = np.where((np.arange(seconds) > 300) & (np.arange(seconds) < 600), 20.0, 1.0)

    times = first_crossings(np.random.default_rng(2), runs, seconds, (0.005, 0.005), 100.0, shares, incident)

    assert (times < seconds).sum() <= 10  # the same bound for 300 runs


@pytest.mark.parametrize(("rate", "median_seconds"), [(0.2, 3), (0.05, 12), (0.02, 60)])
def test_a_bad_release_is_found_within_seconds(rate: float, median_seconds: float) -> None:
    seconds = 600

    times = first_crossings(np.random.default_rng(3), 400, seconds, (rate, 0.005), 100.0, np.full(seconds, 0.1))

    assert np.median(times) <= median_seconds


def test_about_600_clean_requests_prove_a_rate_below_1_percent() -> None:
    needed = next(n for n in range(1, 5000) if log_rate_safety(0, n, 0.01) >= ALPHA_LOG)

    assert 450 < needed < 750


def test_an_unsafe_rate_is_proved_safe_in_at_most_1_percent_of_releases() -> None:
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(300):
        errors = np.cumsum(rng.binomial(50, 0.01, 60))
        looks = zip(errors.tolist(), range(50, 3001, 50), strict=True)
        wrong += any(log_rate_safety(e, n, 0.01) >= ALPHA_LOG for e, n in looks)

    assert wrong <= 10


def test_a_release_that_errs_no_more_than_its_neighbour_is_safe_though_both_err_often() -> None:
    counted = [Segment(0.5, 150, 300)]

    assert log_ratio_safety(counted, 2.0) > ALPHA_LOG
    assert log_rate_safety(150, 3000, 0.01) < 0
    assert log_safety(counted, 150, 3000, max_rate=0.01, max_ratio=2.0) > ALPHA_LOG


def test_a_release_that_errs_often_and_more_than_its_neighbour_is_never_safe() -> None:
    assert log_safety([Segment(0.5, 250, 300)], 250, 3000, max_rate=0.01, max_ratio=2.0) < 0
