"""The functions that alert templates may call: Prometheus' own and Go's built-in ones, with Go's way of printing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

# Template values are what Go's would be: str, bool, int, float, None, lists, string maps.
Value = Any
Function = Callable[..., Value]

_VERB = re.compile(r"%(?P<flags>[-+# 0]*)(?P<width>\d+)?(?:\.(?P<precision>\d*))?(?P<verb>.)", re.DOTALL)
_LARGE = ("k", "M", "G", "T", "P", "E", "Z", "Y")
_SMALL = ("m", "u", "n", "p", "f", "a", "z", "y")
_BINARY = ("ki", "Mi", "Gi", "Ti", "Pi", "Ei", "Zi", "Yi")


class FunctionError(ValueError):
    """A template function was called wrongly."""


def go_text(value: Value) -> str:
    """A value as Go's `%v` prints it."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return go_float(value)
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{go_text(item)}" for key, item in sorted(value.items())) + "]"
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(map(go_text, value)) + "]"
    if isinstance(value, datetime):
        fraction = f".{value.microsecond:06d}".rstrip("0") if value.microsecond else ""
        return f"{value:%Y-%m-%d %H:%M:%S}{fraction} +0000 UTC"
    return str(value)


def go_float(value: float) -> str:
    """Go's `%v` of a float64: shortest digits, an exponent below 1e-4 and from 1e6 on."""
    if math.isnan(value) or math.isinf(value):
        return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    point = len(digits) + int(exponent)
    text = "".join(map(str, digits))
    if value == 0:
        body = "0"
    elif point - 1 < -4 or point - 1 >= 6:
        body = text[0] + ("." + text[1:] if len(text) > 1 else "") + f"e{point - 1:+03d}"
    elif point <= 0:
        body = "0." + "0" * -point + text
    else:
        body = text.ljust(point, "0")[:point] + ("." + text[point:] if len(text) > point else "")
    return "-" + body if sign else body


def printf(template: str, *args: Value) -> str:
    """Go's Sprintf for the verbs v s d f F e g q t x X c %% with flags, width and precision."""
    rest = list(args)

    def one(found: re.Match[str]) -> str:
        verb = found["verb"]
        if verb == "%":
            return "%"
        if not rest:
            return f"%!{verb}(MISSING)"
        return _verb(found, rest.pop(0))

    text = _VERB.sub(one, template)
    if rest:
        text += "%!(EXTRA " + ", ".join(f"{_go_type(item)}={go_text(item)}" for item in rest) + ")"
    return text


def _verb(found: re.Match[str], value: Value) -> str:
    verb, flags, precision = found["verb"], found["flags"], found["precision"]
    digits = None if precision is None else int(precision or 0)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if verb in "vs" and not (isinstance(value, float) and (digits is not None or verb == "s")):
        if verb == "s" and not isinstance(value, (str, datetime, list, tuple, Mapping)):
            return f"%!s({_go_type(value)}={go_text(value)})"
        body = go_text(value) if digits is None else go_text(value)[:digits]
    elif verb in "vfFeEgG" and isinstance(value, float):
        body = _float_verb(verb, value, digits)
    elif verb in "dxX" and number and isinstance(value, int):
        body = format(value, verb)
    elif verb == "q" and isinstance(value, str):
        body = '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    elif verb == "t" and isinstance(value, bool):
        body = go_text(value)
    elif verb == "x" and isinstance(value, str):
        body = value.encode().hex()
    else:
        return f"%!{verb}({_go_type(value)}={go_text(value)})"
    if number and "+" in flags and not body.startswith(("-", "+")):
        body = "+" + body
    width = int(found["width"] or 0)
    if "-" in flags:
        return body.ljust(width)
    return body.zfill(width) if "0" in flags and number else body.rjust(width)


def _float_verb(verb: str, value: float, digits: int | None) -> str:
    if math.isnan(value) or math.isinf(value):
        return go_float(value)
    if verb in "vgG":
        return go_float(value) if digits is None else format(value, f".{digits}g")
    return format(value, f".{6 if digits is None else digits}{verb}")


def _go_type(value: Value) -> str:
    if isinstance(value, bool):
        return "bool"
    return {int: "int", float: "float64", str: "string"}.get(type(value), type(value).__name__)


def to_float(value: Value) -> float:
    """A number, or text that holds one (what the humanize functions accept)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise FunctionError(f"can't convert {_go_type(value)} to float")
    try:
        return float(value)
    except ValueError as error:
        raise FunctionError(f"{value!r} is not a number") from error


def _four(value: float) -> str:
    return go_float(value) if math.isnan(value) or math.isinf(value) else format(value, ".4g")


def _scaled(value: float, suffix: str = "") -> str:
    prefix = ""
    if abs(value) >= 1:
        for prefix_next in _LARGE:
            if abs(value) < 1000:
                break
            prefix, value = prefix_next, value / 1000
    else:
        for prefix_next in _SMALL:
            if abs(value) >= 1:
                break
            prefix, value = prefix_next, value * 1000
    return f"{_four(value)}{prefix}{suffix}"


def humanize(value: Value) -> str:
    """Four significant digits with a metric prefix."""
    number = to_float(value)
    return _four(number) if number == 0 or not math.isfinite(number) else _scaled(number)


def humanize1024(value: Value) -> str:
    """Four significant digits with a binary prefix."""
    number, prefix = to_float(value), ""
    if abs(number) <= 1 or not math.isfinite(number):
        return _four(number)
    for prefix_next in _BINARY:
        if abs(number) < 1024:
            break
        prefix, number = prefix_next, number / 1024
    return f"{_four(number)}{prefix}"


def humanize_duration(value: Value) -> str:
    """Seconds as days, hours, minutes and seconds."""
    number = to_float(value)
    if not math.isfinite(number):
        return _four(number)
    if number == 0:
        return "0s"
    if abs(number) < 1:
        prefix = ""
        for prefix_next in _SMALL:
            if abs(number) >= 1:
                break
            prefix, number = prefix_next, number * 1000
        return f"{_four(number)}{prefix}s"
    sign, number = ("-", -number) if number < 0 else ("", number)
    whole = int(number)
    days, hours, minutes, seconds = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    if days:
        return f"{sign}{days}d {hours}h {minutes}m {seconds}s"
    if hours:
        return f"{sign}{hours}h {minutes}m {seconds}s"
    if minutes:
        return f"{sign}{minutes}m {seconds}s"
    return f"{sign}{_four(number)}s"


def humanize_percentage(value: Value) -> str:
    """A ratio as a percentage with four significant digits."""
    return f"{_four(to_float(value) * 100)}%"


def to_time(value: Value) -> datetime:
    """Unix seconds as a UTC time, to the millisecond."""
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=math.floor(to_float(value) * 1000))


def humanize_timestamp(value: Value) -> str:
    """Unix seconds as Go prints a UTC time."""
    number = to_float(value)
    return go_text(to_time(number)) if math.isfinite(number) else _four(number)


def _first(vector: Sequence[Value]) -> Value:
    if not vector:
        raise FunctionError("first() called on vector with no elements")
    return vector[0]


def _re_replace(pattern: str, replacement: str, text: str) -> str:
    return re.sub(pattern, re.sub(r"\$\{?(\w+)\}?", r"\\g<\1>", replacement.replace("\\", "\\\\")), text)


def _strip_port(host: str) -> str:
    return urlsplit(f"//{host}").hostname or host if re.search(r":\d+\Z", host) else host


def _strip_domain(host: str) -> str:
    port = re.search(r":\d+\Z", host)
    name = _strip_port(host)
    if re.fullmatch(r"[\d.]+", name) or ":" in name:
        return host
    return name.split(".", 1)[0] + (port[0] if port else "")


def _kind(value: Value) -> str:
    if isinstance(value, bool):
        return "bool"
    for kind, types in (("int", int), ("float", float), ("string", str)):
        if isinstance(value, types):
            return kind
    raise FunctionError(f"invalid type for comparison: {_go_type(value)}")


def _compared(compare: Callable[[Value, Value], bool]) -> Callable[[Value, Value], bool]:
    def check(left: Value, right: Value) -> bool:
        if _kind(left) != _kind(right):
            raise FunctionError(f"incompatible types for comparison: {_kind(left)} and {_kind(right)}")
        return compare(left, right)

    return check


def _equal(first: Value, *others: Value) -> bool:
    return any(_compared(lambda left, right: bool(left == right))(first, other) for other in others)


def _index(item: Value, *keys: Value) -> Value:
    for key in keys:
        if isinstance(item, Mapping):
            item = item.get(key, "")
        elif isinstance(item, (list, tuple, str)) and isinstance(key, int):
            if not 0 <= key < len(item):
                raise FunctionError(f"index out of range: {key}")
            item = item[key]
        else:
            raise FunctionError(f"cannot index {_go_type(item)} with {_go_type(key)}")
    return item


def _print(*args: Value) -> str:
    # Like Go's Sprint: a space between operands when neither is a string.
    out = ""
    for place, arg in enumerate(args):
        if place and not isinstance(arg, str) and not isinstance(args[place - 1], str):
            out += " "
        out += go_text(arg)
    return out


def truth(value: Value) -> bool:
    """Go's truth: false, 0, nil, "" and empty collections are false."""
    return bool(value)


FUNCTIONS: dict[str, Function] = {
    "humanize": humanize,
    "humanize1024": humanize1024,
    "humanizeDuration": humanize_duration,
    "humanizePercentage": humanize_percentage,
    "humanizeTimestamp": humanize_timestamp,
    "toTime": to_time,
    "first": _first,
    "label": lambda name, sample: sample["Labels"].get(name, ""),
    "value": lambda sample: sample["Value"],
    "strvalue": lambda sample: sample["Labels"].get("__value__", ""),
    "sortByLabel": lambda name, vector: sorted(vector, key=lambda sample: sample["Labels"].get(name, "")),
    "args": lambda *items: {f"arg{place}": item for place, item in enumerate(items)},
    "reReplaceAll": _re_replace,
    "match": lambda pattern, text: re.search(pattern, text) is not None,
    "title": lambda text: re.sub(r"(?<![\w'])\w", lambda found: found[0].upper(), text),
    "toUpper": lambda text: text.upper(),
    "toLower": lambda text: text.lower(),
    "stripPort": _strip_port,
    "stripDomain": _strip_domain,
    "urlQueryEscape": quote_plus,
    "safeHtml": lambda text: text,
    "graphLink": lambda expr: f"/graph?g0.expr={quote(expr, safe='')}&g0.tab=0",
    "tableLink": lambda expr: f"/graph?g0.expr={quote(expr, safe='')}&g0.tab=1",
    "printf": printf,
    "print": _print,
    "println": lambda *args: " ".join(map(go_text, args)) + "\n",
    "len": len,
    "index": _index,
    "not": lambda value: not truth(value),
    "eq": _equal,
    "ne": _compared(lambda left, right: bool(left != right)),
    "lt": _compared(lambda left, right: bool(left < right)),
    "le": _compared(lambda left, right: bool(left <= right)),
    "gt": _compared(lambda left, right: bool(left > right)),
    "ge": _compared(lambda left, right: bool(left >= right)),
}
