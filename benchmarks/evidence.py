"""Cost of a verdict: `python -m benchmarks.evidence`.

A verdict is everything from a release's sums to its reason: evidence of harm and safety, the split of the traffic, and
where there is a histogram, of slower answers at its 18 bounds. How soon verdicts come, and how often they are wrong, is
in `benchmarks.evidence_simulation`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

from alerts.evidence import Arms, Look, ReleaseState, Slow, VerdictPolicy, judge, log_split_evidence
from alerts.evidence.segments import HARM_RATIOS, Bets, log_mixture
from observability.names import LATENCY_SECONDS

CONSTANT, RAMP = (0.1,), (0.01, 0.05, 0.1, 0.25, 0.5)
LIMIT_MICROSECONDS = 50
POLICY = VerdictPolicy()


def microseconds(call: Callable[[], object], repeats: int = 1000) -> float:
    """Microseconds of a call, of the processor: the least of nine rounds, since others share the machine."""
    rounds = []
    for _ in range(9):
        started = time.process_time()
        for _ in range(repeats):
            call()
        rounds.append((time.process_time() - started) / repeats * 1e6)
    return min(rounds)


def release(propensities: tuple[float, ...], *, latency: bool) -> ReleaseState:
    """A release that had these weights one after the other, each for 40,000 requests, the last one for 80,000."""
    looks = ReleaseState(started_at=0.0)
    for place, rho in enumerate((*propensities, propensities[-1])):
        canary, stable = 40_000 * rho, 40_000 * (1 - rho)
        slow = Slow(
            rho,
            tuple(canary / (2**bound) for bound in range(len(LATENCY_SECONDS))),
            tuple(stable / (2**bound) for bound in range(len(LATENCY_SECONDS))),
            canary,
            stable,
        )
        look = Look(
            at=float(place),
            arms=(Arms(rho, canary, canary * 0.005, stable, stable * 0.005),),
            bounds=LATENCY_SECONDS if latency else (),
            slow=(slow,) if latency else (),
        )
        looks = looks.after(look, POLICY)
    return looks


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{'microseconds (limit ' + str(LIMIT_MICROSECONDS) + ')':<52}{'1 weight':>10}{'5 weights':>10}")
    states = [release(weights, latency=True) for weights in (CONSTANT, RAMP)]
    bare = [release(weights, latency=False) for weights in (CONSTANT, RAMP)]
    for name, parts, call in (
        ("verdict on errors: harm, safety, split, reason", bare, _verdict),
        ("verdict on errors and latency", states, _verdict),
        ("  harm of errors", bare, _harm),
        ("  slower, 18 bounds", states, _slower),
        ("a look more, with a histogram of 18 bounds", states, _look),
        ("  split", states, _split),
    ):
        print(f"{name:<52}" + "".join(f"{microseconds(partial(call, state)):>10.1f}" for state in parts))
    print("bytes of the state as JSON: " + ", ".join(str(len(state.to_json())) for state in (*bare, *states)))


def _verdict(state: ReleaseState) -> object:
    return judge(state.evidence(POLICY), state.counts, POLICY, 1.0)


def _harm(state: ReleaseState) -> object:
    failures = [(part.propensity, part.canary_events, part.total_events) for part in state.failures]
    return log_mixture(failures, Bets.of(HARM_RATIOS, 1.0))


def _slower(state: ReleaseState) -> object:
    return state.pace.evidence()


def _look(state: ReleaseState) -> object:
    rho = state.arms[-1].propensity
    above = tuple(20.0 / (2**bound) for bound in range(len(LATENCY_SECONDS)))
    look = Look(
        at=99.0,
        arms=(Arms(rho, 30.0, 0.0, 30.0, 0.0),),
        bounds=LATENCY_SECONDS,
        slow=(Slow(rho, above, above, 30.0, 30.0),),
    )
    return state.after(look, POLICY)


def _split(state: ReleaseState) -> object:
    return log_split_evidence([(a.propensity, a.canary_requests, a.stable_requests) for a in state.arms])


if __name__ == "__main__":
    main()
