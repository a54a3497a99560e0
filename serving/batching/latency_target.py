"""Chooses how large a batch may be and how long it may wait for company so that requests keep a latency target."""

from __future__ import annotations

import math

from serving.batching.pending import Pending
from serving.batching.steptimes import StepTimes

_RATE_SECONDS = 0.1  # memory of the rate of arrivals: what came before is soon forgotten
_REPLAN_SECONDS = 0.02
_WORTH = 0.5  # waiting pays when batches of the present size would keep the device busier than this
_GAPS = 3.0  # company that has not come after so many mean gaps is not coming
_MEMORY = 0.3  # weight of the last wait in whether waits bring company
_USEFUL = 0.25  # share of waits that must bring company
_PROBE = 64  # when they do not, every so many-th batch waits all the same


class LatencyTarget:
    """State of one lane under a target. A request waits for the batch before its own and for its own, so two batches of
    the largest size must fit into the target, by the time that one batch in a hundred exceeds.
    """

    __slots__ = ("_cap", "_counted", "_gain", "_held", "_last", "_planned", "_rate", "_rows", "_skipped", "target")

    def __init__(self, target: float) -> None:
        self.target = target
        self._cap = 1
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

    def cap(self, times: StepTimes, max_rows: int, now: float) -> int:
        """The largest batch that keeps the target, at least 1 and at most `max_rows`."""
        if now - self._planned >= _REPLAN_SECONDS:
            self._planned = now
            self._cap = self._largest(times, max_rows)
        return self._cap

    def _largest(self, times: StepTimes, max_rows: int) -> int:
        budget = self.target / 2
        if times.upper(max_rows) <= budget:
            return max_rows
        low, high = 1, max_rows
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if times.upper(middle) <= budget else (low, middle)
        return low

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
