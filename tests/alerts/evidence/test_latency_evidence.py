"""Evidence that answers are slower: a bet by looks, whatever the requests of a look have in common."""

from __future__ import annotations

import json
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.evidence import Look, Outcome, Pace, ReleaseState, Slow, VerdictPolicy, exceedances, judge
from alerts.evidence.latency import FRACTIONS, MOST, SHARES

BOUNDS = (0.01, 0.05, 0.1, 0.5, 1.0)
PROVED = math.log(250)


def look(canary: tuple[float, ...], stable: tuple[float, ...], asked: float = 10.0, others: float = 90.0) -> Slow:
    return Slow(0.1, canary, stable, asked, others)


QUIET = look((8.0, 4.0, 1.0, 0.0, 0.0), (70.0, 38.0, 9.0, 0.0, 0.0))


def paced(*looks: Slow, bounds: tuple[float, ...] = BOUNDS, **options: float) -> Pace:
    pace = Pace()
    for one in looks:
        pace = pace.after([one], bounds, **options)
    return pace


def test_the_wealth_is_the_product_of_the_bets_at_each_bound() -> None:
    first, second, third = QUIET, look((9, 7, 3, 1, 0), (80, 40, 10, 1, 0)), look((5, 2, 0, 0, 0), (72, 30, 9, 0, 0))
    pace = paced(first, second, third)
    usual = [0.0] * 5
    wealth = np.ones((2, 5))
    for bet, seen in enumerate((first, second, third)):
        a, b = np.array(seen.canary) / 10, np.array(seen.stable) / 90
        for row, fraction in enumerate(FRACTIONS if bet else ()):
            cap = np.maximum(usual, 1 / 90)
            stake = fraction / cap
            d = stake * (np.minimum(a, MOST / stake) - b)
            parts = np.where(d < 0, np.maximum(np.ceil(b / cap), 1), 1)
            wealth[row] *= (1 + d / parts) ** parts
        usual = np.maximum(0.99 * np.array(usual), b)  # type: ignore[assignment]

    weights = np.array(pace.weights)
    assert weights.sum() == pytest.approx(1.0)
    expected = (weights * (np.array(SHARES) @ wealth)).sum()
    assert pace.evidence().log_evidence == pytest.approx(math.log(expected), rel=1e-9)
    assert pace.looks == 2
    assert pace.slow == (14.0, 9.0, 3.0, 1.0, 0.0)


counts = st.tuples(st.integers(1, 40), st.integers(1, 400), st.integers(0, 40), st.integers(0, 400))


@given(st.lists(counts, min_size=1, max_size=8), st.integers(1, 40), st.integers(1, 40), st.floats(0.0, 1.0))
def test_a_look_whose_requests_stall_together_leaves_the_mean_of_the_e_value(
    before: list[tuple[int, int, int, int]], asked: int, others: int, chance: float
) -> None:
    """All of an arm's requests are slow with the same chance, or none: the strongest dependence there is."""
    pace = paced(QUIET)
    for canary, stable, c, s in before:
        pace = pace.after([look((0, min(c, canary), 0, 0, 0), (0, min(s, stable), 0, 0, 0), canary, stable)], BOUNDS)
    # As it is where the stable version has stalled as a whole before.
    pace = msgspec.structs.replace(pace, usual=(1.0,) * 5)
    mean = 0.0
    for c, s, probability in (
        (1, 1, chance * chance), (1, 0, chance * (1 - chance)),
        (0, 1, chance * (1 - chance)), (0, 0, (1 - chance) ** 2),
    ):  # fmt: skip
        seen = look((c * asked,) * 5, (s * others,) * 5, asked, others)
        mean += probability * math.exp(pace.after([seen], BOUNDS).evidence().log_evidence)

    assert mean <= math.exp(pace.evidence().log_evidence) * (1 + 1e-9)


def test_a_stall_of_one_arm_proves_nothing_however_many_requests_it_hits() -> None:
    """What rolled an honest canary back: four of its requests in one batch behind a stall, and none of 300 others."""
    quiet = [look((20, 12, 0, 0, 0), (200, 120, 0, 0, 0), 35, 315)] * 4
    stalled = look((30, 25, 20, 10, 4), (200, 120, 0, 0, 0), 35, 315)

    found = paced(*quiet, stalled).evidence()

    assert found.log_evidence < math.log(1 + MOST)
    assert paced(*quiet, *[stalled] * 6).evidence().log_evidence > PROVED


def test_bounds_below_the_floor_are_no_evidence() -> None:
    slower = look((10, 4, 1, 0, 0), (30, 38, 9, 0, 0))

    assert paced(*[slower] * 40, floor_seconds=0.0).evidence().log_evidence > PROVED
    assert paced(*[slower] * 40, floor_seconds=0.025).evidence().log_evidence < 1.0
    assert paced(*[slower] * 40, floor_seconds=9.0).evidence().log_evidence == 0.0


def test_a_tolerance_is_what_the_canary_may_exceed_a_bound_more_often() -> None:
    slower = look((8, 6, 2, 0, 0), (70, 45, 15, 0, 0))

    assert paced(*[slower] * 300).evidence().log_evidence > PROVED
    assert paced(*[slower] * 300, tolerance=1.25).evidence().log_evidence < 1.0


def test_the_first_requests_only_teach_what_is_usual() -> None:
    cold = look((10, 10, 10, 8, 2), (70, 38, 9, 0, 0))

    assert paced(*[cold] * 3, warm_up_requests=40).looks == 0
    assert paced(*[cold] * 3, warm_up_requests=40).evidence().log_evidence == 0.0
    assert paced(*[cold] * 3, QUIET, QUIET, warm_up_requests=30).evidence().log_evidence < 1.0


def test_a_look_without_requests_of_one_arm_waits_for_the_next() -> None:
    alone, both = look((0,) * 5, (70, 38, 9, 0, 0), 0.0, 90.0), look((8, 4, 1, 0, 0), (0,) * 5, 10.0, 0.0)

    assert paced(alone, both) == paced(QUIET)
    assert Pace().after([alone, both], BOUNDS) == paced(QUIET)
    assert paced().evidence().bound == -1


def test_the_longest_surge_of_the_stable_version_leaves_a_finite_number() -> None:
    surge = look((0,) * 5, (90,) * 5)
    found = paced(QUIET, *[surge] * 3, *[QUIET] * 3)

    assert math.isfinite(found.evidence().log_evidence)
    assert all(math.isfinite(value) for row in found.wealth for value in row)


def test_exceedances_of_a_histogram() -> None:
    assert exceedances((3.0, 5.0, 9.0, 10.0)) == (7.0, 5.0, 1.0)


def test_harmless_releases_whose_arms_stall_by_themselves_are_called_slower_in_at_most_1_percent() -> None:
    rng = np.random.default_rng(4)
    raised = 0
    for _ in range(60):
        pace, most = Pace(), 0.0
        for _ in range(120):
            parts = []
            for rate in (35, 315):
                asked = max(int(rng.poisson(rate)), 1)
                took = rng.lognormal(math.log(0.005), 0.8, asked)
                if rng.random() < 1 / 15:  # all that comes within a stall waits it out
                    length = rng.uniform(0.05, 0.3)
                    waits = rng.random(asked) < length
                    took += waits * rng.uniform(0.0, length, asked)
                parts.append((asked, tuple(float((took > bound).sum()) for bound in BOUNDS)))
            (asked, canary), (others, stable) = parts
            pace = pace.after([Slow(0.1, canary, stable, asked, others)], BOUNDS, tolerance=1.05)
            most = max(most, pace.evidence().log_evidence)
        raised += most >= PROVED

    assert raised <= 4  # 1 % of 60 are 0.6; more than 4 have a chance of 1 in 2,000


def test_a_state_of_the_first_format_is_replayed_as_it_was_judged_and_goes_on_without_its_sums() -> None:
    body = {
        "started_at": 0.0, "arms": [], "failures": [], "calm": [], "predicted": [], "units": [], "sticky": False,
        "recent": {"at": 0.0, "requests": 0.0, "errors": 0.0, "allowance": 20.0}, "quality": None,
        "bounds": [0.1, 1.0], "weights": [0.5, 0.5],
        "slow": [{"propensity": 0.1, "canary": [40.0, 1.0], "stable": [90.0, 2.0]}],
    }  # fmt: skip
    state = ReleaseState.from_json(json.dumps(body))
    policy = VerdictPolicy(latency_tolerance=1.0, minimum_slow=20)

    found = judge(state.evidence(policy), state.counts, policy, 60.0)
    assert (found.outcome, state.evidence(policy).slow_requests) == (Outcome.ROLLBACK, 40.0)
    with pytest.raises(ValueError, match="saved by an older version"):
        state.after(Look(at=1.0), policy)
    continued = state.continued().after(Look(at=1.0), policy)
    assert "latency" not in continued.evidence(policy).log_harm
    with pytest.raises(ValueError, match="reads up to 2"):
        ReleaseState.from_json(json.dumps({**body, "format": 3}))
