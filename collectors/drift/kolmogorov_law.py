"""How likely so large a Kolmogorov–Smirnov distance is between two samples of one distribution."""

from __future__ import annotations

import math

import numpy as np

from collectors.drift.bins import Counts, Floats
from collectors.drift.laws import stirling_error

# Both samples at most so large: the p-value counts lattice paths, exactly. Beyond, the one-sample law stands in.
EXACT_ROWS = 10_000
# About how many terms of Smirnov's sum are taken: the summand is smooth on a scale far above their distance.
_TERMS = 200
# Columns worked on at once: some arrays of so many sums' terms fit into a second-level cache.
_TOGETHER = 64
# The errors of Stirling's formula at 1 … 15; nothing asks for 0.
_SMALL = np.concatenate([[0.0], stirling_error(np.arange(1.0, 16.0))])
# Rows from which the one-sided tail is Maag & Dicaire's, as in scipy: nobody acts on a p-value's fourth digit.
_APPROXIMATE_FROM = 1_000_000
# From about this p-value on it is 1 less the share of the paths inside, which is known to some 1e-13.
_COMPLEMENT_FROM = 0.01


def two_sample_pvalue(steps: int, n: int, m: int) -> float:
    """`P(D ≥ d)` for two samples of n and m values, `d = steps / (n m)` (the integer keeps it exact).

    Up to `EXACT_ROWS` each by Hodges' (1958) count of lattice paths; beyond by the two-sided one-sample law with
    `nm / (n + m)` rows, rounded: what `scipy.stats.ks_2samp` does with `method="auto"`, to 1e-9 relative.
    """
    if n < 1 or m < 1:
        return math.nan
    if steps <= 0:
        return 1.0
    if max(n, m) > EXACT_ROWS:
        return one_sample_sf(steps / (n * m), round(n * m / (n + m)))
    if n == m:
        return _outside_square(n, steps // n)
    h = steps // math.gcd(n, m)
    if one_sample_sf(steps / (n * m), round(n * m / (n + m))) > _COMPLEMENT_FROM:
        # Half of the steps: two to five times as fast, and as exact where not all paths are inside.
        return min(max(1 - _inside(n, m, h), 0.0), 1.0)
    return _outside(n, m, h)


def one_sample_sf(d: float, n: int) -> float:
    """`P(D > d)` for Kolmogorov's two-sided distance of n values from a continuous law (`scipy.stats.kstwo.sf`).

    Simard & L'Ecuyer (2011) choose among the exact matrix power (Durbin; Marsaglia, Tsang & Wang 2003), Pelz & Good's
    (1976) expansion and twice Smirnov's one-sided tail.
    """
    return float(one_sample_sf_each(np.array([d]), np.array([n]))[0])


def one_sample_sf_each(d: Floats, n: Counts) -> Floats:
    """`one_sample_sf` of many distances `(columns,)`, each of its own number of values."""
    d, rows = np.asarray(d, np.float64), np.asarray(n, np.float64)
    t = rows * d
    square = t * d
    found = np.ones(len(d))
    found[d >= 1] = 0.0
    left = (t > 0.5) & (d < 1)
    for place in np.flatnonzero(left & ((t <= 1) | (t >= rows - 1))).tolist():
        found[place] = _at_the_ends(float(d[place]), int(rows[place]))
    left &= (t > 1) & (t < rows - 1)
    tail = left & ((d >= 0.5) | (square > np.where(rows <= 140, 4, 2.2)))
    beyond = tail & (square >= 370) & (rows > 140) & (d < 0.5)
    found[beyond] = 0.0
    tail &= ~beyond
    found[tail] = np.minimum(2 * _smirnov_sf_each(d[tail], rows[tail]), 1.0)
    left &= ~(tail | beyond)
    exact = left & ((rows <= 140) | ((rows <= 100_000) & (t * np.sqrt(d) <= 1.4)))
    for place in np.flatnonzero(exact).tolist():
        found[place] = min(max(1 - _matrix_cdf(float(d[place]), int(rows[place])), 0.0), 1.0)
    left &= ~exact
    found[left] = np.clip(1 - _expansion_cdf(d[left], rows[left]), 0.0, 1.0)
    return found


def _at_the_ends(d: float, n: int) -> float:
    """Up to `t = n d = 1`, and from `n − 1`."""
    t = n * d
    if t <= 1:
        return 1 - math.exp(math.lgamma(n + 1) + n * (math.log(2 * t - 1) - math.log(n)))
    return float(2 * (1 - d) ** n)


def smirnov_sf(d: float, n: int) -> float:
    """`P(D⁺ ≥ d)`, one-sided: `d Σ C(n, j) (d + j/n)^(j−1) (1 − d − j/n)^(n−j)` (Smirnov 1944; Birnbaum & Tingey 1951).

    Each term is a binomial probability in Loader's form; above 400 terms every k-th is taken, about 200 in all, which
    is off by 1e-13 of the sum because the summand is smooth and vanishes at both ends (the trapezoidal rule). Above a
    million rows it is `exp(−(6nd + 1)² / 18n)` (Maag & Dicaire 1971), which scipy takes there too; it is 0.04 % off at
    1e-33.
    """
    return float(_smirnov_sf_each(np.array([d]), np.array([float(n)]))[0])


def _smirnov_sf_each(d: Floats, n: Floats) -> Floats:
    found = np.exp(-((6 * n * d + 1) ** 2) / (18 * n))
    few = n <= _APPROXIMATE_FROM
    if few.any():
        at, rows = d[few, None], n[few, None]
        # What depends on the number of rows alone is computed once where all columns have one.
        same = bool((rows == rows[0]).all())
        parts = [slice(start, start + _TOGETHER) for start in range(0, len(at), _TOGETHER)]
        found[few] = np.concatenate([_smirnov_sum(at[part], rows[:1] if same else rows[part]) for part in parts])
    return found


def _smirnov_sum(d: Floats, n: Floats) -> Floats:
    """Smirnov's sum; `d` is `(columns, 1)`, `n` too or one for all."""
    t = n * d
    last = np.minimum(np.floor(n - t), n - 1)
    stride = np.maximum(np.floor(n / _TERMS), 1)
    j: Floats = 1 + stride * np.arange(max(int(np.max((last - 1) // stride)) + 1, 0), dtype=np.float64)
    within = j <= last
    j = np.minimum(j, np.maximum(n - 1, 1.0))
    rest = np.maximum(n - j, 1.0)
    with np.errstate(divide="ignore", invalid="ignore", under="ignore"):
        exponent = j * np.log1p(t / j)
        exponent += rest * np.log1p(-np.minimum(t / rest, 1.0))
        exponent += _stirling_of_whole(n) - _stirling_of_whole(j) - _stirling_of_whole(rest)
        terms = np.exp(exponent, out=exponent)
        terms *= t / (j + t)
        terms *= np.sqrt(n / (2 * math.pi * j * rest))
        terms = np.where(within, terms, 0.0)
        first = (1 - d) ** n
    return np.asarray((first + stride * np.sum(terms, axis=1, keepdims=True))[:, 0], np.float64)


def _stirling_of_whole(n: Floats) -> Floats:
    """`stirling_error` of whole numbers from 1, without its loop over the small ones."""
    found = stirling_error(np.maximum(n, 16.0))
    small = n < 16
    found[small] = _SMALL[n[small].astype(np.intp)]
    return found


def _outside_square(n: int, h: int) -> float:
    """Share of the lattice paths to (n, n) that reach `|x − y| ≥ h`: reflection, in Horner's form."""
    found = 0.0
    for k in range(n // h, -1, -1):
        j = np.arange(h, dtype=np.float64)
        with np.errstate(under="ignore"):
            found = float(np.prod((n - k * h - j) / (n + k * h + j + 1))) * (1 - found)
    return min(2 * found, 1.0)


def _outside(n: int, m: int, h: int) -> float:
    """Share of the lattice paths to (n, m) that reach `|m x − n y| / gcd ≥ h`, one anti-diagonal at a time."""
    n, m = min(n, m), max(n, m)
    common = math.gcd(n, m)
    across, up = m // common, n // common
    # reached[i + 1] is the share for the point (i, s − i): all 1 outside the band.
    reached = np.ones(n + 2)
    reached[1] = 0.0
    index = np.arange(n + 1, dtype=np.float64)
    low = 0
    for s in range(1, n + m + 1):
        first = max((up * s - h) // (across + up) + 1, 0, s - m)
        last = min(-((-up * s - h) // (across + up)) - 1, n, s)
        if last < first:
            return 1.0
        i = index[first : last + 1]
        fresh = (reached[first : last + 1] * i + reached[first + 1 : last + 2] * (s - i)) / s
        reached[low + 1 : first + 1] = 1.0
        reached[first + 1 : last + 2] = fresh
        low = first
    return float(min(reached[n + 1], 1.0))


def _inside(n: int, m: int, h: int) -> float:
    """Share of the lattice paths to (n, m) with `|m x − n y| / gcd < h` all the way, row by row of the shorter side.

    Row x is the running sum of the row before it, by `x / (m + x)`, which after the last row divides by all paths.
    """
    n, m = min(n, m), max(n, m)
    common = math.gcd(n, m)
    across, up = m // common, n // common
    first, exponent = 0, 0
    ways = np.ones(min((h - 1) // up, m) + 1)
    for x in range(1, n + 1):
        low = max((across * x - h) // up + 1, 0)
        high = min(-((-across * x - h) // up) - 1, m)
        if high < low:
            return 0.0
        fresh = np.zeros(high - low + 1)
        kept = ways[low - first :]
        fresh[: len(kept)] = kept
        np.cumsum(fresh, out=fresh)
        fresh *= x / (m + x)
        if x % 16 == 0:
            shift = math.frexp(float(fresh[-1]))[1]
            fresh, exponent = np.ldexp(fresh, -shift), exponent + shift
        first, ways = low, fresh
    return math.ldexp(float(ways[-1]), exponent)


def _matrix_cdf(d: float, n: int) -> float:
    t = n * d
    k = math.ceil(t)
    gap = k - t
    size = 2 * k - 1
    powers = np.arange(1, size + 1)
    inverse_factorial = np.concatenate([[1.0], np.cumprod(1.0 / np.arange(1, size + 1))])
    border = (1 - gap**powers) * inverse_factorial[1:]
    border[-1] = (1 + max(2 * gap - 1, 0.0) ** size - 2 * gap**size) * inverse_factorial[size]
    rows, columns = np.indices((size, size))
    step = np.where(columns <= rows + 1, inverse_factorial[np.clip(rows - columns + 1, 0, size)], 0.0)
    step[:, 0] = border
    step[-1, :] = border[::-1]
    power, exponent = _matrix_power(step, n)
    # n! / n^n times the middle entry, in logarithms' place by Stirling's form.
    log_share = 0.5 * math.log(2 * math.pi * n) - n + float(stirling_error(np.array(float(n))))
    middle = float(power[k - 1, k - 1])
    return math.exp(math.log(middle) + exponent * math.log(2) + log_share) if middle > 0 else 0.0


def _matrix_power(matrix: Floats, n: int) -> tuple[Floats, int]:
    """`matrix ** n` as a matrix and an exponent of 2, so that it cannot overflow."""
    found, exponent = np.eye(len(matrix)), 0
    power, power_exponent = matrix, 0
    with np.errstate(under="ignore"):
        while n:
            if n % 2:
                found, exponent = found @ power, exponent + power_exponent
                found, exponent = _rescaled(found, exponent)
            power, power_exponent = _rescaled(power @ power, 2 * power_exponent)
            n //= 2
    return found, exponent


def _rescaled(matrix: Floats, exponent: int) -> tuple[Floats, int]:
    shift = math.frexp(float(np.max(matrix)))[1]
    return np.ldexp(matrix, -shift), exponent + shift


def _expansion_cdf(d: Floats, n: Floats) -> Floats:
    """Pelz and Good's expansion; `(columns,)` of both."""
    if not len(d):
        return np.zeros(0)
    root_n = np.sqrt(n)
    z = np.maximum(root_n * d, 1e-3)[:, None]
    pi2 = math.pi**2
    top = int(np.ceil(16 * np.max(z) / math.pi))
    odd = (2 * np.arange(1, top + 1) - 1).astype(np.float64)
    whole = np.arange(1, top + 1, dtype=np.float64)
    with np.errstate(under="ignore"):
        weight = np.exp(-pi2 / 8 / z**2 * odd**2)
        pairs = np.exp(-pi2 / 2 / z**2 * whole**2) * whole**2
    root = math.sqrt(2 * math.pi)
    s = odd**2
    z1 = z[:, 0]
    zeroth = root / z1 * np.sum(weight, axis=1)
    first = root / (6 * z1**4) * np.sum(weight * (pi2 / 4 * s - z**2), axis=1)
    second = root / (72 * z1**7) * np.sum(
        weight * (6 * z**6 + 2 * z**4 + (2 * z**4 - 5 * z**2) * pi2 / 4 * s + pi2**2 * (1 - 2 * z**2) / 16 * s**2),
        axis=1,
    ) - root * pi2 / (36 * z1**3) * np.sum(pairs, axis=1)
    third = root / (6480 * z1**10) * np.sum(
        weight
        * (
            -30 * z**6
            - 90 * z**8
            + pi2 * (135 * z**4 - 96 * z**6) / 4 * s
            + pi2**2 * (212 * z**4 - 60 * z**2) / 16 * s**2
            + pi2**3 * (5 - 30 * z**2) / 64 * s**3
        ),
        axis=1,
    ) + root * pi2 / (216 * z1**6) * np.sum((3 * z**2 - pi2 * whole**2) * pairs, axis=1)
    # Below 0.0418 nothing is left of the first term.
    return np.where(z1 > 0.0418, zeroth + first / root_n + second / n + third / n**1.5, 0.0)
