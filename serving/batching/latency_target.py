"""Chooses how large a batch may be and how long it may wait for company so that requests keep a latency target."""

from __future__ import annotations

import math
from collections.abc import Callable

from serving.batching.pending import Pending
from serving.batching.steptimes import StepTimes

_RATE_SECONDS = 0.1  # memory of the rate of arrivals: what came before is soon forgotten
_REPLAN_SECONDS = 0.02
_WORTH = 0.5  # waiting pays when batches of the present size would keep the device busier than this
_GAPS = 3.0  # company that has not come after so many mean gaps is not coming
_MEMORY = 0.3  # weight of the last wait in whether waits bring company
_USEFUL = 0.25  # share of waits that must bring company
_PROBE = 64  # when they do not, every so many-th batch waits all the same
_LEAST = 2.0  # where not even one row keeps the target, batches may take so many times what one row takes


class LatencyTarget:
    """State of one lane under a target. A request waits for the batch before its own and for its own, so two batches of
    the largest size must fit into the target, by the time that one batch in a hundred exceeds. Once more waits than
    such a batch holds, requests wait for more than two: small batches would then cost more than they save, so that the
    usual time decides how large they are.
    """

    __slots__ = (
        "_cap",
        "_counted",
        "_gain",
        "_held",
        "_last",
        "_most",
        "_planned",
        "_rate",
        "_rows",
        "_skipped",
        "target",
    )

    def __init__(self, target: float) -> None:
        self.target = target
        self._cap = 1
        self._most = 1  # while more waits
        self._planned = -math.inf
        self._rate = 0.0  # rows a second
        self._rows = 0
        self._counted: float | None = None
        self._last = -math.inf
        self._gain = 1.0
        self._held: int | None = None  # rows that were there when the present wait began
        self._skipped = 0

    def arrived(self, pending: Pending, now: float) -> None:
        """A request was queued."""
        self._rows += pending.rows
        self._last = now

    def cap(self, times: StepTimes, max_rows: int, now: float, waiting: int) -> int:
        """The largest batch that keeps the target, at least 1 and at most `max_rows`, where so many rows wait."""
        if now - self._planned >= _REPLAN_SECONDS:
            self._planned = now
            budget = self.target / 2
            self._cap = _largest(times.upper, budget, max_rows)
            self._most = max(self._cap, _largest(times.of, max(budget, _LEAST * times.of(1)), max_rows))
        return self._cap if waiting <= self._cap else min(self._most, max_rows)

    def hold(self, times: StepTimes, rows: int, oldest: float, now: float, max_delay: float) -> float:
        """Until when a batch of `rows` waits for company: now or before means that it goes at once."""
        self._count(now)
        cap = self._cap
        if rows >= cap or self._rate * times.of(rows) / rows < _WORTH:
            return now
        if self._held is None:
            if self._gain < _USEFUL and self._skipped < _PROBE:
                self._skipped += 1
                return now
            self._skipped = 0
            self._held = rows
        room = self.target - times.upper(cap)
        if max_delay > 0:
            room = min(room, max_delay)
        return min(oldest + room, self._last + _GAPS / self._rate)

    def closed(self, rows: int) -> None:
        """A batch was closed with so many rows; a wait before it either brought company or did not."""
        if self._held is not None:
            self._gain += _MEMORY * ((1.0 if rows > self._held else 0.0) - self._gain)
            self._held = None

    def _count(self, now: float) -> None:
        if self._counted is None:
            self._counted = now
            return
        seconds = now - self._counted
        if seconds < 1e-3:
            return
        weight = 1.0 - math.exp(-seconds / _RATE_SECONDS)
        self._rate += weight * (self._rows / seconds - self._rate)
        self._rows, self._counted = 0, now


def _largest(seconds: Callable[[int], float], budget: float, max_rows: int) -> int:
    """The most rows, at least 1 and at most `max_rows`, that take no longer than the budget."""
    if seconds(max_rows) <= budget:
        return max_rows
    low, high = 1, max_rows
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if seconds(middle) <= budget else (low, middle)
    return low
