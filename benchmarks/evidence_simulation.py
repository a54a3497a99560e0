"""Ten thousand canaries, judged each second: `python -m benchmarks.evidence_simulation [CANARIES]`.

Prints how many harmless canaries are rolled back in an hour, how soon harm is found and safety proved, and what the
documented rules of other tools do on the same traffic. The formulae are those of `alerts.evidence`, over whole arrays;
`tests/alerts/evidence/test_evidence_simulation.py` holds both to the same seconds. Minutes on one core.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from scipy.special import gammaln
from scipy.stats import beta

from alerts.evidence import HARM_RATIOS, Check, FeedPage, FeedRow, Quality, VerdictPolicy
from alerts.evidence.errors import BURST, INCIDENT_SECONDS, SAFE_RATES
from alerts.evidence.exceedances import SLOWER_RATIOS, WEIGH_AFTER
from alerts.evidence.latency import ALIKE, FRACTIONS, LEAST_REQUESTS, MOST, REMEMBERED, SHARES, TEACHING
from alerts.evidence.sample_ratio import PRIOR
from alerts.evidence.segments import SAFE_RATIOS
from alerts.evidence.state import MOST_FAILURES
from benchmarks.evidence_rules import RULES
from benchmarks.evidence_traffic import BOUNDS, HOUR, STABLE_RATE, Counts, Floats, Scenario, Traffic, traffic
from observability.names import LATENCY_SECONDS

POLICY = VerdictPolicy()
CHUNK = 100


@dataclass(frozen=True, slots=True)
class Course:
    """(R, T): log e-values after each second, and whether more fails on both arms than an incident's share."""

    errors: Floats
    latency: Floats
    split: Floats
    safety: Floats
    incident: np.ndarray
    slow: Floats
    """Canary requests above the bound that tells most."""
    failing: Floats
    """Seconds in which the canary failed."""


def mixture(canary: Counts, total: Counts, share: Floats, ratios: Floats, null: float = 1.0) -> list[Floats]:
    """Log likelihood ratios (R, T) by alternative."""
    found = []
    for ratio in ratios:
        norms = np.log1p(share * (ratio * null - 1.0)) - np.log1p(share * (null - 1.0))
        found.append(np.cumsum(canary * np.log(ratio) - total * norms, axis=1))
    return found


def log_mean(parts: list[Floats], weights: Sequence[Floats | float] | None = None) -> Floats:
    """Logarithm of the weighted mean of e-values."""
    highest = np.maximum.reduce(parts)
    total = np.zeros_like(highest)
    for place, part in enumerate(parts):
        total += (1.0 if weights is None else weights[place]) * np.exp(part - highest)
    return np.asarray(highest + np.log(total / len(parts) if weights is None else total))


def course(seen: Traffic, policy: VerdictPolicy = POLICY) -> Course:
    """The evidence after each second."""
    heard = seen.heard_canary + seen.heard_stable
    counted = np.minimum(seen.heard_canary, MOST_FAILURES)
    errors = log_mean(mixture(counted, counted + seen.heard_stable, seen.share, HARM_RATIOS))

    latency, slow = slow_evidence(seen, policy)
    split = np.zeros_like(errors)
    for rho in np.unique(seen.share):
        on = seen.share == rho
        canary, stable = (np.cumsum(np.where(on, a, 0.0), axis=1) for a in (seen.split_canary, seen.split_stable))
        a, b = PRIOR * rho, PRIOR * (1.0 - rho)
        split += gammaln(a + canary) + gammaln(b + stable) - gammaln(PRIOR + canary + stable)
        split -= gammaln(a) + gammaln(b) - gammaln(PRIOR) + canary * np.log(rho) + stable * np.log1p(-rho)

    calm, incident = calmness(seen, policy)
    relative = log_mean(
        mixture(calm * seen.heard_canary, calm * heard, seen.share, SAFE_RATIOS / policy.max_ratio, policy.max_ratio)
    )
    # Where units stick, first failures among first requests: a unit is asked once.
    requests, failed = np.cumsum(seen.canary, axis=1), np.cumsum(seen.canary_errors, axis=1)
    absolute = log_mean(
        [
            np.where(failed > 0, failed * np.log(max(rate, 1e-300)), 0.0)
            + (requests - failed) * (np.log1p(-rate * policy.max_error_rate) - np.log1p(-policy.max_error_rate))
            for rate in SAFE_RATES.tolist()
        ]
    )
    safety = np.logaddexp(absolute, relative) - np.log(2.0)
    failing = np.cumsum(seen.heard_canary > 0, axis=1).astype(np.float64)
    return Course(errors, latency, split, safety, incident, slow, failing)


def slow_evidence(seen: Traffic, policy: VerdictPolicy = POLICY) -> tuple[Floats, Floats]:
    """That of latency (`alerts.evidence.latency.Pace`), and the canary's requests above the bound that tells most."""
    # All requests exceed the bounds below these, and none those beyond.
    places = [place for place, bound in enumerate(BOUNDS) if bound >= policy.latency_floor_seconds]
    above = len([bound for bound in LATENCY_SECONDS if bound > BOUNDS[-1]])
    runs, seconds = seen.share.shape
    shape = (len(places), runs)
    usual, weights, slow = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    wealth = np.zeros((len(FRACTIONS), *shape))
    taught = np.zeros(runs, dtype=bool)
    asked, exceeded = np.zeros((2, runs)), np.zeros(shape)
    waiting, waiting_slow = np.zeros((2, runs)), np.zeros((2, *shape))
    beyond = np.zeros(runs)
    evidence, telling = np.zeros((runs, seconds)), np.zeros((runs, seconds))
    for second in range(seconds):
        waiting += np.stack([seen.split_canary[:, second], seen.split_stable[:, second]])
        waiting_slow += np.stack([seen.slow_canary[places, :, second], seen.slow_stable[places, :, second]])
        both = (waiting > 0).all(axis=0)
        canary, stable = waiting_slow / np.maximum(waiting, 1.0)[:, None, :]
        bet = both & taught
        cap = np.minimum(np.maximum(usual, LEAST_REQUESTS / np.maximum(waiting[1], 1.0)), 1.0)
        for place, fraction in enumerate(FRACTIONS):
            stake = fraction / (cap * policy.latency_tolerance)
            gain = stake * (np.minimum(canary, MOST / stake) - policy.latency_tolerance * stable)
            parts = np.where(gain < 0.0, np.maximum(np.ceil(stable / cap), 1.0), 1.0)
            wealth[place] += np.where(bet, parts * np.log1p(gain / parts), 0.0)
        slow += np.where(bet, waiting_slow[0], 0.0)
        usual = np.where(both, np.maximum(REMEMBERED * usual, stable), usual)
        learns = both & ~taught
        asked += np.where(learns, waiting, 0.0)
        exceeded += np.where(learns, waiting_slow.sum(axis=0), 0.0)
        waiting, waiting_slow = np.where(both, 0.0, waiting), np.where(both, 0.0, waiting_slow)
        now = learns & (asked.sum(axis=0) >= TEACHING) & (asked[0] >= policy.warm_up_requests)
        if now.any():
            found, idle = bound_weights(exceeded, asked.sum(axis=0), above)
            weights, beyond, taught = np.where(now, found, weights), np.where(now, idle, beyond), taught | now
        shares = np.array(SHARES)[:, None, None]
        by_bound = weights * (shares * np.exp(np.minimum(wealth, 690.0))).sum(axis=0)
        evidence[:, second] = np.where(taught, np.log(np.maximum(by_bound.sum(axis=0) + beyond, 1e-300)), 0.0)
        telling[:, second] = slow[by_bound.argmax(axis=0), np.arange(runs)]
    return evidence, telling


def bound_weights(exceeded: Floats, asked: Floats, above: int) -> tuple[Floats, Floats]:
    """(K, R) the weight of each bound, and (R) that of the bounds above them, which nobody exceeds."""
    shares = np.minimum(exceeded / np.maximum(asked, 1.0), 1.0)
    empty = np.cumsum(shares <= 0.0, axis=0)
    within = empty <= 2
    more = np.clip(2 - empty[-1], 0, above)
    even = 1.0 / (within.sum(axis=0) + more)
    variances = shares * (1.0 - shares)
    total = variances.sum(axis=0)
    share = np.where(total > 0.0, ALIKE, 1.0)
    return share * within * even + (1.0 - share) * variances / np.maximum(total, 1e-300), share * more * even


def slow_requests_as_events(seen: Traffic) -> Floats:
    """What the evidence would be if each slow request were an event of its own (`alerts.evidence.exceedances`)."""
    asked = seen.split_canary + seen.split_stable
    enough = np.cumsum(asked, axis=1) >= WEIGH_AFTER
    parts: list[Floats] = []
    for canary, stable in zip(seen.slow_canary, seen.slow_stable, strict=True):
        parts += mixture(canary, canary + stable, seen.share, SLOWER_RATIOS)
    return np.where(enough, log_mean(parts), 0.0)


def calmness(seen: Traffic, policy: VerdictPolicy) -> tuple[Floats, np.ndarray]:
    """How much each second's failures count as proof of safety (`errors.calm`), and whether an incident is on."""
    shape = seen.share.shape
    share, incident = np.ones(shape), np.zeros(shape, dtype=bool)
    requests, errors = seen.canary + seen.stable, seen.heard_canary + seen.heard_stable
    kept = np.exp(-1.0 / INCIDENT_SECONDS)
    recent_requests, recent_errors, allowance = np.zeros(shape[0]), np.zeros(shape[0]), np.full(shape[0], BURST)

    def beyond(failed: Floats, asked: Floats) -> np.ndarray:
        expected = policy.incident_error_rate * asked
        return np.asarray(failed > expected + 3.0 * np.sqrt(expected) + 1.0)

    for second in range(shape[1]):
        asked, failed = requests[:, second], errors[:, second]
        recent_requests, recent_errors = recent_requests * kept + asked, recent_errors * kept + failed
        on = beyond(recent_errors, recent_requests)
        allowance = allowance + policy.max_error_rate * asked
        part = np.where(on | beyond(failed, asked), 0.0, np.minimum(1.0, allowance / np.maximum(failed, 1.0)))
        share[:, second], incident[:, second] = np.where(failed > 0, part, 1.0), on
        allowance = np.minimum(allowance - np.where(failed > 0, part, 0.0) * failed, BURST)
    return share, incident


def rolled_back(seen: Traffic, found: Course, policy: VerdictPolicy = POLICY) -> np.ndarray:
    """Second of the rollback by run, an hour (or the scenario's length) when never."""
    enough = (np.cumsum(seen.heard_canary, axis=1) >= policy.minimum_errors) & (
        found.failing >= policy.minimum_error_looks
    )
    errors = np.where(enough, found.errors, 0.0)
    latency = np.where(found.slow >= policy.minimum_slow, found.latency, 0.0)
    harm = log_mean([errors, latency], [policy.shares["errors"], policy.shares["latency"]])
    return first((harm >= -np.log(policy.alpha)) & (found.split < -np.log(policy.split_alpha)))


def proved_safe(seen: Traffic, found: Course, policy: VerdictPolicy = POLICY) -> np.ndarray:
    """Second of the advance by run."""
    harm = log_mean([found.errors, found.latency], [policy.shares["errors"], policy.shares["latency"]])
    asked = np.cumsum(seen.canary, axis=1) >= policy.minimum_requests
    safe = (found.safety >= -np.log(policy.beta)) & asked & ~found.incident & (harm < np.log(policy.suspect))
    return first(safe & (found.split < -np.log(policy.split_alpha)))


def proved_by_an_oracle(seen: Traffic, policy: VerdictPolicy = POLICY) -> np.ndarray:
    """Second by run at which one who knows both rates beforehand would have proved safety: the bound for all others.

    The likelihood ratio of the canary's true rate against `max_ratio` times the stable one needs the fewest requests of
    all tests with these risks (Wald & Wolfowitz 1948), and nobody has to learn what it knows.
    """
    requests, failed = np.cumsum(seen.canary, axis=1), np.cumsum(seen.canary_errors, axis=1)
    unsafe = policy.max_ratio * STABLE_RATE
    clean = np.log1p(-STABLE_RATE) - np.log1p(-unsafe)
    evidence = failed * np.log(STABLE_RATE / unsafe) + (requests - failed) * clean
    return first((evidence >= -np.log(policy.beta)) & (requests >= policy.minimum_requests))


def first(over: np.ndarray) -> np.ndarray:
    """The first second that is over, counted from 1; the number of seconds when none is."""
    return np.asarray(np.where(over.any(axis=1), over.argmax(axis=1) + 1, over.shape[1]))


def interval(count: int, of: int) -> str:
    """A share with its 95 % interval (Clopper & Pearson)."""
    low = beta.ppf(0.025, count, of - count + 1) if count else 0.0
    high = beta.ppf(0.975, count + 1, of - count) if count < of else 1.0
    return f"{count} of {of} = {count / of:.2%} (95 %: {low:.2%} to {high:.2%})"


def harmless(canaries: int) -> None:
    """A/A: how many are rolled back, by routing, and what other rules do."""
    rng = np.random.default_rng(2026)
    ends: dict[str, list[np.ndarray]] = {}
    sticky: list[np.ndarray] = []
    for begun in range(0, canaries, CHUNK):
        seen = traffic(rng, min(CHUNK, canaries - begun), Scenario(varied=True))
        found = course(seen)
        sticky.append(seen.sticky)
        ends.setdefault("ours", []).append(rolled_back(seen, found))
        ends.setdefault("split voids", []).append(first(found.split >= -np.log(POLICY.split_alpha)))
        ends.setdefault("ours, requests in place of units", []).append(naive(seen))
        for name, rule in RULES.items():
            ends.setdefault(name, []).append(rule(seen))
    stuck = np.concatenate(sticky)
    print(f"A/A, {canaries} canaries of an hour, looked at each second: rolled back")
    for name, parts in ends.items():
        over = np.concatenate(parts) < HOUR
        by = f"by chance {over[~stuck].mean():.2%}, sticky {over[stuck].mean():.2%}"
        print(f"  {name:<44}{interval(int(over.sum()), len(over))}; {by}")


def stalled(canaries: int) -> None:
    """A/A where requests come in clusters: stalls of one arm, stalls of both, and batches that fail as a whole."""
    rng = np.random.default_rng(12)
    ends: dict[str, list[np.ndarray]] = {}
    for begun in range(0, canaries, CHUNK):
        seen = traffic(rng, min(CHUNK, canaries - begun), Scenario(stalls=True, seconds=HOUR))
        found = course(seen)
        harm = log_mean(
            [found.errors, slow_requests_as_events(seen)], [POLICY.shares["errors"], POLICY.shares["latency"]]
        )
        ends.setdefault("ours", []).append(rolled_back(seen, found))
        ends.setdefault("ours, slow requests as events of their own", []).append(first(harm >= -np.log(POLICY.alpha)))
    print(f"A/A with stalls and failing batches, {canaries} canaries of an hour: rolled back")
    for name, parts in ends.items():
        over = np.concatenate(parts) < HOUR
        print(f"  {name:<44}{interval(int(over.sum()), len(over))}", flush=True)


def naive(seen: Traffic) -> np.ndarray:
    """What the test of errors would do if it counted every failure of a user."""
    total = seen.canary_errors + seen.stable_errors
    return first(log_mean(mixture(seen.canary_errors, total, seen.share, HARM_RATIOS)) >= -np.log(POLICY.alpha))


def times(name: str, scenario: Scenario, runs: int, *, safe: bool = False, rules: bool = False) -> None:
    """How soon a verdict comes: of harm, or of safety, and then what the bound is."""
    rng = np.random.default_rng(7)
    seconds, served, others = [], [], {rule: [] for rule in RULES}  # type: ignore[var-annotated]
    for begun in range(0, runs, CHUNK):
        seen = traffic(rng, min(CHUNK, runs - begun), scenario)
        found = course(seen)
        ends = (proved_safe if safe else rolled_back)(seen, found)
        seconds.append(ends)
        if safe and not scenario.varied and scenario.canary_rate == STABLE_RATE:
            others.setdefault("one who knows both rates", []).append(proved_by_an_oracle(seen))
        served.append(np.cumsum(seen.canary, axis=1)[np.arange(len(ends)), ends - 1])
        for rule in RULES if rules else ():
            others[rule].append(RULES[rule](seen))
    _print(name, np.concatenate(seconds), scenario.seconds, np.concatenate(served))
    for rule, parts in others.items():
        if parts:
            _print(f"    {rule}", np.concatenate(parts), scenario.seconds)


def _print(name: str, seconds: np.ndarray, length: int, served: np.ndarray | None = None) -> None:
    found = seconds < length
    middle, late = np.median(seconds), np.percentile(seconds, 95)
    words = f"median {middle:.0f} s" if middle < length else f"median beyond {length} s"
    words += f", 95 % {late:.0f} s" if late < length else ""
    answers = "" if served is None else f", bad release answered {np.median(served):.0f} requests in the median"
    print(f"  {name:<60}{found.mean():>7.1%} found, {words}{answers}", flush=True)


def labels(runs: int = 1000, most: int = 4000) -> None:
    """Labels until 5 points less accuracy are found, by how much the two versions disagree else."""
    rng = np.random.default_rng(3)
    print("quality, paired shadow, tolerance 1 point, 1 %: labels until found")
    for name, worse, better in (
        ("1 point less (the tolerance)", 0.0175, 0.0075),
        ("5 points less, 6 % of answers differ", 0.055, 0.005),
        ("5 points less, 9 % differ", 0.07, 0.02),
        ("5 points less, 15 % differ", 0.10, 0.05),
        ("10 points less, 14 % differ", 0.12, 0.02),
    ):
        needed = bets(rng.choice([1.0, 0.0, -1.0], p=[worse, 1 - worse - better, better], size=(runs, most)), 0.01)
        found = needed < most
        print(f"  {name:<44}{found.mean():>7.1%} found, median {np.median(needed):.0f} labels")


def live_labels(runs: int = 200, page: int = 20) -> None:
    """The same through what the judge and the shadow step do with the collector's feed: rows by pages, a page a look.

    Two arms have the check's share of the risk (0.2, so that 500 is proof), and labels are those of both arms.
    """
    rng = np.random.default_rng(4)
    policy = VerdictPolicy(loss="zero-one")
    print("quality, the live feed: labels until found, of a stable version that is wrong with 10 %")
    for name, weight, drop, most in (
        ("paired shadow, 5 points less", None, 0.05, 4000),
        ("paired shadow, equal", None, 0.0, 4000),
        ("paired shadow, 1 point less (the tolerance)", None, 0.01, 4000),
        ("canary of 50 %, 5 points less", 0.5, 0.05, 20_000),
        ("canary of 10 %, 5 points less", 0.1, 0.05, 20_000),
        ("canary of 10 %, equal", 0.1, 0.0, 20_000),
    ):
        proof = math.log(100.0 if weight is None else 100.0 / policy.shares[Check.QUALITY])
        needed = np.array([_read(rng, policy, weight, drop, most, page, proof) for _ in range(runs)])
        found, middle = needed < math.inf, np.median(needed)
        words = f"median {middle:.0f}, 95 % {np.percentile(needed, 95, method='lower'):.0f} labels"
        print(f"  {name:<46}{found.mean():>7.1%} found" + (f", {words}" if math.isfinite(middle) else ""), flush=True)


def _read(
    rng: np.random.Generator,
    policy: VerdictPolicy,
    weight: float | None,
    drop: float,
    most: int,
    page: int,
    proof: float,
) -> float:
    """Labels that were read when harm was proved, infinite where it was not. Of pairs 0.5 % are better by chance."""
    quality, number = Quality.begun(policy, of_pairs=weight is None), 0
    assert quality is not None
    while number < most:
        rows = []
        for _ in range(page):
            number += 1
            at = float(rng.random())
            if weight is None:
                ours, other = float(at < drop + 0.005), float(drop + 0.005 <= at < drop + 0.01)
                rows.append(FeedRow(number, "2", "shadow", None, ours, 0.0, other))
            else:
                canary = bool(rng.random() < weight)
                wrong = float(at < 0.1 + drop * canary)
                share = weight if canary else 1 - weight
                rows.append(FeedRow(number, "2" if canary else "1", "?", share, wrong, 0.0, None))
        quality = quality.after(FeedPage(rows, number).labelled("2"))
        if quality.log_harm >= proof:
            return number
    return math.inf


def bets(differences: Floats, tolerance: float) -> np.ndarray:
    """Labels until `quality.Bet` reaches 100, by run."""
    runs, most = differences.shape
    total, squares, wealth = np.zeros(runs), np.zeros(runs), np.zeros(runs)
    over = np.zeros((runs, most), dtype=bool)
    for count in range(most):
        excess = (total - count * tolerance) / (count + 1)
        mean = excess + tolerance
        variance = (0.32**2 + squares - 2 * mean * total + count * mean * mean) / (count + 1)
        stake = np.clip(excess / (np.maximum(variance, 1e-12) + excess * excess), 0.0, 0.5 / (tolerance + 1.0))
        wealth += np.log1p(stake * (differences[:, count] - tolerance))
        total, squares = total + differences[:, count], squares + differences[:, count] ** 2
        over[:, count] = wealth >= np.log(100.0)
    return first(over)


def main(canaries: int = 10_000) -> None:
    """Print all of it."""
    began, cpu = time.perf_counter(), time.process_time()
    print("how soon, at 100 requests a second, 10 % of them on the canary, stable failing at 0.5 %")
    times("5 % fail", Scenario(canary_rate=0.05, seconds=2400), 1000, rules=True)
    times("20 % fail", Scenario(canary_rate=0.2, seconds=120), 400)
    times("2 % fail", Scenario(canary_rate=0.02, seconds=600), 400)
    times("latency x 1.2", Scenario(slower=1.2, seconds=1200), 400, rules=True)
    times("latency x 2", Scenario(slower=2.0, seconds=120), 400)
    times("2 % of requests + 500 ms", Scenario(tail_share=0.02, seconds=300), 400, rules=True)
    times("healthy: proved safe", Scenario(seconds=1200), 600, safe=True)
    times("healthy, ramp of 20 min: proved safe", Scenario(ramp_seconds=1200, seconds=1200), 600, safe=True)
    times("fails at twice 0.5 %: proved safe (wrongly)", Scenario(canary_rate=0.01), 600, safe=True)
    hidden = Scenario(canary_rate=0.01, incident_from=30, seconds=900)
    times("the same, 30 % of both fail from 30 s on (wrongly)", hidden, 600, safe=True)
    labels()
    live_labels()
    stalled(max(canaries // 10, CHUNK))
    harmless(canaries)
    print(f"{time.perf_counter() - began:.0f} s, {time.process_time() - cpu:.0f} s of processor time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("canaries", type=int, nargs="?", default=10_000, help="hours of harmless canaries (10,000)")
    main(parser.parse_args().canaries)
