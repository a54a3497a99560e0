"""How well one normal segment explains the samples since each possible change: a level, or a level with a trend."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from collectors.drift.shiryaev_roberts import Floats, Integers

# Variance below this share of the mean square is rounding.
ROUNDING = 1e-12
SMALLEST = 1e-200


@dataclass(slots=True)
class LogGammas:
    """`ln Γ(shape + n / 2)` for n = 0, 1, …: looked up, computed once each."""

    shape: float
    _values: list[float] = field(default_factory=list)

    def __call__(self, counts: Integers) -> Floats:
        """For an array of counts."""
        for n in range(len(self._values), int(counts.max()) + 1):
            self._values.append(math.lgamma(self.shape + n / 2))
        return np.array(self._values)[counts]


@dataclass(slots=True)
class Segments:
    """Sums over the samples since each of S possible changes, in D dimensions: counts (S,), the others (S, D).

    `moments` are of the sample's number in its segment (from 0) times its value.
    """

    counts: Integers
    totals: Floats
    squares: Floats
    moments: Floats

    @classmethod
    def none(cls, dimensions: int) -> Segments:
        """No possible change yet."""
        empty = np.empty((0, dimensions))
        return cls(np.empty(0, np.int64), empty, empty, empty)

    def begun(self) -> Segments:
        """With one more, empty, at the end."""
        zero = np.zeros((1, self.totals.shape[1]))
        return Segments(
            np.append(self.counts, 0),
            np.concatenate([self.totals, zero]),
            np.concatenate([self.squares, zero]),
            np.concatenate([self.moments, zero]),
        )

    def add(self, sample: Floats) -> None:
        """The next sample (D,), in all of them."""
        self.totals += sample
        self.squares += sample * sample
        self.moments += self.counts[:, None] * sample
        self.counts += 1

    def kept(self, mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Segments:
        """Those that the mask says."""
        return Segments(self.counts[mask], self.totals[mask], self.squares[mask], self.moments[mask])


def log_evidence(
    segments: Segments, mean: Floats, variance: Floats, strength: float, shape: float, trend: float, gammas: LogGammas
) -> Floats:
    """Logarithm of the marginal likelihood of each segment (S,), the sum over independent dimensions.

    Normal samples with a normal–inverse-gamma prior: mean about `mean` (D,), worth `strength` samples, and variance
    inverse-gamma with `shape` and scale `shape · variance` (Murphy 2007, "Conjugate Bayesian analysis of the Gaussian
    distribution", section 3). With probability `trend` the level has a slope besides, under a g-prior (Zellner 1986) of
    the same strength: then the residual sum of squares falls by what the slope explains. A slope needs three samples.
    """
    n = segments.counts[:, None].astype(np.float64)
    average = segments.totals / n
    within = np.maximum(segments.squares - segments.totals * average, 0.0)
    scale = shape * variance
    strengthened = strength + n
    rest = scale + within / 2 + strength * n * (average - mean) ** 2 / (2 * strengthened)
    shrink = np.log(strength / strengthened) / 2
    constant = gammas(segments.counts)[:, None] - math.lgamma(shape) - n / 2 * math.log(2 * math.pi)
    constant = constant + shape * np.log(scale) + shrink
    level = constant - (shape + n / 2) * np.log(rest)
    if trend:
        spread = np.maximum(n * (n * n - 1) / 12, 1.0)
        covariation = segments.moments - (n - 1) / 2 * segments.totals
        explained = np.where(n > 2, covariation * covariation / spread, 0.0) * n / strengthened / 2
        explained = np.minimum(explained, within / 2)
        sloped = constant + shrink - (shape + n / 2) * np.log(rest - explained)
        level = np.logaddexp(level + math.log(1 - trend), sloped + math.log(trend))
    total: Floats = level.sum(axis=1)
    return total


def pooled(count: int, totals: Floats, squares: Floats) -> tuple[Floats, Floats]:
    """Mean and variance of all samples so far, by dimension; the variance is never quite 0."""
    mean = totals / count
    square = squares / count
    return mean, np.maximum(square - mean * mean, np.maximum(ROUNDING * square, SMALLEST))
