"""Count, mean, squared deviations and range of numbers, merged block by block."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from observability.cells import Floats

# Dot products of more elements may start threads, which cost more than they bring here.
_DOT = 8_192
# The mean lies this many deviations from zero before the sum of squares loses digits that matter (1e-12).
_OFFSET = 1e3
_ONES = np.ones(_DOT)


class Moments:
    """Count, mean, squared deviations and range of finite numbers, merged block by block.

    Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    __slots__ = ("count", "m2", "maximum", "mean", "minimum")

    def __init__(self) -> None:
        self.count, self.mean, self.m2 = 0, 0.0, 0.0
        self.minimum, self.maximum = math.inf, -math.inf

    def add(self, finite: Floats, sums: tuple[float, float] | None = None) -> None:
        """Adds the values of one block, at least one, and their sums if known; their range is left to the caller."""
        self.merge(len(finite), *moments(finite, sums))

    def merge(self, size: int, mean: float, m2: float) -> None:
        """Adds a block of `size` values, at least one, of that mean and sum of squared deviations from it."""
        total = self.count + size
        delta = mean - self.mean
        share = size / total
        self.m2 += m2 + (delta * delta * self.count * share if self.count else 0.0)
        self.mean = self.mean * (1.0 - share) + mean * share if self.count else mean
        self.count = total


def moments(finite: Floats, sums: tuple[float, float] | None = None) -> tuple[float, float]:
    """The mean of at least one finite value and the sum of squared deviations from it.

    The sums are plain where the mean is not far from zero in deviations, else they are taken about the mean. A mean
    is finite also where the sum overflows; squares that overflow give infinity.
    """
    size = len(finite)
    total, squares = sums or sums_of(finite)
    mean = total / size
    m2 = squares - total * mean
    if squares < math.inf and squares <= _OFFSET * m2:
        return mean, m2
    if not math.isfinite(mean):
        mean = float((finite / size).sum())
    deviations = finite - mean
    rest, squares = sums_of(deviations)
    return deviations_corrected(size, mean, rest, squares)


def sums_of(values: Floats, rounded: NDArray[np.float32] | None = None) -> tuple[float, float]:
    """The sum and the sum of squares; writes the values into `rounded` on the way."""
    total = squares = 0.0
    for start in range(0, len(values), _DOT):
        part = values[start : start + _DOT]
        total += float(np.dot(part, _ONES[: len(part)]))
        squares += float(np.dot(part, part))
        if rounded is not None:
            np.copyto(rounded[start : start + _DOT], part, casting="unsafe")
    return total, squares


def deviations_corrected(size: int, mean: float, rest: float, squares: float) -> tuple[float, float]:
    """Mean and squared deviations from sums about a mean that was rounded: Björck's two-pass formula."""
    m2 = max(squares - rest * rest / size, 0.0) if math.isfinite(squares) else math.inf
    return mean + rest / size if math.isfinite(rest) else mean, m2
