"""Kolmogorov–Smirnov distance between two count vectors over ordered cells."""

from __future__ import annotations

import math

import numpy as np

from collectors.drift.bins import Counts, Floats, shares_each
from collectors.drift.kolmogorov_law import two_sample_pvalue


def kolmogorov_smirnov(reference: Counts, window: Counts) -> float:
    """Largest difference of the two distribution functions at the cells' edges (Smirnov 1948).

    Never above the exact statistic of the raw values, and below it by at most `kolmogorov_smirnov_bound`: one cell's
    mass. 0 when either side has no rows.
    """
    return float(kolmogorov_smirnov_each(reference, window))


def kolmogorov_smirnov_each(reference: Counts, window: Counts) -> Floats:
    """Distances of many columns: counts (…, cells), shorter rows padded with zeros; distances (…)."""
    r, w, known = shares_each(reference, window)
    distance = np.max(np.abs(np.cumsum(r - w, axis=-1)), axis=-1, initial=0.0)
    return np.asarray(np.where(known, np.minimum(distance, 1.0), 0.0), np.float64)


def kolmogorov_smirnov_bound(reference: Counts, window: Counts) -> float:
    """How far the raw values' statistic can be above that of the cells.

    Inside a cell F rises by at most the cell's share r and G by at most w, so the difference cannot leave
    `F₋ − G₊ … F₊ − G₋`; the bound is the largest of these less the distance at the edges: at most max(r, w).
    """
    r, w, known = shares_each(reference, window)
    if not known:
        return 0.0
    after = np.cumsum(r - w)
    before = after - r + w
    inside = np.maximum(np.abs(before + r), np.abs(before - w))
    return max(float(np.max(inside, initial=0.0)) - float(np.max(np.abs(after), initial=0.0)), 0.0)


def kolmogorov_smirnov_pvalue(distance: float, reference_rows: int, window_rows: int) -> float:
    """How likely so large a distance of two samples of one distribution is; see `kolmogorov_law.two_sample_pvalue`.

    From cells it is at least the raw values' p-value, for the distance is at most theirs. NaN when a side has no rows.
    """
    if not reference_rows or not window_rows or math.isnan(distance):
        return math.nan
    steps = round(distance * reference_rows * window_rows)
    return two_sample_pvalue(min(steps, reference_rows * window_rows), reference_rows, window_rows)
