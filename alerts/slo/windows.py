"""The windows of burn-rate alerts: the table of Google's SRE workbook, for any period.

Burn rate = error ratio / error budget; 1 spends the budget exactly in the period. A pair of windows at factor f spends
f * long / period of it before it alerts (https://sre.google/workbook/alerting-on-slos).
"""

from __future__ import annotations

from dataclasses import dataclass

DAY = 86400.0
# Periods of about a month keep the workbook's windows, and their factors follow (as sloth's tables for 28 and 30 days
# do); the windows of other periods are scaled and their factors stay: in a week 3 days at 0.23 times would be noise.
_MONTHS = (28 * DAY, 31 * DAY)


@dataclass(frozen=True, slots=True)
class Window:
    """A pair of windows (seconds): both must burn faster than `factor`. The short one ends the alert soon."""

    long_seconds: float
    short_seconds: float
    factor: float
    severity: str


# (long window in seconds of a period of 30 days, share of the budget spent in it, severity)
_WORKBOOK = ((3600.0, 0.02, "page"), (6 * 3600.0, 0.05, "page"), (DAY, 0.1, "ticket"), (3 * DAY, 0.1, "ticket"))


def burn_windows(period_seconds: float = 30 * DAY) -> tuple[Window, ...]:
    """The workbook's pairs for a period: 2 % of the budget in 1/720 of it and 5 % in 1/120 page, 10 % are tickets.

    Short windows are a twelfth of the long ones. Raises ValueError for a period below a day: its windows would be
    shorter than what a scrape can see.
    """
    if period_seconds < DAY:
        raise ValueError(f"a period of {period_seconds:g} s is too short for burn rates: give at least 1d")
    monthly = _MONTHS[0] <= period_seconds <= _MONTHS[1]
    pairs = []
    for long, share, severity in _WORKBOOK:
        scaled = long if monthly else _whole(long * period_seconds / (30 * DAY))
        pairs.append(Window(scaled, scaled / 12, round(share * period_seconds / scaled, 6), severity))
    return tuple(pairs)


WORKBOOK_WINDOWS = burn_windows()


def _whole(seconds: float) -> float:
    """To minutes of which a twelfth is whole seconds, below an hour to 12 seconds."""
    unit = 60.0 if seconds >= 3600 else 12.0
    return max(12.0, round(seconds / unit) * unit)
