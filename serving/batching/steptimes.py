"""What a batch takes, t(n): measured at warm-up, corrected by every batch since, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping

_MEMORY = 0.1  # weight of the newest batch: about the last ten count
_REFIT = 32  # batches between two fits of the line
_OUTLIER = 4.0  # one batch counts for at most this many times the estimate, so that a preempted one moves it little
_TRIAL_SECONDS = (1.0, 64.0)  # first and longest pause before a size that was too slow is tried on the loop again
_TRIAL_FACTOR = 2.0  # a size is tried again when its best recent time is under this many limits


def _place(rows: int) -> int:
    return (rows - 1).bit_length()


class StepTimes:
    """Seconds a batch by rows: an average of the last batches around each power of two, and a line through all of them
    that says what a row more or less makes.
    """

    __slots__ = (
        "_largest",
        "_last",
        "_level",
        "_line",
        "_live",
        "_rows",
        "_seconds",
        "_seeds",
        "_since_line",
        "_spread",
    )

    def __init__(self, measured: Mapping[int, float] | None, max_rows: int) -> None:
        self._largest = max_rows
        self._last = _place(max_rows)
        self._seconds: list[float | None] = [None] * (self._last + 1)
        self._rows = [float(min(1 << place, max_rows)) for place in range(self._last + 1)]
        self._live = [False] * (self._last + 1)
        self._level = 1.0  # live times over those of the warm-up, for the sizes that have not come yet
        self._spread = 1.25
        self._since_line = 0
        for rows in sorted(measured or {}):
            if rows <= max_rows:
                self._seconds[_place(rows)], self._rows[_place(rows)] = (measured or {})[rows], float(rows)
        self._seeds = list(self._seconds)
        self._line = self._fitted()

    def of(self, rows: int) -> float:
        """Estimated seconds for `rows` rows, beyond the largest batch in proportion; 0 while nothing was measured."""
        if rows <= 0:
            return 0.0
        if rows > self._largest:
            return self.of(self._largest) * rows / self._largest
        place = (rows - 1).bit_length()
        known = self._seconds[place]
        if known is None:
            place = self._nearest(place)
            known = self._seconds[place]
            if known is None:
                return 0.0
        if not self._live[place]:
            known *= self._level
        # Never under a quarter of what was measured: the line knows nothing that far from its points.
        return max(known / 4, known + self._line[1] * (rows - self._rows[place]))

    def upper(self, rows: int) -> float:
        """Seconds that about one batch in a hundred of `rows` rows exceeds."""
        return self.of(rows) * self._spread

    def observe(self, rows: int, seconds: float) -> None:
        """A batch has run."""
        if rows > self._largest:
            rows, seconds = self._largest, seconds * self._largest / rows
        expected = self.of(rows)
        if expected > 0:
            # Steps in the proportion 99 to 1 come to rest at the 99th percentile of time over estimate.
            if seconds > expected * self._spread:
                self._spread = min(10.0, self._spread * 1.05)
            else:
                self._spread = max(1.0, self._spread * 0.9995)
            seconds = min(seconds, _OUTLIER * expected)
            seed = self._seed(rows)
            if seed > 0:
                self._level += _MEMORY * (seconds / seed - self._level)
        place = (rows - 1).bit_length()
        known = self._seconds[place]
        if known is None or not self._live[place]:
            # What the warm-up measured, brought to the present level, is as good as one batch more.
            self._seconds[place] = seconds if known is None else expected + _MEMORY * (seconds - expected)
            self._rows[place], self._live[place] = float(rows), True
        else:
            self._seconds[place] = known + _MEMORY * (seconds - known)
            self._rows[place] += _MEMORY * (rows - self._rows[place])
        self._since_line += 1
        if self._since_line >= _REFIT:
            self._since_line = 0
            self._line = self._fitted()

    def line(self) -> tuple[float, float]:
        """(a, b) of t(n) = a + b n, neither negative, as last fitted."""
        return self._line

    def _fitted(self) -> tuple[float, float]:
        """The medians of the slopes of all pairs and of the intercepts (Theil and Sen): an odd one moves it little."""
        points = [
            (n, t if live else t * self._level)
            for n, t, live in zip(self._rows, self._seconds, self._live, strict=True)
            if t is not None
        ]
        if len(points) < 2:
            return (points[0][1], 0.0) if points else (0.0, 0.0)
        slopes = [(t2 - t1) / (n2 - n1) for i, (n1, t1) in enumerate(points) for n2, t2 in points[i + 1 :] if n2 > n1]
        slope = max(0.0, _median(slopes)) if slopes else 0.0
        return max(0.0, _median([seconds - slope * rows for rows, seconds in points])), slope

    def _seed(self, rows: int) -> float:
        """What the warm-up says, between its sizes; 0 where it says nothing."""
        place = (rows - 1).bit_length()
        above, below = self._seeds[place], self._seeds[place - 1] if place else None
        if above is None or below is None:
            return above or 0.0
        small, large = 1 << (place - 1), min(1 << place, self._largest)
        return below + (above - below) * (rows - small) / (large - small)

    def _nearest(self, place: int) -> int:
        """The measured size that is nearest, a larger one first."""
        known = [at for at, seconds in enumerate(self._seconds) if seconds is not None]
        return min(known, key=lambda at: (abs(at - place), -at), default=place)


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


class InlineRule:
    """Which batches are so short that the event loop runs them itself: their measured time is under `limit` seconds.

    A size that turns out too slow goes to the thread, and is tried on the loop again after a pause that doubles: times
    measured in the thread hold its waiting for the interpreter, so they cannot tell how long the loop would take.
    """

    __slots__ = ("_best", "_inline", "_last", "_pause", "_retry", "limit")

    def __init__(self, measured: Mapping[int, float] | None, max_rows: int, limit: float) -> None:
        self.limit = limit
        self._last = _place(max_rows)
        self._inline = [math.inf] * (self._last + 1)
        self._best = [math.inf] * (self._last + 1)
        self._retry = [0.0] * (self._last + 1)
        self._pause = [_TRIAL_SECONDS[0]] * (self._last + 1)
        for rows in sorted(measured or {}):
            if rows <= max_rows:
                self._inline[_place(rows)] = self._best[_place(rows)] = (measured or {})[rows]

    def allows(self, rows: int, now: float) -> bool:
        """Whether to run a batch of `rows` rows on the loop."""
        place = (rows - 1).bit_length()
        if place > self._last or self.limit <= 0.0:
            return False
        # The best recent time is the model's own; what the machine adds to others may be a few times as much.
        if self._best[place] <= self.limit and self._inline[place] <= _OUTLIER * self.limit:
            return True
        return now >= self._retry[place] and self._best[place] <= _TRIAL_FACTOR * self.limit

    def observe(self, rows: int, seconds: float, now: float, *, inline: bool) -> None:
        """A batch has run, on the loop or not."""
        place = (rows - 1).bit_length()
        if place > self._last:
            return
        self._best[place] = min(self._best[place] * 1.002, seconds)
        if not inline:
            return
        known = self._inline[place]
        if known > self.limit:  # this was a trial
            self._inline[place] = seconds
        else:
            self._inline[place] = known + _MEMORY * (min(seconds, _OUTLIER * known) - known)
        if self._inline[place] > self.limit:
            self._retry[place] = now + self._pause[place]
            self._pause[place] = min(2 * self._pause[place], _TRIAL_SECONDS[1])
        elif self._pause[place] > _TRIAL_SECONDS[0]:
            self._pause[place] = max(_TRIAL_SECONDS[0], self._pause[place] * 0.99)
