"""Chi-square and G tests: whether two count vectors are two samples of one distribution over the same cells."""

from __future__ import annotations

import math

import numpy as np

from collectors.drift.bins import Counts, Floats
from collectors.drift.laws import chi2_sf
from collectors.drift.outcome import UNDEFINED, Test


def chi_square(reference: Counts, window: Counts) -> Test:
    """Pearson's (1900) test of homogeneity, `scipy.stats.chi2_contingency([reference, window], correction=False)`.

    Cells that both sides leave empty are left out. `Test(0, 1)` when only one cell is left (nothing can differ);
    undefined (NaN) when a side has no rows.
    """
    return _test(reference, window, chi_square_each)


def g_test(reference: Counts, window: Counts) -> Test:
    """The log-likelihood ratio test of homogeneity, `chi2_contingency(..., lambda_="log-likelihood")` (Wilks 1935).

    The same degenerate answers as `chi_square`.
    """
    return _test(reference, window, g_test_each)


def chi_square_fit(reference: Counts, window: Counts) -> Test:
    """Pearson's goodness of fit of the window to the reference's shares, as if those were known exactly.

    What `scipy.stats.chisquare(window, reference · n / N)` and Evidently's "chisquare" compute: it holds its level only
    when the reference is far larger. A cell that the reference never saw makes the statistic infinite, p = 0.
    """
    held = (reference > 0) | (window > 0)
    total, rows = float(reference.sum()), float(window.sum())
    if not total or not rows:
        return UNDEFINED
    cells = int(held.sum())
    if cells < 2:
        return Test(0.0, 1.0)
    expected, observed = reference[held] * (rows / total), window[held]
    if (expected == 0).any():
        return Test(math.inf, 0.0)
    statistic = float(np.sum((observed - expected) ** 2 / expected))
    return Test(statistic, float(chi2_sf(statistic, cells - 1)))


def chi_square_each(reference: Counts, window: Counts) -> tuple[Floats, Floats]:
    """Statistics and p-values of many columns at once; counts (columns, cells), short rows padded with zeros."""
    r, w, n, m, degrees = _margins(reference, window)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Σ (w/m − r/n)² / (w + r) · nm: the sum over both rows of (observed − expected)² / expected, in one piece.
        gap = w / m - r / n
        statistic = n[..., 0] * m[..., 0] * np.sum(np.where(r + w > 0, gap * gap / (r + w), 0.0), axis=-1)
    return _judged(statistic, degrees, n, m)


def g_test_each(reference: Counts, window: Counts) -> tuple[Floats, Floats]:
    """Statistics and p-values of many columns at once; counts (columns, cells), short rows padded with zeros."""
    r, w, n, m, degrees = _margins(reference, window)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (r + w) / (n + m)
        total = 2 * np.sum(_entropy(r, share * n) + _entropy(w, share * m), axis=-1)
    return _judged(np.maximum(total, 0.0), degrees, n, m)


def _test(reference: Counts, window: Counts, each: object) -> Test:
    statistic, pvalue = each(reference[None, :], window[None, :])  # type: ignore[operator]
    return Test(float(statistic[0]), float(pvalue[0]))


def _margins(reference: Counts, window: Counts) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    r, w = np.asarray(reference, np.float64), np.asarray(window, np.float64)
    degrees = np.sum(r + w > 0, axis=-1) - 1.0
    return r, w, r.sum(axis=-1, keepdims=True), w.sum(axis=-1, keepdims=True), degrees


def _judged(statistic: Floats, degrees: Floats, n: Floats, m: Floats) -> tuple[Floats, Floats]:
    alone = degrees < 1
    pvalue = np.where(alone, 1.0, chi2_sf(np.where(np.isnan(statistic), 0.0, statistic), np.maximum(degrees, 1.0)))
    empty = (n[..., 0] == 0) | (m[..., 0] == 0)
    return np.where(empty, np.nan, np.where(alone, 0.0, statistic)), np.where(empty, np.nan, pvalue)


def _entropy(observed: Floats, expected: Floats) -> Floats:
    """`o ln(o / e) − o + e`, summed later: never negative, and small differences keep their digits."""
    held = observed > 0
    excess = np.where(held, (observed - expected) / np.where(expected > 0, expected, 1.0), -1.0)
    return np.asarray(np.where(held, observed * np.log1p(np.where(held, excess, 0.0)) - observed + expected, expected))
