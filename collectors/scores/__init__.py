"""Scores of predictions against labels: on rows, from mergeable histograms, by window, and estimated without labels."""

from collectors.scores.calibration import Calibration
from collectors.scores.cells import CELLS, ScoreError, score_counts
from collectors.scores.estimated import Estimate, PerformanceEstimator
from collectors.scores.histogram import Confusion, Score, ScoreHistogram
from collectors.scores.regression import RegressionSums
from collectors.scores.rows import classification_scores, regression_scores
from collectors.scores.scored import Scored
from collectors.scores.windows import LabelledRow, LabelledWindow, LabelledWindows

__all__ = [
    "CELLS",
    "Calibration",
    "Confusion",
    "Estimate",
    "LabelledRow",
    "LabelledWindow",
    "LabelledWindows",
    "PerformanceEstimator",
    "RegressionSums",
    "Score",
    "ScoreError",
    "ScoreHistogram",
    "Scored",
    "classification_scores",
    "regression_scores",
    "score_counts",
]
