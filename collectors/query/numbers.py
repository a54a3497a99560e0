"""Numbers as Prometheus writes them."""

from __future__ import annotations

import math
from decimal import Decimal


def format_float(value: float) -> str:
    """The shortest text that reads back as the same number, without an exponent (Go's 'f', -1); NaN, +Inf, -Inf."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    text = repr(value)
    if "e" not in text:
        return text[:-2] if text.endswith(".0") else text
    mantissa, _, exponent = text.partition("e")
    sign, mantissa = ("-", mantissa[1:]) if mantissa.startswith("-") else ("", mantissa)
    whole, _, fraction = mantissa.partition(".")
    digits, point = whole + fraction, len(whole) + int(exponent)
    if point <= 0:
        return f"{sign}0.{'0' * -point}{digits}".rstrip("0")
    if point >= len(digits):
        return sign + digits + "0" * (point - len(digits))
    return f"{sign}{digits[:point]}.{digits[point:]}"


def parse_float(text: str) -> float:
    """The number in a label or parameter. Raises ValueError."""
    if "_" in text or text != text.strip():
        raise ValueError(f"not a number: {text!r}")
    return float(text)


def format_open_metrics(value: float) -> str:
    """The number as OpenMetrics has it in `le` and `quantile`: Go's 'g', -1, whole ones with `.0`."""
    if not math.isfinite(value):
        return format_float(value)
    digits = Decimal(repr(value)).normalize()
    exponent = digits.adjusted() if value else 0
    if -4 <= exponent < 6:
        text = format_float(value)
        return text if "." in text else f"{text}.0"
    mantissa = format(digits.scaleb(-exponent), "f")
    return f"{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
