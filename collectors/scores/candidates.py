"""Candidates for slices, of one column or of two, and the tests that they must pass."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from collectors.scores.cells import Counts
from collectors.scores.segments import Segmented, together
from collectors.scores.welch import Moments, p_values, welch, worth

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Segments of one or two columns: places in `columns`, segment codes, rows, sums and sums of squares of errors."""

    columns: tuple[int, ...]
    codes: Counts
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a slice must exceed. See `SliceSettings`."""

    least_rows: int
    deviation: float
    """Of the errors of all rows."""
    min_effect: float
    min_ratio: float
    one_sided: bool


def groups_of(columns: Sequence[Segmented], pairs: bool) -> Iterable[Candidates]:
    for place, column in enumerate(columns):
        yield Candidates((place,), column.codes, len(column.words))
    for (i, left), (j, right) in itertools.combinations(enumerate(columns), 2) if pairs else ():
        codes, size = together(left, right)
        yield Candidates((i, j), codes, size)


def tested(
    group: Candidates, values: Floats, least: int, one_sided: bool
) -> tuple[Counts, Floats, Floats, Floats, Floats]:
    """The segments that are large enough; their p-values, differences from the rest, absolute statistics and shares."""
    inside = group.codes >= 0
    codes, of = (group.codes, values) if inside.all() else (group.codes[inside], values[inside])
    counts = np.bincount(codes, minlength=group.size)
    chosen = np.flatnonzero((counts >= least) & (len(values) - counts >= least))
    n, sums = counts[chosen].astype(np.float64), np.bincount(codes, of, group.size)[chosen]
    squares = np.bincount(codes, of * of, group.size)[chosen]
    total, total_squares = float(values.sum()), float(np.dot(values, values))
    difference, t, degrees = welch((n, sums, squares), (len(values) - n, total - sums, total_squares - squares))
    return chosen, p_values(t, degrees, one_sided), difference, np.abs(t), n / len(values)


def stands_out(inside: Floats, outside: Floats, alpha: float, limits: Limits) -> bool:
    """Whether errors exceed those of other rows by more than chance at `alpha`, and by enough to be told."""
    if min(len(inside), len(outside)) < limits.least_rows:
        return False
    difference, t, degrees = welch(_moments(inside), _moments(outside))
    least = limits.min_effect, limits.min_ratio
    enough = worth(difference / limits.deviation, outside.mean(), limits.deviation, *least, limits.one_sided)
    return bool(enough[0] and p_values(t, degrees, limits.one_sided)[0] <= alpha)


def explains(narrow: Mask, broad: Mask, values: Floats, alpha: float, looks: int, limits: Limits) -> bool:
    """Whether all that is odd of a segment is in a narrower one: what it holds beside that is like all other rows, and
    unlike the narrower one by more than chance among `looks` such."""
    beside, outside = values[broad & ~narrow], values[~broad]
    # Too few rows beside it to say so: the segment of fewer columns stands.
    if len(beside) < limits.least_rows or stands_out(beside, outside, alpha, limits):
        return False
    return stands_out(values[narrow], beside, alpha / looks, replace(limits, min_effect=0.0, min_ratio=1.0))


def _moments(values: Floats) -> Moments:
    return np.array([float(len(values))]), np.array([values.sum()]), np.array([np.dot(values, values)])
