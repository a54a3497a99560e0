"""One pass of compiled code over the cells of many columns, where there is a compiler: numpy's answers in less time."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from collectors.drift.bins import TAIL_SHARE, Counts, Floats
from collectors.drift.psi import EMPTY_SHARE
from collectors.drift.wasserstein import TAIL_DEVIATIONS
from observability.native import compiled

_SOURCE = Path(__file__).with_name("cell_sums.c")
_FUNCTIONS = (("trimtab_ordered_test", "nnppp"), ("trimtab_cell_scores", "nnppppppnddddp"))
# In the order in which the C code writes them.
STATISTICS = (
    "psi",
    "js_distance",
    "hellinger",
    "total_variation",
    "ks",
    "ks_error",
    "cramer_von_mises",
    "wasserstein_normed",
    "wasserstein_error",
)


def native_sums() -> ctypes.CDLL | None:
    """The compiled functions, or None where they cannot be had."""
    return compiled(_SOURCE, *_FUNCTIONS)


def ordered_sums(reference: Counts, window: Counts) -> Floats | None:
    """`null.ordered_test` of `(columns, cells)` counts: scores and the law's five rows; None without a compiler."""
    native = native_sums()
    if native is None or not reference.size:
        return None
    first, second = (np.ascontiguousarray(counts, np.int64) for counts in (reference, window))
    found = np.empty((6, len(first)))
    native.trimtab_ordered_test(*first.shape, first.ctypes.data, second.ctypes.data, found.ctypes.data)
    return found


def cell_sums(
    reference: Counts, window: Counts, edges: Floats, unit: Floats, lowest: Floats, highest: Floats, bins: int
) -> dict[str, Floats] | None:
    """`STATISTICS` of columns that have values on both sides: counts (columns, cells), edges (columns, cells − 1), the
    rest (columns), among them the unit of Wasserstein distances. None without a compiler, or without edges."""
    native = native_sums()
    if native is None or reference.shape[1] < 2:
        return None
    first, second = (np.ascontiguousarray(counts, np.int64) for counts in (reference, window))
    numbers = [np.ascontiguousarray(array, np.float64) for array in (edges, unit, lowest, highest)]
    found = np.empty((len(STATISTICS), len(first)))
    native.trimtab_cell_scores(
        *first.shape,
        *(array.ctypes.data for array in (first, second, *numbers)),
        bins,
        EMPTY_SHARE,
        TAIL_SHARE,
        0.0,
        TAIL_DEVIATIONS,
        found.ctypes.data,
    )
    return dict(zip(STATISTICS, found, strict=True))
