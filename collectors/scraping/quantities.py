"""Durations and sizes as Prometheus' configuration writes them."""

from __future__ import annotations

import re

_UNITS_MS = {
    "y": 365 * 86_400_000, "w": 7 * 86_400_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1,
}  # fmt: skip
_DURATION = re.compile("".join(rf"(?:([0-9]+){unit})?" for unit in _UNITS_MS), re.ASCII)
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMGTPE]?)i?B", re.ASCII)


def duration_ms(text: str) -> int:
    """Milliseconds of `1h30m`, `15s`, `500ms` or `0`. ValueError for any other form."""
    match = _DURATION.fullmatch(text)
    if text == "0":
        return 0
    if match is None or not text:
        raise ValueError(f"{text!r} is not a duration: write 15s, 500ms or 1h30m")
    counts = match.groups(default="0")
    return sum(int(count) * size for count, size in zip(counts, _UNITS_MS.values(), strict=True))


def duration_text(milliseconds: int) -> str:
    """The form that Prometheus gives a duration: 90000 is `1m30s`. Days, weeks and years only where they are whole."""
    if milliseconds == 0:
        return "0s"
    parts, rest = [], milliseconds
    for unit, size in _UNITS_MS.items():
        if unit in ("y", "w", "d") and rest % size:
            continue
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def size_bytes(text: str) -> int:
    """Bytes of `512KB`, `10MB`, `1.5GiB` or `0`; all of them count in powers of 1024. ValueError for any other form."""
    if text == "0":
        return 0
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size: write 512KB, 10MB or 1GB")
    return int(float(match[1]) * 1024 ** (" KMGTPE".index(match[2] or " ")))
