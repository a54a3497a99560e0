"""How likely so large a Cramér–von Mises statistic is between two samples of one distribution."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from collectors.drift.bins import Floats
from collectors.drift.laws import cramer_von_mises_sf

# Both samples at most so large: the p-value counts all orders of the pooled rows. Beyond, the limit is accurate.
EXACT_ROWS = 20
# Where scipy's p-value differs, and can still be had from some ten thousand terms.
CUT_FROM, CUT_TO = 2.0, 1e7


def two_sample_pvalue(statistic: float, n: int, m: int) -> float:
    """`P(T ≥ statistic)` for samples of n and m rows: `scipy.stats.cramervonmises_2samp` with `method="auto"`.

    Exact up to `EXACT_ROWS` each (Xiao, Gordon & Yakovlev 2006); beyond, the limit law at the statistic with its mean
    and variance matched (Anderson 1962, eq. 11, 14, 15). Above T = 4 scipy's p-value has no digits, and stops falling
    at 1e-8 or more, as its series is cut short: it is given as scipy has it. `laws.cramer_von_mises_sf` has the digits.
    """
    if n < 1 or m < 1 or math.isnan(statistic):
        return math.nan
    total, product = n + m, n * m
    if max(n, m) <= EXACT_ROWS:
        # The statistic in the table's integer units; with ties it can lie between two of them.
        least = math.floor(statistic * math.lcm(n, m) ** 2 * total**2 / product + 1e-6)
        values, upper = _orders(n, m)
        at = int(np.searchsorted(values, least))
        return float(upper[at]) if at < len(upper) else 0.0
    mean = (1 + 1 / total) / 6
    variance = (total + 1) * (4 * product * total - 3 * (n**2 + m**2) - 2 * product) / (180 * total**2 * product)
    limit = 1 / 6 + (statistic - mean) / math.sqrt(45 * variance)
    return _cut_short(limit) if CUT_FROM < limit < CUT_TO else float(cramer_von_mises_sf(limit))


def _cut_short(x: float) -> float:
    """`P(W² > x)` as scipy computes it: 1 less the terms of Csörgő & Faraway (1996, eq. 1.2) up to the first < 1e-7."""
    k = np.arange(16 + math.ceil(4 * math.sqrt(x)), dtype=np.float64)
    # Γ(k + ½) / Γ(k + 1)
    ratio = math.sqrt(math.pi) * np.cumprod(np.concatenate([[1.0], (k[1:] - 0.5) / k[1:]]))
    odd = 4 * k + 1
    terms = ratio / (math.pi**1.5 * math.sqrt(x)) * np.sqrt(odd) * _bessel(odd * odd / (16 * x))
    small = np.flatnonzero(terms < 1e-7)
    last = int(small[0]) if len(small) else len(terms) - 1
    return max(1.0 - math.fsum(terms[: last + 1]), 0.0)


def _bessel(q: Floats) -> Floats:
    """`exp(−q) K_¼(q)` by the trapezoidal rule for `∫ exp(−q (1 + cosh t)) cosh(t/4) dt`, t from 0."""
    found = np.empty_like(q)
    for start in range(0, len(q), 1024):
        some = q[start : start + 1024, None]
        end = math.acosh(1 + 750 / float(some.min()))
        t = np.linspace(0, end, 64 + math.ceil(20 * end))
        weights = np.cosh(t / 4) * (t[1] - t[0])
        weights[0] /= 2
        with np.errstate(under="ignore"):
            found[start : start + 1024] = np.exp(-some * (1 + np.cosh(t))) @ weights
    return found


@lru_cache(maxsize=16)
def _orders(n: int, m: int) -> tuple[Floats, Floats]:
    """The statistic's possible values in integer units, ascending, and the probability of each or a larger one."""
    common = math.lcm(n, m)
    across, up = common // n, common // m
    none: tuple[Floats, Floats] = (np.zeros(0), np.zeros(0))
    column: list[tuple[Floats, Floats]] = [(np.zeros(1), np.ones(1)), *[none] * n]
    for u in range(m + 1):
        held = none
        fresh = []
        for v, before in enumerate(column):
            values, inverse = np.unique(np.concatenate([held[0], before[0]]), return_inverse=True)
            counts = np.bincount(inverse, np.concatenate([held[1], before[1]]), minlength=len(values))
            held = (values + float((across * v - up * u) ** 2), counts.astype(np.float64))
            fresh.append(held)
        column = fresh
    values, ways = column[n]
    return values, np.cumsum(ways[::-1])[::-1] / math.comb(n + m, n)
