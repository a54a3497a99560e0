"""Slices: the segments of rows, of one column or of two, where a model errs most or where rows came or went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from collectors.drift.fdr import benjamini_hochberg
from collectors.scores.candidates import Limits, Mask, groups_of, stands_out, tested
from collectors.scores.cells import ScoreError
from collectors.scores.refinement import Where, refined, rows_in
from collectors.scores.regression import LARGEST
from collectors.scores.segments import Kind, Rows, Segmented, segmented, table_of
from collectors.scores.welch import worth

Floats = npt.NDArray[np.float64]

# Slices that pass the test are compared with each other row by row: no more of them than this.
_MOST_CANDIDATES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceSettings:
    """Which slices are worth telling."""

    bins: int = 8
    """Quantile bins of a numeric column."""
    categories: int = 40
    """The most frequent categories of a column that are looked at."""
    pairs: bool = True
    """Whether slices of two columns are looked for, too."""
    min_rows: int = 50
    min_share: float = 0.005
    """Share of all rows that a slice must at least hold."""
    min_effect: float = 0.1
    """Least difference from the rest, in standard deviations of the rows' errors."""
    min_ratio: float = 1.5
    """Or, where no error is below 0, least ratio to the mean of the rest: rare mistakes that double are a small
    difference."""
    alpha: float = 0.05
    """Expected share of false slices among those told (Benjamini-Hochberg over every slice looked at)."""
    limit: int = 20

    def __post_init__(self) -> None:
        if min(self.bins, self.categories, self.min_rows, self.limit, self.min_ratio) < 1 or not 0 < self.alpha < 1:
            raise ValueError(
                f"bins, categories, min_rows, limit and min_ratio must be at least 1, alpha in (0, 1): {self}"
            )


@dataclass(frozen=True, slots=True)
class Slice:
    """A segment that differs from the rest of the rows."""

    conditions: tuple[str, ...]
    """What its rows have in common, one condition a column."""
    rows: int
    share: float
    mean: float
    """Mean error of its rows; of a drifted slice, its share of the current rows."""
    rest: float
    """Mean error of all other rows; of a drifted slice, its share of the reference's rows."""
    effect: float
    """The difference in standard deviations of all rows (Cohen's d)."""
    qvalue: float
    """The smallest expected share of false slices at which it is still told: of the segment that it was found by."""
    contribution: float
    """Part of the total error that is its excess over the rest; of a drifted slice, its term of the PSI."""
    drift: float = math.nan
    """Share of the current rows less that of the reference's, where a reference was given."""

    @property
    def text(self) -> str:
        return " and ".join(self.conditions)


def worst_slices(
    rows: Rows,
    errors: Floats,
    *,
    reference: Rows | None = None,
    kinds: Mapping[str, Kind] | None = None,
    settings: SliceSettings | None = None,
) -> list[Slice]:
    """The segments with the largest mean error, worst evidence first; those explained by one before them are left out.

    `errors` has shape (rows,), finite: log losses, absolute errors, 0/1 mistakes. A segment is told when it is large
    enough, its error is higher than that of the rest by Welch's test (one-sided, Benjamini-Hochberg over all segments
    of one and two columns), by at least `min_effect` or `min_ratio`, and still is without the rows of the slices told
    before it. One that is odd in a part of it alone is told as that part, by a second column or by the range of a
    number (`refined`). With `reference` rows each slice says how its share of the rows has changed. Raises ScoreError
    on unequal lengths.
    """
    chosen = settings or SliceSettings()
    values = np.asarray(errors, np.float64).ravel()
    if reference is None:
        columns = segmented(rows, bins=chosen.bins, categories=chosen.categories, kinds=kinds)
        _check(columns, values)
        return [slice_ for _, slice_ in _found(columns, values, chosen, one_sided=True)]
    before, pooled = _pooled(reference, rows)
    columns = segmented(pooled, bins=chosen.bins, categories=chosen.categories, kinds=kinds)
    current = [replace(column, codes=column.codes[before:]) for column in columns]
    _check(current, values)
    found = _found(current, values, chosen, one_sided=True)
    return [_with_drift(*item, columns, before) for item in found]


def drifted_slices(
    reference: Rows,
    current: Rows,
    *,
    kinds: Mapping[str, Kind] | None = None,
    settings: SliceSettings | None = None,
) -> list[Slice]:
    """The segments whose share of the rows has changed most, strongest evidence first, up or down.

    The same search, the 'error' of a row being whether it is a current one: Welch's test of it is that of two shares.
    `mean` and `rest` are the segment's shares of the current and the reference rows, `contribution` is its PSI term.
    """
    chosen = settings or SliceSettings()
    before, pooled = _pooled(reference, current)
    columns = segmented(pooled, bins=chosen.bins, categories=chosen.categories, kinds=kinds)
    is_current = np.zeros(pooled.num_rows)
    is_current[before:] = 1.0
    found = _found(columns, is_current, chosen, one_sided=False)
    return [_as_shares(_with_drift(*item, columns, before), before, pooled.num_rows - before) for item in found]


def _found(
    columns: Sequence[Segmented], values: Floats, settings: SliceSettings, one_sided: bool
) -> list[tuple[Where, Slice]]:
    """The slices with their conditions, as told."""
    deviation = float(values.std())
    if not deviation:
        return []
    least = max(settings.min_rows, math.ceil(settings.min_share * len(values)))
    groups = list(groups_of(columns, settings.pairs))
    tests = [tested(group, values, least, one_sided) for group in groups]
    pvalues = np.concatenate([test[1] for test in tests]) if tests else np.empty(0)
    if not len(pvalues):
        return []
    qvalues = benjamini_hochberg(pvalues)
    owners = np.repeat(np.arange(len(groups)), [len(test[0]) for test in tests])
    segments = np.concatenate([test[0] for test in tests])
    effects = np.concatenate([test[2] for test in tests]) / deviation
    strengths = np.concatenate([test[3] for test in tests])
    shares = np.concatenate([test[4] for test in tests])
    rests = values.mean() - shares * effects * deviation
    ratio = settings.min_ratio if one_sided and values.min() >= 0 else math.inf
    limits = Limits(
        least_rows=least, deviation=deviation, min_effect=settings.min_effect, min_ratio=ratio, one_sided=one_sided
    )
    sized = worth(effects, rests, deviation, settings.min_effect, ratio, one_sided)
    passed = np.flatnonzero((qvalues <= settings.alpha) & sized)
    # By strength; of equal ones that of fewer columns comes first.
    order = passed[np.lexsort((owners[passed], -strengths[passed]))]
    left = np.ones(len(values), bool)
    told: list[tuple[Where, Slice]] = []
    for place in order[:_MOST_CANDIDATES].tolist():
        group, segment = groups[owners[place]], int(segments[place])
        inside = group.codes == segment
        # Slices that overlap pass the test together; of those told only their own number counts.
        limit = settings.alpha * (len(told) + 1) / len(pvalues)
        if not stands_out(values[inside & left], values[~inside & left], limit, limits):
            continue
        codes = divmod(segment, len(columns[group.columns[1]].words)) if len(group.columns) == 2 else (segment,)
        where: Where = tuple((column, code, code) for column, code in zip(group.columns, codes, strict=True))
        better = refined(where, columns, values, left, settings.alpha, limits, settings.pairs)
        rows = rows_in(columns, better)
        if stands_out(values[rows & left], values[~rows & left], limit, limits):
            where, inside = better, rows
        left &= ~inside
        told.append((where, _slice(where, columns, inside, values, deviation, float(qvalues[place]))))
        if len(told) == settings.limit:
            break
    return told


def _slice(
    where: Where, columns: Sequence[Segmented], inside: Mask, values: Floats, deviation: float, qvalue: float
) -> Slice:
    mean, rest, rows = float(values[inside].mean()), float(values[~inside].mean()), int(inside.sum())
    excess = rows * (mean - rest) / float(values.sum()) if values.sum() else math.nan
    words = tuple(columns[column].words_of(first, last) for column, first, last in where)
    return Slice(words, rows, rows / len(values), mean, rest, (mean - rest) / deviation, qvalue, excess)


def _pooled(reference: Rows, current: Rows) -> tuple[int, pa.Table]:
    """Both sides' rows under the columns that both have, the reference's first, and how many those are."""
    first, second = table_of(reference), table_of(current)
    names = [name for name in first.column_names if name in second.column_names]
    if not names:
        raise ScoreError("reference and current rows have no column in common")
    try:
        both = pa.concat_tables([first.select(names), second.select(names)], promote_options="permissive")
    except pa.ArrowException as wrong:
        raise ScoreError(f"reference and current rows do not go together: {wrong}") from wrong
    return first.num_rows, both


def _with_drift(where: Where, slice_: Slice, columns: Sequence[Segmented], before: int) -> Slice:
    inside = rows_in(columns, where)
    was, now = float(inside[:before].mean()), float(inside[before:].mean())
    return replace(slice_, drift=now - was)


def _as_shares(slice_: Slice, before: int, after: int) -> Slice:
    """The slice of a pooled search told as shares of either side."""
    total = slice_.rows
    current = slice_.mean * total
    was, now = (total - current) / before, current / after
    smallest = 0.5 / max(before, after)
    term = (now - was) * math.log(max(now, smallest) / max(was, smallest))
    return Slice(slice_.conditions, round(current), now, now, was, slice_.effect, slice_.qvalue, term, now - was)


def _check(columns: Sequence[Segmented], errors: Floats) -> None:
    if columns and len(columns[0].codes) != len(errors):
        raise ScoreError(f"{len(errors)} errors for {len(columns[0].codes)} rows: give one each")
    if not np.isfinite(errors).all():
        raise ScoreError("errors must be finite: leave out rows whose error is not known")
    if len(errors) and np.abs(errors).max() > LARGEST:
        raise ScoreError(f"errors are at most {LARGEST:g} in size: leave larger ones out")
