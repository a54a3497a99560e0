"""Jensen–Shannon distance between two count vectors."""

from __future__ import annotations

import numpy as np

from collectors.drift.bins import Counts, Floats, shares_each


def jensen_shannon(reference: Counts, window: Counts) -> float:
    """Square root of the Jensen–Shannon divergence, natural logarithm: 0 … sqrt(ln 2) (Endres & Schindelin 2003).

    Equals `scipy.spatial.distance.jensenshannon`; 0 when either side has no rows. Pooling cells can only make it
    smaller (data processing inequality): over a profile's cells it is at most that over the values themselves.
    """
    return float(jensen_shannon_each(reference, window))


def jensen_shannon_each(reference: Counts, window: Counts) -> Floats:
    """Jensen–Shannon distances of many columns: counts (…, cells), shorter rows padded with zeros; distances (…)."""
    r, w, known = shares_each(reference, window)
    middle = (r + w) / 2
    divergence = (_relative_entropy(r, middle) + _relative_entropy(w, middle)) / 2
    return np.asarray(np.where(known, np.sqrt(np.maximum(divergence, 0.0)), 0.0), np.float64)


def _relative_entropy(p: Floats, q: Floats) -> Floats:
    held = p > 0
    ratio = np.divide(p, q, out=np.ones_like(p), where=held)
    return np.asarray(np.sum(p * np.log(ratio), axis=-1), np.float64)
