"""How events are measured: what `Measures` is told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from collectors.drift import DriftThresholds
from collectors.performance import JoinSettings
from collectors.windows import NO_SLICES, Slicing, WindowSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSettings:
    """How events are measured."""

    windows: WindowSettings = field(default_factory=WindowSettings)
    slicing: Slicing = NO_SLICES
    join: JoinSettings = field(default_factory=JoinSettings)
    thresholds: DriftThresholds = field(default_factory=DriftThresholds)
    judged_windows: int = 1
    """Drift is read from the sum of this many last windows: a sliding window that moves by one window."""
    alarm_windows: float = 1000.0
    """Windows between false drift alarms of a version, at least, on average: see `alarms`."""
    history_windows: int = 500
    """Closed windows of a version that are kept."""
    silent_windows: float = 10.0
    """After this many window lengths without rows or labels a version's values are taken off the page."""
    score_seconds: float = 2.0
    """Scores of a version are computed, and amended windows are judged again, at most this often."""

    def amendable(self) -> WindowSettings:
        """The windows, amended no further back than they are kept: of a forgotten one only the late rows are known."""
        kept = self.history_windows * self.windows.window_seconds
        return replace(self.windows, amend_seconds=min(self.windows.amend_seconds, kept))
