"""Confidence intervals of scores: normal, on the logit scale, of a proportion, and of what is a function of one."""

from __future__ import annotations

import math
from statistics import NormalDist


def normal_quantile(confidence: float) -> float:
    """The two-sided normal quantile: 1.96 for a confidence of 0.95. Raises ValueError outside (0, 1)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: it must be in (0, 1)")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def normal_interval(value: float, error: float, z: float) -> tuple[float, float]:
    """value ± z standard errors."""
    return value - z * error, value + z * error


def logit_interval(value: float, error: float, z: float) -> tuple[float, float]:
    """value ± z standard errors on the logit scale, for a value in (0, 1): it never leaves (0, 1).

    Source: the delta method; for ROC AUC, Qin & Hotilovac 2008 (it covers better than the plain interval near 1).
    """
    if not 0 < value < 1 or not math.isfinite(error):
        return math.nan, math.nan
    centre, half = math.log(value / (1 - value)), z * error / (value * (1 - value))
    return _expit(centre - half), _expit(centre + half)


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def wilson_interval(successes: float, rows: float, z: float) -> tuple[float, float]:
    """The interval of a proportion (Wilson 1927); NaN without rows."""
    if rows <= 0:
        return math.nan, math.nan
    share = successes / rows
    scale = 1 + z * z / rows
    centre = (share + z * z / (2 * rows)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    # At 0 and 1 the interval ends there; rounding must not leave the share itself outside.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def f1_interval(true_positive: float, wrong: float, z: float) -> tuple[float, float]:
    """The interval of F1 = 2q / (1 + q), where q = TP / (TP + FP + FN) is a proportion and F1 grows with it."""
    low, high = wilson_interval(true_positive, true_positive + wrong, z)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def area_interval(area: float, positives: int, negatives: int, z: float) -> tuple[float, float]:
    """The interval of a ROC AUC from the area and the class sizes alone, for the areas that DeLong's variance fails.

    All areas that lie within z standard errors of the observed one, the error being that of the area itself under
    exponential scores (Hanley & McNeil 1982, made symmetric as in Newcombe 2006, method 5).
    """
    if positives < 1 or negatives < 1:
        return math.nan, math.nan
    typical = (positives + negatives) / 2 - 1

    def error(a: float) -> float:
        weight = (1 - a) / (2 - a) + a / (1 + a)
        return math.sqrt(max(0.0, a * (1 - a) * (1 + typical * weight) / (positives * negatives)))

    def bound(limit: float) -> float:
        inside, outside = area, limit
        for _ in range(60):
            middle = (inside + outside) / 2
            if abs(middle - area) <= z * error(middle):
                inside = middle
            else:
                outside = middle
        return inside

    return bound(0.0), bound(1.0)
