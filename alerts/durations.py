"""Durations as rule files write them: 30s, 5m, 1h30m."""

from __future__ import annotations

from observability.durations import duration_ms


def parse_duration(text: str) -> float:
    """Seconds of a Prometheus duration such as `1h30m` or `500ms`; raises ValueError."""
    return duration_ms(text) / 1000


def format_duration(seconds: float) -> str:
    """A duration with days as its largest unit, so that 28d stays 28d in the names of rules: 5m, 1h30m, 500ms."""
    rest, parts = round(seconds * 1000), []
    for unit, milliseconds in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        number, rest = divmod(rest, milliseconds)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"
