"""Hellinger distance between two count vectors."""

from __future__ import annotations

import numpy as np

from collectors.drift.bins import Counts, Floats, shares_each


def hellinger(reference: Counts, window: Counts) -> float:
    """`√(Σ (√r − √w)² / 2)` over shares, 0 … 1 (Hellinger 1909; Le Cam & Yang 2000). 0 when either side has no rows."""
    return float(hellinger_each(reference, window))


def hellinger_each(reference: Counts, window: Counts) -> Floats:
    """Hellinger distances of many columns: counts (…, cells), shorter rows padded with zeros; distances (…)."""
    r, w, known = shares_each(reference, window)
    distance = np.sqrt(np.sum((np.sqrt(r) - np.sqrt(w)) ** 2, axis=-1) / 2)
    return np.asarray(np.where(known, np.minimum(distance, 1.0), 0.0), np.float64)
