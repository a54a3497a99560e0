"""Aggregation operators: rows of a frame into groups, for all steps at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from collectors.query.errors import QueryError
from collectors.query.frame import NAME, Bools, Floats, Frame, Ints, only_labels, without_labels
from collectors.query.numbers import format_float
from collectors.query.quantiles import quantile_of_columns
from collectors.query.range_functions import exact_mean, exact_sum, needs_care
from collectors.store import Labels
from collectors.store.values import LabelKey, label_key

_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which group each row is in: `of_row` [rows] counts up from 0 in the order of first rows."""

    labels: list[Labels]
    of_row: Ints
    drop_name: Bools

    @property
    def rows(self) -> list[Ints]:
        """The rows of each group, in order."""
        order = np.argsort(self.of_row, kind="stable")
        return np.split(order, np.searchsorted(self.of_row[order], np.arange(1, len(self.labels))))


def grouped(frame: Frame, labels: tuple[str, ...], without: bool) -> Grouping:
    """Groups by the listed labels, or by all but those and the name."""
    seen: dict[object, int] = {}
    found: list[Labels] = []
    flags: list[bool] = []
    of_row = np.empty(len(frame), dtype=np.int64)
    removed = {*labels, NAME}
    for row, own in enumerate(frame.labels):
        key: object
        if without:
            key = frozenset(pair for pair in own.items() if pair[0] not in removed)
        else:
            key = tuple([own.get(name) for name in labels])
        group = seen.get(key)
        if group is None:
            group = seen[key] = len(found)
            found.append(without_labels(own, removed) if without else only_labels(own, labels))
            flags.append(False)
        flags[group] = flags[group] or (bool(frame.drop_name[row]) and not without)
        of_row[row] = group
    return Grouping(found, of_row, np.array(flags, dtype=np.bool_))


def aggregate(op: str, frame: Frame, labels: tuple[str, ...], without: bool) -> Frame:
    """sum, avg, min, max, count, group, stddev or stdvar of each group."""
    reduce = _REDUCTIONS.get(op)
    if reduce is None:
        raise QueryError(f"unsupported aggregation {op!r}", "bad_data")
    grouping = grouped(frame, labels, without)
    if not grouping.labels:
        return frame
    order = np.argsort(grouping.of_row, kind="stable")
    starts = np.searchsorted(grouping.of_row[order], np.arange(len(grouping.labels)))
    ordered = _Ordered(frame.values[order], frame.present[order], starts, grouping.of_row[order])
    present = np.logical_or.reduceat(ordered.present, starts, axis=0)
    return Frame(grouping.labels, reduce(ordered), present, grouping.drop_name)


@dataclass(frozen=True, slots=True)
class _Ordered:
    """Rows sorted by group: `starts` [groups] is the first row of each, `group` [rows] its number."""

    values: Floats
    present: Bools
    starts: Ints
    group: Ints

    def fold(self, ufunc: np.ufunc, values: Floats, absent: float) -> Floats:
        folded: Floats = ufunc.reduceat(np.where(self.present, values, absent), self.starts, axis=0)
        return folded

    def counts(self) -> Floats:
        counted: Floats = np.add.reduceat(self.present.astype(np.float64), self.starts, axis=0)
        return counted

    def careful(self, total: Floats, exact: Callable[[Floats], float]) -> Floats:
        magnitude = self.fold(np.add, np.abs(self.values), 0.0)
        for group, step in np.argwhere(needs_care(total, magnitude)):
            rows = slice(self.starts[group], None if group + 1 == len(self.starts) else self.starts[group + 1])
            chosen = self.values[rows, step][self.present[rows, step]]
            if len(chosen):
                total[group, step] = exact(chosen)
        return total


def _sum(rows: _Ordered) -> Floats:
    return rows.careful(rows.fold(np.add, rows.values, 0.0), exact_sum)


def _avg(rows: _Ordered) -> Floats:
    return rows.careful(rows.fold(np.add, rows.values, 0.0) / np.maximum(rows.counts(), 1), exact_mean)


def _stdvar(rows: _Ordered) -> Floats:
    count = np.maximum(rows.counts(), 1)
    # From the group's smallest value on: equal values then have no variance at all, not a rounding error.
    shifted = rows.values - rows.fold(np.fmin, rows.values, np.nan)[rows.group]
    mean = rows.fold(np.add, shifted, 0.0) / count
    return rows.fold(np.add, (shifted - mean[rows.group]) ** 2, 0.0) / count


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
    grouping = grouped(frame, labels, without)
    if not grouping.labels:
        return frame
    values = [quantile_of_columns(frame.values[rows], frame.present[rows], q) for rows in grouping.rows]
    present = [frame.present[rows].any(axis=0) for rows in grouping.rows]
    return Frame(grouping.labels, np.array(values), np.array(present), grouping.drop_name)


def top(frame: Frame, k: Floats, labels: tuple[str, ...], without: bool, largest: bool) -> Frame:
    """The `k` [steps] largest or smallest of each group, with their own labels; at one step sorted by value."""
    if np.isnan(k).any():
        raise QueryError("Parameter value is NaN")
    if (np.abs(k) >= 2.0**63).any():
        raise QueryError(f"Scalar value {format_float(float(k[0]))} overflows int64")
    kept = np.zeros_like(frame.present)
    order: list[int] = []
    for rows in grouped(frame, labels, without).rows:
        if not len(rows):
            continue
        values, present = frame.values[rows], frame.present[rows]
        rank = np.where(present, np.where(np.isnan(values), 1, 0), 2)
        sequence = np.lexsort((-values if largest else values, rank), axis=0)
        place = np.empty_like(sequence)
        np.put_along_axis(place, sequence, np.broadcast_to(np.arange(len(rows))[:, None], sequence.shape), axis=0)
        kept[rows] = present & (place < np.trunc(k))
        order.extend(rows[sequence[:, 0]].tolist())
    chosen = Frame(frame.labels, frame.values, kept, frame.drop_name)
    return (chosen.rows(order) if len(k) == 1 else chosen).without_empty()


def count_values(frame: Frame, label: str, labels: tuple[str, ...], without: bool) -> Frame:
    """How many series of each group have each value; the value goes into `label`."""
    if not _LABEL_NAME.fullmatch(label):
        raise QueryError(f'invalid label name "{label}"')
    steps = frame.values.shape[1]
    grouping = grouped(frame, labels, without)
    counts: dict[LabelKey, Floats] = {}
    for row, step in np.argwhere(frame.present):
        text = format_float(float(frame.values[row, step]))
        # A label of the same name gives way, and groups that differed in it alone become one.
        key = label_key({**grouping.labels[grouping.of_row[row]], label: text})
        counts.setdefault(key, np.zeros(steps))[step] += 1
    if not counts:
        return Frame.empty(steps)
    values = np.array(list(counts.values()))
    return Frame.of([dict(key) for key in counts], values, values > 0)
