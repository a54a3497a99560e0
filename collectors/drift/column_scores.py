"""The statistics of one column of two tables: from its values where there are rows, from its cells where there are not.

Both ways give one set of names. PSI, Jensen–Shannon, Hellinger and total variation of an ordered column are taken over
about ten bins of equal reference mass in both modes, so that they are comparable with the conventional thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from collectors.drift.bins import Counts, Floats, regroup_ordered, shares
from collectors.drift.chi_square import chi_square, chi_square_each
from collectors.drift.comparison import Sides
from collectors.drift.distances import few_bins
from collectors.drift.exact import Counted, Ordered
from collectors.drift.hellinger import hellinger_each
from collectors.drift.jensen_shannon import jensen_shannon_each
from collectors.drift.kolmogorov_law import one_sample_sf_each
from collectors.drift.native_sums import cell_sums, native_sums
from collectors.drift.number_block import NumberBlock
from collectors.drift.psi import psi_each
from collectors.drift.rows import ks_rows, wasserstein_rows
from collectors.drift.total_variation import total_variation_each
from collectors.drift.wasserstein import LEAST_DEVIATION, in_range, of_deviation, wasserstein_in_units
from observability.columns import CategoricalColumn, Column, NumericColumn

BINS = 10
# Cells worked on at once: some ten arrays of so many numbers fit into a second-level cache.
CACHED = 32_768
# Squares of so many times smaller numbers do not overflow.
_SMALLER = 2.0**520


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
    deviation = math.sqrt(cells.reference.variance)
    if not math.isfinite(deviation):
        # Not so that of the numbers themselves, in smaller units.
        deviation = float(np.std(pair.reference.values / _SMALLER)) * _SMALLER
    return {
        **binned_scores(cells.reference.counts, cells.current.counts),
        "ks": test.statistic,
        "ks_pvalue": test.pvalue,
        "cramer_von_mises": distribution_distance(cells.reference.counts, cells.current.counts),
        "wasserstein": distance,
        "wasserstein_normed": distance / max(deviation, LEAST_DEVIATION),
    }


def cell_scores(reference: NumericColumn, current: NumericColumn) -> Scores:
    """The statistics of numbers from two columns of one layout; both sides have values.

    `ks` is a lower bound of the exact one and at most `ks_error` below it; its p-value is that of the bound, by the
    law for many rows. The Wasserstein distance spreads the rows of a cell evenly and is off by at most
    `wasserstein_error`.
    """
    return cell_scores_each([(reference, current)])[0]


def cell_scores_each(pairs: Sequence[tuple[NumericColumn, NumericColumn]]) -> list[Scores]:
    """`cell_scores` of many columns that have one number of cells, at once."""
    columns = {str(place): Sides(*pair) for place, pair in enumerate(pairs)}
    return _rows(block_scores(NumberBlock.of(columns)))


def block_scores(block: NumberBlock) -> dict[str, Floats]:
    """The statistics of `cell_scores`, one item a column; O(cells) a column. NaN where a side has no values."""
    rows = np.flatnonzero(block.values.min(axis=1) > 0)
    if not len(rows):
        return {}
    step = len(rows) if native_sums() is not None else max(1, CACHED // block.counts.reference.shape[1])
    parts = [_cell_scores(block, rows[at : at + step]) for at in range(0, len(rows), step)]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found["ks_pvalue"] = one_sample_sf_each(found["ks"], found["ks_pvalue"])
    if len(rows) == len(block.names):
        return found
    whole = {name: np.full(len(block.names), np.nan) for name in found}
    for name, values in found.items():
        whole[name][rows] = values
    return whole


def _cell_scores(block: NumberBlock, rows: Counts) -> dict[str, Floats]:
    """The statistics of columns that fit into the processor's cache; for the p-value the rows that it is of."""
    first, second = (
        [columns[row] for row in rows.tolist()] for columns in (block.columns.reference, block.columns.current)
    )
    reference, current = block.counts.reference[rows], block.counts.current[rows]
    edges = np.concatenate([one.edges for one in first]).reshape(len(first), -1)
    n, m = block.values[rows].T
    deviation = np.sqrt(np.array([one.m2 for one in first]) / n)
    lowest = np.minimum([one.minimum for one in first], [one.minimum for one in second])
    highest = np.maximum([one.maximum for one in first], [one.maximum for one in second])
    factor, edges, unit, lowest, highest = in_range(edges, deviation, lowest, highest)
    columns = reference, current, edges, unit, lowest, highest
    found = cell_sums(*columns, BINS)
    if found is None:
        found = _cell_sums(*columns, n[:, None], m[:, None])
    distance = found["wasserstein_normed"]
    return found | {
        "ks_pvalue": np.maximum(np.rint(n * (m / (n + m))), 1),
        "wasserstein": distance * (unit / factor),
        "wasserstein_normed": distance * of_deviation(factor, unit, deviation),
        "wasserstein_error": found["wasserstein_error"] / factor,
    }


def _cell_sums(
    reference: Counts,
    current: Counts,
    edges: Floats,
    unit: Floats,
    lowest: Floats,
    highest: Floats,
    n: Counts,
    m: Counts,
) -> dict[str, Floats]:
    """What `native_sums.cell_sums` gives, with numpy."""
    r, w = reference / n, current / m
    after = np.cumsum(r - w, axis=1)
    before = np.zeros_like(after)
    before[:, 1:] = after[:, :-1]
    ks = np.max(np.abs(after), axis=1)
    # How far the exact distance can be above that at the cells' edges: inside a cell the difference moves from its
    # left edge up by the reference's share, down by the current one's.
    inside = np.maximum(np.abs(before + r).max(axis=1), np.abs(before - w).max(axis=1))
    weights = r.copy()
    weights[:, :-1] += r[:, 1:]
    return {
        **_distances_each(*few_bins(reference, current, BINS)[:2]),
        "ks": ks,
        "ks_error": np.maximum(inside - ks, 0.0),
        "cramer_von_mises": np.sum(weights * after * after, axis=1) / 2,
        "wasserstein_normed": wasserstein_in_units(reference, current, edges, unit, lowest, highest),
        "wasserstein_error": _wasserstein_errors(r + w, edges, lowest, highest),
    }


def _wasserstein_errors(both: Floats, edges: Floats, lowest: Floats, highest: Floats) -> Floats:
    """How far the distances from cells can be from those of the values, in the columns' units.

    Inside a cell a distribution function differs from the straight line by at most its share of the cell, and by half
    of that on average over the width; in the tails, which are cut where they are absurdly long, by all of it.
    """
    inner = np.sum(np.diff(edges, axis=1) * both[:, 1:-1], axis=1) / 2
    below = np.maximum(edges[:, 0] - lowest, 0.0) * both[:, 0]
    return np.asarray(inner + below + np.maximum(highest - edges[:, -1], 0.0) * both[:, -1], np.float64)


def _distances_each(reference: Counts, current: Counts) -> dict[str, Floats]:
    """PSI, JS, Hellinger and total variation of `(columns, cells)` counts."""
    return {
        "psi": psi_each(reference, current),
        "js_distance": jensen_shannon_each(reference, current),
        "hellinger": hellinger_each(reference, current),
        "total_variation": total_variation_each(reference, current),
    }


def _rows(found: Mapping[str, Floats]) -> list[Scores]:
    """One dictionary a column, of one array a statistic."""
    rows = zip(*(values.tolist() for values in found.values()), strict=True)
    return [dict(zip(found, row, strict=True)) for row in rows]  # type: ignore[misc]


def binned_scores(reference: Counts, current: Counts) -> Scores:
    """PSI, JS, Hellinger and total variation over about ten bins of equal reference mass."""
    first, second = regroup_ordered(reference, current, BINS)
    return category_distances(first, second)


def category_scores(reference: Counts, current: Counts) -> Scores:
    """The statistics of categories from their counts; both sides have values."""
    return category_scores_each([(reference, current)])[0]


def category_scores_each(pairs: Sequence[tuple[Counts, Counts]]) -> list[Scores]:
    """`category_scores` of many columns, those with about as many categories at once."""
    groups: dict[int, list[int]] = {}
    for place, (reference, _) in enumerate(pairs):
        groups.setdefault(len(reference).bit_length(), []).append(place)
    found: list[Scores] = [{} for _ in pairs]
    for places in groups.values():
        widest = max(len(pairs[place][0]) for place in places)
        counts = np.zeros((2, len(places), widest), np.int64)
        for row, place in enumerate(places):
            reference, current = pairs[place]
            counts[0, row, : len(reference)], counts[1, row, : len(current)] = reference, current
        pvalues = chi_square_each(counts[0], counts[1])[1]
        for place, scores in zip(places, _rows({**_distances_each(*counts), "chi2_pvalue": pvalues}), strict=True):
            found[place] = scores
    return found


def category_distances(reference: Counts, current: Counts) -> Scores:
    """PSI, JS, Hellinger and total variation of two count vectors."""
    return _rows(_distances_each(reference[None], current[None]))[0]


def counted_scores(found: Counted) -> Scores:
    """`category_scores` over all categories that occur."""
    return category_scores(found.counts.reference, found.counts.current)


def cells_scores(reference: Column, current: Column) -> Scores:
    """The statistics of any two columns of one layout; both sides have values."""
    return cells_scores_each([(reference, current)])[0]


def cells_scores_each(pairs: Sequence[tuple[Column, Column]]) -> list[Scores]:
    """`cells_scores` of many columns, those of a kind and number of cells at once."""
    ordered: dict[int, list[int]] = {}
    unordered: list[int] = []
    for place, (reference, current) in enumerate(pairs):
        if isinstance(reference, NumericColumn) and isinstance(current, NumericColumn):
            ordered.setdefault(len(reference.counts), []).append(place)
        else:
            unordered.append(place)
    found: list[Scores] = [{} for _ in pairs]
    for places in ordered.values():
        numbers: Any = [pairs[place] for place in places]
        for place, scores in zip(places, cell_scores_each(numbers), strict=True):
            found[place] = scores
    counts = [(pairs[place][0].counts, pairs[place][1].counts) for place in unordered]
    for place, scores in zip(unordered, category_scores_each(counts), strict=True):
        found[place] = scores
    return found


def chi_square_pvalue(reference: Counts, current: Counts) -> float:
    """p-value of the two-sample chi-square test (`scipy.stats.chi2_contingency`, without correction)."""
    return chi_square(reference, current).pvalue


def distribution_distance(reference: Counts, current: Counts) -> float:
    """Mean squared difference of the two distribution functions over the reference's rows, at the cells' edges."""
    before = shares(reference)
    difference = np.cumsum(before - shares(current))
    weights = (before + np.append(before[1:], 0.0)) / 2
    return float(np.sum(weights * np.square(difference)))


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
