"""How likely so large a Cramér–von Mises statistic is between two samples of one distribution."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from collectors.drift.bins import Floats
from collectors.drift.laws import cramer_von_mises_sf

# Both samples at most so large: the p-value counts all orders of the pooled rows. Beyond, the limit is accurate.
EXACT_ROWS = 20


def two_sample_pvalue(statistic: float, n: int, m: int) -> float:
    """`P(T ≥ statistic)` for samples of n and m rows: `scipy.stats.cramervonmises_2samp` with `method="auto"`.

    Exact up to `EXACT_ROWS` each (Xiao, Gordon & Yakovlev 2006); beyond, the limit law at the statistic with its mean
    and variance matched (Anderson 1962, eq. 11, 14, 15), exact where scipy cuts its series short
    (3e-10 apart up to T = 4; beyond, scipy's own p-value has no digits and stops falling at about 1e-8).
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
    return float(cramer_von_mises_sf(1 / 6 + (statistic - mean) / math.sqrt(45 * variance)))


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
