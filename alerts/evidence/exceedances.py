"""Requests above each bound of a histogram, and e-processes that take each of them for an event of its own.

"Slower than a bound" is an event like a failure, so `alerts.evidence.segments` says what it shows; the mean over the
bounds is an e-process however they depend on each other. After Howard & Ramdas, "Sequential estimation of quantiles",
Bernoulli 28(3), 2022, section on exceedances.

It holds while the requests are independent given their arm. Those of a live server are not: a stall of 50 ms hits all
requests of a batch at once, and so of one arm. Verdicts rest on `alerts.evidence.latency`, which needs no such thing;
what is here explains, by bound, and makes the verdicts again that older journals hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np

from alerts.evidence.segments import Bets, Floats, Segment, log_mixture, log_ratio_safety

# Ratios that the mixture bets on: a bound that one request in ten exceeds can be exceeded ten times as often at most.
SLOWER_RATIOS: Floats = np.array([1.2, 1.5, 2.0, 4.0, 12.0])
# Requests of both arms after which the bounds get their weights.
WEIGH_AFTER = 200.0
# What of the weight all bounds have alike: a new tail shows where nobody was before.
_ALIKE = 0.3


class Slow(msgspec.Struct, frozen=True):
    """Requests of both arms above each bound while the router used one probability; in the bounds' order.

    `canary_requests` and `stable_requests` are all of them, 0 where nobody has counted them.
    """

    propensity: float
    canary: tuple[float, ...]
    stable: tuple[float, ...]
    canary_requests: float = 0.0
    stable_requests: float = 0.0

    def __post_init__(self) -> None:
        if len(self.canary) != len(self.stable):
            raise ValueError(f"the arms have {len(self.canary)} and {len(self.stable)} bounds; they must be the same")
        if not 0.0 <= self.propensity <= 1.0:
            raise ValueError(f"propensity is a probability, got {self.propensity}")

    def plus(self, other: Slow) -> Slow:
        """With further requests of the same probability and the same bounds."""
        return Slow(
            self.propensity,
            tuple(a + b for a, b in zip(self.canary, other.canary, strict=True)),
            tuple(a + b for a, b in zip(self.stable, other.stable, strict=True)),
            self.canary_requests + other.canary_requests,
            self.stable_requests + other.stable_requests,
        )


class Slowness(msgspec.Struct, frozen=True):
    """Log e-value that the canary is slower, and the place of the bound that speaks for it most (-1 without any)."""

    log_evidence: float
    bound: int


def exceedances(cumulative: Sequence[float]) -> tuple[float, ...]:
    """Requests above each bound, of a histogram's cumulative counts by `le`, the last of which is all (`+Inf`)."""
    return tuple(cumulative[-1] - below for below in cumulative[:-1])


def weights_of(slow: Sequence[Slow], requests: float) -> tuple[float, ...]:
    """What each bound gets of the bet, given the requests of both arms so far: most where the answers are.

    In proportion to the variance of "slower than the bound" over both arms, besides a part that all have alike. Only
    sums over the arms go in. If the arms answer alike, these say nothing on whose a request is; so weights that are set
    once, from sums, and nothing concluded before that, leave an e-process.
    """
    bounds = range(len(slow[0].canary))
    above = [min(sum([part.canary[k] + part.stable[k] for part in slow]) / requests, 1.0) for k in bounds]
    variances = [share * (1.0 - share) for share in above]
    total = math.fsum(variances)
    if not total:
        return (1.0 / len(above),) * len(above)
    return tuple(_ALIKE / len(above) + (1.0 - _ALIKE) * variance / total for variance in variances)


def slowness(
    slow: Sequence[Slow],
    grid: Floats = SLOWER_RATIOS,
    tolerance: float = 1.0,
    weights: tuple[float, ...] | None = None,
) -> Slowness:
    """Evidence against "at every bound, the canary exceeds it at most `tolerance` times as often as the stable one".

    The mean over all bounds, weighted if there are weights, and over the ratios `grid` times `tolerance`.
    """
    informative = [part for part in slow if 0.0 < part.propensity < 1.0]
    if not informative or not informative[0].canary:
        return Slowness(0.0, -1)
    slopes, normalizers = _arrays(Bets.of(grid, tolerance), tuple([part.propensity for part in informative]))
    counts = np.array([(part.canary, part.stable) for part in informative])
    canary = counts[:, 0].sum(axis=0)
    total = counts.sum(axis=1)
    values = canary[:, None] * slopes
    for events, norms in zip(total, normalizers, strict=True):
        values -= events[:, None] * norms
    highest = float(values.max())
    values -= highest
    shares = np.exp(values, out=values).sum(axis=1)
    shares *= 1.0 / len(shares) if weights is None else np.array(weights)
    return Slowness(highest + math.log(float(shares.sum()) / len(slopes)), int(shares.argmax()))


def log_not_slower(slow: Sequence[Slow], bound: int, max_ratio: float) -> float:
    """Log e-value against "the canary exceeds the bound at place `bound` at `max_ratio` times the stable rate or more".

    For a bound that matters, such as that of a latency objective.
    """
    segments = [Segment(p.propensity, p.canary[bound], p.canary[bound] + p.stable[bound]) for p in slow]
    return log_ratio_safety(segments, max_ratio)


def log_by_bound(slow: Sequence[Slow], grid: Floats = SLOWER_RATIOS, tolerance: float = 1.0) -> list[float]:
    """The log e-value of each bound alone, for whoever asks where the canary is slower."""
    bets = Bets.of(grid, tolerance)
    bounds = range(len(slow[0].canary) if slow else 0)
    return [
        log_mixture([(p.propensity, p.canary[place], p.canary[place] + p.stable[place]) for p in slow], bets)
        for place in bounds
    ]


@lru_cache(maxsize=256)
def _arrays(bets: Bets, propensities: tuple[float, ...]) -> tuple[Floats, tuple[Floats, ...]]:
    """The slopes, and the normalizers by propensity, as arrays of the bets."""
    return np.array(bets.slopes), tuple(np.array(bets.normalizers(propensity)) for propensity in propensities)
