"""From a segment that stands out to what is odd of it: a part of it, by a second column, or more bins beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from collectors.scores.candidates import Floats, Limits, Mask, explains
from collectors.scores.segments import Segmented
from collectors.scores.welch import welch

Range: TypeAlias = tuple[int, int, int]
"""A place among the columns, and the first and last of its segments in a row: one category, or bins."""
Where: TypeAlias = tuple[Range, ...]

# Of the parts of a segment, the strongest that are tried.
_TRIED = 5


def rows_in(columns: Sequence[Segmented], where: Where) -> Mask:
    """Which rows meet all conditions, shape (rows,)."""
    inside = np.ones(len(columns[0].codes), bool)
    for column, first, last in where:
        codes = columns[column].codes
        inside &= (codes >= first) & (codes <= last)
    return inside


def refined(
    where: Where, columns: Sequence[Segmented], values: Floats, left: Mask, alpha: float, limits: Limits, pairs: bool
) -> Where:
    """The conditions of what is odd of a segment, of two columns at most, among the rows that are `left`.

    A segment of one column becomes the part of it, by a category or a run of bins of another, that explains it (see
    `explains`); then each run of bins grows while the evidence does. So rows beyond a threshold of a number are told
    as such, wherever it lies among the bins.
    """
    if len(where) == 1 and pairs:
        where = _narrowed(where, columns, values, left, alpha, limits)
    for place in range(len(where)):
        where = _grown(where, place, columns, values, left)
    return where


def _narrowed(
    where: Where, columns: Sequence[Segmented], values: Floats, left: Mask, alpha: float, limits: Limits
) -> Where:
    broad = rows_in(columns, where) & left
    options = [
        (strength, (column, first, last))
        for column in range(len(columns))
        if column != where[0][0]
        for first, last, strength in _runs(columns[column], broad, values, left, limits.least_rows)
    ]
    strongest = sorted(options, key=lambda option: -option[0])[:_TRIED]
    for _, part in strongest:
        narrow = rows_in(columns, (part,))[left]
        if explains(narrow & broad[left], broad[left], values[left], alpha, len(options), limits):
            return tuple(sorted((*where, part)))
    return where


def _grown(where: Where, place: int, columns: Sequence[Segmented], values: Floats, left: Mask) -> Where:
    column, first, last = where[place]
    if not columns[column].edges:
        return where
    base = rows_in(columns, (*where[:place], *where[place + 1 :])) & left
    runs = [run for run in _runs(columns[column], base, values, left, 2) if run[0] <= first and run[1] >= last]
    if not runs:
        return where
    best = max(runs, key=lambda run: run[2])
    return (*where[:place], (column, best[0], best[1]), *where[place + 1 :])


def _runs(column: Segmented, base: Mask, values: Floats, left: Mask, least: int) -> Iterator[tuple[int, int, float]]:
    """The categories, or the runs of bins but the whole, of the rows of `base`: first, last and Welch's |t|."""
    size, bins = len(column.words), len(column.edges) + 1
    codes = column.codes[base]
    known = codes >= 0
    tables = [
        np.concatenate([[0.0], np.cumsum(np.bincount(codes[known], weights, size))])
        for weights in (np.ones(int(known.sum())), values[base][known], values[base][known] ** 2)
    ]
    whole = [float(left.sum()), float(values[left].sum()), float(np.square(values[left]).sum())]
    if column.edges:
        chosen = [(i, j) for i in range(bins) for j in range(i, bins) if j - i + 1 < bins] + [(size - 1, size - 1)]
    else:
        chosen = [(i, i) for i in range(size)]
    first, last = np.array(chosen).T
    n, sums, squares = (table[last + 1] - table[first] for table in tables)
    enough = (n >= max(least, 2)) & (whole[0] - n >= max(least, 2))
    n, sums, squares = n[enough], sums[enough], squares[enough]
    outside = whole[0] - n, whole[1] - sums, whole[2] - squares
    _, t, _ = welch((n, sums, squares), outside)
    yield from zip(first[enough].tolist(), last[enough].tolist(), np.abs(t).tolist(), strict=True)
