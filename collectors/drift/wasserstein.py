"""Wasserstein-1 (earth mover's) distance from binned counts, in units of the reference's standard deviation."""

from __future__ import annotations

import numpy as np

from collectors.drift.bins import Counts, Floats, shares, shares_each

# Tails are cut this many reference deviations outside the outermost edges: one absurd value must not be the distance.
TAIL_DEVIATIONS = 10.0
# The unit of a constant reference.
LEAST_DEVIATION = 0.001
# Columns beyond either are brought into the middle by a power of two, lest their widths overflow or round to nothing.
_LARGE, _SMALL = 2.0**1020, 2.0**-900
# The unit of those whose deviation overflows: no tail is ten times as long.
_UNBOUNDED = 2.0**1019
# Rounds in which what a full cell could not take goes to the others.
_ROUNDS = 4


def wasserstein(
    reference: Counts,
    window: Counts,
    edges: Floats,
    deviation: float,
    reference_range: tuple[float, float],
    window_range: tuple[float, float],
    means: tuple[float, float] | None = None,
) -> float:
    """`∫ |F − G| dx / sd` from the cells (Vallender 1974 for the one-dimensional form).

    `reference` and `window` have `len(edges) + 1` cells, the first and last of them the open tails, which reach to the
    ranges' ends. Rows are spread evenly inside a cell; with the `means` of both sides they are moved, in wide and full
    cells first, until each side has its mean, so that a pure shift and a tail on one side come out right. Means are not
    used when a tail is cut. The result is within `wasserstein_bound` of the raw values' distance.

    0 when either side has no rows; a constant reference is measured in units of 0.001, as Evidently does. NaN where the
    deviation is infinite: the variance of numbers above 1e154 overflows.
    """
    distance = wasserstein_each(
        reference,
        window,
        edges,
        np.float64(deviation),
        np.float64(min(reference_range[0], window_range[0])),
        np.float64(max(reference_range[1], window_range[1])),
        None if means is None else (np.float64(means[0]), np.float64(means[1])),
    )
    return float(distance)


def wasserstein_each(
    reference: Counts,
    window: Counts,
    edges: Floats,
    deviation: Floats | np.float64,
    lowest: Floats | np.float64,
    highest: Floats | np.float64,
    means: tuple[Floats | np.float64, Floats | np.float64] | None = None,
) -> Floats:
    """`wasserstein` of many columns at once: counts (…, cells), edges (…, cells − 1), and the rest (…): the reference's
    deviation, the lowest and the highest value of both sides, the means of either side."""
    factor, edges, unit, lowest, highest = in_range(edges, deviation, lowest, highest)
    moved = None if means is None else (factor * means[0], factor * means[1])
    distance = wasserstein_in_units(reference, window, edges, unit, lowest, highest, moved)
    return np.asarray(distance * of_deviation(factor, unit, deviation), np.float64)


def wasserstein_in_units(
    reference: Counts,
    window: Counts,
    edges: Floats,
    unit: Floats,
    lowest: Floats,
    highest: Floats,
    means: tuple[Floats, Floats] | None = None,
) -> Floats:
    """`wasserstein_each` of columns that are in range, in a unit that is given in place of the deviation."""
    r, w, known = shares_each(reference, window)
    points = _points(edges, unit, lowest, highest)
    width = np.diff(points, axis=-1)
    after = np.cumsum(r - w, axis=-1)
    before = np.zeros_like(after)
    before[..., 1:] = after[..., :-1]
    area = width * (before + after) / 2
    if means is not None:
        uncut = known & (lowest >= points[..., 0]) & (highest <= points[..., -1])
        moved = _moved(r, width, points, means[0]) - _moved(w, width, points, means[1])
        area = np.where(uncut[..., None], area + moved, area)
    # Where the difference changes its sign inside a cell, the two triangles are added.
    parts = np.abs(area)
    crossed = before * after < 0
    if crossed.any():
        a, b = np.abs(before[crossed]), np.abs(after[crossed])
        wide = np.broadcast_to(width, crossed.shape)[crossed]
        parts[crossed] = np.maximum(wide * (a * a + b * b) / (2 * (a + b)), parts[crossed])
    return np.asarray(np.where(known, np.sum(parts, axis=-1) / unit, 0.0), np.float64)


def in_range(
    edges: Floats, deviation: Floats | np.float64, lowest: Floats | np.float64, highest: Floats | np.float64
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Factors of columns, 1 but for huge and tiny numbers; and edges, units, lowest and highest values times these."""
    ends = np.abs(np.stack([edges[..., 0], edges[..., -1], *np.broadcast_arrays(lowest, highest)]))
    largest = np.max(np.where(np.isfinite(ends), ends, 0.0), axis=0)
    tiny = (largest < _SMALL) & (largest > 0)
    factor = np.where(largest > _LARGE, 1 / 16, np.where(tiny, 1 / _SMALL, 1.0))
    unit = np.maximum(deviation, LEAST_DEVIATION)
    # Tiny ones have tails far shorter than the least unit.
    unit = np.where(np.isfinite(unit), np.where(tiny, 1.0, factor * unit), _UNBOUNDED)
    if (factor == 1).all():
        return factor, edges, unit, np.asarray(lowest), np.asarray(highest)
    return factor, edges * factor[..., None], unit, lowest * factor, highest * factor


def of_deviation(factor: Floats, unit: Floats, deviation: Floats | np.float64) -> Floats:
    """What makes a distance in the units of `in_range` one in deviations; NaN where these are not finite."""
    known = np.isfinite(deviation)
    own = np.maximum(np.where(known, deviation, 1.0), LEAST_DEVIATION)
    return np.where(known, np.where(factor > 1, unit / factor / own, 1.0), np.nan)


def wasserstein_bound(
    reference: Counts,
    window: Counts,
    edges: Floats,
    deviation: float,
    reference_range: tuple[float, float],
    window_range: tuple[float, float],
) -> float:
    """How far `wasserstein` can be from the distance of the raw values, in the same units; infinite when a tail is cut.

    In a cell |F − G| cannot leave what the counts before and behind it allow, nor can its integral over the width:
    a cell of width h with shares r and w adds at most `h (r + w)`.
    """
    if not reference.sum() or not window.sum():
        return 0.0
    ranges = (*reference_range, *window_range)
    factor, edges, unit, low_end, high_end = in_range(
        edges, np.float64(deviation), np.float64(min(ranges)), np.float64(max(ranges))
    )
    points = _points(edges, unit, low_end, high_end)
    if low_end < points[0] or high_end > points[-1]:
        return float("inf")
    r, w = shares(reference), shares(window)
    before = np.cumsum(r - w) - (r - w)
    low, high = before - w, before + r
    most = np.maximum(np.abs(low), np.abs(high))
    least = np.where(low * high < 0, 0.0, np.minimum(np.abs(low), np.abs(high)))
    bound = np.sum(np.diff(points) * (most - least)) / unit
    return float(bound * of_deviation(factor, unit, np.float64(deviation)))


def _points(
    edges: Floats, unit: Floats | np.float64, lowest: Floats | np.float64, highest: Floats | np.float64
) -> Floats:
    """The ends of all cells (…, cells + 1), the tails cut. NaN, of empty sides, is passed over."""
    first, last = edges[..., :1], edges[..., -1:]
    reach = TAIL_DEVIATIONS * np.asarray(unit)[..., None]
    low = np.fmax(np.fmin(np.asarray(lowest)[..., None], first), first - reach)
    high = np.fmin(np.fmax(np.asarray(highest)[..., None], last), last + reach)
    return np.concatenate([low, edges, high], axis=-1)


def _moved(share: Floats, width: Floats, points: Floats, mean: Floats | np.float64) -> Floats:
    """What to add to the integral of one side's distribution function over each cell, so that the side has its mean.

    `∫ F dx = upper end − mean`. A cell's part can move by half its share times its width either way; the change goes to
    the cells in proportion to the square of that, the least change in units of each cell's uncertainty.
    """
    most = share * width / 2
    missing = np.sum(share * (points[..., :-1] + points[..., 1:]), axis=-1) / 2 - mean
    added = np.zeros_like(most)
    for _ in range(_ROUNDS):
        room = np.where(np.abs(added) < most, most * most, 0.0)
        total = np.sum(room, axis=-1, keepdims=True)
        part = np.divide(room, total, out=np.zeros_like(room), where=total > 0)
        grown = np.clip(added + np.asarray(missing)[..., None] * part, -most, most)
        missing = missing - np.sum(grown - added, axis=-1)
        added = grown
    return added
