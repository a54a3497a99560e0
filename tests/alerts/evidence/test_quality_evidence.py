"""Bets on labels: the formula step by step, harm alone, validity at the tolerance, and labels needed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.evidence import ArmsBet, Bet, Loss, Unfit, paired, weighed
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


rows = st.tuples(st.sampled_from([0.0, 0.3, 1.0]), st.booleans(), st.sampled_from([0.01, 0.1, 0.5]))


@given(st.lists(rows, max_size=60), st.sampled_from([0.01, 0.1, 0.5]), st.floats(0.0, 0.8))
def test_the_next_label_of_two_arms_leaves_the_wealth_at_the_tolerance(
    before: list[tuple[float, bool, float]], rho: float, risk: float
) -> None:
    bet = ArmsBet(tolerance=0.2).after(before)

    mean = 0.0
    for canary, chance, wrong in ((True, rho, risk + 0.2), (False, 1 - rho, risk)):
        for loss, share in ((1.0, wrong), (0.0, 1 - wrong)):
            after = bet.after([(loss, canary, rho)])
            assert after.count == bet.count + 1
            mean += chance * share * math.exp(after.log_wealth - bet.log_wealth)

    assert mean == pytest.approx(1.0, rel=1e-9)


@given(st.lists(rows, max_size=40), st.integers(0, 40))
def test_chunks_of_labels_of_two_arms_do_not_matter(labelled: list[tuple[float, bool, float]], cut: int) -> None:
    bet = ArmsBet(tolerance=0.01)

    assert bet.after(labelled[:cut]).after(labelled[cut:]) == bet.after(labelled)


def test_an_improvement_of_two_arms_is_hardly_evidence_over_a_ramp() -> None:
    rng = np.random.default_rng(5)
    rho = np.repeat([0.01, 0.1, 0.5], 2000)
    canary = rng.random(6000) < rho
    loss = (rng.random(6000) < np.where(canary, 0.05, 0.1)).astype(float)

    found = ArmsBet(tolerance=0.01).after(zip(loss.tolist(), canary.tolist(), rho.tolist(), strict=True))

    assert found.log_wealth < math.log(5.0)
    assert found.total / found.weight == pytest.approx(-0.05, abs=0.03)


@pytest.mark.parametrize(
    ("loss", "prediction", "label", "expected"),
    [
        (Loss.of("zero-one"), 0.5, 0.0, 1.0),
        (Loss.of("zero-one"), 3.0, 3.0, 0.0),
        (Loss.of("zero-one"), 3.0, 2.0, 1.0),
        (Loss.of("brier"), 0.75, 1.0, 0.0625),
        (Loss.of("log"), 1.0, 0.0, 1.0),
        (Loss.of("log"), math.exp(-2.5), 1.0, 0.5),
        (Loss.of("absolute", 4.0), 1.0, 3.0, 0.5),
        (Loss.of("squared", 4.0), 1.0, 9.0, 1.0),
    ],
)
def test_losses_are_shares_of_their_bound(loss: Loss, prediction: float, label: float, expected: float) -> None:
    assert loss(prediction, label) == pytest.approx(expected)


def test_what_a_loss_says_nothing_of_is_told() -> None:
    for prediction, label in ((1.2, 1.0), (0.5, 2.0), (math.nan, 1.0)):
        with pytest.raises(Unfit):
            Loss.of("brier")(prediction, label)
    with pytest.raises(ValueError, match="a loss lies within"):
        ArmsBet(tolerance=0.01).after([(1.5, True, 0.5)])


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
