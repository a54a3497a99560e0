"""Evidently's own choice of test and threshold, and its own scores, without Evidently.

Follows `evidently` 0.7.23: `legacy/calculations/stattests/registry.py` (`_get_default_stattest`) chooses by the
column's type, the rows of the reference and the number of distinct values of both tables together; missing and infinite
values are dropped first, and only then are rows counted:

| reference rows | column | distinct values | test | drift |
|---|---|---|---|---|
| up to 1,000 | numeric | more than 5 | Kolmogorov–Smirnov | p ≤ 0.05 |
| up to 1,000 | numeric, categorical | 3 to 5; more than 2 | chi-square against the reference's counts | p < 0.05 |
| up to 1,000 | numeric, categorical | at most 2 | z test of the proportions | p < 0.05 |
| above 1,000 | numeric | more than 5 | Wasserstein-1 / max(sd of the reference, 0.001) | ≥ 0.1 |
| above 1,000 | numeric, categorical | at most 5; any | Jensen–Shannon distance, natural logarithm | ≥ 0.1 |

The tables have drifted when at least half of the columns have. A truth value is a category, an integer a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from collectors.drift.bins import Counts, Floats
from collectors.drift.comparison import Sides
from collectors.drift.exact import Counted, Ordered, distinct_up_to, per_value
from collectors.drift.laws import chi2_sf, normal_cdf
from collectors.drift.rows import ks_rows
from collectors.drift.verdict import Verdict

SMALL_REFERENCE = 1000
FEW_VALUES = 5
FEW_BINNED = 20
ALPHA = 0.05
DISTANCE = 0.1
DRIFT_SHARE = 0.5
_BLOCK = 1 << 16
# Evidently's unit of a column that hardly varies.
LEAST_DEVIATION = 0.001

KS, CHI_SQUARE, Z = "K-S p_value", "chi-square p_value", "Z-test p_value"
WASSERSTEIN, JENSEN_SHANNON = "Wasserstein distance (normed)", "Jensen-Shannon distance"


@dataclass(frozen=True, slots=True)
class Binned:
    """PSI, Jensen–Shannon and Hellinger distance as Evidently bins a column."""

    psi: float
    js_distance: float
    hellinger: float


def evidently_numeric(
    pair: Sides[Ordered],
    distance: float,
    deviation: float,
    threshold: float | None = None,
    *,
    kind: type[np.floating[Any]] = np.float64,
) -> Verdict:
    """Evidently's default verdict on numbers; both sides have values.

    `distance` is their Wasserstein distance, `deviation` the reference's (population) standard deviation,
    `kind` the type of its values where they are floating-point numbers: pandas gives their variance in it.
    """
    before, now = pair.reference.values, pair.current.values
    distinct = distinct_up_to(before, now, FEW_VALUES)
    if kind is not np.float64:
        deviation = float(np.sqrt(kind(deviation * deviation)))
    if len(before) <= SMALL_REFERENCE:
        if distinct > FEW_VALUES:
            p = ks_rows(before, now).pvalue
            alpha = ALPHA if threshold is None else threshold
            return Verdict(KS, p, alpha, p <= alpha, p)
        return _few_values(per_value(pair).reference, per_value(pair).current, threshold)
    limit = DISTANCE if threshold is None else threshold
    if distinct > FEW_VALUES:
        return Verdict.of_distance(WASSERSTEIN, distance / max(deviation, LEAST_DEVIATION), limit)
    counts = per_value(pair)
    return Verdict.of_distance(JENSEN_SHANNON, _jensen_shannon(counts.reference, counts.current), limit)


def evidently_categorical(found: Counted, threshold: float | None = None) -> Verdict:
    """Evidently's default verdict on categories; both sides have values."""
    before, now = found.counts.reference, found.counts.current
    if before.sum() <= SMALL_REFERENCE:
        return _few_values(before, now, threshold)
    limit = DISTANCE if threshold is None else threshold
    return Verdict.of_distance(JENSEN_SHANNON, _jensen_shannon(before, now), limit)


def evidently_bins(pair: Sides[Ordered], integers: bool) -> Binned:
    """PSI, JS and Hellinger over Evidently's bins: equal widths over the combined range (Sturges), or each value.

    `integers`: both columns are of an integer type without nulls, for which numpy makes no bin narrower than 1.
    """
    before, now = pair.reference.values, pair.current.values
    low, high = min(before[0], now[0]), max(before[-1], now[-1])
    if distinct_up_to(before, before[:0], FEW_BINNED) > FEW_BINNED:
        edges = sturges_edges(low, high, len(before) + len(now), integers)
        counts = Sides(_histogram(before, edges), _histogram(now, edges))
    else:
        counts = per_value(pair)
    # Its Hellinger distance counts bins from the number of distinct values.
    edges = sturges_edges(low, high, _size_for_bins(before, now, low, high, integers), integers)
    spread = Sides(_histogram(before, edges), _histogram(now, edges))
    return Binned(
        _psi(counts.reference, counts.current),
        _jensen_shannon(counts.reference, counts.current),
        _hellinger(spread.reference, spread.current, len(before), len(now)),
    )


def evidently_category_distances(found: Counted) -> Binned:
    """PSI, JS and Hellinger over all categories, as Evidently computes them."""
    before, now = found.counts.reference, found.counts.current
    return Binned(
        _psi(before, now), _jensen_shannon(before, now), _hellinger(before, now, int(before.sum()), int(now.sum()))
    )


def sturges_edges(low: float, high: float, size: int, integers: bool) -> Floats:
    """`numpy.histogram_bin_edges(values, "sturges")` from the values' range and number."""
    if not math.isfinite(high - low):
        return 2.0 * sturges_edges(low / 2, high / 2, size, integers=False)
    if low == high:
        return np.linspace(low - 0.5, high + 0.5, 2)
    width = (high - low) / (math.log2(size) + 1.0)
    if integers and width < 1:
        width = 1.0
    return np.linspace(low, high, math.ceil((high - low) / width) + 1)


def _few_values(before: Counts, now: Counts, threshold: float | None) -> Verdict:
    alpha = ALPHA if threshold is None else threshold
    if len(before) > 2:
        return Verdict.of_test(CHI_SQUARE, _chi_square(before, now), alpha)
    return Verdict.of_test(Z, _proportions(before, now), alpha)


def _chi_square(before: Counts, now: Counts) -> float:
    """The current counts against the reference's, scaled and taken as known: a category new to it makes p zero."""
    expected = before * (now.sum() / before.sum())
    if not expected.all():
        return 0.0
    statistic = float(np.sum(np.square(now - expected) / expected))
    return float(chi2_sf(statistic, len(before) - 1))


def _proportions(before: Counts, now: Counts) -> float:
    """Two-sided p-value of the pooled z test on the first of at most two values."""
    if len(before) == 1:
        return 1.0
    n, m = int(before.sum()), int(now.sum())
    first, second = float(before[1]) / n, float(now[1]) / m
    pooled = (first * n + second * m) / (n + m)
    z = (first - second) / math.sqrt(pooled * (1 - pooled) * (1.0 / n + 1.0 / m))
    return 2.0 * (1.0 - float(normal_cdf(abs(z))))


def _jensen_shannon(before: Counts, now: Counts) -> float:
    """scipy's `jensenshannon` of the shares of all rows, bins that no row is in included."""
    p, q = before / before.sum(), now / now.sum()
    middle = (p + q) / 2
    held_p, held_q = p > 0, q > 0
    left = np.sum(p[held_p] * np.log(p[held_p] / middle[held_p]))
    right = np.sum(q[held_q] * np.log(q[held_q] / middle[held_q]))
    return math.sqrt(max(float(left + right) / 2, 0.0))


def _psi(before: Counts, now: Counts) -> float:
    p, q = _filled(before / before.sum()), _filled(now / now.sum())
    return float(np.sum((p - q) * np.log(p / q)))


def _filled(shares: Floats) -> Floats:
    least = float(shares[shares > 0].min())
    return np.where(shares == 0, least / 1e6 if least <= 1e-4 else 1e-4, shares)


def _hellinger(before: Counts, now: Counts, n: int, m: int) -> float:
    affinity = float(np.sum(np.sqrt((before / n) * (now / m))))
    return math.sqrt(1.0 - min(max(affinity, 0.0), 1.0))


def _histogram(values: Floats, edges: Floats) -> Counts:
    """`numpy.histogram` of sorted values: the last bin is closed."""
    starts = np.searchsorted(values, edges, "left")
    starts[-1] = np.searchsorted(values, edges[-1], "right")
    return np.diff(starts).astype(np.int64)


def _size_for_bins(first: Floats, second: Floats, low: float, high: float, integers: bool) -> int:
    """A number that gives as many bins as the number of distinct values of both sorted arrays would.

    The values of the shorter array that the longer one lacks are counted only until the number of bins is certain.
    """
    longer, shorter = (first, second) if len(first) >= len(second) else (second, first)
    known = 1 + int(np.count_nonzero(longer[1:] != longer[:-1]))
    for start in range(0, len(shorter), _BLOCK):
        most = known + len(shorter) - start
        if len(sturges_edges(low, high, known, integers)) == len(sturges_edges(low, high, most, integers)):
            break
        block = shorter[start : start + _BLOCK]
        is_first = np.diff(block, prepend=shorter[start - 1] if start else -np.inf) > 0
        block = block[is_first]
        places = np.minimum(np.searchsorted(longer, block), len(longer) - 1)
        known += int(np.count_nonzero(longer[places] != block))
    return known
