"""Many questions at once: how many of the alarms may be false, and what a p-value is worth as evidence."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from collectors.drift.bins import Floats


def benjamini_hochberg(pvalues: Floats) -> Floats:
    """The q-value of each p-value: rejecting all with `q <= alpha` keeps the expected share of false ones below alpha.

    Benjamini & Hochberg 1995; equals `scipy.stats.false_discovery_control`. Holds for independent p-values and those of
    positive regression dependency. ValueError unless all lie in 0 … 1.
    """
    p = np.asarray(pvalues, dtype=np.float64)
    _check(p)
    order = np.argsort(p, kind="stable")[::-1]
    ranks = np.arange(len(p), 0, -1)
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(np.minimum(p[order] * len(p) / ranks, 1.0))
    return q


def cut(pvalues: Floats, alpha: float) -> float:
    """The p-value at or below which a question counts (Benjamini–Hochberg): `alpha · max(rejected, 1) / questions`."""
    if not len(pvalues):
        return alpha
    rejected = int(np.count_nonzero(benjamini_hochberg(pvalues) <= alpha))
    # Rounded, 3 α / 3 can be above α.
    return min(alpha * max(rejected, 1) / len(pvalues), alpha)


def e_bh(evalues: Floats, alpha: float) -> NDArray[np.bool_]:
    """Which e-values to reject: the k largest, for the largest k with `k · e_(k) >= questions / alpha`.

    Wang & Ramdas 2022, "False discovery rate control with e-values": holds however the e-values depend on each other,
    so over the columns of one stream too. ValueError for a negative e-value.
    """
    e = np.asarray(evalues, dtype=np.float64)
    if np.any(np.isnan(e)) or np.any(e < 0):
        raise ValueError("an e-value is a number of at least 0")
    if not len(e):
        return np.zeros(0, dtype=np.bool_)
    order = np.argsort(-e, kind="stable")
    enough = np.flatnonzero(np.arange(1, len(e) + 1) * e[order] >= len(e) / alpha)
    rejected = np.zeros(len(e), dtype=np.bool_)
    if len(enough):
        rejected[order[: enough[-1] + 1]] = True
    return rejected


def e_value(pvalues: Floats, kappa: float | None = None) -> Floats:
    """The evidence in each p-value: `κ p^(κ−1)`, or without `kappa` its mean over all κ of 0 … 1.

    Vovk & Wang 2021, "E-values: calibration, combination and applications", section 2: the mean is
    `(1 − p + p ln p) / (p ln² p)`. The expectation is 1 where p is uniform. ValueError unless all lie in 0 … 1.
    """
    p = np.asarray(pvalues, dtype=np.float64)
    _check(p)
    if kappa is not None:
        if not 0 < kappa < 1:
            raise ValueError(f"kappa lies between 0 and 1: {kappa}")
        return kappa * np.maximum(p, np.finfo(float).tiny) ** (kappa - 1)
    low = np.maximum(p, np.finfo(float).tiny)
    logs = np.log(low)
    # Near p = 1 the formula is 0/0: its series there is ½ + (1 − p)/6 ….
    near = np.abs(logs) < 1e-4
    safe = np.where(near, -1.0, logs)
    mixed = (1 - low + low * safe) / (low * safe * safe)
    return np.where(near, 0.5 - logs / 6, mixed)


def p_value(evalues: Floats) -> Floats:
    """The p-value that an e-value is worth, `min(1, 1/e)`: the only admissible calibrator (Vovk & Wang 2021)."""
    e = np.asarray(evalues, dtype=np.float64)
    return np.minimum(1.0, 1.0 / np.maximum(e, math.ulp(0.0) * 2**52))


def _check(pvalues: Floats) -> None:
    if np.any(np.isnan(pvalues)) or np.any((pvalues < 0) | (pvalues > 1)):
        raise ValueError("p-values lie between 0 and 1")
