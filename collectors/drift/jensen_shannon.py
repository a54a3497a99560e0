"""Jensen–Shannon distance between two count vectors."""

from __future__ import annotations

import numpy as np

from collectors.drift.bins import Counts, Floats, shares


def jensen_shannon(reference: Counts, window: Counts) -> float:
    """Square root of the Jensen–Shannon divergence, natural logarithm: 0 … sqrt(ln 2) (Endres & Schindelin 2003).

    Equals `scipy.spatial.distance.jensenshannon`; 0 when either side has no rows.
    """
    if not reference.sum() or not window.sum():
        return 0.0
    r, w = shares(reference), shares(window)
    middle = (r + w) / 2
    divergence = (_relative_entropy(r, middle) + _relative_entropy(w, middle)) / 2
    return float(np.sqrt(max(divergence, 0.0)))


def _relative_entropy(p: Floats, q: Floats) -> float:
    held = p > 0
    return float(np.sum(p[held] * np.log(p[held] / q[held])))
