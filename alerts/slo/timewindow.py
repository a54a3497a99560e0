"""OpenSLO's `timeWindow`: rolling, or aligned with a calendar in a time zone."""

from __future__ import annotations

from datetime import datetime
from typing import cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml

from alerts.slo.nodes import Reader
from alerts.slo.period import Calendar, CalendarUnit, Period, Rolling

_DAY = 86400.0
_FIXED = {"m": 60.0, "h": 3600.0, "d": _DAY, "w": 7 * _DAY, "M": 30 * _DAY, "Q": 91 * _DAY, "Y": 365 * _DAY}


def read_period(reader: Reader, node: yaml.Node | None) -> Period:
    """The period; 30 rolling days without a timeWindow, and where it cannot be read."""
    items = reader.items(node, "spec.timeWindow")
    if node is not None and len(items) != 1:
        reader.report(node, "spec.timeWindow is a list of exactly one window")
    if not items:
        return Rolling()
    fields = reader.fields(items[0], "a time window", ("duration", "isRolling", "calendar"))
    pair = reader.shorthand(fields.get("duration"), "duration")
    if "duration" not in fields:
        reader.report(items[0], "a time window needs a duration, like 30d or 4w")
    rolling = reader.flag(fields.get("isRolling"), "isRolling", "calendar" not in fields)
    if rolling and "calendar" in fields:
        reader.report(fields["calendar"], "a rolling window has no calendar: remove it, or set isRolling: false")
    if not rolling and "calendar" not in fields:
        reader.report(items[0], "isRolling: false needs a calendar with startTime and timeZone")
    if pair is None:
        return Rolling()
    if rolling:
        return _rolling(reader, fields["duration"], *pair)
    return _calendar(reader, fields, *pair) if "calendar" in fields else Rolling()


def _rolling(reader: Reader, node: yaml.Node, count: int, unit: str) -> Period:
    seconds = count * _FIXED.get(unit, 0.0)
    if unit in ("M", "Q", "Y"):
        days = round(seconds / _DAY)
        message = f"a rolling window has a fixed length: {count}{unit} is taken as {days}d; write {days}d"
        reader.report(node, message, "warning")
    if seconds < _DAY:
        hint = f" (m is minutes; a month is {count}M)" if unit == "m" else ""
        reader.report(node, f"a period of {count}{unit} is too short for burn rates: give at least 1d{hint}")
        return Rolling()
    return Rolling(seconds)


def _calendar(reader: Reader, fields: dict[str, yaml.Node], count: int, unit: str) -> Period:
    inner = reader.fields(fields["calendar"], "calendar", ("startTime", "timeZone"))
    for name, example in (("startTime", "2026-01-01 00:00:00"), ("timeZone", "Europe/Berlin")):
        if name not in inner:
            reader.report(fields["calendar"], f"calendar needs {name}, like {example}")
            return Rolling()
    if unit == "m":
        message = f"m is minutes, which no calendar has: {count}m is taken as months, as in OpenSLO's own examples"
        reader.report(fields["duration"], f"{message}; write {count}M", "warning")
        unit = "M"
    if unit not in ("d", "w", "M", "Q", "Y"):
        reader.report(fields["duration"], f"calendar periods are of d, w, M, Q or Y, got {count}{unit}")
        return Rolling()
    text, zone = reader.text(inner["startTime"], "startTime"), reader.text(inner["timeZone"], "timeZone")
    try:
        anchor = datetime.fromisoformat(text)
    except ValueError:
        reader.report(inner["startTime"], f"startTime must be like 2026-01-01 00:00:00, got {text!r}")
        return Rolling()
    if anchor.tzinfo is not None:
        reader.report(inner["startTime"], "startTime has no zone of its own: it is in timeZone; remove it here")
        anchor = anchor.replace(tzinfo=None)
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError):
        reader.report(inner["timeZone"], f"there is no time zone {zone!r}; write it like Europe/Berlin or UTC")
        return Rolling()
    return Calendar(count, cast(CalendarUnit, unit), anchor, zone)
