"""Regular expressions as Go writes them (RE2), compiled by Python's engine."""

from __future__ import annotations

import re
from functools import lru_cache

_PIECE = re.compile(
    r"\\.|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]|\(\?[imsU]+(?:-[imsU]+)?\)|\(\?<(?![=!])|[()]|.", re.S
)


@lru_cache(maxsize=1024)
def compile_go(pattern: str) -> re.Pattern[str]:
    """The pattern for `fullmatch`, with `.` matching newlines too as in Prometheus 3. Raises ValueError."""
    try:
        return re.compile(_translated(pattern), re.DOTALL)
    except re.error as error:
        raise ValueError(f"{error} in {pattern!r}") from error


def _translated(pattern: str) -> str:
    """Go allows `(?i)` anywhere in a group, for the rest of it: Python wants it to be a group of its own."""
    out: list[str] = []
    opened = [0]
    for match in _PIECE.finditer(pattern):
        piece = match[0]
        if piece.startswith("(?") and piece.endswith(")"):
            out.append(piece[:-1] + ":")
            opened[-1] += 1
        elif piece == "(?<":
            out.append("(?P<")
            opened.append(0)
        elif piece == "(":
            out.append(piece)
            opened.append(0)
        elif piece == ")" and len(opened) > 1:
            out.append(")" * (opened.pop() + 1))
        else:
            out.append(r"\Z" if piece == r"\z" else piece)
    return "".join(out) + ")" * opened[0]
