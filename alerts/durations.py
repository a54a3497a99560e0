"""Durations as Prometheus writes them: 30s, 5m, 1h30m."""

from __future__ import annotations

import re

_DURATION = re.compile(r"(?:(\d+)y)?(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?\Z", re.ASCII)
_UNIT_SECONDS = (365 * 86400.0, 7 * 86400.0, 86400.0, 3600.0, 60.0, 1.0, 0.001)


def parse_duration(text: str) -> float:
    """Seconds of a Prometheus duration such as `1h30m` or `500ms`; raises ValueError."""
    found = _DURATION.match(text)
    if text == "0":
        return 0.0
    if not text or found is None:
        raise ValueError(f"not a duration: {text!r}; write it like 30s, 5m or 1h30m")
    return sum(int(number) * unit for number, unit in zip(found.groups(), _UNIT_SECONDS, strict=True) if number)


def format_duration(seconds: float) -> str:
    """A duration as Prometheus writes it: 5m, 1h30m, 500ms."""
    rest, parts = round(seconds * 1000), []
    for unit, milliseconds in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        number, rest = divmod(rest, milliseconds)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"
