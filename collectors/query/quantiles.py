"""Quantiles: of samples (interpolated) and of classic histograms (promql/quantile.go)."""

from __future__ import annotations

import numpy as np

from collectors.query.frame import Bools, Floats

# Buckets that differ by less are the same count with rounding noise (smallDeltaTolerance).
_NOISE = 1e-12


def quantile_of_columns(values: Floats, present: Bools, quantile: Floats) -> Floats:
    """The quantile over axis 0 of the present values; `quantile` broadcasts over the other axes.

    Below 0 is -Inf, above 1 +Inf; NaN sorts first; NaN where nothing is present.
    """
    # Sort key by class: NaN before numbers, absent last.
    rank = np.where(present, np.where(np.isnan(values), 0, 1), 2)
    order = np.lexsort((values, rank), axis=0)
    ordered = np.take_along_axis(values, order, axis=0)
    count = present.sum(axis=0)
    q = np.broadcast_to(quantile, count.shape)
    position = np.where(np.isnan(q), 0, np.clip(q, 0, 1)) * (count - 1)
    lower = np.maximum(np.floor(position), 0).astype(np.int64)
    upper = np.minimum(lower + 1, np.maximum(count - 1, 0))
    weight = position - np.floor(position)
    low = np.take_along_axis(ordered, lower[None], axis=0)[0]
    high = np.take_along_axis(ordered, upper[None], axis=0)[0]
    between = low * (1 - weight) + high * weight
    result = np.where(q < 0, -np.inf, np.where(q > 1, np.inf, between))
    return np.where((count == 0) | np.isnan(q), np.nan, result)


def bucket_quantile(bounds: Floats, counts: Floats, quantile: Floats) -> Floats:
    """The quantile of histograms with the same buckets, interpolated linearly inside a bucket.

    `bounds` [b] rises and ends in +Inf; `counts` [histograms, b, steps] are cumulative; `quantile` [steps].
    Gives [histograms, steps]. NaN for fewer than two buckets, no observations, or no +Inf bucket.
    """
    shape = (counts.shape[0], counts.shape[2])
    q = np.broadcast_to(quantile, shape)
    outside = np.where(q < 0, -np.inf, np.where(q > 1, np.inf, np.nan))
    if len(bounds) < 2 or not np.isposinf(bounds[-1]):
        return np.where(np.isnan(q) | ((q >= 0) & (q <= 1)), np.nan, outside)
    counts = _monotonic(counts)
    observations = counts[:, -1]
    rank = q * observations
    # The first bucket that reaches the rank, the +Inf bucket left out of the search.
    reached = counts[:, :-1] >= rank[:, None]
    bucket = np.where(reached.any(axis=1), reached.argmax(axis=1), len(bounds) - 1)
    inner = np.minimum(bucket, len(bounds) - 2)
    below = np.where(inner > 0, _pick(counts, np.maximum(inner - 1, 0)), 0.0)
    start = np.where(inner > 0, bounds[np.maximum(inner - 1, 0)], 0.0)
    within = _pick(counts, inner) - below
    value = start + (bounds[inner] - start) * ((rank - below) / within)
    value = np.where((inner == 0) & (bounds[0] <= 0), bounds[0], value)
    value = np.where(bucket == len(bounds) - 1, bounds[-2], value)
    value = np.where((observations == 0) | np.isnan(observations), np.nan, value)
    return np.where((q >= 0) & (q <= 1), value, outside)


def bucket_fraction(bounds: Floats, counts: Floats, lower: Floats, upper: Floats) -> Floats:
    """The share of observations between `lower` and `upper` ([steps] each), interpolated linearly inside buckets.

    Shapes as for `bucket_quantile`. NaN without a +Inf bucket, without observations, or for a NaN bound.
    """
    shape = (counts.shape[0], counts.shape[2])
    low, high = np.broadcast_to(lower, shape), np.broadcast_to(upper, shape)
    if not np.isposinf(bounds[-1]):
        return np.full(shape, np.nan)
    counts = _monotonic(counts)
    total = counts[:, -1]
    share = (_rank(bounds, counts, high, False) - _rank(bounds, counts, low, True)) / total
    share = np.where(low >= high, 0.0, share)
    return np.where((total == 0) | np.isnan(total) | np.isnan(low) | np.isnan(high), np.nan, share)


def _rank(bounds: Floats, counts: Floats, value: Floats, is_lower: bool) -> Floats:
    """How many observations are at most `value` [histograms, steps].

    A first bucket without a beginning cannot be divided, so none of it is taken: a lower bound in it skips all.
    """
    bucket = np.minimum(np.searchsorted(bounds, value, side="left"), len(bounds) - 1)
    ends, end_counts = bounds[bucket], _pick(counts, bucket)
    before = np.maximum(bucket - 1, 0)
    # The first bucket begins at zero, unless its bound is not above zero: then nobody knows where.
    starts = np.where(bucket > 0, bounds[before], 0.0 if bounds[0] > 0 else -np.inf)
    start_counts = np.where(bucket > 0, _pick(counts, before), 0.0)
    inside = start_counts + (end_counts - start_counts) * (value - starts) / (ends - starts)
    unknown = np.isinf(starts) | np.isinf(ends)
    at_edge = np.where((value >= ends) | (np.isinf(starts) & is_lower), end_counts, start_counts)
    return np.where(value <= starts, start_counts, np.where(unknown | (value >= ends), at_edge, inside))


def _pick(counts: Floats, bucket: Floats) -> Floats:
    picked: Floats = np.take_along_axis(counts, bucket[:, None].astype(np.int64), axis=1)[:, 0]
    return picked


def _monotonic(counts: Floats) -> Floats:
    """Cumulative counts that do not fall: scrapes of a live histogram and float sums leave small dents."""
    steps = np.diff(counts, axis=1)
    small = steps < _NOISE * (np.abs(counts[:, 1:]) + np.abs(counts[:, :-1]))
    if not (small & (steps != 0)).any():
        return counts
    mended = counts.copy()
    for bucket in range(1, counts.shape[1]):
        before, now = mended[:, bucket - 1], mended[:, bucket]
        noise = np.abs(now - before) < _NOISE * (np.abs(now) + np.abs(before))
        mended[:, bucket] = np.where(noise | (now < before), before, now)
    return mended
