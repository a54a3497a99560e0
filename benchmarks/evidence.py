"""Cost of a verdict, and how soon a bad release is found: `python -m benchmarks.evidence`.

Prints the e-process beside the fixed rules that others document (an error rate above a threshold over a window, so many
times in a row), all on the same simulated streams: 100 requests a second, 10 % to the canary, stable at 0.5 % errors.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from alerts.evidence import HARM_RATIOS, Counts, Segment, VerdictPolicy, judge, log_evidence, weigh

RPS, SHARE, STABLE = 100.0, 0.1, 0.005
HOUR = 3600
Integers = NDArray[np.int64]


def microseconds(call: Callable[[], object], repeats: int = 2000) -> float:
    """Microseconds of a call: the least of five rounds, since others share the machine."""
    rounds = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        rounds.append((time.perf_counter() - started) / repeats * 1e6)
    return min(rounds)


def costs() -> tuple[float, float]:
    """Microseconds of the evidence of harm alone, and of a whole verdict, on a ramp of five segments."""
    segments = [Segment(share, 12.0, 90.0) for share in (0.01, 0.05, 0.1, 0.25, 0.5)]
    counts, policy = Counts(40_000, 60, 360_000, 390), VerdictPolicy()
    whole = microseconds(lambda: judge(weigh(segments, counts, policy, 0.0), counts, policy, 1.0))
    return microseconds(lambda: log_evidence(segments)), whole


def e_process(canary: Integers, stable: Integers, requests: Integers) -> Integers:
    """Second of the first crossing of 100 by run; an hour when never."""
    total = np.full(canary.shape, -np.inf)
    for ratio in HARM_RATIOS:
        steps = canary * np.log(ratio) - (canary + stable) * np.log1p(SHARE * (ratio - 1))
        total = np.logaddexp(total, np.cumsum(steps, axis=1))
    return _first(total - np.log(len(HARM_RATIOS)) >= np.log(100))


def fixed_rule(limit: float, window: int, failures: int) -> Callable[[Integers, Integers, Integers], Integers]:
    """A canary fails a check when more than `limit` of a window's requests failed; `failures` checks end it."""

    def rule(canary: Integers, stable: Integers, requests: Integers) -> Integers:
        runs = canary.shape[0]
        errors = canary.reshape(runs, -1, window).sum(axis=2)
        asked = requests.reshape(runs, -1, window).sum(axis=2)
        failed = np.cumsum(errors > limit * asked, axis=1) >= failures
        return np.minimum(np.where(failed.any(axis=1), (failed.argmax(axis=1) + 1) * window, HOUR), HOUR)

    return rule


def _first(over: NDArray[np.bool_]) -> Integers:
    return np.where(over.any(axis=1), over.argmax(axis=1) + 1, HOUR)


RULES = {
    "e-process, alpha 1 %": e_process,
    "1 % over 1 min, 5 fails": fixed_rule(0.01, 60, 5),
    "5 % over 5 min, 4 fails": fixed_rule(0.05, 300, 4),
}


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    alone, whole = costs()
    print(f"evidence of one hypothesis: {alone:.0f} µs (limit 50 µs); a verdict with harm and safety: {whole:.0f} µs\n")
    print(f"{'rule':<26}{'false/h':>9}" + "".join(f"{rate:>12.0%} errors" for rate in (0.01, 0.02, 0.05, 0.2)))
    for name, rule in RULES.items():
        cells = []
        for rate, runs in ((STABLE, 1000), (0.01, 200), (0.02, 200), (0.05, 400), (0.2, 400)):
            requests = rng.poisson(RPS * SHARE, (runs, HOUR))
            canary = rng.binomial(requests, rate)
            stable = rng.poisson(RPS * (1 - SHARE) * STABLE, (runs, HOUR))
            found = rule(canary, stable, requests)
            if rate == STABLE:
                cells.append(f"{np.mean(found < HOUR):>9.2%}")
            else:
                missed = np.median(found) >= HOUR
                median, late = np.median(found), np.percentile(found, 95)
                cells.append(f"{'never':>19}" if missed else f"{f'{median:.0f} s (p95 {late:.0f})':>19}")
        print(f"{name:<26}" + "".join(cells))


if __name__ == "__main__":
    main()
