"""Wasserstein-1 (earth mover's) distance from binned counts, in units of the reference's standard deviation."""

from __future__ import annotations

import numpy as np

from collectors.drift.bins import Counts, Floats, shares

# Tails are cut this many reference deviations outside the outermost edges: one absurd value must not be the distance.
TAIL_DEVIATIONS = 10.0


def wasserstein(
    reference: Counts,
    window: Counts,
    edges: Floats,
    deviation: float,
    reference_range: tuple[float, float],
    window_range: tuple[float, float],
) -> float:
    """`∫ |F − G| dx / sd` with rows spread evenly inside a cell (Vallender 1974 for the one-dimensional form).

    `reference` and `window` have `len(edges) + 1` cells, the first and last of them the open tails, which reach to the
    ranges' ends. 0 when either side has no rows; a constant reference is measured in units of 0.001, as Evidently does.
    """
    if not reference.sum() or not window.sum():
        return 0.0
    unit = max(deviation, 0.001)
    reach = TAIL_DEVIATIONS * unit
    low = max(min(reference_range[0], window_range[0], float(edges[0])), float(edges[0]) - reach)
    high = min(max(reference_range[1], window_range[1], float(edges[-1])), float(edges[-1]) + reach)
    points = np.concatenate([[low], edges, [high]])
    difference = np.concatenate([[0.0], np.cumsum(shares(reference) - shares(window))])
    return _integral_of_absolute(points, difference) / unit


def _integral_of_absolute(points: Floats, values: Floats) -> float:
    """Integral of |v| for v linear between the points; where v changes its sign the two triangles are added."""
    a, b = np.abs(values[:-1]), np.abs(values[1:])
    crossing = values[:-1] * values[1:] < 0
    total = a + b
    triangles = np.divide(a * a + b * b, total, out=np.zeros_like(total), where=total > 0)
    return float(np.sum(np.diff(points) * np.where(crossing, triangles, total) / 2))
