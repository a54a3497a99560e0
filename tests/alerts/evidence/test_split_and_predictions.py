"""The split of the traffic and the distribution of predictions: closed form, validity, and what is found."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.evidence import Predicted, log_shift_evidence, log_split_evidence, total_variation


def one_by_one(rho: float, labels: list[bool], prior: float = 100.0) -> float:
    """The predictive probabilities of the beta prior, request by request, over those of the router."""
    canary, total, log = prior * rho, prior, 0.0
    for label in labels:
        chance = canary / total
        log += math.log(chance / rho) if label else math.log((1 - chance) / (1 - rho))
        canary, total = canary + label, total + 1
    return log


@given(st.floats(0.01, 0.99), st.lists(st.booleans(), max_size=50))
def test_the_closed_form_is_the_product_of_predictions(rho: float, labels: list[bool]) -> None:
    counted = log_split_evidence([(rho, float(sum(labels)), float(len(labels) - sum(labels)))])

    assert counted == pytest.approx(one_by_one(rho, labels), abs=1e-9)


def test_a_split_that_is_off_is_found_and_a_right_one_is_not() -> None:
    rng = np.random.default_rng(2)
    right = np.cumsum(rng.random((300, 4000)) < 0.1, axis=1)
    wrong = np.cumsum(rng.random((20, 20_000)) < 0.08, axis=1)

    def highest(counts: np.ndarray) -> list[float]:
        looks = range(99, counts.shape[1], 100)
        return [max(log_split_evidence([(0.1, run[n], n + 1 - run[n])]) for n in looks) for run in counts]

    assert sum(value >= math.log(100) for value in highest(right)) <= 10  # 1 % of 300 are 3
    assert all(value >= math.log(1000) for value in highest(wrong))


def test_a_request_where_none_could_go_is_proof() -> None:
    assert log_split_evidence([(0.0, 1.0, 9.0)]) == math.inf
    assert log_split_evidence([(1.0, 9.0, 0.0)]) == 0.0
    assert log_split_evidence([]) == 0.0
    with pytest.raises(ValueError, match="probability"):
        log_split_evidence([(1.5, 0.0, 0.0)])


def test_predictions_that_moved_are_found_and_those_that_did_not_are_not() -> None:
    rng = np.random.default_rng(8)
    shares = np.array([0.1, 0.2, 0.4, 0.2, 0.1])
    moved = np.array([0.05, 0.15, 0.4, 0.25, 0.15])

    def seen(canary: np.ndarray) -> list[Predicted]:
        bins = rng.multinomial(2000, canary), rng.multinomial(18_000, shares)
        return [Predicted(0.1, tuple(bins[0].astype(float)), tuple(bins[1].astype(float)))]

    still = [log_shift_evidence(seen(shares)) for _ in range(200)]

    assert sum(value >= math.log(100) for value in still) <= 7
    assert log_shift_evidence(seen(moved)) > math.log(1000)
    assert total_variation(seen(moved)) == pytest.approx(0.1, abs=0.03)
    assert log_shift_evidence([]) == 0.0
    assert total_variation([]) == 0.0
    with pytest.raises(ValueError, match="1 and 2 bins"):
        Predicted(0.1, (1.0,), (1.0, 2.0))
