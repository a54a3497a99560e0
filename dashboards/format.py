"""Numbers, durations and times in the words that people read. Missing values are a dash, never `nan`."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, tzinfo

DASH = "–"
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 3) -> str:
    """A count or rate: `950`, `12.3 k`, `4.1 M`; small ones keep `digits` significant figures."""
    if value is None or not math.isfinite(value):
        return DASH if value is None or math.isnan(value) else ("∞" if value > 0 else "-∞")
    size = abs(value)
    if size >= 1e12:
        digits_of, power = f"{value:.1e}".split("e")
        return f"{digits_of.removesuffix('.0')}·10{str(int(power)).translate(_RAISED)}"
    for bound, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= bound:
            scale = 1e3 if unit == "k" else bound
            return f"{_figures(value / scale, digits)} {unit}"
    if size >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return _figures(value, digits)


def signed(value: float | None, places: int = 4) -> str:
    """A difference with its sign: `+0.0132`, `-0.1017`."""
    return DASH if value is None or not math.isfinite(value) else f"{value:+.{places}f}".replace("-", "−")


def percent(ratio: float | None, digits: int = 2) -> str:
    """A share of 1 as a percentage: `0.42 %`; what is smaller than can be shown is `<0.01 %`."""
    if ratio is None or not math.isfinite(ratio):
        return DASH
    value = ratio * 100
    if value and abs(value) < 10**-digits:
        return f"<{10**-digits:.{digits}f} %"
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def seconds(value: float | None) -> str:
    """A duration: `812 µs`, `4.3 ms`, `1.25 s`, `3 min 20 s`, `2 h 5 min`, `4 d 1 h`."""
    if value is None or not math.isfinite(value):
        return DASH
    size = abs(value)
    if size == 0:
        return "0 s"
    if size < 1e-3:
        return f"{_figures(value * 1e6, 3)} µs"
    if size < 1:
        return f"{_figures(value * 1e3, 3)} ms"
    if size < 60:
        return f"{_figures(value, 3)} s"
    whole = round(value)
    for unit, name, below, below_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // below
            return f"{whole // unit} {name}" + (f" {rest} {below_name}" if rest else "")
    return f"{whole} s"


def ago(then: float | None, now: float) -> str:
    """How long ago, in one unit: `just now`, `40 s ago`, `3 min ago`, `2 h ago`, `in 5 min`."""
    if then is None or not math.isfinite(then):
        return DASH
    age = now - then
    text = _one_unit(abs(age))
    if abs(age) < 2:
        return "just now"
    return f"{text} ago" if age > 0 else f"in {text}"


def clock(time: float | None, zone: tzinfo) -> str:
    """The time of day, `14:03:22`."""
    return DASH if time is None else datetime.fromtimestamp(time, zone).strftime("%H:%M:%S")


def moment(time: float | None, zone: tzinfo) -> str:
    """Day and time, `22 Nov 14:03:22`."""
    return DASH if time is None else datetime.fromtimestamp(time, zone).strftime("%-d %b %H:%M:%S")


def zone(where: tzinfo, now: float) -> str:
    """A time zone with what it is ahead of UTC: `UTC`, `Europe/Berlin (UTC+1)`, `Asia/Kolkata (UTC+5:30)`."""
    ahead = datetime.fromtimestamp(now, where).utcoffset() or timedelta()
    minutes = round(ahead.total_seconds() / 60)
    hours, rest = divmod(abs(minutes), 60)
    offset = f"{'−' if minutes < 0 else '+'}{hours}" + (f":{rest:02d}" if rest else "")
    return str(where) if str(where) == "UTC" else f"{where} (UTC{offset if minutes else ''})"


def version(name: str | None) -> str:
    """A version as people say it: `v3`."""
    if not name:
        return DASH
    return f"v{name}" if name.isdigit() else name


def column(name: str) -> str:
    """A profile's column without its `feature.` or `prediction.` prefix, unless it is the prediction's."""
    return name.removeprefix("feature.").replace("prediction.", "→ ")


def _figures(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(places, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _one_unit(value: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if value >= unit:
            return f"{value / unit:.0f} {name}"
    return f"{value:.0f} s"
