"""The simulation of canaries says what the judge says: the same evidence and the same seconds."""

from __future__ import annotations

import numpy as np
import pytest

from alerts.evidence import Arms, Look, Outcome, ReleaseState, Slow, VerdictPolicy, judge
from benchmarks.evidence_simulation import course, proved_safe, rolled_back
from benchmarks.evidence_traffic import BOUNDS, Scenario, Traffic, traffic
from observability.names import LATENCY_SECONDS

POLICY = VerdictPolicy()


def look_at(seen: Traffic, run: int, second: int) -> Look:
    """What the judge would have read of a run's second."""

    def of(values: np.ndarray) -> float:
        return float(values[..., run, second])

    share = float(seen.share[run, second])

    def above(place: int, bound: float, slow: np.ndarray, everything: np.ndarray) -> float:
        if bound in BOUNDS:
            return float(slow[BOUNDS.index(bound), run, second])
        return of(everything) if bound < BOUNDS[0] else 0.0

    canary, stable = (
        tuple(above(place, bound, slow, everything) for place, bound in enumerate(LATENCY_SECONDS))
        for slow, everything in ((seen.slow_canary, seen.split_canary), (seen.slow_stable, seen.split_stable))
    )
    arms = Arms(share, of(seen.canary), of(seen.canary_errors), of(seen.stable), of(seen.stable_errors))
    slow = Slow(share, canary, stable, of(seen.split_canary), of(seen.split_stable))
    return Look(at=float(second + 1), arms=(arms,), bounds=LATENCY_SECONDS, slow=(slow,))


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(canary_rate=0.1, seconds=60),
        Scenario(slower=1.5, seconds=40),
        Scenario(canary_rate=0.0005, seconds=200, ramp_seconds=150),
        Scenario(canary_rate=0.01, seconds=60, incident_from=20),
    ],
)
def test_the_simulation_and_the_judge_agree_second_by_second(scenario: Scenario) -> None:
    seen = traffic(np.random.default_rng(5), 2, scenario)
    found = course(seen)
    back, safe = rolled_back(seen, found), proved_safe(seen, found)

    for run in range(2):
        state, first = ReleaseState(started_at=0.0), dict[Outcome, int]()
        for second in range(scenario.seconds):
            state = state.after(look_at(seen, run, second), POLICY)
            evidence = state.evidence(POLICY)
            assert evidence.log_harm["errors"] == pytest.approx(found.errors[run, second], abs=1e-6)
            assert evidence.log_harm.get("latency", 0.0) == pytest.approx(found.latency[run, second], abs=1e-6)
            assert evidence.log_split == pytest.approx(found.split[run, second], abs=1e-6)
            assert evidence.log_safety == pytest.approx(found.safety[run, second], abs=1e-6)
            assert evidence.incident == found.incident[run, second]
            first.setdefault(judge(evidence, state.counts, POLICY, second + 1.0).outcome, second + 1)
        assert first.get(Outcome.ROLLBACK, scenario.seconds) == back[run]
        if back[run] == scenario.seconds:
            assert first.get(Outcome.ADVANCE, scenario.seconds) == safe[run]


def test_harmless_canaries_of_every_kind_are_seldom_rolled_back() -> None:
    seen = traffic(np.random.default_rng(11), 16, Scenario(varied=True))

    ends = rolled_back(seen, course(seen))

    assert seen.sticky.sum() == 8
    assert np.all((seen.heard_canary <= seen.canary_errors)[~seen.sticky])
    assert (ends < 3600).sum() <= 2  # with a risk of 1 % each, three of 16 have a chance of 1 in 2,000
