"""The statistics of one column of two tables: from its values where there are rows, from its cells where there are not.

Both ways give one set of names. PSI, Jensen–Shannon, Hellinger and total variation of an ordered column are taken over
about ten bins of equal reference mass in both modes, so that they are comparable with the conventional thresholds.
"""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np

from collectors.drift.bins import Counts, regroup_ordered, shares
from collectors.drift.comparison import Sides
from collectors.drift.exact import Counted, Ordered
from collectors.drift.jensen_shannon import jensen_shannon
from collectors.drift.kolmogorov_law import one_sample_sf
from collectors.drift.laws import chi2_sf
from collectors.drift.psi import psi
from collectors.drift.rows import ks_rows, wasserstein_rows
from collectors.drift.wasserstein import wasserstein
from observability.columns import CategoricalColumn, Column, NumericColumn

BINS = 10
LEAST_DEVIATION = 0.001


class Scores(TypedDict, total=False):
    """Statistics by the names of `ColumnComparison`; what is not defined is absent."""

    psi: float
    js_distance: float
    hellinger: float
    total_variation: float
    ks: float
    ks_pvalue: float
    ks_error: float
    cramer_von_mises: float
    wasserstein: float
    wasserstein_normed: float
    wasserstein_error: float
    chi2_pvalue: float


def row_scores(pair: Sides[Ordered], cells: Sides[NumericColumn]) -> Scores:
    """The statistics of numbers, exact; both sides have values. O(n + m) of the sorted values."""
    test = ks_rows(pair.reference.values, pair.current.values)
    distance = wasserstein_rows(pair.reference.values, pair.current.values)
    return {
        **binned_scores(cells.reference.counts, cells.current.counts),
        "ks": test.statistic,
        "ks_pvalue": test.pvalue,
        "cramer_von_mises": distribution_distance(cells.reference.counts, cells.current.counts),
        "wasserstein": distance,
        "wasserstein_normed": distance / max(math.sqrt(cells.reference.variance), LEAST_DEVIATION),
    }


def cell_scores(reference: NumericColumn, current: NumericColumn) -> Scores:
    """The statistics of numbers from two columns of one layout; both sides have values.

    `ks` is a lower bound of the exact one and at most `ks_error` below it; its p-value is that of the bound, by the
    law for many rows. The Wasserstein distance spreads the rows of a cell evenly and is off by at most
    `wasserstein_error`.
    """
    difference = np.cumsum(shares(reference.counts) - shares(current.counts))
    n, m = reference.count, current.count
    largest = float(np.max(np.abs(difference)))
    deviation = math.sqrt(reference.variance)
    normed = wasserstein(
        reference.counts,
        current.counts,
        reference.edges,
        deviation,
        (reference.minimum, reference.maximum),
        (current.minimum, current.maximum),
    )
    return {
        **binned_scores(reference.counts, current.counts),
        "ks": largest,
        "ks_pvalue": one_sample_sf(largest, max(round(n * m / (n + m)), 1)),
        "ks_error": ks_error(reference.counts, current.counts),
        "cramer_von_mises": distribution_distance(reference.counts, current.counts),
        "wasserstein": normed * max(deviation, LEAST_DEVIATION),
        "wasserstein_normed": normed,
        "wasserstein_error": wasserstein_error(reference, current),
    }


def wasserstein_error(reference: NumericColumn, current: NumericColumn) -> float:
    """How far the distance from cells can be from that of the values, in the column's unit.

    Inside a cell a distribution function differs from the straight line by at most its share of the cell, and by half
    of that on average over the width; in the tails, which are cut where they are absurdly long, by all of it.
    """
    low = min(reference.minimum, current.minimum, float(reference.edges[0]))
    high = max(reference.maximum, current.maximum, float(reference.edges[-1]))
    widths = np.diff(np.concatenate([[low], reference.edges, [high]]))
    widths[1:-1] /= 2
    return float(np.sum(widths * (shares(reference.counts) + shares(current.counts))))


def ks_error(reference: Counts, current: Counts) -> float:
    """How far the exact Kolmogorov–Smirnov distance can be above that at the cells' edges.

    Inside a cell the difference of the distribution functions starts and ends at the edges' differences and moves by
    at most either side's share of the cell; what exceeds the largest difference at an edge is the error's bound.
    """
    before, now = shares(reference), shares(current)
    difference = np.concatenate([[0.0], np.cumsum(before - now)])
    # From the left edge up by the reference's share, down by the current one's.
    highest = np.maximum(np.abs(difference[:-1] + before), np.abs(difference[:-1] - now))
    return max(float(highest.max() - np.abs(difference).max()), 0.0)


def binned_scores(reference: Counts, current: Counts) -> Scores:
    """PSI, JS, Hellinger and total variation over about ten bins of equal reference mass."""
    first, second = regroup_ordered(reference, current, BINS)
    return category_distances(first, second)


def category_scores(reference: Counts, current: Counts) -> Scores:
    """The statistics of categories from their counts; both sides have values."""
    return {**category_distances(reference, current), "chi2_pvalue": chi_square_pvalue(reference, current)}


def category_distances(reference: Counts, current: Counts) -> Scores:
    """PSI, JS, Hellinger and total variation of two count vectors."""
    r, c = shares(reference), shares(current)
    return {
        "psi": psi(reference, current),
        "js_distance": jensen_shannon(reference, current),
        "hellinger": math.sqrt(max(1.0 - float(np.sum(np.sqrt(r * c))), 0.0)),
        "total_variation": float(np.sum(np.abs(r - c))) / 2,
    }


def counted_scores(found: Counted) -> Scores:
    """`category_scores` over all categories that occur."""
    return category_scores(found.counts.reference, found.counts.current)


def cells_scores(reference: Column, current: Column) -> Scores:
    """The statistics of any two columns of one layout; both sides have values."""
    if isinstance(reference, NumericColumn) and isinstance(current, NumericColumn):
        return cell_scores(reference, current)
    held = (reference.counts > 0) | (current.counts > 0)
    return category_scores(reference.counts[held], current.counts[held])


def chi_square_pvalue(reference: Counts, current: Counts) -> float:
    """p-value of the two-sample chi-square test (`scipy.stats.chi2_contingency`, without correction)."""
    held = (reference + current) > 0
    before, now = reference[held].astype(np.float64), current[held].astype(np.float64)
    if len(before) < 2:
        return 1.0
    pooled = (before + now) / (before.sum() + now.sum())
    statistic = 0.0
    for side in (before, now):
        expected = pooled * side.sum()
        statistic += float(np.sum(np.square(side - expected) / expected))
    return float(chi2_sf(statistic, len(before) - 1))


def distribution_distance(reference: Counts, current: Counts) -> float:
    """Mean squared difference of the two distribution functions over the reference's rows, at the cells' edges."""
    before = shares(reference)
    difference = np.cumsum(before - shares(current))
    weights = (before + np.append(before[1:], 0.0)) / 2
    return float(np.sum(weights * np.square(difference)))


def missing_rows(column: Column) -> int:
    """Rows without a value: null, and NaN in a numeric column."""
    return column.missing + (column.nan if isinstance(column, NumericColumn) else 0)


def infinite_rows(column: Column) -> int:
    """Rows with an infinite number."""
    return column.positive_infinite + column.negative_infinite if isinstance(column, NumericColumn) else 0


__all__ = [
    "CategoricalColumn",
    "Scores",
    "cell_scores",
    "cells_scores",
    "chi_square_pvalue",
    "counted_scores",
    "row_scores",
]
