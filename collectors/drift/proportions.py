"""Whether two shares differ by more than chance: the two-proportion z test."""

from __future__ import annotations

import math

from collectors.drift.laws import normal_sf
from collectors.drift.outcome import UNDEFINED, Test


def two_proportion_z(
    reference_successes: float, reference_rows: float, current_successes: float, current_rows: float
) -> Test:
    """Two-sided pooled z test, `(p − q) / √(P (1 − P) (1/n + 1/m))`, as Evidently's "z" and every textbook.

    `Test(0, 1)` when every row of both sides is a success, or none is; undefined (NaN) when a side has no rows.
    `z²` is `chi_square` of the two-by-two table. Raises `ValueError` for successes outside 0 … rows.
    """
    for successes, rows in ((reference_successes, reference_rows), (current_successes, current_rows)):
        if not 0 <= successes <= rows:
            raise ValueError(f"successes must lie between 0 and the rows, got {successes} of {rows}")
    if not reference_rows or not current_rows:
        return UNDEFINED
    rows = reference_rows + current_rows
    pooled = (reference_successes + current_successes) / rows
    if pooled in (0, 1):
        return Test(0.0, 1.0)
    difference = reference_successes / reference_rows - current_successes / current_rows
    z = difference / math.sqrt(pooled * (1 - pooled) * (1 / reference_rows + 1 / current_rows))
    return Test(z, min(2 * float(normal_sf(abs(z))), 1.0))
