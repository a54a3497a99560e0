"""How many rows may wait or run: as many as keep the device busy, found from what requests take (after TCP Vegas)."""

from __future__ import annotations

import math

# Weight of one batch; in thirty batches the limit has settled.
_MEMORY = 0.1
_STEEPEST = 0.5


class AdaptiveLimit:
    """A limit on the rows of a lane: it grows while requests take what two batches do, and shrinks as they take longer.

    Each batch gives one sample: what its first request took, and what two batches take by the measured step times (the
    one before a request, and its own). Their proportion times `tolerance`, at most 1 and at least 1/2, is the gradient:
    the limit moves towards `limit * gradient + one batch`. (Brakmo and Peterson, 1995; Netflix, concurrency-limits,
    Gradient2, with measured step times in the place of the least time seen, which a busy server never sees.) Where all
    the time is batches', it rests near `(2 tolerance + 1) * max_rows`; a device that others use too lowers it, never
    under two batches, which keep the device busy.
    """

    __slots__ = ("_largest", "_limit", "_max_rows", "_tolerance")

    def __init__(self, tolerance: float, max_rows: int, largest: int) -> None:
        self._tolerance = tolerance
        self._max_rows = max_rows
        self._largest = float(max(largest, 2 * max_rows))
        self._limit = min(self._largest, 4.0 * max_rows)

    @property
    def rows(self) -> int:
        """Rows that may wait or run."""
        return math.ceil(self._limit)

    def observe(self, seconds: float, least: float, rows: int) -> None:
        """A batch has run: what its first request took, what that is at least, and how many rows there were.

        What is not made use of says nothing of whether more would be too many.
        """
        if seconds <= 0 or least <= 0 or 2 * rows < self._limit:
            return
        gradient = max(_STEEPEST, min(1.0, self._tolerance * least / seconds))
        goal = self._limit * gradient + self._max_rows
        self._limit += _MEMORY * (goal - self._limit)
        self._limit = max(2.0 * self._max_rows, min(self._largest, self._limit))
