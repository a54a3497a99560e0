"""PerformanceMonitor: realised and expected scores of each version side by side, window by window."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from collectors.scores.cells import Counts, Floats, probabilities_among, score_counts
from collectors.scores.estimated import Estimate, PerformanceEstimator
from collectors.scores.histogram import ScoreHistogram
from collectors.scores.means import Score
from collectors.scores.windows import NANOSECONDS, LabelledWindow, LabelledWindows

Key = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorSettings:
    """What performance is read from."""

    scored_rows: int = 5_000
    """Realised scores are of the latest windows that together hold this many labels (all, while there are fewer)."""
    learned_rows: int = 5_000
    """Labels that a version's estimator is learned from when none is given: those of its first windows."""
    learned_windows: int = 5
    """Windows that these must at least come from: what they differ by widens the band."""
    kept_windows: int = 500
    """Windows of a version whose predictions are counted."""

    def __post_init__(self) -> None:
        if min(self.scored_rows, self.learned_rows, self.learned_windows, self.kept_windows) < 1:
            raise ValueError(f"every size must be at least 1: {self}")


@dataclass(frozen=True, slots=True)
class Performance:
    """What is known of a version: realised scores, those expected of its latest window, and how far these are off."""

    labels: int
    realised: dict[str, Score]
    window: LabelledWindow | None
    """The window that `expected` is of: the latest that is complete."""
    expected: dict[str, Estimate]
    honesty: dict[str, float]
    """Expected less realised scores, of the same rows as `realised`."""


@dataclass(slots=True)
class _Version:
    counts: dict[int, Counts] = field(default_factory=dict)
    estimator: PerformanceEstimator | None = None


class PerformanceMonitor:
    """Counts predictions by window of event time, and sets labels beside them as they come. Not thread-safe.

    `windows` is fed by the label join. Counts are not stored: after a restart an estimate is of the rows since, which
    is as honest, for fewer rows widen its band; the estimator is (`estimator`, `set_estimator`).
    """

    def __init__(self, windows: LabelledWindows | None = None, settings: MonitorSettings | None = None) -> None:
        self.windows = windows or LabelledWindows()
        self.settings = settings or MonitorSettings()
        self._nanoseconds = round(self.windows.window_seconds * NANOSECONDS)
        self._versions: dict[Key, _Version] = {}

    def count(self, model: str, version: str, times_ns: Counts, predictions: Floats) -> None:
        """Counts predictions, shape (rows,), by the window of their times, those that are no probability left out."""
        state = self._versions.setdefault((model, version), _Version())
        values, times = np.asarray(predictions, np.float64), np.asarray(times_ns, np.int64)
        fit, values = probabilities_among(values)
        numbers = times[fit] // self._nanoseconds
        for number in np.unique(numbers).tolist():
            found = score_counts(values[numbers == number])
            state.counts[number] = state.counts[number] + found if number in state.counts else found
        for oldest in sorted(state.counts)[: max(0, len(state.counts) - self.settings.kept_windows)]:
            del state.counts[oldest]

    def set_estimator(self, model: str, version: str, estimator: PerformanceEstimator) -> None:
        """Sets what a version's scores are expected from: learned on its held-out data, or stored before a restart."""
        self._versions.setdefault((model, version), _Version()).estimator = estimator

    def estimator(self, model: str, version: str) -> PerformanceEstimator | None:
        """The version's estimator: the one that was set, else learned from its first labelled windows, else None."""
        state = self._versions.setdefault((model, version), _Version())
        if state.estimator is None:
            state.estimator = self._learned(model, version)
        return state.estimator

    def performance(self, model: str, version: str, complete_until: float | None = None) -> Performance:
        """What is known now; the latest complete window is the last that ends by `complete_until` (unix seconds)."""
        latest: list[LabelledWindow] = []
        rows = 0
        for labelled in reversed(self.windows.windows(model, version)):
            if rows >= self.settings.scored_rows:
                break
            latest.append(labelled)
            rows += self.windows.scored(labelled).rows
        realised = self.windows.merged(latest)
        estimator = self.estimator(model, version)
        window: LabelledWindow | None = None
        expected: dict[str, Estimate] = {}
        state = self._versions[model, version]
        ended = [n for n in state.counts if complete_until is None or (n + 1) * self._seconds <= complete_until]
        if estimator and ended:
            window = LabelledWindow(model, version, max(ended) * self._seconds)
            expected = estimator.estimate(state.counts[max(ended)])
        honesty = estimator.honesty(realised.classes) if estimator and realised.binary else {}
        return Performance(realised.rows, realised.scores(), window, expected, honesty)

    @property
    def _seconds(self) -> float:
        return self.windows.window_seconds

    def _learned(self, model: str, version: str) -> PerformanceEstimator | None:
        blocks: list[ScoreHistogram] = []
        total = ScoreHistogram()
        for window in self.windows.windows(model, version):
            scored = self.windows.scored(window)
            if not scored.binary:
                return None
            blocks.append(scored.classes)
            total = total + scored.classes
            enough = total.rows >= self.settings.learned_rows and len(blocks) >= self.settings.learned_windows
            if enough and total.positives.any() and total.negatives.any():
                return PerformanceEstimator.learnt(blocks)
        return None
