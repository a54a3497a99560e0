"""Cramér–von Mises distance between two count vectors over ordered cells."""

from __future__ import annotations

import numpy as np

from collectors.drift.bins import Counts, Floats, shares_each


def cramer_von_mises(reference: Counts, window: Counts) -> float:
    """`ω² = ∫ (F − G)² dH` over the pooled rows H: the mean squared difference of the functions (Anderson 1962).

    Every row of a cell stands at the cell's upper edge, so over cells of single values it is the exact distance:
    `ω² = T (n + m) / nm` for `scipy.stats.cramervonmises_2samp`'s T of untied rows. 0 … 1/3; 0 when a side has no rows.
    With cells that hold several values it is at most `cramer_von_mises_bound` away from that of the rows.
    """
    return float(cramer_von_mises_each(reference, window))


def cramer_von_mises_bound(reference: Counts, window: Counts) -> float:
    """How far ω² of the (untied) raw values can be from that of the cells, either way.

    Inside a cell F − G cannot leave `F₋ − G₊ … F₊ − G₋`; each cell adds its pooled share times the most by which the
    square can differ there from that at the upper edge.
    """
    r, w, known = shares_each(reference, window)
    if not known:
        return 0.0
    after = np.cumsum(r - w)
    before = after - r + w
    low, high = before - w, before + r
    most = np.maximum(low * low, high * high)
    least = np.where(low * high < 0, 0.0, np.minimum(low * low, high * high))
    away = np.maximum(most - after * after, after * after - least)
    return float(np.sum((reference + window) * away) / float(reference.sum() + window.sum()))


def cramer_von_mises_each(reference: Counts, window: Counts) -> Floats:
    """ω² of many columns: counts (…, cells), shorter rows padded with zeros; distances (…)."""
    r, w, known = shares_each(reference, window)
    pooled = np.asarray(reference, np.float64) + np.asarray(window, np.float64)
    rows = np.maximum(pooled.sum(axis=-1, keepdims=True), 1.0)
    gap = np.cumsum(r - w, axis=-1)
    return np.asarray(np.where(known, np.sum(pooled / rows * gap * gap, axis=-1), 0.0), np.float64)
