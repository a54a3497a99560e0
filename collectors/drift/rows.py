"""Exact two-sample statistics on rows: what scipy computes, from arrays that are sorted already.

Every function takes two ascending float64 arrays without NaN or infinities (sort with `numpy.sort`, drop the rest
first: the caller counts them), and none of them looks: unsorted input gives a wrong number. Ties are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from collectors.drift.bins import Counts, Floats
from collectors.drift.cramer_von_mises_law import two_sample_pvalue as cramer_von_mises_pvalue
from collectors.drift.kolmogorov_law import two_sample_pvalue as kolmogorov_pvalue
from collectors.drift.outcome import UNDEFINED, Test

# Rows handled at a time, so that the intermediates stay in the processor's cache.
_BLOCK = 32_768
# Intervals that are looked into first, to raise the distance that the others must beat.
_FIRST_LOOK = 32
# Below this products of positions are exact in float64, and so are the floors of their quotients.
_EXACT_PRODUCT = 2**52
# Beyond this a sum of differences, times numbers of rows, can overflow.
_HEADROOM = 2.0**64
_LARGE = np.finfo(np.float64).max / _HEADROOM


def ks_rows(reference: Floats, current: Floats) -> Test:
    """Kolmogorov–Smirnov: the largest difference of the two distribution functions, `scipy.stats.ks_2samp`.

    Exact p-value up to 10,000 rows a side, asymptotic beyond, as scipy's `method="auto"`. Undefined (NaN) when a
    side is empty.
    """
    n, m = len(reference), len(current)
    if not n or not m:
        return UNDEFINED
    steps = _largest_gap(reference, current)
    return Test(steps / (n * m), kolmogorov_pvalue(steps, n, m))


def cvm_rows(reference: Floats, current: Floats) -> Test:
    """Cramér–von Mises: `T = nm/(n+m) ω²` with midranks (Anderson 1962), `scipy.stats.cramervonmises_2samp`.

    Undefined (NaN) when a side has fewer than two rows.
    """
    n, m = len(reference), len(current)
    if n < 2 or m < 2:
        return UNDEFINED
    a, b = _merged(reference, current)
    k, q = np.diff(a, prepend=0).astype(np.float64), np.diff(b, prepend=0).astype(np.float64)
    total, product = n + m, n * m
    # The difference of the two functions' mid-steps at each distinct value; U / (nm(n+m)) − (4nm − 1) / (6(n+m)) is
    # worked out so that its two large terms, both 2nm / (3(n+m)), never stand against each other.
    gap = ((2 * a - k) / n - (2 * b - q) / m) / 2
    distance = float(np.sum((k + q) * gap * gap))
    steps = float(np.sum(k**3) / (12 * n**2) + np.sum(q**3) / (12 * m**2) - np.sum(k * q * (k + q)) / (4 * product))
    ties = float(n * np.sum(k * (k * k - 1)) + m * np.sum(q * (q * q - 1))) / (12 * product * total)
    statistic = product / total**2 * (distance + steps) + ties + 1 / (6 * total)
    return Test(statistic, cramer_von_mises_pvalue(statistic, n, m))


def wasserstein_rows(reference: Floats, current: Floats) -> float:
    """Wasserstein-1: `∫ |F⁻¹ − G⁻¹| du`, `scipy.stats.wasserstein_distance`; NaN when a side is empty.

    The two quantile functions step at multiples of 1/n and 1/m, so their common steps are known without looking at the
    values: one pass of gathers, no merge. Equal sizes: the mean of |a − b|. Infinite only where it is above the largest
    float64.
    """
    n, m = len(reference), len(current)
    if not n or not m:
        return math.nan
    largest = max(abs(float(x)) for x in (reference[0], reference[-1], current[0], current[-1]))
    if largest > _LARGE:
        return _HEADROOM * wasserstein_rows(reference / _HEADROOM, current / _HEADROOM)
    if n < m:
        reference, current, n, m = current, reference, m, n
    return math.fsum(_equal_parts(reference, current) if n == m else _unequal_parts(reference, current))


def _equal_parts(a: Floats, b: Floats) -> Iterator[float]:
    held = np.empty(min(_BLOCK, len(a)))
    for start in range(0, len(a), _BLOCK):
        block = np.subtract(a[start : start + _BLOCK], b[start : start + _BLOCK], out=held[: len(a) - start])
        yield float(np.sum(np.abs(block, out=block))) / len(a)


def _unequal_parts(a: Floats, b: Floats) -> Iterator[float]:
    """`a` is the longer: each of its steps overlaps one step of `b`, or two that follow each other."""
    n, m = len(a), len(b)
    exact = n * m < _EXACT_PRODUCT
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        if exact:
            from_ = np.arange(start, stop, dtype=np.float64) * m
            first = np.floor(from_ / n)
            inside = np.minimum((first + 1) * n - from_, m)
            index = first.astype(np.intp)
        else:
            whole = np.arange(start, stop, dtype=np.int64) * m
            index = whole // n
            inside = np.minimum((index + 1) * n - whole, m).astype(np.float64)
        # Of the step's mass 1/n the share inside/m lies over b[index], the rest over the next.
        near, far = b[index], b[np.minimum(index + 1, m - 1)]
        block = a[start:stop]
        gap = inside * np.abs(block - near) + (m - inside) * np.abs(block - far)
        yield float(np.sum(gap)) / m / n


def _largest_gap(a: Floats, b: Floats) -> int:
    """The largest `|count_a(≤ x) · m − count_b(≤ x) · n|`: n·m times the Kolmogorov–Smirnov distance.

    Both are counted at every √n-th value only. Between two such values the difference cannot leave the range that the
    counts at both ends allow, so only intervals that could hold a larger one are looked into.
    """
    n, m = len(a), len(b)
    stride = max(16, math.isqrt(min(n, m)) // 8)
    grid = np.sort(np.concatenate([a[stride - 1 :: stride], b[stride - 1 :: stride]]), kind="stable")
    grid = grid[np.append(grid[1:] != grid[:-1], True)] if len(grid) else grid
    a_to, b_to = np.searchsorted(a, grid, "right"), np.searchsorted(b, grid, "right")
    best = int(np.max(np.abs(a_to * m - b_to * n), initial=0))
    # The open intervals before, between and behind the grid's values.
    a_from, b_from = np.append(0, a_to), np.append(0, b_to)
    a_end, b_end = np.append(np.searchsorted(a, grid, "left"), n), np.append(np.searchsorted(b, grid, "left"), m)
    above = np.where(a_end > a_from, a_end * m - b_from * n, 0)
    below = np.where(b_end > b_from, b_end * n - a_from * m, 0)
    if np.sum((a_end - a_from)[above > best]) + np.sum((b_end - b_from)[below > best]) > (n + m) // 2:
        first_a, first_b = np.argsort(-above)[:_FIRST_LOOK], np.argsort(-below)[:_FIRST_LOOK]
        best = max(best, _gap_inside(a, b, a_from[first_a], a_end[first_a]))
        best = max(best, _gap_inside(b, a, b_from[first_b], b_end[first_b]))
        if np.sum((a_end - a_from)[above > best]) + np.sum((b_end - b_from)[below > best]) > (n + m) // 4:
            a_at, b_at = _merged(a, b)
            return int(np.max(np.abs(a_at * m - b_at * n)))
    best = max(best, _gap_inside(a, b, a_from[above > best], a_end[above > best]))
    return max(best, _gap_inside(b, a, b_from[below > best], b_end[below > best]))


def _gap_inside(a: Floats, b: Floats, starts: Counts, stops: Counts) -> int:
    """The largest `count_a · m − count_b · n` at the values of `a` in these ranges of its positions."""
    lengths = stops - starts
    if not lengths.sum():
        return 0
    position = np.repeat(stops - np.cumsum(lengths), lengths) + np.arange(int(lengths.sum()))
    # Of equal values only the last has its whole count, and it has the largest difference.
    gap = (position + 1) * len(b) - np.searchsorted(b, a[position], "right") * len(a)
    return int(gap.max())


def _merged(a: Floats, b: Floats) -> tuple[Counts, Counts]:
    """How many of `a` and of `b` are at most each distinct value of both, ascending."""
    both = np.concatenate([a, b])
    order = np.argsort(both, kind="stable")  # Timsort: two sorted runs are merged in one pass.
    both = both[order]
    last = np.flatnonzero(np.append(both[1:] != both[:-1], True))
    a_to = np.cumsum(order < len(a), dtype=np.int64)[last]
    return a_to, last + 1 - a_to
