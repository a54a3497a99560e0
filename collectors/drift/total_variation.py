"""Total variation distance between two count vectors."""

from __future__ import annotations

import numpy as np

from collectors.drift.bins import Counts, Floats, shares_each


def total_variation(reference: Counts, window: Counts) -> float:
    """`Σ |r − w| / 2` over shares, 0 … 1: the share of rows that would have to move. 0 when a side has no rows."""
    return float(total_variation_each(reference, window))


def total_variation_each(reference: Counts, window: Counts) -> Floats:
    """Total variations of many columns: counts (…, cells), shorter rows padded with zeros; distances (…)."""
    r, w, known = shares_each(reference, window)
    return np.asarray(np.where(known, np.minimum(np.sum(np.abs(r - w), axis=-1) / 2, 1.0), 0.0), np.float64)
