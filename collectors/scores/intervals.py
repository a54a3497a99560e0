"""Confidence intervals of scores: of means, of areas, of a proportion, and of what is a function of one.

How often they hold the truth, and where less often than they say, is measured by `benchmarks/intervals.py`.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from collectors.drift.laws import chi2_isf, normal_sf

Interval = tuple[float, float]

# From this shape on the cube-root approximation of a gamma quantile is off by less than 1e-4 of it.
_LARGE_SHAPE = 100.0


def normal_quantile(confidence: float) -> float:
    """The two-sided normal quantile: 1.96 for a confidence of 0.95. Raises ValueError outside (0, 1)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: it must be in (0, 1)")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def student_quantile(z: float, degrees: float) -> float:
    """The quantile of Student's t at the probability of the normal quantile z > 0 (Wallace 1959, turned round).

    Within 1 % from 4 degrees of freedom on, 7 % too large for 1; fewer than 1 count as 1.
    """
    degrees = max(degrees, 1.0)
    exponent = (z * (8 * degrees + 3) / (8 * degrees + 1)) ** 2 / degrees
    return math.sqrt(degrees * math.expm1(exponent))


def normal_interval(value: float, error: float, z: float) -> Interval:
    """value ± z standard errors."""
    return value - z * error, value + z * error


def logit_interval(value: float, error: float, z: float) -> Interval:
    """value ± z standard errors on the logit scale, for a value in (0, 1): it never leaves (0, 1).

    Source: the delta method; for ROC AUC, Qin & Hotilovac 2008 (it covers better than the plain interval near 1).
    """
    if not 0 < value < 1 or not math.isfinite(error):
        return math.nan, math.nan
    centre, half = math.log(value / (1 - value)), z * error / (value * (1 - value))
    return _expit(centre - half), _expit(centre + half)


def log_interval(value: float, error: float, t: float) -> Interval:
    """value ± t standard errors on the log scale, for a value above 0; (value, value) at 0."""
    if not value > 0:
        return (value, value) if value == 0 else (math.nan, math.nan)
    factor = math.exp(min(t * error / value, 700.0))
    return value / factor, value * factor


def rare_interval(mean: float, variance: float, event: float, z: float) -> Interval:
    """The interval of a mean of values from 0 on, most of which is made by few rows: a log loss, a squared error.

    Gamma quantiles of the mean and its variance, the upper ones with one `event` more: what the next rare row would
    add to the mean. Source: Fay & Feuer 1997 (rates from weighted counts; here the variance is the sample's own), the
    event being a typical one as in Tiwari, Clegg & Zou 2006.
    """
    tail = float(normal_sf(z))
    low = _gamma_quantile(1 - tail, mean, variance)
    high = _gamma_quantile(tail, mean + event, variance + event * event)
    return min(mean, low), max(mean, high)


def _gamma_quantile(tail: float, mean: float, variance: float) -> float:
    """The value that a gamma variable of a mean and variance exceeds with probability `tail`."""
    if not (mean > 0 and variance > 0):
        return mean
    shape, scale = mean * mean / variance, variance / mean
    if shape < _LARGE_SHAPE:
        return float(chi2_isf(tail, 2 * shape)) * scale / 2
    third = 1 / (9 * shape)  # Wilson & Hilferty 1931
    return mean * (1 - third - math.sqrt(third) * NormalDist().inv_cdf(tail)) ** 3


def few_interval(value: float, error: float, least_rows: int, other: Interval, z: float) -> Interval:
    """The interval of an area in (0, 1), wider where few rows decide: on the logit scale, by z and by Student's t.

    The degrees of freedom are those of a chi-square with the relative error of what is missing to 0 or 1
    (Satterthwaite 1946), and `least_rows` less one, the rows of the smaller class. That t may be far too wide, so
    it goes no further than the `other` interval, one from the area and the class sizes alone.
    """
    low, high = logit_interval(value, error, z)
    if math.isnan(low) or not error > 0:
        return other
    degrees = min((min(value, 1 - value) / error) ** 2, least_rows - 1)
    far_low, far_high = logit_interval(value, error, student_quantile(z, degrees))
    return min(low, max(far_low, other[0])), max(high, min(far_high, other[1]))


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def wilson_interval(successes: float, rows: float, z: float) -> Interval:
    """The interval of a proportion (Wilson 1927); NaN without rows."""
    if rows <= 0:
        return math.nan, math.nan
    share = successes / rows
    scale = 1 + z * z / rows
    centre = (share + z * z / (2 * rows)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    # At 0 and 1 the interval ends there; rounding must not leave the share itself outside.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def f1_interval(true_positive: float, wrong: float, z: float) -> Interval:
    """The interval of F1 = 2q / (1 + q), where q = TP / (TP + FP + FN) is a proportion and F1 grows with it."""
    low, high = wilson_interval(true_positive, true_positive + wrong, z)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def area_interval(area: float, positives: int, negatives: int, z: float) -> Interval:
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
