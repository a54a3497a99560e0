"""Times as Alertmanager's API and webhooks write and read them. All are unix seconds, in UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

NEVER = "0001-01-01T00:00:00Z"
_FRACTION = re.compile(r"\.(\d+)")


def rfc3339_millis(at: float) -> str:
    """With three decimals: the API."""
    return f"{datetime.fromtimestamp(round(at, 3), UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"


def rfc3339(at: float | None) -> str:
    """With as many decimals as there are: webhooks. None is Go's zero time."""
    if at is None:
        return NEVER
    moment = datetime.fromtimestamp(round(at, 6), UTC)
    decimals = f".{moment.microsecond:06d}".rstrip("0").rstrip(".")
    return f"{moment:%Y-%m-%dT%H:%M:%S}{decimals}Z"


def read_time(value: Any, what: str, default: float) -> float:
    """Unix seconds of an RFC 3339 time; `default` for null, "" and Go's zero time. Raises ValueError."""
    if value in (None, ""):
        return default
    if not isinstance(value, str):
        raise ValueError(f"{what} must be an RFC 3339 time, got {value!r}")
    if value.startswith("0001-01-01"):
        return default
    # Python reads six decimals, Go writes up to nine.
    text = _FRACTION.sub(lambda found: "." + found[1][:6].ljust(6, "0"), value.strip(), count=1)
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00").replace("z", "+00:00"))
    except ValueError as error:
        raise ValueError(f"{what} must be an RFC 3339 time, got {value!r}") from error
    if moment.tzinfo is None:
        raise ValueError(f"{what} must name its time zone, got {value!r}")
    return moment.timestamp()
