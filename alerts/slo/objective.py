"""An objective: how good a service is to be, by which indicator, over which time, and who is told when it is not."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from alerts.labels import LABEL_NAME, Labels
from alerts.rules import format_duration
from alerts.slo.indicator import Events, Indicator, Threshold
from alerts.slo.period import Calendar, Period, Rolling
from alerts.slo.windows import Window, burn_windows

Method = Literal["Occurrences", "Timeslices", "RatioTimeslices"]
METHODS: tuple[Method, ...] = ("Occurrences", "Timeslices", "RatioTimeslices")
Absence = Literal["always", "vanished", "never"]
ABSENCES: tuple[Absence, ...] = ("always", "vanished", "never")
RUNBOOKS = "docs/runbooks"


@dataclass(frozen=True, slots=True, kw_only=True)
class BurnAlert:
    """An alert of one's own on the burn rate over one window, in place of the workbook's."""

    name: str
    severity: str
    factor: float
    lookback_seconds: float
    for_seconds: float = 0.0
    or_equal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A share `target` of the events (or of the time slices) of a period is to be good."""

    name: str
    target: float
    indicator: Indicator
    service: str = ""
    title: str = ""
    period: Period = field(default_factory=Rolling)
    method: Method = "Occurrences"
    slice_seconds: float = 60.0
    """How often a threshold is looked at, and the length of a time slice."""
    slice_target: float = 1.0
    """Share of good events (or looks) that makes a time slice good; for Timeslices only."""
    minimum_events: float | None = None
    """Fewer events in the long window alert nobody; None: 50 events, or 10 looks; of a time slice: 1 event."""
    minimum_bad_events: float = 2.0
    """Fewer bad events in the long window alert nobody: one failure is no rate."""
    absent: Absence = "always"
    """Whether to alert when there is nothing to count: also if there never was, only if there was, or never."""
    alerts: tuple[BurnAlert, ...] | None = None
    """Alerts of one's own; None: the workbook's pairs of windows."""
    labels: Labels = ()
    """More labels of the alerts and of `slo_info`."""
    runbook_url: str = ""

    def __post_init__(self) -> None:
        if not 0.0 < self.target < 1.0:
            raise ValueError(f"an objective's target is a share within (0, 1), got {self.target}")
        if not 0.0 < self.slice_target <= 1.0:
            raise ValueError(f"a time slice's target is a share within (0, 1], got {self.slice_target}")
        if self.slice_seconds < 1.0 or self.slice_seconds > self.period.seconds / 10:
            raise ValueError(
                f"time slices of {self.slice_seconds:g} s do not fit into a period of {self.period.name}: "
                "give at least 1 s, and at most a tenth of the period"
            )
        for what, text in (("name", self.name), ("service", self.service), ("title", self.title)):
            if re.search(r'["\\\n]|\{\{', text):
                raise ValueError(f"an objective's {what} cannot hold quotes, backslashes or {{{{: {text!r}")
        for name, _ in self.labels:
            if not LABEL_NAME.match(name) or name in ("slo", "service", "alertname", "severity"):
                raise ValueError(f"{name!r} cannot be a label of an objective's alerts")
        if self.alerts is None:
            burn_windows(self.period.seconds)

    @property
    def budget(self) -> float:
        """The share that may be bad."""
        return float(1 - Decimal(repr(self.target)))

    @property
    def sliced(self) -> bool:
        """Whether time is what is counted: looks or slices, not events."""
        return not isinstance(self.indicator, Events) or self.method != "Occurrences"

    @property
    def windows(self) -> tuple[Window, ...]:
        """The pairs of windows that alert. Pairs that even a total failure cannot burn fast enough for are left out."""
        if self.alerts is not None:
            return ()
        return tuple(w for w in burn_windows(self.period.seconds) if w.factor * self.budget < 1.0)

    @property
    def spans(self) -> tuple[float, ...]:
        """The lengths (seconds) of all windows that are recorded, ascending."""
        pairs = burn_windows(max(self.period.seconds, 86400.0))
        spans = {span for pair in pairs for span in (pair.long_seconds, pair.short_seconds)}
        return tuple(sorted(spans | {alert.lookback_seconds for alert in self.alerts or ()}))

    @property
    def enough(self) -> float:
        """Events (looks) in the long window from which on the rate is believed."""
        if self.minimum_events is not None and not self._per_slice:
            return self.minimum_events
        if not self.sliced:
            return 50.0
        return 0.0 if self.method == "Timeslices" else 10.0

    @property
    def enough_in_slice(self) -> float:
        """Events in a time slice from which on it is judged."""
        return self.minimum_events if self.minimum_events is not None and self._per_slice else 1.0

    @property
    def _per_slice(self) -> bool:
        return isinstance(self.indicator, Events) and self.method != "Occurrences"

    def slices(self, seconds: float) -> int:
        """Whole time slices in a window, at least one."""
        return max(1, math.floor(seconds / self.slice_seconds + 1e-9))


def warnings(objective: Objective) -> list[str]:
    """What is allowed but unwise, each with what to do."""
    found = []
    if objective.alerts is None:
        found += [
            f"a budget of {objective.budget:g} cannot burn {window.factor:g} times too fast, so the pair over "
            f"{format_duration(window.long_seconds)} is left out; a stricter target would bring it back"
            for window in burn_windows(objective.period.seconds)
            if window not in objective.windows
        ]
        shortest = min(objective.spans)
        if not objective.sliced and shortest < 60:
            found.append(
                f"the shortest window is {shortest:g} s: scrape at least every {shortest / 4:g} s, or choose a longer "
                "timeWindow"
            )
    indicator = objective.indicator
    if objective.method == "Occurrences" and not isinstance(indicator, (Events, Threshold)):
        found.append("a ready ratio has no counts: its average over time is not weighted by traffic")
    extrapolated = isinstance(indicator, Events) and indicator.total.form not in ("selector", "sum")
    if isinstance(objective.period, Calendar) and extrapolated and not objective.sliced:
        found.append("with a calendar window, name the counters without a range: rates are extrapolated")
    return found
