"""The methods of a time that templates call: `(toTime $value).Format "15:04"`, `.Unix`, `.Weekday` and the like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from alerts.templates.calls import TEXT, Function
from alerts.templates.humanize import format_time
from alerts.templates.printing import go_text
from alerts.templates.values import DAYS, MONTHS, Named, Time, Value


def _of_moment(read: Callable[[datetime], Value]) -> Function:
    return Function(lambda time: read(time.moment), ())


def _month(moment: datetime) -> Named:
    return Named.of(moment.month, "time.Month", MONTHS[moment.month - 1])


def _weekday(moment: datetime) -> Named:
    return Named.of((moment.weekday() + 1) % 7, "time.Weekday", DAYS[moment.weekday()])


def _same(time: Time) -> Time:
    return time


METHODS: Mapping[str, Function] = {
    "Format": Function(format_time, (TEXT,)),
    "String": Function(go_text, ()),
    "UTC": Function(_same, ()),
    "Unix": Function(lambda time: time.nanoseconds // 1_000_000_000, ()),
    "UnixMilli": Function(lambda time: time.nanoseconds // 1_000_000, ()),
    "UnixMicro": Function(lambda time: time.nanoseconds // 1000, ()),
    "UnixNano": Function(lambda time: time.nanoseconds, ()),
    "Nanosecond": Function(lambda time: time.fraction, ()),
    "Year": _of_moment(lambda moment: moment.year),
    "YearDay": _of_moment(lambda moment: moment.timetuple().tm_yday),
    "Month": _of_moment(_month),
    "Day": _of_moment(lambda moment: moment.day),
    "Weekday": _of_moment(_weekday),
    "Hour": _of_moment(lambda moment: moment.hour),
    "Minute": _of_moment(lambda moment: moment.minute),
    "Second": _of_moment(lambda moment: moment.second),
    "IsZero": Function(lambda time: False, ()),
}
