"""The former evidence on slower answers, each request an event of its own: the formula bound by bound."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alerts.evidence import Segment, Slow, log_by_bound, log_evidence, log_not_slower, slowness
from alerts.evidence.exceedances import SLOWER_RATIOS, weights_of


def parts() -> list[Slow]:
    return [Slow(0.1, (90.0, 30.0, 2.0), (700.0, 200.0, 9.0)), Slow(0.25, (40.0, 22.0, 1.0), (100.0, 31.0, 0.0))]


def of_bound(slow: list[Slow], place: int) -> float:
    segments = [Segment(p.propensity, p.canary[place], p.canary[place] + p.stable[place]) for p in slow]
    return log_evidence(segments, SLOWER_RATIOS)


def test_it_is_the_mean_over_the_bounds_of_the_evidence_on_events() -> None:
    by_bound = [of_bound(parts(), place) for place in range(3)]

    found = slowness(parts())

    assert found.log_evidence == pytest.approx(math.log(np.mean(np.exp(by_bound))), rel=1e-12)
    assert found.bound == int(np.argmax(by_bound))
    assert log_by_bound(parts()) == pytest.approx(by_bound, rel=1e-12)


def test_weights_are_those_of_the_mean() -> None:
    by_bound = [of_bound(parts(), place) for place in range(3)]

    found = slowness(parts(), weights=(0.5, 0.4, 0.1))

    assert found.log_evidence == pytest.approx(math.log(np.dot(np.exp(by_bound), (0.5, 0.4, 0.1))), rel=1e-12)


def test_weights_need_only_the_sums_of_the_arms_and_add_up_to_1() -> None:
    swapped = [Slow(p.propensity, p.stable, p.canary) for p in parts()]

    weights = weights_of(parts(), 1200.0)

    assert weights == pytest.approx(weights_of(swapped, 1200.0))
    assert math.fsum(weights) == pytest.approx(1.0)
    assert weights[1] > weights[0] > weights[2] >= 0.1
    assert weights_of([Slow(0.1, (0.0, 0.0), (0.0, 0.0))], 300.0) == (0.5, 0.5)


def test_nothing_is_no_evidence() -> None:
    assert slowness([]).log_evidence == 0.0
    assert slowness([Slow(1.0, (9.0,), (0.0,))]).log_evidence == 0.0
    assert slowness([Slow(0.1, (0.0, 0.0), (0.0, 0.0))]).log_evidence == 0.0
    with pytest.raises(ValueError, match="2 and 1 bounds"):
        Slow(0.1, (0.0, 0.0), (0.0,))


def test_a_healthy_tail_is_proved_not_to_be_longer() -> None:
    slow = [Slow(0.5, (500.0, 100.0), (500.0, 100.0))]

    assert log_not_slower(slow, 1, 2.0) > math.log(100)
    assert log_not_slower([Slow(0.5, (500.0, 140.0), (500.0, 70.0))], 1, 2.0) < math.log(100)
