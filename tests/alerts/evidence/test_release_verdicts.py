"""Verdicts and the state behind them: reasons, what voids, what does not count as proof, and bits that last."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.evidence import (
    Arms,
    Labelled,
    Look,
    Outcome,
    Predicted,
    Reason,
    Recent,
    ReleaseState,
    Slow,
    Verdict,
    VerdictPolicy,
    calm,
    judge,
)

POLICY = VerdictPolicy()
LABELS = VerdictPolicy(loss="squared", loss_bound=4.0)
BOUNDS = (0.01, 0.1, 1.0)


def verdict(state: ReleaseState, now: float = 60.0, policy: VerdictPolicy = POLICY) -> Verdict:
    return judge(state.evidence(policy), state.counts, policy, now)


def state_of(*looks: Look, policy: VerdictPolicy = POLICY) -> ReleaseState:
    state = ReleaseState(started_at=0.0)
    for look in looks:
        state = state.after(look, policy)
    return state


def seconds(
    canary: float, stable: float, count: int, rps: float = 100.0, begin: int = 1, share: float = 0.1
) -> list[Look]:
    """Looks in which the arms fail at these rates, to the request."""
    found = []
    for n in range(begin, begin + count):
        asked = rps * share, rps * (1 - share)
        failed = [
            math.floor(n * a * rate) - math.floor((n - 1) * a * rate)
            for a, rate in zip(asked, (canary, stable), strict=True)
        ]
        found.append(Look(at=float(n), arms=(Arms(share, asked[0], failed[0], asked[1], failed[1]),)))
    return found


def test_a_canary_that_fails_is_rolled_back_for_its_errors() -> None:
    found = verdict(state_of(*seconds(0.2, 0.005, 20)))

    assert (found.outcome, found.because) == (Outcome.ROLLBACK, Reason.ERRORS)
    assert "40 of 200 canary requests failed, 9 of 1800 stable ones" in found.reason


def test_a_slower_canary_is_rolled_back_for_its_latency() -> None:
    slow = Slow(0.1, (10.0, 8.0, 0.0), (90.0, 20.0, 0.0), 10.0, 90.0)
    looks = [msgspec.structs.replace(look, bounds=BOUNDS, slow=(slow,)) for look in seconds(0.0, 0.0, 10)]

    found = verdict(state_of(*looks))

    assert (found.outcome, found.because) == (Outcome.ROLLBACK, Reason.LATENCY)
    assert "more of its answers take over 0.1 s" in found.reason


def test_worse_predictions_roll_back_where_quality_has_a_share() -> None:
    policy = VerdictPolicy(loss="zero-one")
    labelled = tuple(Labelled(number, number % 2 == 0, 0.5, float(number % 2), 1.0) for number in range(1, 400))
    look = msgspec.structs.replace(seconds(0.0, 0.0, 1)[0], labelled=labelled)

    found = verdict(ReleaseState(started_at=0.0).after(look, policy), policy=policy)

    assert (found.outcome, found.because) == (Outcome.ROLLBACK, Reason.QUALITY)
    assert "199 predictions of the candidate have labels (and 200 of the stable version)" in found.reason
    informs = replace(policy, shares={"errors": 1.0})
    assert verdict(ReleaseState(started_at=0.0).after(look, informs), policy=informs).outcome is not Outcome.ROLLBACK
    assert ReleaseState(started_at=0.0).after(look, POLICY).quality is None


def test_a_canary_is_not_proved_safe_before_the_labels_that_its_policy_asks_for() -> None:
    policy = VerdictPolicy(loss="zero-one", minimum_labels=50)
    healthy = state_of(*seconds(0.0, 0.0, 80), policy=policy)
    labelled = tuple(Labelled(number, True, 0.1, 1.0, 1.0) for number in range(1, 51))

    assert verdict(healthy, policy=policy).outcome is Outcome.CONTINUE
    assert verdict(healthy.after(Look(at=81.0, labelled=labelled), policy), policy=policy).because is Reason.PROVED_SAFE


def test_a_healthy_canary_advances_and_one_under_suspicion_does_not() -> None:
    healthy = state_of(*seconds(0.0, 0.0, 80))
    suspect = state_of(*[Look(at=at, arms=(Arms(0.1, 1500, 2, 13_500, 1.5),)) for at in (1.0, 2.0)])

    assert verdict(healthy).because is Reason.PROVED_SAFE
    assert suspect.evidence(POLICY).safety > 100
    assert 10 < suspect.evidence(POLICY).harm < 100
    assert (verdict(suspect).outcome, verdict(suspect).because) == (Outcome.CONTINUE, Reason.SUSPECT)


def test_no_data_is_never_healthy() -> None:
    nothing = state_of(Look(at=1.0))
    few = state_of(*seconds(0.0, 0.0, 5))

    assert verdict(nothing).because is Reason.NO_DATA
    assert verdict(few).because is Reason.COLLECTING
    for state in (nothing, few):
        late = verdict(state, now=POLICY.deadline_seconds)
        assert (late.outcome, late.because) == (Outcome.INCONCLUSIVE, Reason.DEADLINE)


def test_a_split_that_is_off_voids_harm_and_safety_alike() -> None:
    for rate in (0.5, 0.0):
        lost = [Look(at=float(n), arms=(Arms(0.2, 5, 5 * rate, 95, 0.0),)) for n in range(1, 60)]

        found = verdict(state_of(*lost))

        assert (found.outcome, found.because) == (Outcome.INCONCLUSIVE, Reason.SAMPLE_RATIO)


def test_units_that_stick_are_asked_for_the_split_not_their_requests() -> None:
    heavy = [Look(at=float(n), arms=(Arms(0.1, 40, 0, 60, 0),), sticky=True) for n in range(1, 40)]
    counted = [msgspec.structs.replace(look, units=(Arms(0.1, 1, 0, 9, 0),)) for look in heavy]

    assert verdict(state_of(*heavy)).because is not Reason.SAMPLE_RATIO
    assert verdict(state_of(*counted)).because is not Reason.SAMPLE_RATIO
    apart = [msgspec.structs.replace(look, sticky=False) for look in heavy]
    assert verdict(state_of(*apart)).because is Reason.SAMPLE_RATIO


def test_an_incident_common_to_both_arms_is_no_proof_of_safety_nor_of_harm() -> None:
    # The candidate fails twice as often by itself, and 30 % of all requests fail for another cause.
    looks = [*seconds(0.011, 0.0055, 60), *seconds(0.3, 0.3, 600, begin=61)]
    state = ReleaseState(started_at=0.0)
    for look in looks:
        state = state.after(look, POLICY)
        assert verdict(state, now=look.at).outcome is Outcome.CONTINUE
    assert verdict(state, now=600.0).because is Reason.INCIDENT
    assert math.fsum(part.total_events for part in state.calm) < 60

    ratio_alone = state_of(*looks, policy=VerdictPolicy(max_error_rate=0.99, incident_error_rate=0.99))
    assert ratio_alone.evidence(POLICY).log_safety > math.log(100)  # what would have been proof without that


def test_what_counts_as_calm_is_bounded_by_the_usual_rate() -> None:
    recent, counted = Recent(), 0.0
    for second in range(1, 301):
        recent, share = calm(recent, float(second), 100.0, 4.0, normal_rate=0.01, incident_rate=0.05)
        counted += 4.0 * share

    assert counted == pytest.approx(320.0, abs=1.0)  # 20 at once and 1 % of 30,000 requests
    assert calm(Recent(), 1.0, 100.0, 0.0, normal_rate=0.01, incident_rate=0.05)[1] == 1.0
    assert calm(Recent(), 1.0, 100.0, 60.0, normal_rate=0.01, incident_rate=0.05)[1] == 0.0


def test_the_warm_up_is_left_out() -> None:
    policy = VerdictPolicy(warm_up_seconds=10.0)
    looks = [*seconds(1.0, 0.0, 9), *seconds(0.0, 0.0, 30, begin=10)]

    state = state_of(*looks, policy=policy)

    assert state.counts.canary_errors == 0
    assert state.counts.canary_requests == pytest.approx(300)


looks = st.lists(
    st.builds(
        lambda rho, c, s, e, w, labels: Look(
            at=float(c + s),
            arms=(Arms(rho, c + 20, min(e, c), s + 20, min(e, s)),),
            bounds=BOUNDS,
            slow=(Slow(rho, (c, w, 0.0), (s, w, 0.0), c + w, s + w),),
            predicted=(Predicted(rho, (c, w), (s, w)),),
            labelled=tuple(Labelled(n, wrong > 0.5, rho, wrong, 1.0) for n, wrong in labels),
        ),
        st.sampled_from([0.01, 0.1, 1 / 3]),
        st.integers(0, 30),
        st.integers(0, 30),
        st.integers(0, 9),
        st.floats(0, 9),
        st.lists(st.tuples(st.integers(1, 99), st.floats(-1, 1)), max_size=3),
    ),
    max_size=12,
)


@given(looks, st.integers(0, 12))
def test_a_state_goes_through_json_bit_for_bit_and_goes_on_alike(given_looks: list[Look], cut: int) -> None:
    state = ReleaseState(started_at=0.0)
    for look in given_looks[:cut]:
        state = state.after(look, LABELS)
    again = ReleaseState.from_json(state.to_json())
    assert again == state
    for look in given_looks[cut:]:
        state, again = state.after(look, LABELS), again.after(look, LABELS)

    assert again.to_json() == state.to_json()
    assert verdict(again) == verdict(state)


def test_what_does_not_fit_is_refused() -> None:
    state = state_of(Look(at=1.0, bounds=BOUNDS, slow=(Slow(0.1, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 1.0, 1.0),)))
    with pytest.raises(ValueError, match="bounds were"):
        state.after(Look(at=2.0, bounds=(1.0,), slow=(Slow(0.1, (1.0,), (1.0,), 1.0, 1.0),)), POLICY)
    with pytest.raises(ValueError, match="no state of a release"):
        ReleaseState.from_json('{"arms": []}')
    with pytest.raises(ValueError, match="errors must lie within requests"):
        Arms(0.1, 1, 2, 3, 0)
    for wrong in (
        {"shares": {"errors": 1.2}},
        {"shares": {"prediction": 0.1}},
        {"warm_up_seconds": -1.0},
        {"alpha": 0},
        {"loss": "hinge"},
        {"loss": "brier", "quality_tolerance": 1.0},
    ):
        with pytest.raises(ValueError, match="got"):
            VerdictPolicy(**wrong)


def test_a_strong_check_is_blamed_and_a_long_healthy_release_has_no_harm() -> None:
    long = state_of(*[Look(at=float(n), arms=(Arms(0.1, 1e6, 5e3, 9e6, 45e3),)) for n in range(1, 4)])

    assert verdict(long).outcome is not Outcome.ROLLBACK
    assert np.isfinite(long.evidence(POLICY).log_safety)
