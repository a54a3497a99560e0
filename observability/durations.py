"""Durations as Prometheus writes them: 30s, 5m, 1h30m."""

from __future__ import annotations

import re

UNITS_MS = {
    "y": 365 * 86_400_000, "w": 7 * 86_400_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1,
}  # fmt: skip
_DURATION = re.compile("".join(rf"(?:([0-9]+){unit})?" for unit in UNITS_MS), re.ASCII)
# What a signed 64-bit number of nanoseconds holds, as in Prometheus: 292 years.
_LONGEST_MS = (2**63 - 1) // 1_000_000


def duration_ms(text: str) -> int:
    """Milliseconds of `1h30m`, `15s`, `500ms` or `0`: units from large to small, each once. ValueError for other forms.

    The grammar is that of Prometheus' `model.ParseDuration`.
    """
    if text == "0":
        return 0
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"not a duration: {text!r}; write it like 30s, 5m or 1h30m")
    counts = match.groups(default="0")
    found = sum(int(count) * size for count, size in zip(counts, UNITS_MS.values(), strict=True))
    if found > _LONGEST_MS:
        raise ValueError(f"the duration {text} is out of range: the longest has 292 years")
    return found


def duration_text(milliseconds: int) -> str:
    """The form that Prometheus gives a duration: 90000 is `1m30s`. Days, weeks and years only where they are whole."""
    if milliseconds == 0:
        return "0s"
    parts, rest = [], milliseconds
    for unit, size in UNITS_MS.items():
        if unit in ("y", "w", "d") and rest % size:
            continue
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)
