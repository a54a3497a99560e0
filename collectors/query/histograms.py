"""Classic histograms: bucket series put together by their `le`, and the functions of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from collectors.query.frame import Bools, Floats, Frame, without_labels
from collectors.query.numbers import parse_float
from collectors.query.quantiles import bucket_fraction, bucket_quantile
from collectors.store import Labels

# (bounds [buckets], counts [histograms, buckets, steps], steps) -> [histograms, steps]
BucketFunction = Callable[[Floats, Floats, slice], Floats]


@dataclass(frozen=True, slots=True)
class _Histogram:
    """One histogram: counts and presence [buckets, steps] in the order of the rising bounds."""

    labels: Labels
    bounds: tuple[float, ...]
    counts: Floats
    present: Bools


def histogram_quantile(frame: Frame, quantile: Floats, delayed: bool) -> Frame:
    """The quantile [steps] of classic histograms, whose buckets are series that differ in `le`."""
    return _apply(frame, lambda bounds, counts, steps: bucket_quantile(bounds, counts, quantile[steps]), delayed)


def histogram_fraction(frame: Frame, lower: Floats, upper: Floats, delayed: bool) -> Frame:
    """The share of observations in (lower, upper] ([steps] each) of classic histograms."""
    return _apply(
        frame, lambda bounds, counts, steps: bucket_fraction(bounds, counts, lower[steps], upper[steps]), delayed
    )


def _apply(frame: Frame, function: BucketFunction, delayed: bool) -> Frame:
    by_bounds: dict[tuple[float, ...], list[_Histogram]] = {}
    for histogram in _histograms(frame):
        by_bounds.setdefault(histogram.bounds, []).append(histogram)
    if not by_bounds:
        return Frame.empty(frame.values.shape[1])
    found = [histogram for some in by_bounds.values() for histogram in some]
    values = [_values(np.array(bounds), some, function) for bounds, some in by_bounds.items()]
    present = np.array([histogram.present.any(axis=0) for histogram in found])
    return Frame.of([histogram.labels for histogram in found], np.concatenate(values), present).nameless(delayed)


def _histograms(frame: Frame) -> list[_Histogram]:
    by_labels: dict[frozenset[tuple[str, str]], dict[float, list[int]]] = {}
    for row, labels in enumerate(frame.labels):
        try:
            bound = parse_float(labels.get("le", ""))
        except ValueError:
            continue  # not a bucket: Prometheus leaves such series out too
        if not np.isnan(bound):
            key = frozenset(pair for pair in labels.items() if pair[0] != "le")
            by_labels.setdefault(key, {}).setdefault(bound, []).append(row)
    return [_histogram(frame, buckets) for buckets in by_labels.values()]


def _histogram(frame: Frame, buckets: dict[float, list[int]]) -> _Histogram:
    bounds = tuple(sorted(buckets))
    first = buckets[bounds[0]][0]
    labels = without_labels(frame.labels[first], ("le",))
    if all(len(rows) == 1 for rows in buckets.values()):
        order = [buckets[bound][0] for bound in bounds]
        return _Histogram(labels, bounds, frame.values[order], frame.present[order])
    # "1" and "1.0" are one bound: the counts add up.
    rows = [buckets[bound] for bound in bounds]
    counts = np.array([np.where(frame.present[some], frame.values[some], 0).sum(axis=0) for some in rows])
    present = np.array([frame.present[some].any(axis=0) for some in rows])
    return _Histogram(labels, bounds, counts, present)


def _values(bounds: Floats, histograms: list[_Histogram], function: BucketFunction) -> Floats:
    counts = np.array([histogram.counts for histogram in histograms])
    present = np.array([histogram.present for histogram in histograms])
    values = function(bounds, counts, slice(None))
    # Where buckets are absent, only the others count.
    whole = present.all(axis=1) | ~present.any(axis=1)
    for histogram, step in np.argwhere(~whole):
        there = present[histogram, :, step]
        one = counts[histogram, there, step][None, :, None]
        values[histogram, step] = function(bounds[there], one, slice(step, step + 1))[0, 0]
    return values
