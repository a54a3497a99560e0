"""Scores of predictions against labels: on rows, from mergeable histograms, by window, and estimated without labels."""

from collectors.scores.calibration import ScoreCalibration
from collectors.scores.cells import CELLS, ScoreError, score_counts
from collectors.scores.estimated import Estimate, PerformanceEstimator
from collectors.scores.histogram import Confusion, ScoreHistogram
from collectors.scores.means import Score
from collectors.scores.monitor import MonitorSettings, Performance, PerformanceMonitor
from collectors.scores.regression import LARGEST, RegressionSums, scorable
from collectors.scores.rows import classification_scores, regression_scores, row_errors
from collectors.scores.scored import Scored
from collectors.scores.slices import Slice, SliceSettings, drifted_slices, worst_slices
from collectors.scores.windows import LabelledRow, LabelledWindow, LabelledWindows

__all__ = [
    "CELLS",
    "LARGEST",
    "Confusion",
    "Estimate",
    "LabelledRow",
    "LabelledWindow",
    "LabelledWindows",
    "MonitorSettings",
    "Performance",
    "PerformanceEstimator",
    "PerformanceMonitor",
    "RegressionSums",
    "Score",
    "ScoreCalibration",
    "ScoreError",
    "ScoreHistogram",
    "Scored",
    "Slice",
    "SliceSettings",
    "classification_scores",
    "drifted_slices",
    "regression_scores",
    "row_errors",
    "scorable",
    "score_counts",
    "worst_slices",
]
