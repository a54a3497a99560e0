"""Classic histograms: bucket series put together by their `le`, and the functions of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from collectors.query.frame import Bools, Floats, Frame, Ints, LabelSets, Naming, without_labels
from collectors.query.numbers import format_open_metrics, parse_float
from collectors.query.quantiles import bucket_fraction, bucket_quantile
from collectors.store import Labels

# (bounds [buckets], counts [histograms, buckets, steps], the step of each) -> [histograms, steps]
BucketFunction = Callable[[Floats, Floats, Ints], Floats]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Histograms with the same bounds: `rows` [histograms, buckets, duplicates] of the frame, -1 where there is none.

    More than one row is a bucket where bounds are written in different ways, such as "1" and "1.0".
    """

    labels: list[Labels]
    bounds: Floats
    rows: Ints


def histogram_quantile(frame: Frame, quantile: Floats, naming: Naming) -> Frame:
    """The quantile [steps] of classic histograms, whose buckets are series that differ in `le`."""
    return _apply(frame, lambda bounds, counts, step: bucket_quantile(bounds, counts, quantile[step]), naming)


def histogram_quantiles(frame: Frame, label: str, quantiles: Sequence[Floats], naming: Naming) -> Frame:
    """Several quantiles ([steps] each) at once, told apart by the value of `label`."""
    frames = []
    for quantile in quantiles:
        found = histogram_quantile(frame, quantile, naming)
        # A quantile that changes from step to step makes a series for each of its values.
        for value in np.unique(quantile).tolist():
            here = np.isnan(quantile) if np.isnan(value) else quantile == value
            labels = [{**own, label: format_open_metrics(value)} for own in found.labels]
            frames.append(Frame(LabelSets(labels), found.values, found.present & here, found.drop_name))
    return Frame.concatenated(frames, frame.values.shape[1]).without_empty().merged()


def histogram_fraction(frame: Frame, lower: Floats, upper: Floats, naming: Naming) -> Frame:
    """The share of observations in (lower, upper] ([steps] each) of classic histograms."""
    return _apply(frame, lambda bounds, counts, step: bucket_fraction(bounds, counts, lower[step], upper[step]), naming)


def _apply(frame: Frame, function: BucketFunction, naming: Naming) -> Frame:
    layouts, labels = frame.labels.kept("histograms", lambda: _layouts(frame.labels))
    if not layouts:
        return Frame.empty(frame.values.shape[1])
    values, presences = [], []
    for layout in layouts:
        counts, present = _counts(frame, layout)
        values.append(_values(layout.bounds, counts, present, function))
        presences.append(present.any(axis=1))
    return Frame.of(labels, np.concatenate(values), np.concatenate(presences)).without_empty().nameless(naming)


def _layouts(labels: LabelSets) -> tuple[list[_Layout], LabelSets]:
    histograms: dict[frozenset[tuple[str, str]], dict[float, list[int]]] = {}
    for row, own in enumerate(labels):
        try:
            bound = parse_float(own.get("le", ""))
        except ValueError:
            continue  # not a bucket: Prometheus leaves such series out too
        if not np.isnan(bound):
            key = frozenset(pair for pair in own.items() if pair[0] != "le")
            histograms.setdefault(key, {}).setdefault(bound, []).append(row)
    by_bounds: dict[tuple[float, ...], list[dict[float, list[int]]]] = {}
    for buckets in histograms.values():
        by_bounds.setdefault(tuple(sorted(buckets)), []).append(buckets)
    layouts = [_layout(labels, bounds, some) for bounds, some in by_bounds.items()]
    return layouts, LabelSets([own for layout in layouts for own in layout.labels])


def _layout(labels: LabelSets, bounds: tuple[float, ...], histograms: list[dict[float, list[int]]]) -> _Layout:
    width = max(len(rows) for buckets in histograms for rows in buckets.values())
    rows = np.full((len(histograms), len(bounds), width), -1, dtype=np.int64)
    for index, buckets in enumerate(histograms):
        for position, bound in enumerate(bounds):
            rows[index, position, : len(buckets[bound])] = buckets[bound]
    own: list[Labels] = [without_labels(labels[int(row)], ("le",)) for row in rows[:, 0, 0]]
    return _Layout(own, np.array(bounds), rows)


def _counts(frame: Frame, layout: _Layout) -> tuple[Floats, Bools]:
    """Counts and presence [histograms, buckets, steps]; the counts of equal bounds add up."""
    first = layout.rows[:, :, 0]
    counts, present = frame.values[first], frame.present[first]
    if layout.rows.shape[2] > 1:
        counts = np.where(present, counts, 0.0)
        for more in range(1, layout.rows.shape[2]):
            rows = layout.rows[:, :, more]
            there = (rows >= 0)[:, :, None] & frame.present[rows]
            counts = counts + np.where(there, frame.values[rows], 0.0)
            present = present | there
    return counts, present


def _values(bounds: Floats, counts: Floats, present: Bools, function: BucketFunction) -> Floats:
    steps = np.arange(counts.shape[2])
    values = function(bounds, counts, steps)
    whole = present.all(axis=1) | ~present.any(axis=1)
    if whole.all():
        return values
    # Where buckets are absent, only the others count: cells with the same buckets are computed together.
    histogram, step = np.nonzero(~whole)
    cells = present[histogram, :, step]
    patterns, which = np.unique(cells, axis=0, return_inverse=True)
    for number, there in enumerate(patterns):
        chosen = np.flatnonzero(which.ravel() == number)
        some = counts[histogram[chosen], :, step[chosen]][:, there].T[None]
        values[histogram[chosen], step[chosen]] = function(bounds[there], some, step[chosen])[0]
    return values
