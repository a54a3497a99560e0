"""Bets on labels: the formula step by step, harm alone, validity at the tolerance, and labels needed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.evidence import ArmsBet, Bet, paired, weighed
from benchmarks.evidence_simulation import bets

differences = st.lists(st.sampled_from([-1.0, 0.0, 1.0]), max_size=60)


@given(differences, st.integers(0, 60))
def test_chunks_and_json_change_no_bit(values: list[float], cut: int) -> None:
    whole = paired(0.01).after(values)

    parted = Bet.from_json(paired(0.01).after(values[:cut]).to_json()).after(values[cut:])

    assert parted == whole


@given(differences)
def test_the_next_difference_leaves_the_wealth_at_the_tolerance(values: list[float]) -> None:
    before = paired(0.2).after(values)
    up, down = before.after([1.0]), before.after([-1.0])

    # A difference of 1 with a chance of 0.6, of -1 else: its mean is the tolerance.
    mean = 0.6 * math.exp(up.log_wealth - before.log_wealth) + 0.4 * math.exp(down.log_wealth - before.log_wealth)

    assert mean == pytest.approx(1.0, rel=1e-9)


def test_an_improvement_is_never_evidence() -> None:
    assert paired(0.01).after([-1.0, 0.0] * 500).log_wealth <= 0.0


def test_5_points_of_accuracy_take_at_most_400_labels_and_the_tolerance_is_no_alarm() -> None:
    rng = np.random.default_rng(3)
    worse = bets(rng.choice([1.0, 0.0, -1.0], p=[0.055, 0.94, 0.005], size=(200, 2000)), 0.01)
    allowed = bets(rng.choice([1.0, 0.0, -1.0], p=[0.0175, 0.975, 0.0075], size=(400, 2000)), 0.01)

    assert np.median(worse) <= 400
    assert (allowed < 2000).sum() <= 11  # 1 % of 400 are 4; more than 11 have a chance of 1 in 1,000


def test_the_simulated_bet_is_the_bet() -> None:
    values = np.random.default_rng(6).choice([1.0, 0.0, -1.0], p=[0.3, 0.65, 0.05], size=(3, 400))
    found = bets(values, 0.01)

    for run in range(3):
        state, first = paired(0.01), 400
        for count, value in enumerate(values[run].tolist(), start=1):
            state = state.after([value])
            if state.log_wealth >= math.log(100):
                first = count
                break
        assert found[run] == first


def test_labels_of_two_arms_are_weighed_by_the_routing() -> None:
    rng = np.random.default_rng(9)
    canary = rng.random(40_000) < 0.2
    loss = (rng.random(40_000) < np.where(canary, 0.3, 0.1)).astype(float)
    parts = [weighed(a, bool(b), 0.2, 0.1) for a, b in zip(loss, canary, strict=True)]

    assert np.mean(parts) == pytest.approx(0.2, abs=0.02)
    labelled = zip(loss.tolist(), canary.tolist(), [0.2] * len(loss), strict=True)
    assert ArmsBet(tolerance=0.01).after(labelled).log_wealth > math.log(100)


def test_what_is_no_difference_of_losses_is_refused() -> None:
    for wrong in (1.5, math.nan, -2.0):
        with pytest.raises(ValueError, match="lies within"):
            paired(0.01).after([wrong])
    with pytest.raises(ValueError, match="tolerance lies within"):
        paired(1.0)
    with pytest.raises(ValueError, match="no state of a bet"):
        Bet.from_json('{"other": 1}')
    with pytest.raises(ValueError, match="probability of the routing"):
        weighed(1.0, True, 0.0)
    assert math.isnan(paired(0.01).mean)
