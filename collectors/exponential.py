"""Exponential histograms of OTLP as explicit buckets, whose bounds stay the same while the data's range does.

A bucket of scale s with index i holds values in (b^i, b^(i+1)] with b = 2^(2^-s) (OpenTelemetry, metrics data model).
Two neighbours of one scale are one bucket of the scale below, exactly: so a histogram is brought to FINEST or coarser.
"""

from __future__ import annotations

from typing import Any

# Four buckets to a doubling: bounds are a factor of 1.19 apart, so a quantile is off by less than a fifth.
FINEST = 2
MOST_BUCKETS = 160


def explicit_buckets(point: Any) -> tuple[list[float], list[int]]:
    """Rising upper bounds and the counts below each and above the one before, without the bucket to infinity."""
    scale = min(point.scale, FINEST)
    positive, negative = _dense(point.positive), _dense(point.negative)
    while True:
        shift = point.scale - scale
        above, below = _merged(positive, shift), _merged(negative, shift)
        if len(_span(above)) + len(_span(below)) <= MOST_BUCKETS:
            break
        scale -= 1
    bounds: list[float] = []
    counts: list[int] = []
    if below:
        # The bucket of index i holds values from -b^(i+1) to -b^i: the largest index comes first.
        for index in reversed(_span(below)):
            bounds.append(-_bound(scale, index))
            counts.append(below.get(index, 0))
    if below or above or point.zero_count:
        bounds.append(point.zero_threshold)
        counts.append(point.zero_count)
    if above:
        bounds.append(_bound(scale, min(above)))  # nothing of them is below it
        counts.append(0)
        for index in _span(above):
            bounds.append(_bound(scale, index + 1))
            counts.append(above.get(index, 0))
    return _rising(bounds, counts)


def _dense(buckets: Any) -> dict[int, int]:
    return {buckets.offset + k: count for k, count in enumerate(buckets.bucket_counts) if count}


def _merged(counts: dict[int, int], shift: int) -> dict[int, int]:
    merged: dict[int, int] = {}
    for index, count in counts.items():
        merged[index >> shift] = merged.get(index >> shift, 0) + count
    return merged


def _span(counts: dict[int, int]) -> range:
    return range(min(counts), max(counts) + 1) if counts else range(0)


def _bound(scale: int, index: int) -> float:
    """b^index; exact where it is a power of two."""
    try:
        return float(2.0 ** (index * 2.0**-scale))
    except OverflowError:
        return float("inf")


def _rising(bounds: list[float], counts: list[int]) -> tuple[list[float], list[int]]:
    """Bounds that the zero bucket reaches over are left to it; counts stay."""
    rising: list[float] = []
    kept: list[int] = []
    for bound, count in zip(bounds, counts, strict=True):
        if rising and bound <= rising[-1]:
            kept[-1] += count
        elif bound < float("inf"):
            rising.append(bound)
            kept.append(count)
    return rising, kept
