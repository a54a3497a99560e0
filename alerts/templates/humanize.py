"""Numbers, times and durations for people, as Prometheus' template functions write them."""

from __future__ import annotations

import math
import re

from alerts.templates.printing import go_float, quoted, sprintf
from alerts.templates.values import DAYS, MONTHS, Duration, Time, Value, type_name

_LARGE = ("k", "M", "G", "T", "P", "E", "Z", "Y")
_SMALL = ("m", "u", "n", "p", "f", "a", "z", "y")
_BINARY = ("ki", "Mi", "Gi", "Ti", "Pi", "Ei", "Zi", "Yi")
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\Z", re.ASCII)
_NAMED = re.compile(r"[+-]?(?:inf|infinity)\Z|nan\Z", re.IGNORECASE)
_HEX = re.compile(r"[+-]?0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)[pP][+-]?\d+\Z")
_DURATION = re.compile(r"(?:(\d+)y)?(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?\Z", re.ASCII)
_UNIT_MS = (365 * 86_400_000, 7 * 86_400_000, 86_400_000, 3_600_000, 60_000, 1000, 1)
_LAYOUT = re.compile(
    r"January|Jan|Monday|Mon|MST|2006|-0700|-07:00|-07|Z0700|Z07:00|PM|pm|[.,]0+(?!\d)|[.,]9+(?!\d)"
    r"|002|01|02|03|04|05|06|15|_2|1|2|3|4|5"
)


class FunctionError(ValueError):
    """A template function was called wrongly; the message is Go's."""


def to_float(value: Value) -> float:
    """A number, or a text that holds one."""
    if type(value) in (int, float):
        return float(value)
    if not isinstance(value, str) or type(value) is not str:
        raise FunctionError(f"can't convert {type_name(value)} to float")
    if _HEX.match(value):
        return float.fromhex(value)
    if not (_DECIMAL.match(value) or _NAMED.match(value)):
        raise FunctionError(f"strconv.ParseFloat: parsing {quoted(value)}: invalid syntax")
    number = float(value)
    if math.isinf(number) and not _NAMED.match(value):
        raise FunctionError(f"strconv.ParseFloat: parsing {quoted(value)}: value out of range")
    return number


def _four(value: float) -> str:
    return sprintf("%.4g", [value])


def _small(value: float) -> tuple[str, float]:
    prefix = ""
    for following in _SMALL:
        if abs(value) >= 1:
            break
        prefix, value = following, value * 1000
    return prefix, value


def humanize(value: Value) -> str:
    """Four significant digits with a metric prefix."""
    number, prefix = to_float(value), ""
    if number == 0 or not math.isfinite(number):
        return _four(number)
    if abs(number) >= 1:
        for following in _LARGE:
            if abs(number) < 1000:
                break
            prefix, number = following, number / 1000
    else:
        prefix, number = _small(number)
    return f"{_four(number)}{prefix}"


def humanize1024(value: Value) -> str:
    """Four significant digits with a binary prefix."""
    number, prefix = to_float(value), ""
    if abs(number) <= 1 or not math.isfinite(number):
        return _four(number)
    for following in _BINARY:
        if abs(number) < 1024:
            break
        prefix, number = following, number / 1024
    return f"{_four(number)}{prefix}"


def humanize_duration(value: Value) -> str:
    """Seconds as days, hours, minutes and seconds."""
    number = to_float(value)
    if not math.isfinite(number):
        return _four(number)
    if number == 0:
        return f"{_four(number)}s"
    if abs(number) < 1:
        prefix, number = _small(number)
        return f"{_four(number)}{prefix}s"
    sign, number = ("-", -number) if number < 0 else ("", number)
    whole = int(number)
    days, hours, minutes, seconds = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    if days:
        return f"{sign}{days}d {hours}h {minutes}m {seconds}s"
    if hours:
        return f"{sign}{hours}h {minutes}m {seconds}s"
    return f"{sign}{minutes}m {seconds}s" if minutes else f"{sign}{_four(number)}s"


def humanize_percentage(value: Value) -> str:
    """A ratio as a percentage with four significant digits."""
    return f"{_four(to_float(value) * 100)}%"


def humanize_timestamp(value: Value) -> str:
    """Unix seconds as a UTC time, to the millisecond."""
    number = to_float(value)
    return sprintf("%v", [to_time(number)]) if math.isfinite(number) else _four(number)


def to_time(value: Value) -> Time:
    """The moment of unix seconds, to the millisecond."""
    number = to_float(value)
    if not math.isfinite(number):
        raise FunctionError("value is NaN or Inf")
    nanoseconds = number * 1e9
    if not -(2.0**63) <= nanoseconds <= 2.0**63:
        raise FunctionError(
            f"{go_float(number)} cannot be represented as a nanoseconds timestamp since it overflows int64"
        )
    return Time(int(int(nanoseconds) / 1_000_000) * 1_000_000)


def to_duration(value: Value) -> Duration:
    """The length of time of seconds."""
    return Duration(int(to_float(value) * 1e9))


def duration_seconds(text: str) -> float:
    """Seconds of a Prometheus duration such as `1h30m`."""
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text)
    found = _DURATION.match(rest)
    if rest == "0":
        return 0.0
    if not rest:
        raise FunctionError("empty duration string")
    if found is None:
        raise FunctionError(f"not a valid duration string: {quoted(text)}")
    return sign * sum(int(n) * unit for n, unit in zip(found.groups(), _UNIT_MS, strict=True) if n) / 1000


def format_time(time: Time, layout: str) -> str:
    """A time by one of Go's layouts, which are made of the parts of `Mon Jan 2 15:04:05 MST 2006`."""
    moment = time.moment
    parts = {
        "January": MONTHS[moment.month - 1], "Jan": MONTHS[moment.month - 1][:3],
        "Monday": DAYS[moment.weekday()], "Mon": DAYS[moment.weekday()][:3],
        "MST": "UTC", "2006": f"{moment.year:04d}", "06": f"{moment.year % 100:02d}",
        "-0700": "+0000", "-07:00": "+00:00", "-07": "+00", "Z0700": "Z", "Z07:00": "Z",
        "PM": "PM" if moment.hour >= 12 else "AM", "pm": "pm" if moment.hour >= 12 else "am",
        "002": f"{moment.timetuple().tm_yday:03d}",
        "01": f"{moment.month:02d}", "1": str(moment.month),
        "02": f"{moment.day:02d}", "_2": f"{moment.day:2d}", "2": str(moment.day),
        "15": f"{moment.hour:02d}", "03": f"{(moment.hour + 11) % 12 + 1:02d}", "3": str((moment.hour + 11) % 12 + 1),
        "04": f"{moment.minute:02d}", "4": str(moment.minute),
        "05": f"{moment.second:02d}", "5": str(moment.second),
    }  # fmt: skip

    def one(found: re.Match[str]) -> str:
        piece = found[0]
        if piece in parts:
            return parts[piece]
        digits = f"{time.fraction:09d}"[: len(piece) - 1]
        digits = digits.rstrip("0") if piece[1] == "9" else digits
        return piece[0] + digits if digits else ""

    return _LAYOUT.sub(one, layout)
