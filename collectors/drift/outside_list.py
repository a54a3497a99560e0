"""Values outside a reference's list of categories that have become frequent: no list names them, but they show."""

from __future__ import annotations

import numpy as np

from collectors.drift.bins import Counts
from observability.categorical import tail_counts
from observability.columns import CategoricalColumn
from observability.frequent import CAPACITY
from observability.strangers import hashes_of

# A value stands alone with so many rows, and so many times the share of the least that is listed.
LEAST_HEAVY, HEAVY = 20, 4
# A cell of the tail does with so many times the share that it can have had, by so many standard deviations.
CROWDED, DEVIATIONS = 2, 3


def with_newly_frequent(reference: CategoricalColumn, window: CategoricalColumn) -> tuple[Counts, Counts] | None:
    """Counts of both sides over the list, then what stands alone now, then the rest; None where nothing does.

    In the place of the reference's unknown count of such a value, or cell of the tail, stands the most that it can
    have been.
    """
    if not reference.truncated or np.any(np.diff(reference.counts[:-2]) > 0):
        # Or the list is that of a larger table, of which this is a part: here others may be more frequent.
        return None
    listed = reference.counts[:-2][reference.counts[:-2] > 0]
    most = int(listed.min(initial=reference.count)) if len(listed) else 0
    most += -(-reference.count // CAPACITY)
    heavy = {
        text: count
        for text, count in window.strangers.items()
        if count >= LEAST_HEAVY and count * reference.count > HEAVY * most * window.count
    }
    bounds, counts = _crowded(reference, window, heavy, most)
    before = np.append(np.full(len(heavy), most), bounds)
    now = np.append(np.array(list(heavy.values()), np.int64), counts)
    if not len(now):
        return None
    before = np.minimum(before, int(reference.counts[-1]) // len(before))
    return (
        np.concatenate([reference.counts[:-2], before, [reference.counts[-1] - before.sum()]]),
        np.concatenate([window.counts[:-2], now, [window.counts[-1] - now.sum()]]),
    )


def _crowded(
    reference: CategoricalColumn, window: CategoricalColumn, heavy: dict[str, int], most: int
) -> tuple[Counts, Counts]:
    """The cells of the tail with far more rows than the reference's had: the most that it was, and what it is.

    The list was chosen by the reference's counts, so that by chance alone more rows are outside it now: a cell is
    compared with its share of all that is outside.
    """
    nothing = np.zeros(0, np.int64)
    outside = int(reference.counts[-1]), int(window.counts[-1]) - sum(heavy.values())
    known = tail_counts(hashes_of(heavy), np.array(list(heavy.values()), np.int64)) if heavy else 0
    tail = window.tail - known
    if not outside[0] or reference.tail.sum() != outside[0] or tail.sum() != outside[1]:
        return nothing, nothing
    grown = (outside[1] - tail) * reference.count / (outside[0] * window.count)
    bounds = np.ceil((reference.tail + DEVIATIONS * np.sqrt(reference.tail + 1.0) + most) * np.maximum(grown, 1.0))
    crowded = (tail >= LEAST_HEAVY) & (tail * reference.count > CROWDED * bounds * window.count)
    return bounds[crowded].astype(np.int64), tail[crowded]
