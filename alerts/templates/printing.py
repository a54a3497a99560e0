"""Values as Go's fmt package prints them: `%v`, Print, and Printf with its verbs, flags, widths and precisions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from alerts.templates.values import (
    Data,
    Duration,
    Named,
    QueryResult,
    SamplePointer,
    Time,
    Value,
    members,
    type_name,
)

_DIRECTIVE = re.compile(
    r"%(?P<flags>[-+# 0]*)(?P<width_index>\[\d+\])?(?P<width>\d+|\*)?"
    r"(?:(?P<dot>\.)(?P<precision_index>\[\d+\])?(?P<precision>\d+|\*)?)?(?P<index>\[\d+\])?(?P<verb>.)?",
    re.DOTALL,
)
_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", "\\": "\\\\"}


def quoted(text: str, *, quote: str = '"', ascii_only: bool = False) -> str:
    """A text in quotes with Go's escapes."""

    def one(character: str) -> str:
        if character == quote:
            return "\\" + quote
        if character in _ESCAPES:
            return _ESCAPES[character]
        code = ord(character)
        if (code < 0x80 and character.isprintable()) or (character.isprintable() and not ascii_only):
            return character
        if code < 0x80:
            return f"\\x{code:02x}"
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return quote + "".join(map(one, text)) + quote


def go_float(value: float) -> str:
    """Go's `%v` of a float64: the fewest digits, an exponent below 1e-4 and from 1e6 on."""
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


def exponent_text(value: float) -> str:
    """Go's `%e` with as few digits as tell the number: 2.5e-01, 1e+00, NaN, +Inf."""
    if not math.isfinite(value):
        return go_float(value)
    return next(
        (text for digits in range(17) if float(text := format(value, f".{digits}e")) == value), format(value, ".17e")
    )


def go_text(value: Value, *, top: bool = True) -> str:
    """A value as Go's `%v` prints it. `top` is false inside another value, where a pointer is an address."""
    return _formatted(value, "v", _Directive(), top)


def printed(value: Value) -> str:
    """A value as an action prints it: what a pointer points to, and `<no value>` for nothing."""
    if value is None:
        return "<no value>"
    return go_text(value).removeprefix("&") if isinstance(value, SamplePointer) else go_text(value)


def sprint(values: Sequence[Value]) -> str:
    """Go's Sprint: a space between operands when neither is a string."""
    out = ""
    for place, value in enumerate(values):
        if place and not isinstance(value, str) and not isinstance(values[place - 1], str):
            out += " "
        out += go_text(value)
    return out


@dataclass(frozen=True, slots=True)
class _Directive:
    """Flags, width and precision of one verb."""

    flags: str = ""
    width: int | None = None
    precision: int | None = None


def sprintf(template: str, values: Sequence[Value]) -> str:
    """Go's Sprintf, its notes on wrong verbs and missing or left over operands among the text."""
    out: list[str] = []
    place, following, reordered = 0, 0, False
    while (start := template.find("%", place)) >= 0:
        out.append(template[place:start])
        found = _DIRECTIVE.match(template, start)
        assert found is not None
        place = found.end()
        wrong, misplaced = "", False

        def jump(index: str | None) -> None:
            nonlocal following, misplaced, reordered
            if index:
                reordered = True
                if 1 <= int(index[1:-1]) <= len(values):
                    following = int(index[1:-1]) - 1
                else:
                    misplaced = True

        def argument(text: str | None, index: str | None) -> int | None:
            nonlocal following, wrong
            jump(index)
            if text != "*":
                return int(text) if text else None
            value = values[following] if 0 <= following < len(values) else None
            following += 1
            if type(value) is int and abs(value) <= 1_000_000:
                return value
            wrong = wrong or "WIDTH"
            return None

        width = argument(found["width"], found["width_index"])
        if wrong:
            out.append("%!(BADWIDTH)")
        wrong = ""
        precision = argument(found["precision"], found["precision_index"])
        if wrong:
            out.append("%!(BADPREC)")
        if found["dot"] and found["precision"] is None:
            precision = 0
        flags = found["flags"]
        if width is not None and width < 0:
            flags, width = flags + "-", -width
        if precision is not None and precision < 0:
            precision = None
        jump(found["index"])
        directive = _Directive(flags, width, precision)
        verb = found["verb"]
        if verb is None:
            out.append("%!(NOVERB)")
        elif verb == "%":
            out.append("%")
        elif misplaced or following >= len(values):
            out.append(f"%!{verb}({'BADINDEX' if misplaced else 'MISSING'})")
        else:
            value = values[following]
            following += 1
            out.append(f"%!{verb}(<nil>)" if value is None and verb not in "Tv" else _formatted(value, verb, directive))
    out.append(template[place:])
    if not reordered and following < len(values):
        rest = ", ".join("<nil>" if v is None else f"{type_name(v)}={go_text(v)}" for v in values[following:])
        out.append(f"%!(EXTRA {rest})")
    return "".join(out)


def _formatted(value: Value, verb: str, directive: _Directive, top: bool = True) -> str:
    """One operand; containers apply the verb to what they hold."""
    if verb == "T":
        return _padded("<nil>" if value is None else type_name(value), directive)
    if value is None:
        return _padded("<nil>", directive)
    text = _text_of(value, verb)
    if text is not None:
        return _string(text, verb, directive)
    if isinstance(value, (SamplePointer, Data)):
        if not top and isinstance(value, SamplePointer):
            return f"0x{id(value):x}"
        plus = "+" in directive.flags and verb == "v"
        parts = [
            (f"{name}:" if plus else "") + _formatted(item, verb, directive, False)
            for name, item in members(value).items()
        ]
        return ("&" if isinstance(value, SamplePointer) else "") + "{" + " ".join(parts) + "}"
    if isinstance(value, Mapping):
        inner = (
            f"{_formatted(key, verb, directive, False)}:{_formatted(item, verb, directive, False)}"
            for key, item in sorted(value.items())
        )
        return "map[" + " ".join(inner) + "]"
    if isinstance(value, QueryResult):
        return "[" + " ".join(_formatted(item, verb, directive, False) for item in value) + "]"
    body = _scalar(value, verb, directive)
    if body is not None:
        return body
    plain = "g" if isinstance(value, float) else "v" if isinstance(value, bool) else "d"
    return f"%!{verb}({type_name(value)}={_formatted(value, plain, directive)})"


def _text_of(value: Value, verb: str) -> str | None:
    """The text of what prints itself by a String method, and of strings."""
    if isinstance(value, str):
        return value
    if verb not in "vsqxX":
        return None
    if isinstance(value, Named):
        return value.text
    if isinstance(value, Time):
        fraction = f".{value.fraction:09d}".rstrip("0") if value.fraction else ""
        return f"{value.moment:%Y-%m-%d %H:%M:%S}{fraction} +0000 UTC"
    return duration_text(value.nanoseconds) if isinstance(value, Duration) else None


def duration_text(nanoseconds: int) -> str:
    """A length of time as Go prints it: 1h2m3.5s, 1.5ms, 0s."""
    sign, rest = ("-" if nanoseconds < 0 else ""), abs(nanoseconds)
    for unit, size in (("ns", 1), ("µs", 1000), ("ms", 1_000_000)):
        if rest < size * 1000 and rest:
            return f"{sign}{Decimal(rest) / size:f}{unit}"
    minutes, seconds = divmod(rest, 60_000_000_000)
    text = f"{(Decimal(seconds) / 1_000_000_000).normalize():f}s"
    if minutes:
        text = (f"{minutes // 60}h" if minutes >= 60 else "") + f"{minutes % 60}m{text}"
    return sign + text


def _string(text: str, verb: str, directive: _Directive) -> str:
    cut = text if directive.precision is None else text[: directive.precision]
    if verb in "vs":
        return _padded(quoted(text) if verb == "v" and "#" in directive.flags else cut, directive)
    if verb == "q":
        raw = "#" in directive.flags and "`" not in cut
        return _padded(f"`{cut}`" if raw else quoted(cut, ascii_only="+" in directive.flags), directive)
    if verb in "xX":
        data = text.encode()[: directive.precision]
        digits = data.hex(" ") if " " in directive.flags else data.hex()
        digits = digits if "#" not in directive.flags or not digits else "0x" + digits
        return _padded(digits.upper() if verb == "X" else digits, directive)
    return f"%!{verb}(string={_padded(cut, directive)})"


def _scalar(value: Value, verb: str, directive: _Directive) -> str | None:
    """A truth, a whole number or a float; None when the verb does not fit."""
    if verb == "v":  # its + and # say how structs are printed
        directive = replace(directive, flags=directive.flags.replace("+", "").replace("#", ""))
    if isinstance(value, bool):
        return _padded(str(value).lower(), directive) if verb in "vt" else None
    if isinstance(value, float):
        body = _float(value, verb, directive)
        return None if body is None else _number(body, directive, finite=math.isfinite(value), precision=None)
    if not isinstance(value, int):
        return None
    if verb == "c":
        return _padded(_character(value), directive)
    if verb == "q":
        return _padded(quoted(_character(value), quote="'"), directive)
    if verb == "U":
        shown = (
            f" '{chr(value)}'" if "#" in directive.flags and 0 <= value < 0x110000 and chr(value).isprintable() else ""
        )
        return _padded(f"U+{value:04X}{shown}", directive)
    base = {"v": "d", "d": "d", "b": "b", "o": "o", "O": "o", "x": "x", "X": "X"}.get(verb)
    if base is None:
        return None
    digits = format(abs(value), base)
    if directive.precision is not None:
        digits = digits.rjust(directive.precision, "0") if directive.precision or value else ""
    prefix = {"b": "0b", "o": "0", "x": "0x", "X": "0X"}.get(verb, "") if "#" in directive.flags else ""
    prefix = "0o" if verb == "O" else prefix
    body = ("-" if value < 0 else "") + prefix + digits
    return _number(body, directive, finite=True, precision=directive.precision)


def _character(code: int) -> str:
    """The character of a code point; the replacement character for what is none."""
    return chr(code) if 0 <= code < 0xD800 or 0xE000 <= code < 0x110000 else "\ufffd"


def _float(value: float, verb: str, directive: _Directive) -> str | None:
    if verb not in "vgGeEfFxXb" or verb in "xXb":
        return None if verb not in "xX" or not math.isfinite(value) else _hex_float(value, verb)
    if not math.isfinite(value):
        return go_float(value).removeprefix("+")
    if verb in "vgG" and directive.precision is None:
        return go_float(value).upper() if verb == "G" else go_float(value)
    kind = {"v": "g", "F": "f"}.get(verb, verb)
    precision = 6 if directive.precision is None else directive.precision
    return format(value, f".{precision}{kind}")


def _hex_float(value: float, verb: str) -> str:
    mantissa, _, exponent = value.hex().partition("p")
    body = f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}p{int(exponent):+03d}"
    return body.upper() if verb == "X" else body


def _number(body: str, directive: _Directive, *, finite: bool, precision: int | None) -> str:
    """A number with its sign and its width; zeros fill the width before the digits."""
    if not body.startswith("-"):
        if "+" in directive.flags or (body == "Inf" and " " not in directive.flags):
            body = "+" + body if body != "NaN" or "+" in directive.flags else body
        elif " " in directive.flags:
            body = " " + body
    if "0" in directive.flags and "-" not in directive.flags and finite and precision is None and directive.width:
        return body.zfill(directive.width) if body[0] != " " else " " + body[1:].zfill(directive.width - 1)
    plain = replace(directive, flags=directive.flags.replace("0", ""))  # zeros go before digits only
    return _padded(body, plain)


def _padded(body: str, directive: _Directive) -> str:
    width = directive.width or 0
    if "-" in directive.flags:
        return body.ljust(width)
    return body.rjust(width, "0") if "0" in directive.flags and body[:1] not in "+-" else body.rjust(width)
