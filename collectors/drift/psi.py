"""Population stability index and what it is worth when nothing changed."""

from __future__ import annotations

import numpy as np

from collectors.drift.bins import Counts, Floats, shares_each

# Stands for an empty bin, as in Evidently, so that the logarithm is finite.
EMPTY_SHARE = 1e-4


def psi(reference: Counts, window: Counts) -> float:
    """`Σ (w − r) ln(w / r)` over shares: the symmetrised Kullback–Leibler divergence.

    Siddiqi 2006, "Credit Risk Scorecards". 0 when either side has no rows.
    """
    return float(psi_each(reference, window))


def psi_each(reference: Counts, window: Counts) -> Floats:
    """PSI of many columns: counts (…, cells), shorter rows padded with zeros; scores (…)."""
    r, w, known = shares_each(reference, window)
    r, w = np.where(r == 0, EMPTY_SHARE, r), np.where(w == 0, EMPTY_SHARE, w)
    return np.asarray(np.where(known, np.sum((w - r) * np.log(w / r), axis=-1), 0.0), np.float64)


def null_expectation(bins: int, window_rows: int, reference_rows: int) -> float:
    """Mean PSI of two samples of one distribution: `(B − 1)(1/n + 1/N)` (Yurdakul 2018, Statistical Properties of PSI).

    Good from about ten rows a bin; below that, empty bins make the real mean smaller.
    """
    if bins < 2 or not window_rows or not reference_rows:
        return 0.0
    return (bins - 1) * (1 / window_rows + 1 / reference_rows)
