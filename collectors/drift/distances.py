"""PSI, Jensen–Shannon, Kolmogorov–Smirnov and Wasserstein of all columns of two profiles, columns of a kind at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from collectors.drift.bins import TAIL_SHARE, Counts, regroup_categories
from collectors.drift.comparison import Sides
from collectors.drift.jensen_shannon import jensen_shannon, jensen_shannon_each
from collectors.drift.kolmogorov_smirnov import kolmogorov_smirnov_each
from collectors.drift.number_block import NumberBlock, number_blocks
from collectors.drift.psi import null_expectation, psi, psi_each
from collectors.drift.wasserstein import wasserstein_each
from observability.columns import CategoricalColumn, Column, EmbeddingColumn, NumericColumn, TextColumn


@dataclass(frozen=True, slots=True)
class Distances:
    """The distances of one column; those that need an order are None without one.

    The Wasserstein distance is in the reference's standard deviations, and None where that is not finite.
    """

    psi: float
    psi_expected: float
    """PSI of two samples of one distribution, on average."""
    jensen_shannon: float
    ks: float | None = None
    wasserstein: float | None = None


def distances_of(blocks: Sequence[NumberBlock], others: Mapping[str, Sides[Column]], bins: int) -> dict[str, Distances]:
    """The distances of all columns; PSI over `bins` bins of about equal reference mass.

    Of a text column those of the lengths, of an embedding those of the norms.
    """
    found: dict[str, Distances] = {}
    ordered: dict[str, Sides[Column]] = {}
    for name, pair in others.items():
        before, now = _ordered(pair.reference), _ordered(pair.current)
        if before is not None and now is not None and len(before.counts) == len(now.counts):
            ordered[name] = Sides(before, now)
        else:
            found[name] = _unordered(pair.reference, pair.current, bins)
    for block in (*blocks, *number_blocks(ordered)[0]):
        found.update(_together(block, bins))
    return found


def _ordered(column: Column) -> NumericColumn | None:
    if isinstance(column, TextColumn):
        column = column.parts["length"]
    if isinstance(column, EmbeddingColumn):
        column = column.norm
    return column if isinstance(column, NumericColumn) else None


def _unordered(reference: Column, window: Column, bins: int) -> Distances:
    before, now = reference.counts, window.counts
    if isinstance(reference, CategoricalColumn):
        held = (before > 0) | (now > 0)
        before, now = regroup_categories(before[held], now[held], 2 * bins)
    expected = null_expectation(len(before), window.count, reference.count)
    return Distances(psi(before, now), expected, jensen_shannon(reference.counts, window.counts))


def _together(block: NumberBlock, bins: int) -> dict[str, Distances]:
    reference, window = block.counts.reference, block.counts.current
    rows, others = block.values.T
    before, now, number = few_bins(reference, window, bins)
    expected = [null_expectation(*sizes) for sizes in zip(number.tolist(), others.tolist(), rows.tolist(), strict=True)]
    ks = kolmogorov_smirnov_each(reference, window)
    distance = np.zeros(len(block.names))
    if reference.shape[1] > 1:
        first, second = block.columns.reference, block.columns.current
        distance = wasserstein_each(
            reference,
            window,
            block.edges,
            np.sqrt(np.array([max(column.m2, 0.0) for column in first]) / np.maximum(rows, 1)),
            np.array([min(one.minimum, other.minimum) for one, other in zip(first, second, strict=True)]),
            np.array([max(one.maximum, other.maximum) for one, other in zip(first, second, strict=True)]),
        )
    lists = (psi_each(before, now), np.array(expected), jensen_shannon_each(reference, window), ks)
    # Of numbers so large that their deviation is not known, there is none in deviations.
    distances = [value if math.isfinite(value) else None for value in distance.tolist()]
    values = zip(*(column.tolist() for column in lists), distances, strict=True)
    return {name: Distances(*row) for name, row in zip(block.names, values, strict=True)}


def few_bins(reference: Counts, window: Counts, bins: int) -> tuple[Counts, Counts, Counts]:
    """`bins.regroup_ordered` of `(columns, cells)` counts: padded with zeros to `(columns, most)`, and their number."""
    cells = reference.shape[1]
    rows, others = reference.sum(axis=1, keepdims=True), window.sum(axis=1, keepdims=True)
    middle = np.cumsum(reference, axis=1) - reference / 2
    group = np.minimum(np.floor(middle * bins / np.maximum(rows, 1)), bins - 1)
    starts = np.ones(reference.shape, np.bool_)
    starts[:, 1:] = np.diff(group, axis=1) > 0
    if cells > 1:
        enough = TAIL_SHARE * np.maximum(others[:, 0], 1)
        starts[:, 1] |= (reference[:, 0] == 0) & (window[:, 0] >= enough)
        starts[:, -1] |= (reference[:, -1] == 0) & (window[:, -1] >= enough)
    at = np.flatnonzero(starts)
    number = starts.sum(axis=1)
    row = at // cells
    place = np.arange(len(at)) - np.repeat(np.cumsum(number) - number, number)
    padded = np.zeros((2, len(reference), int(number.max(initial=1))), np.int64)
    padded[0, row, place] = np.add.reduceat(reference.ravel(), at)
    padded[1, row, place] = np.add.reduceat(window.ravel(), at)
    return padded[0], padded[1], number
