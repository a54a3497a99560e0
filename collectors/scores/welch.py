"""Welch's test of many groups of rows against the rest, from their sums, and which differences are worth telling."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from collectors.drift.laws import normal_sf

Floats = npt.NDArray[np.float64]

# Rows (or a difference), sums (or a statistic), sums of squares (or degrees of freedom) of several slices.
Moments: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]


def welch(inside: Moments, outside: Moments) -> Moments:
    """Difference of means, Welch's t and its degrees of freedom, from rows, sums and sums of squares of either side.

    A slice's sum of squares counts one row of the whole's variance more: otherwise a slice whose errors are all alike
    would be infinitely certain.
    """
    (n, sums, squares), (m, others, other_squares) = inside, outside
    mean, rest = sums / n, others / m
    whole = np.maximum((squares + other_squares) / (n + m) - ((sums + others) / (n + m)) ** 2, 0.0)
    a = (np.maximum(squares - n * mean * mean, 0.0) + whole) / n / (n - 1)
    b = np.maximum(other_squares / m - rest * rest, 0.0) / (m - 1)
    difference = mean - rest
    t = np.divide(difference, np.sqrt(a + b), out=np.zeros_like(difference), where=a + b > 0)
    degrees = np.divide((a + b) ** 2, a * a / (n - 1) + b * b / (m - 1), out=np.ones_like(a), where=a + b > 0)
    return difference, t, np.maximum(degrees, 1.0)


def p_values(t: Floats, degrees: Floats, one_sided: bool) -> Floats:
    """The upper (or both) tails of Student's t through the normal law (Wallace 1959: within 1 % for 30 degrees on)."""
    size = np.sqrt(degrees * np.log1p(t * t / degrees)) * (8 * degrees + 1) / (8 * degrees + 3)
    if one_sided:
        return normal_sf(np.copysign(size, t))
    return np.minimum(1.0, 2 * normal_sf(size))


def worth(
    effects: Floats, rests: Floats | float, deviation: float, min_effect: float, min_ratio: float, one_sided: bool
) -> npt.NDArray[np.bool_]:
    """Which effects are worth telling: in deviations, or as a ratio to the rest (never, where that is infinite)."""
    if not one_sided:
        return np.abs(effects) >= min_effect
    sized = effects >= min_effect
    if math.isinf(min_ratio):
        return sized
    return sized | ((effects > 0) & (effects * deviation >= (min_ratio - 1) * rests))
