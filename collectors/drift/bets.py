"""The e-values that a change detector multiplies: bets against "the mean is still what it was", by kind of stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from collectors.drift.shiryaev_roberts import Floats, Integers

# Jeffreys' prior of a rate: so many successes and failures are taken as seen before the first sample.
PRIOR = 0.5
# Unbounded e-values are mixed with this share of doing nothing, so that one of 0 is not final.
IDLE = 2.0**-10
# A studentised residual beyond this tells nothing more.
FARTHEST = 1e8


@dataclass(frozen=True, slots=True)
class Seen:
    """What C streams have shown since they began: (C,) arrays. `shift` is the first value, `squares` are about it."""

    count: Integers
    total: Floats
    squares: Floats
    shift: Floats

    @classmethod
    def nothing(cls, streams: int) -> Seen:
        """Before the first sample."""
        return cls(np.zeros(streams, np.int64), np.zeros(streams), np.zeros(streams), np.zeros(streams))

    def of(self, streams: slice) -> Seen:
        """Some of the streams."""
        return Seen(self.count[streams], self.total[streams], self.squares[streams], self.shift[streams])

    def put(self, streams: slice, other: Seen) -> None:
        """Write some of the streams in place."""
        self.count[streams], self.total[streams] = other.count, other.total
        self.squares[streams], self.shift[streams] = other.squares, other.shift


def prefix_sums(start: Floats, values: Floats) -> Floats:
    """(C, t + 1): the sum before each sample, and after the last; goes on from `start`: chunks leave no trace."""
    sums = np.empty((values.shape[0], values.shape[1] + 1))
    sums[:, 0] = start
    sums[:, 1:] = values
    return np.add.accumulate(sums, axis=1, out=sums)


def bounded(values: Floats, means: Floats, ratios: Floats) -> Floats:
    """E-values (J, C, t) of values in [0, 1] against the means (C, t) or (C, 1), by odds ratio of the alternative (J,).

    `(1 + (r − 1) x) / (1 + (r − 1) m)`: for 0 and 1 the likelihood ratio of the rate whose odds are r times those of m,
    and for any value in [0, 1] a bet whose expectation is 1 when the mean is m, less when r > 1 and the mean is less
    (Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting").
    """
    excess = (ratios - 1.0)[:, None, None]
    return (1.0 + excess * values) / (1.0 + excess * means)


def learned_means(before: Floats, counts: Integers) -> Floats:
    """Predictive mean before each sample, given the sum and the number of those before: Beta–Bernoulli."""
    return (before + PRIOR) / (counts + 2 * PRIOR)


def known_normal(values: Floats, means: Floats, deviations: Floats, shifts: Floats) -> Floats:
    """Likelihood ratios (J, C, t) of a shift by so many deviations; the means and deviations (C,) are known."""
    standard = (values - means[:, None]) / deviations[:, None]
    steps = shifts[:, None, None]
    evalues: Floats = np.exp(np.clip(steps * standard - steps * steps / 2, -700.0, 700.0))
    return evalues


def learned_normal(values: Floats, totals: Floats, squares: Floats, counts: Integers, shifts: Floats) -> Floats:
    """E-values (J, C, t) of a shift by so many deviations of normal values whose mean and deviation are unknown.

    `totals` and `squares` (C, t) are sums over the samples before each, about the stream's first value, as `values`
    are. With n samples before it, `u = (x − mean) / (s √(1 + 1/n))` has Student's law with n − 1 degrees whatever the
    mean and the deviation, independently of all earlier u (Basu's theorem), so that the ratio of that law shifted by
    the alternative and itself is an exact e-value. 1 for the first two samples, which have no deviation.
    """
    n = np.maximum(counts, 2).astype(np.float64)
    degrees = n - 1.0
    mean = totals / n
    variance = np.maximum(squares / n - mean * mean, 0.0) * (n / degrees) * (1.0 + 1.0 / n)
    off = values - mean
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.where(off == 0, 0.0, off / np.sqrt(variance))
    u = np.clip(u, -FARTHEST, FARTHEST)
    own = np.log1p(u * u / degrees)
    moved = u - shifts[:, None, None]
    logs = (own - np.log1p(moved * moved / degrees)) * ((degrees + 1.0) / 2)
    evalues: Floats = np.where(counts < 2, 1.0, np.exp(np.clip(logs, -700.0, 700.0)))
    return evalues


def tamed(evalues: Floats, cap: float) -> Floats:
    """At most `cap` and never quite 0: still e-values, within the range that running products can bear."""
    return IDLE + (1.0 - IDLE) * np.minimum(evalues, cap)
