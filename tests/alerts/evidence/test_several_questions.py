"""Several checks and several releases, and the time after a promotion."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.evidence import HARM_RATIOS, Detector, Segment, level, log_evidence, log_weighted_mean, to_blame


def test_the_weighted_mean_bets_nothing_on_what_has_no_share_or_was_not_seen() -> None:
    logs = {"errors": math.log(300.0), "latency": math.log(4.0), "prediction": 500.0}

    assert math.exp(log_weighted_mean(logs, {"errors": 0.5, "latency": 0.25, "quality": 0.25})) == pytest.approx(151.25)
    assert log_weighted_mean({}, {"errors": 1.0}) == pytest.approx(0.0)
    assert log_weighted_mean({"errors": 5000.0}, {"errors": 0.5}) == pytest.approx(5000 + math.log(0.5))
    assert log_weighted_mean({"errors": -5000.0}, {"errors": 1.0}) == pytest.approx(-5000.0)
    for wrong in ({"errors": 0.8, "latency": 0.3}, {"errors": -0.1}):
        with pytest.raises(ValueError, match="shares of the risk"):
            log_weighted_mean({"errors": 0.0}, wrong)


def test_e_bh_blames_those_that_are_strong_enough_for_their_number() -> None:
    logs = {"errors": math.log(160.0), "latency": math.log(151.0), "quality": math.log(10.0)}

    assert to_blame(logs, 0.01) == ("errors", "latency")  # 2 of 3: each above 3 / (2 · 0.01)
    assert to_blame({**logs, "latency": 0.0}, 0.01) == ()
    assert to_blame({}, 0.01) == ()


def test_levels_of_releases_without_rollbacks_add_up_to_alpha() -> None:
    assert math.fsum(level(n, 0, 0.01) for n in range(1, 20_000)) == pytest.approx(0.01, rel=1e-4)
    assert level(3, 2, 0.01) == pytest.approx(0.01 * 3 / 12)
    with pytest.raises(ValueError, match="fewer were rolled back"):
        level(2, 2, 0.01)


def test_e_lond_holds_the_false_discovery_rate() -> None:
    rng = np.random.default_rng(5)
    shares = []
    for _ in range(400):
        raised, false = 0, 0
        for release in range(1, 21):
            harmful = release % 4 == 0
            # An exact e-value: the likelihood ratio of N(4, 1) and N(0, 1).
            e_value = math.exp(4.0 * rng.normal(4.0 if harmful else 0.0) - 8.0)
            if e_value >= 1 / level(release, raised, 0.1):
                raised, false = raised + 1, false + (not harmful)
        shares.append(false / max(raised, 1))

    assert np.mean(shares) <= 0.1


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_the_detector_is_the_sum_over_all_beginnings(looks: list[tuple[int, int]]) -> None:
    detector = Detector()
    for canary, stable in looks:
        detector = detector.beside([Segment(0.98, canary, canary + stable)])

    total = 0.0
    for begun in range(len(looks)):
        canary, stable = (sum(look[arm] for look in looks[begun:]) for arm in (0, 1))
        total += math.exp(log_evidence([Segment(0.98, canary, canary + stable)]))

    assert math.exp(detector.log_evidence) == pytest.approx(total, rel=1e-9)
    assert Detector.from_json(detector.to_json()) == detector


def test_a_promoted_version_that_breaks_later_is_found_beside_the_hold_back_and_alone() -> None:
    rng = np.random.default_rng(7)
    beside, alone, found = Detector(), Detector(), dict[str, int]()
    for second in range(4000):
        rate = 0.005 if second < 2000 else 0.05
        canary, stable = rng.binomial(98, rate), rng.binomial(2, 0.005)
        beside = beside.beside([Segment(0.98, canary, canary + stable)])
        alone = alone.alone(98, canary, 0.006)
        for name, state in (("beside", beside), ("alone", alone)):
            if state.log_evidence >= math.log(50_000):
                found.setdefault(name, second)

    assert 2000 <= found["alone"] < 2010
    assert 2000 <= found["beside"] < 2300
    assert beside.looks == 4000


def test_an_incident_common_to_both_is_no_alarm_beside_the_hold_back() -> None:
    rng = np.random.default_rng(17)
    detector = Detector()
    for second in range(1500):
        rate = 0.3 if 500 < second < 900 else 0.005
        canary, stable = rng.binomial(98, rate), rng.binomial(2, rate)
        detector = detector.beside([Segment(0.98, canary, canary + stable)])
        assert detector.log_evidence < math.log(100_000)


def test_what_is_no_detector_is_refused() -> None:
    with pytest.raises(ValueError, match="no state of a detector"):
        Detector.from_json("{}")
    with pytest.raises(ValueError, match="impossible"):
        Detector().alone(1, 2, 0.1)
    assert len(Detector().sums) == len(HARM_RATIOS)
