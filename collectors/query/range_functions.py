"""Functions of a range vector: each takes windows and gives values [steps, series] and which are present [steps].

The formulas are those of Prometheus' promql/functions.go.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from collectors.query.errors import QueryError
from collectors.query.frame import Bools, Floats, Ints
from collectors.query.quantiles import quantile_of_columns
from collectors.query.sums import CompensatedSum, cancelled, careful_mean, careful_sum, overflowed
from collectors.query.windows import Windows

Answer = tuple[Floats, Bools]
RangeFunction = Callable[[Windows], Answer]


def _per_series(windows: Windows, per_step: Floats) -> Floats:
    return np.repeat(per_step[:, None], windows.v.shape[1], axis=1)


def _prefix_sums(windows: Windows, increments: Floats) -> Floats:
    """Sum of increments[i] (from row i-1 to i) over the rows of each window after its first."""
    total = np.concatenate([np.zeros((1, increments.shape[1])), np.cumsum(increments, axis=0)])
    gained: Floats = total[windows.last_rows] - total[windows.first_rows]
    return gained


# --- counters and gauges over a range ---------------------------------------------------------------------------------
def _gains(windows: Windows, is_counter: bool) -> Floats:
    v = windows.v
    gained: Floats = v[windows.last_rows] - v[windows.first_rows]
    if not is_counter:
        return gained
    fell = v[1:] < v[:-1]
    columns = np.flatnonzero(fell.any(axis=0))
    if not len(columns):
        return gained
    # Window by window: in a difference of running sums, large values outside of a window would take its digits.
    lost = np.zeros((len(v), len(columns)))
    lost[1:] = np.where(fell[:, columns], v[:-1, columns], 0.0)
    inner = Windows(windows.t, lost, windows.low + 1, windows.high, windows.start, windows.end)
    gained[:, columns] += np.where(windows.counts[:, None] > 1, inner.reduce(np.add), 0.0)
    return gained


def _extrapolated(windows: Windows, is_counter: bool, per_second: bool, zero_first: bool) -> Answer:
    """Growth over the whole range, extrapolated to its ends where samples are near enough (extrapolatedRate)."""
    counts, t = windows.counts, windows.t
    present = counts >= 2
    first, last = t[windows.first_rows], t[windows.last_rows]
    sampled = (last - first) / 1000
    to_start = np.repeat(((first - windows.start) / 1000)[:, None], windows.v.shape[1], axis=1)
    to_end = (windows.end - last) / 1000
    average = sampled / np.maximum(counts - 1, 1)
    threshold = average * 1.1
    gained = _gains(windows, is_counter)
    # A counter cannot have been below zero: do not extrapolate to before the time it would have been zero.
    begin = windows.v[windows.first_rows]
    starts_at_zero = (gained > 0) & (begin >= 0) if is_counter else np.zeros(gained.shape, dtype=np.bool_)
    to_zero = np.where(starts_at_zero, sampled[:, None] * (begin / np.where(gained == 0, 1, gained)), np.inf)
    near = to_start if not zero_first else np.minimum(to_start, to_zero)
    to_start = np.where(near >= threshold[:, None], average[:, None] / 2, near)
    if not zero_first:
        to_start = np.minimum(to_start, to_zero)
    to_end = np.where(to_end >= threshold, average / 2, to_end)
    factor = (sampled[:, None] + to_start + to_end[:, None]) / sampled[:, None]
    if per_second:
        factor = factor / ((windows.end - windows.start) / 1000)[:, None]
    return gained * factor, present


def growth(is_counter: bool, per_second: bool, zero_first: bool) -> RangeFunction:
    """rate, increase or delta. `zero_first` is the order of the clamp at zero before Prometheus 3."""
    return lambda windows: _extrapolated(windows, is_counter, per_second, zero_first)


def _instant_growth(windows: Windows, is_rate: bool) -> Answer:
    v, t = windows.v, windows.t
    last = windows.last_rows
    before = np.maximum(last - 1, 0)
    change = v[last] - v[before]
    if is_rate:
        change = np.where(v[last] < v[before], v[last], change) / ((t[last] - t[before]) / 1000)[:, None]
    return change, windows.counts >= 2


def irate(windows: Windows) -> Answer:
    """Growth a second between the last two samples of a counter."""
    return _instant_growth(windows, True)


def idelta(windows: Windows) -> Answer:
    """Difference of the last two samples."""
    return _instant_growth(windows, False)


def _changed(windows: Windows, changed: Callable[[Floats, Floats], Bools]) -> Answer:
    v = windows.v
    flags = changed(v[:-1], v[1:]).astype(np.float64)
    return _prefix_sums(windows, flags), windows.counts >= 1


def changes(windows: Windows) -> Answer:
    """How often the value changed; NaN equals NaN."""
    return _changed(windows, lambda old, new: (old != new) & ~(np.isnan(old) & np.isnan(new)))


def resets(windows: Windows) -> Answer:
    """How often the value fell."""
    return _changed(windows, lambda old, new: new < old)


# --- straight lines ---------------------------------------------------------------------------------------------------
def _regression(windows: Windows, origin: Ints) -> tuple[Floats, Floats]:
    """Slope a second and value at `origin` (ms, [steps]) of the least-squares line through each window.

    The sums are compensated term by term, as in linearRegression: lines that are nearly flat need the digits.
    """
    slope, intercept = np.empty(windows.shape), np.empty(windows.shape)
    for steps, v, t, inside in windows.padded():
        n = np.maximum(inside.sum(axis=1), 1)[:, None].astype(np.float64)
        times = (t - origin[steps, None]) / 1000
        sum_x, sum_xx = CompensatedSum(n.shape), CompensatedSum(n.shape)
        sum_y, sum_xy = CompensatedSum(v.shape[::2]), CompensatedSum(v.shape[::2])
        for position in range(v.shape[1]):
            here = inside[:, position, None]
            x, y = np.where(here, times[:, position, None], 0.0), np.where(here, v[:, position], 0.0)
            sum_x.add(x)
            sum_y.add(y)
            sum_xy.add(x * y)
            sum_xx.add(x * x)
        x_total, y_total = sum_x.total, sum_y.total
        slope[steps] = (sum_xy.total - x_total * y_total / n) / (sum_xx.total - x_total * x_total / n)
        intercept[steps] = y_total / n - slope[steps] * x_total / n
    first = windows.v[windows.first_rows]
    constant = (windows.extreme(np.minimum) == first) & (windows.extreme(np.maximum) == first)
    infinite = constant & np.isinf(first)
    slope = np.where(constant, np.where(infinite, np.nan, 0.0), slope)
    return slope, np.where(constant, np.where(infinite, np.nan, first), intercept)


def deriv(windows: Windows) -> Answer:
    """Slope a second of the least-squares line."""
    return _regression(windows, windows.t[windows.first_rows])[0], windows.counts >= 2


def predict_linear(seconds: Floats, now: Ints) -> RangeFunction:
    """The least-squares line, `seconds` [steps] after the step."""

    def predict(windows: Windows) -> Answer:
        slope, intercept = _regression(windows, now)
        return slope * seconds[:, None] + intercept, windows.counts >= 2

    return predict


# --- aggregates over time ---------------------------------------------------------------------------------------------
def _careful(windows: Windows, result: Floats, total: Floats, exact: Callable[[Floats], float]) -> Floats:
    """The result, computed again where the plain sum of a window lost digits that matter."""
    v = windows.v
    doubtful = np.zeros(total.shape, dtype=np.bool_)
    if (v < 0).any():
        doubtful = cancelled(total, windows.reduce(np.add, np.abs(v)))
    if not np.isfinite(total).all():
        doubtful |= overflowed(total, windows.reduce(np.maximum, np.abs(v)))
    for step, column in np.argwhere(doubtful & (windows.counts > 0)[:, None]):
        result[step, column] = exact(v[windows.low[step] : windows.high[step], column])
    return result


def sum_over_time(windows: Windows) -> Answer:
    """Sum, with the digits kept when terms cancel."""
    total = windows.reduce(np.add)
    return _careful(windows, total, total, careful_sum), windows.counts >= 1


def avg_over_time(windows: Windows) -> Answer:
    """Mean, also where the sum overflows."""
    divisor = np.maximum(windows.counts, 1)[:, None]
    total = windows.reduce(np.add)
    return _careful(windows, total / divisor, total, careful_mean), windows.counts >= 1


def min_over_time(windows: Windows) -> Answer:
    """Smallest value; NaN only if there is nothing else."""
    return windows.extreme(np.fmin), windows.counts >= 1


def max_over_time(windows: Windows) -> Answer:
    """Largest value; NaN only if there is nothing else."""
    return windows.extreme(np.fmax), windows.counts >= 1


def count_over_time(windows: Windows) -> Answer:
    """Number of samples."""
    return _per_series(windows, windows.counts.astype(np.float64)), windows.counts >= 1


def present_over_time(windows: Windows) -> Answer:
    """1 if there is a sample."""
    return _per_series(windows, np.ones(len(windows.low))), windows.counts >= 1


def last_over_time(windows: Windows) -> Answer:
    """The newest value."""
    return windows.v[windows.last_rows], windows.counts >= 1


def first_over_time(windows: Windows) -> Answer:
    """The oldest value."""
    return windows.v[windows.first_rows], windows.counts >= 1


def stdvar_over_time(windows: Windows) -> Answer:
    """Population variance: mean and squares run along, compensated (varianceOverTime)."""
    variance = np.empty(windows.shape)
    for steps, v, _, inside in windows.padded():
        mean, squares = CompensatedSum(v.shape[::2]), CompensatedSum(v.shape[::2])
        for position in range(v.shape[1]):
            here, value = inside[:, position, None], v[:, position]
            delta = np.where(here, value - mean.total, 0.0)
            mean.add(delta / (position + 1))
            squares.add(np.where(here, delta * (value - mean.total), 0.0))
        variance[steps] = squares.total / np.maximum(inside.sum(axis=1), 1)[:, None]
    return variance, windows.counts >= 1


def stddev_over_time(windows: Windows) -> Answer:
    """Population standard deviation."""
    variance, present = stdvar_over_time(windows)
    return np.sqrt(variance), present


def quantile_over_time(quantile: Floats) -> RangeFunction:
    """The interpolated quantile ([steps]) of the samples."""

    def over_time(windows: Windows) -> Answer:
        result = np.empty((len(windows.low), windows.v.shape[1]))
        for steps, v, _, inside in windows.padded():
            present = np.broadcast_to(inside[:, :, None], v.shape)
            result[steps] = quantile_of_columns(np.moveaxis(v, 1, 0), np.moveaxis(present, 1, 0), quantile[steps, None])
        return result, windows.counts >= 1

    return over_time


def _median_deviation(v: Floats, inside: Bools, series: Bools) -> Floats:
    half = np.full(v.shape[1:], 0.5)
    median = quantile_of_columns(v, inside, half)
    found = quantile_of_columns(np.abs(v - median[None]), inside, half)
    return np.where(series, np.nan, found)


def mad_over_time(windows: Windows) -> Answer:
    """Median absolute deviation; NaN if any sample is."""
    result = np.empty(windows.shape)
    for steps, v, _, inside in windows.padded():
        there = np.broadcast_to(inside[:, :, None], v.shape)
        lost: Bools = np.logical_or.reduce(np.isnan(v) & there, axis=1)
        result[steps] = _median_deviation(np.moveaxis(v, 1, 0), np.moveaxis(there, 1, 0), lost)
    return result, windows.counts >= 1


def _time_of(last_of: Callable[[Floats, Bools], Bools]) -> RangeFunction:
    """The time in seconds of the last sample of those that `last_of` finds in [s, width, series]."""

    def over_time(windows: Windows) -> Answer:
        result = np.empty(windows.shape)
        for steps, v, t, inside in windows.padded():
            there = np.broadcast_to(inside[:, :, None], v.shape)
            found = last_of(v, there)
            last = v.shape[1] - 1 - np.argmax(found[:, ::-1], axis=1)
            result[steps] = np.take_along_axis(t, last, axis=1) / 1000
        return result, windows.counts >= 1

    return over_time


def _extreme(reduce: Callable[[Floats], Floats], absent: float) -> Callable[[Floats, Bools], Bools]:
    def found(v: Floats, there: Bools) -> Bools:
        best = reduce(np.where(there & ~np.isnan(v), v, absent))[:, None]
        number = there & (v == best)
        # Of nothing but NaN the last one counts.
        return np.where(number.any(axis=1)[:, None], number, there)

    return found


def _bound_time(rows: Callable[[Windows], Ints]) -> RangeFunction:
    return lambda windows: (_per_series(windows, windows.t[rows(windows)] / 1000), windows.counts >= 1)


def double_exponential_smoothing(smoothing: Floats, trend: Floats) -> RangeFunction:
    """Holt's linear smoothing with two factors ([steps] each), 0 < factor < 1; needs two samples."""
    for kind, factor in (("smoothing", smoothing), ("trend", trend)):
        wrong = factor[~((factor > 0) & (factor < 1))]
        if len(wrong):
            raise QueryError(f"invalid {kind} factor. Expected: 0 < {kind[0]}f < 1, got: {wrong[0]:f}")

    def smooth(windows: Windows) -> Answer:
        result = np.empty(windows.shape)
        for steps, v, _, inside in windows.padded():
            if v.shape[1] < 2:
                continue
            sf, tf = smoothing[steps, None], trend[steps, None]
            level, slope, before = v[:, 0], v[:, 1] - v[:, 0], v[:, 0]
            for position in range(1, v.shape[1]):
                if position > 1:
                    slope = np.where(inside[:, position, None], tf * (level - before) + (1 - tf) * slope, slope)
                following = sf * v[:, position] + (1 - sf) * (level + slope)
                here = inside[:, position, None]
                before, level = np.where(here, level, before), np.where(here, following, level)
            result[steps] = level
        return result, windows.counts >= 2

    return smooth


SIMPLE: dict[str, RangeFunction] = {
    "irate": irate,
    "idelta": idelta,
    "changes": changes,
    "resets": resets,
    "deriv": deriv,
    "sum_over_time": sum_over_time,
    "avg_over_time": avg_over_time,
    "min_over_time": min_over_time,
    "max_over_time": max_over_time,
    "count_over_time": count_over_time,
    "present_over_time": present_over_time,
    "last_over_time": last_over_time,
    "first_over_time": first_over_time,
    "stddev_over_time": stddev_over_time,
    "stdvar_over_time": stdvar_over_time,
    "mad_over_time": mad_over_time,
    "ts_of_min_over_time": _time_of(_extreme(lambda v: v.min(axis=1), np.inf)),
    "ts_of_max_over_time": _time_of(_extreme(lambda v: v.max(axis=1), -np.inf)),
    "ts_of_last_over_time": _bound_time(lambda windows: windows.last_rows),
    "ts_of_first_over_time": _bound_time(lambda windows: windows.first_rows),
}
KEEPS_NAME = frozenset({"last_over_time", "first_over_time"})
