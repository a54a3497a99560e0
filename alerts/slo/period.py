"""The time over which an error budget is spent: a rolling window, or calendar periods in a time zone.

PromQL knows no calendar. Days and weeks of UTC are arithmetic on `time()`; for months, quarters, years, and wherever
clocks are put forward and back, the starts of the coming periods are written into the expression, and end somewhere.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from alerts.rules import format_duration

DAY = 86400.0
CalendarUnit = Literal["d", "w", "M", "Q", "Y"]
_DAYS = {"d": 1, "w": 7}
_MONTHS = {"M": 1, "Q": 3, "Y": 12}
_YEARS_AHEAD = 5


@dataclass(frozen=True, slots=True)
class Rolling:
    """The last `seconds`, at any time."""

    seconds: float = 30 * DAY

    @property
    def name(self) -> str:
        """As Prometheus writes a duration: `30d`."""
        return format_duration(self.seconds)

    def bounds(self, at: float) -> tuple[float, float]:
        """Start and end (unix seconds) of the period that ends at `at`."""
        return at - self.seconds, at


@dataclass(frozen=True, slots=True)
class Calendar:
    """Periods of `count` units, one of which begins at `anchor`, a wall-clock time in `zone` (IANA)."""

    count: int
    unit: CalendarUnit
    anchor: datetime
    zone: str = "UTC"

    @property
    def name(self) -> str:
        """As OpenSLO writes it: `1M`."""
        return f"{self.count}{self.unit}"

    @property
    def seconds(self) -> float:
        """The usual length; a month has 30 days here."""
        if self.unit in _DAYS:
            return self.count * _DAYS[self.unit] * DAY
        return self.count * {"M": 30.0, "Q": 91.0, "Y": 365.0}[self.unit] * DAY

    @property
    def longest_seconds(self) -> float:
        """The longest that a period can be, with an hour for clocks that are put back."""
        days = {"M": 31, "Q": 92, "Y": 366}.get(self.unit)
        return self.count * days * DAY + 3600 if days else self.seconds + 3600

    def bounds(self, at: float) -> tuple[float, float]:
        """Start and end (unix seconds) of the period that `at` lies in."""
        number = int((at - self._start(0)) // self.seconds) + 2
        while self._start(number) > at:
            number -= 1
        return self._start(number), self._start(number + 1)

    def promql(self, now: float) -> tuple[str, str]:
        """Expressions of the start and of the end of the period (unix seconds); known for some years from `now` on."""
        if self.unit in _DAYS:
            return self._days(now)
        starts = list(self._starts(now))
        return _steps(starts[:-1], starts[1:-1], starts[-1]), _steps(starts[1:], starts[1:-1], starts[-1])

    def _days(self, now: float) -> tuple[str, str]:
        """Days and weeks are arithmetic on the wall clock; those in which clocks are changed are shorter or longer."""
        length, offset = self.seconds, self._offset(now)
        local, moved, longer = [f"{offset - self._start(0) - self._offset(self._start(0)):.0f}"], [], []
        for at, change in self._changes(now):
            start, end = self.bounds(at)
            local.append(f"{change:.0f} * (time() >= bool {at:.0f})")
            moved.append(f"{change:.0f} * (time() >= bool {at:.0f}) * (time() < bool {end:.0f})")
            unusual = f"(time() >= bool {start:.0f}) * (time() < bool {end:.0f})"
            longer.append(f"{end - start - length:.0f} * {unusual}")
        begun = f"time() - (time() + {' + '.join(local)}) % {length:.0f}"
        start_of = " + ".join([begun, *moved])
        known = f" and on () (vector(time()) < {now + _YEARS_AHEAD * 365 * DAY:.0f})" if moved else ""
        return f"vector({start_of}){known}", f"vector({' + '.join([start_of, f'{length:.0f}', *longer])}){known}"

    def _changes(self, now: float) -> Iterator[tuple[float, float]]:
        """When clocks are put forward (or back) in the coming years, and by how many seconds."""
        day = self.bounds(now)[0]
        while day < now + _YEARS_AHEAD * 365 * DAY:
            low, high = day, day + DAY
            change = self._offset(high) - self._offset(low)
            if change:
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (middle, high) if self._offset(middle) == self._offset(low) else (low, middle)
                yield high, change
            day += DAY

    def _offset(self, at: float) -> float:
        offset = datetime.fromtimestamp(at, ZoneInfo(self.zone)).utcoffset()
        return offset.total_seconds() if offset else 0.0

    def _starts(self, now: float) -> Iterator[float]:
        at, _ = self.bounds(now)
        while True:
            yield at
            if at > now + _YEARS_AHEAD * 366 * DAY:
                return
            _, at = self.bounds(at)

    def _start(self, number: int) -> float:
        local = self.anchor
        if self.unit in _DAYS:
            local += timedelta(days=number * self.count * _DAYS[self.unit])
        else:
            months = local.month - 1 + number * self.count * _MONTHS[self.unit]
            year, month = local.year + months // 12, months % 12 + 1
            last = calendar.monthrange(year, month)[1]
            local = local.replace(year=year, month=month, day=min(self.anchor.day, last))
        return local.replace(tzinfo=ZoneInfo(self.zone)).astimezone(UTC).timestamp()


Period = Rolling | Calendar


def _steps(values: list[float], changes: list[float], end: float) -> str:
    """The value in force: the first, and each next one from its time on; nothing after the last."""
    steps = [f"{values[0]:.0f}"]
    for before, value, at in zip(values, values[1:], changes, strict=False):
        steps.append(f"{value - before:.0f} * (time() >= bool {at:.0f})")
    return f"vector({_sum(steps)}) and on () (vector(time()) < {end:.0f})"


def _sum(terms: list[str]) -> str:
    """Halves within halves: Prometheus takes quadratic time for a chain of hundreds."""
    if len(terms) <= 2:
        return " + ".join(terms)
    half = len(terms) // 2
    return f"({_sum(terms[:half])}) + ({_sum(terms[half:])})"
