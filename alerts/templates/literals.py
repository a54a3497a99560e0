"""Numbers, characters and texts as they are written in Go."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from alerts.templates.printing import quoted
from alerts.templates.values import Value

_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\'\"])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.|\Z))", re.S
)
_PLAIN = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_INTEGER = re.compile(
    r"[+-]?(?:0[xX](?:_?[0-9a-fA-F])+|0[bB](?:_?[01])+|0[oO](?:_?[0-7])+|0(?:_?[0-7])*|[1-9](?:_?\d)*)\Z"
)
_FLOAT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\Z")
_HEX_FLOAT = re.compile(r"[+-]?0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)[pP][+-]?\d+\Z")


class LiteralError(ValueError):
    """A literal that Go would refuse; the message is Go's."""


def number(source: str) -> Value:
    """An int or a float; raises LiteralError."""
    if _INTEGER.match(source):
        digits = source.replace("_", "").lower().lstrip("+-")
        octal = len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
        value = int(digits, 8 if octal else 0)
        value = -value if source[0] == "-" else value
        if not -(2**63) <= value < 2**63:
            raise LiteralError(f"integer overflow: {quoted(source)}")
        return value
    if _HEX_FLOAT.match(source):
        return _finite(source, float.fromhex)
    if not _FLOAT.match(source):
        raise LiteralError(f"illegal number syntax: {quoted(source)}")
    if not any(mark in source for mark in ".eE"):
        raise LiteralError(f"integer overflow: {quoted(source)}")
    return _finite(source, float)


def _finite(source: str, read: Callable[[str], float]) -> float:
    try:
        value = read(source)
    except OverflowError:
        value = math.inf
    if math.isinf(value):
        raise LiteralError(f"illegal number syntax: {quoted(source)}")
    return value


def character(source: str) -> int:
    """The code point of a character in single quotes; raises LiteralError."""
    inner = _unescaped(source[1:-1])
    if len(inner) != 1:
        raise LiteralError(f"malformed character constant: {source}")
    return ord(inner)


def text(source: str) -> str:
    """A text in double quotes; raises LiteralError."""
    return _unescaped(source[1:-1])


def raw_text(source: str) -> str:
    """A text in backquotes."""
    return source[1:-1].replace("\r", "")


def _unescaped(inner: str) -> str:
    def one(found: re.Match[str]) -> str:
        plain, *codes, octal, wrong = found.groups()
        if wrong is not None:
            raise LiteralError("invalid syntax")
        if plain is not None:
            return _PLAIN.get(plain, plain)
        code = int(octal, 8) if octal else int(next(code for code in codes if code), 16)
        if code >= 0x110000 or 0xD800 <= code < 0xE000:
            raise LiteralError("invalid syntax")
        return chr(code)

    return _ESCAPE.sub(one, inner)
