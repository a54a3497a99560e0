"""Times compared by their value: dates that moved by years are drift, times of events that went on are not.

Nothing in a column says which of both it is. Whole dates (births, expiries) are compared over all time, unless the
current ones all come after the reference's last, as days of events do. Times within days, which are mostly of events,
are compared over the stretch of time that both tables cover, and by what lies before the reference's first.
"""

from __future__ import annotations

import numpy as np

from collectors.drift.bins import Counts
from collectors.drift.cells import Cells
from observability.columns import DatetimeColumn, NumericColumn

# So much of the current times may lie outside of where they are said to be: rows that came late.
STRAY = 0.01
# A range whose ends moved by this share of its length is told.
SEEN = 0.05
# Midnight by the clocks of summer and of winter.
_MIDNIGHTS = 2


def time_cells(before: DatetimeColumn, now: DatetimeColumn) -> Cells | None:
    """The counts that times are compared by beside their hours; None where there are none to compare."""
    if before.span is None or now.span is None or not before.count or not now.count or _went_on(now.span):
        return None
    chosen = slice(None) if _whole_dates(before, now) else _stretch(now.span)
    reference, current = before.span.counts[chosen], now.span.counts[chosen]
    if np.count_nonzero(reference + current) < 2 or not reference.any() or not current.any():
        return None
    return Cells(reference, current, True, part="value")


def told_times(before: DatetimeColumn, now: DatetimeColumn) -> tuple[str, ...]:
    """From when to when the times are, where the two tables' differ in that."""
    if before.span is None or now.span is None or not before.count or not now.count:
        return ()
    (first, last), (start, end) = _range(before), _range(now)
    stretches = f"{_date(first)} to {_date(last)}, now {_date(start)} to {_date(end)}"
    if _went_on(now.span):
        return (f"all later than the reference, which is not drift by itself: {stretches}",)
    moved = max(abs(first - start), abs(last - end)) > SEEN * max(last - first, 1)
    return (f"from {stretches}",) if moved else ()


def _went_on(now: NumericColumn) -> bool:
    return bool(len(now.edges)) and now.counts[-1] >= (1 - STRAY) * now.count


def _whole_dates(*columns: DatetimeColumn) -> bool:
    hours = sum(column.counts.reshape(7, 24).sum(axis=0) for column in columns)
    return int(np.count_nonzero(hours)) <= _MIDNIGHTS


def _stretch(now: NumericColumn) -> slice:
    """The reference's bins that the current times cover whole, and what lies before all of them, if anything does."""
    below: Counts = np.cumsum(now.counts)
    first = int(np.searchsorted(below, STRAY * now.count, "right"))
    last = int(np.searchsorted(below, (1 - STRAY) * now.count, "left"))
    return slice(first + 1 if first else 0, min(last, len(now.counts) - 1))


def _range(column: DatetimeColumn) -> tuple[int, int]:
    return column.minimum or 0, column.maximum or 0


def _date(nanoseconds: int) -> str:
    return str(np.datetime64(nanoseconds, "ns").astype("datetime64[D]"))
