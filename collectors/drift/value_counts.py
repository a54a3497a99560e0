"""How often each value occurs, for columns of few values: read from the sorted rows without a hash table."""

from __future__ import annotations

import numpy as np

from collectors.drift.bins import Counts, Floats


def distinct(values: Floats, limit: int) -> Floats | None:
    """The distinct values of a sorted array, ascending; None when there are more than `limit`.

    Jumps from value to value by bisection, so it takes `limit` steps however many rows there are.
    """
    found: list[float] = []
    at = 0
    while at < len(values):
        if len(found) == limit:
            return None
        value = values[at]
        found.append(float(value))
        at = int(np.searchsorted(values, value, side="right"))
    return np.array(found, np.float64)


def value_counts(reference: Floats, current: Floats) -> tuple[Floats, Counts, Counts]:
    """The union of the values of two sorted arrays, and how often each occurs on either side."""
    values = np.union1d(_runs(reference), _runs(current))
    return values, _counts(reference, values), _counts(current, values)


def _runs(values: Floats) -> Floats:
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def _counts(rows: Floats, values: Floats) -> Counts:
    return np.diff(np.searchsorted(rows, values, side="right"), prepend=0).astype(np.int64)
