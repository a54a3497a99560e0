"""Aggregation operators: rows of a frame into groups, for all steps at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from collectors.query.errors import QueryError
from collectors.query.frame import NAME, Bools, Floats, Frame, Ints, LabelSets, only_labels, without_labels
from collectors.query.numbers import format_float
from collectors.query.quantiles import quantile_of_columns
from collectors.query.sums import cancelled, careful_mean, careful_sum, overflowed
from collectors.store import Labels
from collectors.store.values import LabelKey, label_key

_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
# In `limit_ratio` a series belongs to the first share of all series when the hash of its labels, as a part of the
# whole range of hashes, is below it.
_HASHES = 2.0**64


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which group each row is in: `of_row` [rows] counts up from 0 in the order of first rows.

    `order` sorts the rows by group and `starts` [groups] is where each begins in it.
    """

    labels: LabelSets
    of_row: Ints
    order: Ints
    starts: Ints

    @property
    def rows(self) -> list[Ints]:
        """The rows of each group, in order."""
        return np.split(self.order, self.starts[1:])


def grouped(labels: LabelSets, names: tuple[str, ...], without: bool) -> Grouping:
    """Groups by the listed labels, or by all but those and the name."""
    return labels.kept(("group", names, without), lambda: _grouped(labels, names, without))


def _grouped(labels: LabelSets, names: tuple[str, ...], without: bool) -> Grouping:
    seen: dict[object, int] = {}
    found: list[Labels] = []
    of_row = np.empty(len(labels), dtype=np.int64)
    removed = {*names, NAME}
    for row, own in enumerate(labels):
        key: object
        if without:
            key = frozenset(pair for pair in own.items() if pair[0] not in removed)
        else:
            key = tuple([own.get(name) for name in names])
        group = seen.get(key)
        if group is None:
            group = seen[key] = len(found)
            found.append(without_labels(own, removed) if without else only_labels(own, names))
        of_row[row] = group
    order = np.argsort(of_row, kind="stable")
    return Grouping(LabelSets(found), of_row, order, np.searchsorted(of_row[order], np.arange(len(found))))


def _dropped(frame: Frame, grouping: Grouping, without: bool) -> Bools:
    """The groups whose name was marked to go: a group keeps one only when it is grouped by it."""
    if without or not frame.drop_name.any():
        return np.zeros(len(grouping.labels), dtype=np.bool_)
    return np.logical_or.reduceat(frame.drop_name[grouping.order], grouping.starts)


def aggregate(op: str, frame: Frame, labels: tuple[str, ...], without: bool, running_moments: bool) -> Frame:
    """sum, avg, min, max, count, group, stddev or stdvar of each group."""
    reduce = _REDUCTIONS.get(op)
    if reduce is None:
        raise QueryError(f"unsupported aggregation {op!r}", "bad_data")
    grouping = grouped(frame.labels, labels, without)
    if not grouping.labels:
        return frame
    present = frame.present[grouping.order]
    ordered = _Ordered(frame.values[grouping.order], None if present.all() else present, grouping, running_moments)
    there = np.logical_or.reduceat(present, grouping.starts, axis=0)
    return Frame(grouping.labels, reduce(ordered), there, _dropped(frame, grouping, without))


@dataclass(frozen=True, slots=True)
class _Ordered:
    """Rows sorted by group; `present` is None where all are."""

    values: Floats
    present: Bools | None
    grouping: Grouping
    running_moments: bool

    @property
    def group(self) -> Ints:
        """The group of each row."""
        return self.grouping.of_row[self.grouping.order]

    def fold(self, ufunc: np.ufunc, values: Floats, absent: float) -> Floats:
        source = values if self.present is None else np.where(self.present, values, absent)
        folded: Floats = ufunc.reduceat(source, self.grouping.starts, axis=0)
        return folded

    def counts(self) -> Floats:
        if self.present is None:
            sizes = np.diff(np.append(self.grouping.starts, len(self.values))).astype(np.float64)
            return np.repeat(sizes[:, None], self.values.shape[1], axis=1)
        counted: Floats = np.add.reduceat(self.present.astype(np.float64), self.grouping.starts, axis=0)
        return counted

    def careful(self, result: Floats, total: Floats, exact: Callable[[Floats], float]) -> Floats:
        """The result, computed again where the plain sum of the terms lost digits that matter."""
        doubtful = np.zeros(total.shape, dtype=np.bool_)
        if (self.values < 0).any():
            doubtful = cancelled(total, self.fold(np.add, np.abs(self.values), 0.0))
        if not np.isfinite(total).all():
            doubtful |= overflowed(total, self.fold(np.maximum, np.abs(self.values), 0.0))
        ends = np.append(self.grouping.starts, len(self.values))
        for group, step in np.argwhere(doubtful):
            rows = slice(ends[group], ends[group + 1])
            chosen = self.values[rows, step]
            if self.present is not None:
                chosen = chosen[self.present[rows, step]]
            if len(chosen):
                result[group, step] = exact(chosen)
        return result


def _sum(rows: _Ordered) -> Floats:
    total = rows.fold(np.add, rows.values, 0.0)
    return rows.careful(total, total, careful_sum)


def _avg(rows: _Ordered) -> Floats:
    total = rows.fold(np.add, rows.values, 0.0)
    return rows.careful(total / np.maximum(rows.counts(), 1), total, careful_mean)


def _stdvar(rows: _Ordered) -> Floats:
    if rows.running_moments:
        return _running_variance(rows)
    count = np.maximum(rows.counts(), 1)
    # From the group's smallest value on: equal values then have no variance at all, not a rounding error.
    shifted = rows.values - rows.fold(np.fmin, rows.values, np.nan)[rows.group]
    mean = rows.fold(np.add, shifted, 0.0) / count
    return rows.fold(np.add, (shifted - mean[rows.group]) ** 2, 0.0) / count


def _running_variance(rows: _Ordered) -> Floats:
    """The variance as version 2 has it: one value after the other, so of one value, even an infinite one, 0."""
    starts = rows.grouping.starts
    sizes = np.diff(np.append(starts, len(rows.values)))
    shape = len(starts), rows.values.shape[1]
    count, mean, squares = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for position in range(int(sizes.max())):
        groups = np.flatnonzero(sizes > position)
        value = rows.values[starts[groups] + position]
        here = np.ones(value.shape, dtype=bool) if rows.present is None else rows.present[starts[groups] + position]
        first = here & (count[groups] == 0)
        count[groups] += here
        delta = value - mean[groups]
        moved = np.where(first, value, mean[groups] + delta / np.maximum(count[groups], 1))
        squares[groups] += np.where(here & ~first, delta * (value - moved), 0.0)
        mean[groups] = np.where(here, moved, mean[groups])
    return squares / np.maximum(count, 1)


_REDUCTIONS: dict[str, Callable[[_Ordered], Floats]] = {
    "sum": _sum,
    "avg": _avg,
    "min": lambda rows: rows.fold(np.fmin, rows.values, np.nan),
    "max": lambda rows: rows.fold(np.fmax, rows.values, np.nan),
    "count": lambda rows: rows.counts(),
    "group": lambda rows: np.ones_like(rows.counts()),
    "stdvar": _stdvar,
    "stddev": lambda rows: np.sqrt(_stdvar(rows)),
}


def quantile(frame: Frame, q: Floats, labels: tuple[str, ...], without: bool) -> Frame:
    """The interpolated quantile `q` [steps] of each group."""
    grouping = grouped(frame.labels, labels, without)
    if not grouping.labels:
        return frame
    values = [quantile_of_columns(frame.values[rows], frame.present[rows], q) for rows in grouping.rows]
    present = [frame.present[rows].any(axis=0) for rows in grouping.rows]
    return Frame(grouping.labels, np.array(values), np.array(present), _dropped(frame, grouping, without))


def top(frame: Frame, k: Floats, labels: tuple[str, ...], without: bool, largest: bool) -> Frame:
    """The `k` [steps] largest or smallest of each group, with their own labels; at one step sorted by value.

    Of equal values those whose labels come first are taken, whatever order the series were read in.
    """
    _check_count(k)
    kept = np.zeros_like(frame.present)
    order: list[int] = []
    for rows in grouped(frame.labels, labels, without).rows if len(frame) else []:
        if _has_equals(frame.values[rows], frame.present[rows]):
            rows = rows[np.array(sorted(range(len(rows)), key=lambda one: sorted(frame.labels[rows[one]].items())))]
        values, present = frame.values[rows], frame.present[rows]
        if len(k) > 1:
            fast = _top_fast(values, present, k, largest)
            if fast is not None:
                kept[rows] = fast
                continue
        rank = np.where(present, np.where(np.isnan(values), 1, 0), 2)
        sequence = np.lexsort((-values if largest else values, rank), axis=0)
        place = np.empty_like(sequence)
        np.put_along_axis(place, sequence, np.broadcast_to(np.arange(len(rows))[:, None], sequence.shape), axis=0)
        kept[rows] = present & (place < np.trunc(k))
        order.extend(rows[sequence[:, 0]].tolist())
    chosen = Frame(frame.labels, frame.values, kept, frame.drop_name)
    return (chosen.rows(order) if len(k) == 1 else chosen).without_empty()


def _has_equals(values: Floats, present: Bools) -> bool:
    """Whether two values of a step are the same."""
    if len(values) < 2:
        return False
    ordered = np.sort(np.where(present, values, np.nan), axis=0)
    # Several NaN are equal, too, where they are values: they are rare enough to say yes to any.
    return bool((ordered[1:] == ordered[:-1]).any() or np.isnan(values[present]).any())


def _top_fast(values: Floats, present: Bools, k: Floats, largest: bool) -> Bools | None:
    """Which values are among the k largest or smallest, without sorting; None where NaN or a changing k need more."""
    count = int(k[0])
    if (k != k[0]).any() or np.isnan(values[present]).any():
        return None
    if count <= 0:
        return np.zeros_like(present)
    if count >= len(values):
        return present
    keys = np.where(present, values if largest else -values, -np.inf)
    least = np.partition(keys, len(keys) - count, axis=0)[len(keys) - count]
    above, equal = keys > least, (keys == least) & present
    # Of equal values the first ones are taken.
    chosen: Bools = present & (above | (equal & (np.cumsum(equal, axis=0) <= count - above.sum(axis=0))))
    return chosen


def _check_count(k: Floats) -> None:
    if np.isnan(k).any():
        raise QueryError("Parameter value is NaN")
    if (np.abs(k) >= 2.0**63).any():
        raise QueryError(f"Scalar value {format_float(float(k[0]))} overflows int64")


def limited(frame: Frame, k: Floats, labels: tuple[str, ...], without: bool) -> Frame:
    """`limitk`: some `k` [steps] elements of each group, here the first ones by their labels."""
    _check_count(k)
    kept = np.zeros_like(frame.present)
    place = np.empty(len(frame), dtype=np.int64)
    place[frame.labels.order()] = np.arange(len(frame))
    for rows in grouped(frame.labels, labels, without).rows if len(frame) else []:
        rows = rows[np.argsort(place[rows])]
        present = frame.present[rows]
        kept[rows] = present & (np.cumsum(present, axis=0) <= np.trunc(k))
    return Frame(frame.labels, frame.values, kept, frame.drop_name).without_empty()


def ratio_limited(frame: Frame, ratio: Floats, hashes: Floats) -> Frame:
    """`limit_ratio`: the elements whose hash [rows] is in the first `ratio` [steps] of all; the others if negative."""
    if np.isnan(ratio).any():
        raise QueryError("Ratio value is NaN")
    share = (hashes / _HASHES)[:, None]
    ratio = np.clip(ratio, -1.0, 1.0)
    chosen = np.where(ratio >= 0, share < ratio, share >= 1.0 + ratio)
    return frame.with_values(frame.values, frame.present & chosen).without_empty()


def count_values(frame: Frame, label: str, labels: tuple[str, ...], without: bool) -> Frame:
    """How many series of each group have each value; the value goes into `label`."""
    if not _LABEL_NAME.fullmatch(label):
        raise QueryError(f'invalid label name "{label}"')
    steps = frame.values.shape[1]
    grouping = grouped(frame.labels, labels, without)
    counts: dict[LabelKey, Floats] = {}
    for row, step in np.argwhere(frame.present):
        text = format_float(float(frame.values[row, step]))
        # A label of the same name gives way, and groups that differed in it alone become one.
        group = grouping.labels[grouping.of_row[row]]
        key = label_key(group if without and label in labels else {**group, label: text})
        counts.setdefault(key, np.zeros(steps))[step] += 1
    if not counts:
        return Frame.empty(steps)
    values = np.array(list(counts.values()))
    return Frame.of([dict(key) for key in counts], values, values > 0)
