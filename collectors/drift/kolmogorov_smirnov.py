"""Kolmogorov–Smirnov distance between two count vectors over ordered cells."""

from __future__ import annotations

import numpy as np

from collectors.drift.bins import Counts, shares


def kolmogorov_smirnov(reference: Counts, window: Counts) -> float:
    """Largest difference of the two distribution functions at the cells' edges (Smirnov 1948).

    At most one cell's mass below the exact statistic of the raw values; 0 when either side has no rows.
    """
    if not reference.sum() or not window.sum():
        return 0.0
    difference = np.cumsum(shares(reference)) - np.cumsum(shares(window))
    return float(np.max(np.abs(difference)))
