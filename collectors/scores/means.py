"""Score, and means with their intervals from exact sums."""

from __future__ import annotations

import math
from dataclasses import dataclass

from collectors.scores.exact import UNIT_EXPONENT, exact_mean
from collectors.scores.intervals import normal_interval, student_quantile


@dataclass(frozen=True, slots=True)
class Score:
    """A score with its confidence interval, and how far at most the value is from that of the rows themselves."""

    value: float
    low: float
    high: float
    error: float = 0.0


def mean_score(total: int, squares: int, rows: int, z: float) -> Score:
    """A mean from exact sums of values and of their squares, with Student's interval; NaN with one row."""
    mean, variance = mean_and_variance(total, squares, rows)
    if rows < 2:
        return Score(mean, math.nan, math.nan)
    return Score(mean, *normal_interval(mean, math.sqrt(variance), student_quantile(z, rows - 1)))


def mean_and_variance(total: int, squares: int, rows: int) -> tuple[float, float]:
    """A mean and its variance (NaN with one row), from exact sums of values and of their squares."""
    mean = exact_mean(total, rows)
    if rows < 2:
        return mean, math.nan
    # In whole numbers, so that nothing cancels: rows * squares - total * total, in units of 2**-2148 and rows**2.
    spread = rows * (squares << UNIT_EXPONENT) - total * total
    return mean, max(0.0, exact_mean(spread >> UNIT_EXPONENT, rows * (rows - 1))) / rows
