"""Exact sums of float64 values: the same integer in any order and any partition, so sums of sums equal one pass."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Every finite float64 is a whole number of 2**-1074, the smallest one.
UNIT_EXPONENT = 1074
_HALF = 27
_CHUNK_ROWS = 1 << 25


def exact_sum(values: Floats) -> int:
    """The sum of finite values in units of 2**-1074, without any rounding.

    Mantissas are added by exponent in two halves of 27 bits, which float64 holds exactly up to 2**26 rows; the
    superaccumulator of Kulisch (2013), in Python's integers. Raises ValueError on NaN and infinity.
    """
    values = np.ascontiguousarray(values, np.float64).ravel()
    if not np.isfinite(values).all():
        raise ValueError("NaN and infinity have no exact sum: leave them out and count them")
    return sum(_chunk_sum(values[start : start + _CHUNK_ROWS]) for start in range(0, len(values), _CHUNK_ROWS))


def _chunk_sum(values: Floats) -> int:
    fractions, exponents = np.frexp(values)
    mantissas = np.ldexp(fractions, 53)  # whole numbers below 2**53
    high = np.floor(np.ldexp(mantissas, -_HALF))
    low = mantissas - np.ldexp(high, _HALF)
    cells = exponents + UNIT_EXPONENT  # from 1 on
    highs, lows = np.bincount(cells, weights=high), np.bincount(cells, weights=low)
    total = 0
    for cell in np.flatnonzero((highs != 0) | (lows != 0)).tolist():
        mantissa = (int(highs[cell]) << _HALF) + int(lows[cell])
        # Subnormal values have exponents below -1021 and mantissas that end in as many zeros.
        total += mantissa << (cell - 53) if cell >= 53 else mantissa >> (53 - cell)
    return total


def exact_float(total: int) -> float:
    """The float64 nearest to an exact sum; infinite when it is larger than any."""
    return exact_mean(total, 1)


def exact_mean(total: int, count: int) -> float:
    """The float64 nearest to an exact sum divided by `count`, NaN when that is 0."""
    if not count:
        return float("nan")
    try:
        return total / (count << UNIT_EXPONENT)
    except OverflowError:
        return float("inf") if total > 0 else float("-inf")
