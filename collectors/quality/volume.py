"""How much comes, against how much usually comes; and how old the latest of it is."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

WINDOWS = 60
MIN_WINDOWS = 5


@dataclass(slots=True)
class Volume:
    """The rows of a model's last windows, all versions together."""

    _rates: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=WINDOWS + 1))
    _seconds: float = math.nan
    latest: float = -math.inf
    """Event time of the latest row, unix seconds."""

    def row_at(self, time: float) -> None:
        """Says that a row of this event time came."""
        self.latest = max(self.latest, time)

    def closed(self, end: float, rows: int, seconds: float) -> None:
        """Adds a closed window's rows; windows of several versions that end together are one."""
        self._seconds = seconds
        if self._rates and self._rates[-1][0] == end:
            _, before = self._rates.pop()
            self._rates.append((end, before + rows / seconds))
        elif not self._rates or end > self._rates[-1][0]:
            self._rates.append((end, rows / seconds))

    def ratio(self, expected: float | None = None, now: float = -math.inf) -> float:
        """Rows a second of the last window, divided by the expected; NaN until there is something to expect.

        Expected is what the schema says, else the median of the windows before, once there are five of them. Where none
        have come for as long as a window, the last one is taken up to its last row: they were as many until then.
        """
        if not self._rates:
            return math.nan
        before = [rate for _, rate in self._rates][:-1]
        usual = expected if expected is not None else (median(before) if len(before) >= MIN_WINDOWS else math.nan)
        if not usual > 0:
            return math.nan
        end, rate = self._rates[-1]
        ratio, start = rate / usual, end - self._seconds
        if ratio < 1 and start < self.latest < end and now - self.latest > self._seconds:
            return min(1.0, ratio * self._seconds / (self.latest - start))
        return ratio

    def age(self, now: float) -> float:
        """Seconds since the latest row's event time; NaN before the first."""
        return max(0.0, now - self.latest) if math.isfinite(self.latest) else math.nan
