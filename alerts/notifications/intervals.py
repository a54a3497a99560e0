"""Time intervals: when a route is muted or active. Whether an interval holds a time is a pure function of both.

Source: Alertmanager, timeinterval/timeinterval.go.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

WEEKDAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
MONTHS = tuple(name.lower() for name in calendar.month_name)  # "" stands for 0
_CLOCK = re.compile(r"(?:([01]\d|2[0-3]):([0-5]\d)|(24):(00))\Z")

Range = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeInterval:
    """A time is inside when each field that is not None has a range that holds it.

    `times` are minutes of the day, the end excluded; all other ranges include their ends. Sunday is weekday 0; days of
    the month below 0 count from its end, -1 being the last.
    """

    times: tuple[Range, ...] | None = None
    weekdays: tuple[Range, ...] | None = None
    days_of_month: tuple[Range, ...] | None = None
    months: tuple[Range, ...] | None = None
    years: tuple[Range, ...] | None = None
    location: ZoneInfo | None = None

    def contains(self, at: float) -> bool:
        """Whether the interval holds a time (unix seconds)."""
        moment = datetime.fromtimestamp(at, self.location or UTC)
        minute = moment.hour * 60 + moment.minute
        last = calendar.monthrange(moment.year, moment.month)[1]
        days = None if self.days_of_month is None else [_in_month(days, last) for days in self.days_of_month]
        return (
            (self.times is None or any(start <= minute < end for start, end in self.times))
            and _within(days, moment.day)
            and _within(self.months, moment.month)
            and _within(self.weekdays, moment.isoweekday() % 7)
            and _within(self.years, moment.year)
        )


def any_contains(intervals: Mapping[str, tuple[TimeInterval, ...]], names: Iterable[str], at: float) -> bool:
    """Whether one of the named intervals holds a time."""
    return any(interval.contains(at) for name in names for interval in intervals[name])


def _within(ranges: Iterable[Range] | None, value: int) -> bool:
    return ranges is None or any(begin <= value <= end for begin, end in ranges)


def _in_month(days: Range, last: int) -> Range:
    """A range of days in a month with `last` days; an empty one if it begins behind the month's end."""
    begin, end = (day + last + 1 if day < 0 else day for day in days)
    return (1, 0) if begin > last else (begin, min(end, last))


def read_clock(text: str) -> int:
    """Minutes of the day of `HH:MM`; 24:00 is the day's end. Raises ValueError."""
    found = _CLOCK.match(text)
    if found is None:
        raise ValueError(f"couldn't parse timestamp {text}, invalid format; write it as HH:MM, from 00:00 to 24:00")
    hours, minutes = (group for group in found.groups() if group is not None)
    return int(hours) * 60 + int(minutes)


def read_times(start: str, end: str) -> Range:
    """Minutes of the day from `start` up to `end`. Raises ValueError."""
    if not start or not end:
        raise ValueError("both start and end times must be provided")
    begin, stop = read_clock(start), read_clock(end)
    if begin >= stop:
        raise ValueError("start time cannot be equal or greater than end time")
    return begin, stop


def read_weekdays(text: str) -> Range:
    """`monday` or `monday:friday`. Raises ValueError."""
    begin, end = _range(text, _weekday)
    if begin > end:
        raise ValueError("start day cannot be before end day")
    return begin, end


def read_days_of_month(text: str) -> Range:
    """`1`, `1:5` or `-3:-1`. Raises ValueError."""
    begin, end = _range(text, int)
    for day in (begin, end):
        if day == 0 or not -31 <= day <= 31:
            raise ValueError(f"{day} is not a valid day of the month: out of range")
    if begin < 0 < end:
        raise ValueError("end day must be negative if start day is negative")
    # 28 days are in every month: an order that is wrong in that one is wrong in all.
    if (begin + 28 if begin < 0 else begin) > (end + 28 if end < 0 else end):
        raise ValueError(f"end day {end} is always before start day {begin}")
    return begin, end


def read_months(text: str) -> Range:
    """`january`, `1` or `january:march`. Raises ValueError."""
    begin, end = _range(text, _month)
    if begin > end:
        raise ValueError(f"end month {MONTHS[end]} is before start month {MONTHS[begin]}")
    return begin, end


def read_years(text: str) -> Range:
    """`2026` or `2026:2028`. Raises ValueError."""
    begin, end = _range(text, int)
    if begin > end:
        raise ValueError(f"end year {end} is before start year {begin}")
    return begin, end


def _range(text: str, read: Callable[[str], int]) -> Range:
    parts = text.lower().split(":")
    if len(parts) > 2:
        raise ValueError(f"couldn't parse range {text}, invalid format")
    try:
        return read(parts[0]), read(parts[-1])
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from error


def _weekday(text: str) -> int:
    if text not in WEEKDAYS:
        raise ValueError(f"{text} is not a valid weekday")
    return WEEKDAYS.index(text)


def _month(text: str) -> int:
    number = MONTHS.index(text) if text in MONTHS and text else int(text) if text.isdigit() else 0
    if not 1 <= number <= 12:
        raise ValueError(f"{text} is not a valid month")
    return number
