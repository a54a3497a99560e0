"""How far realised scores lie from the expected ones because labels are drawn: the error of each, given the scores.

The rows and their scores are known, so that only the labels vary: each cell's positives are binomial, and a score moves
by its slope in them (the delta method). A window whose rows differ from the reference's has an error of its own.
"""

from __future__ import annotations

import math

import numpy as np

from collectors.scores import curves
from collectors.scores.cells import MIDDLES, Counts, Floats, edge_index

_LOSS_MORE = np.log1p(-MIDDLES) - np.log(MIDDLES)
_SQUARE_MORE = (1 - MIDDLES) ** 2 - MIDDLES**2


def label_errors(counts: Counts, probabilities: Floats, threshold: float = 0.5) -> dict[str, tuple[float, float]]:
    """The standard deviation of each score over the labels, and the most that one label moves it; shapes (CELLS,).

    NaN where the score has no meaning.
    """
    positives = counts * probabilities
    negatives = counts - positives
    variances = positives * (1 - probabilities)
    slopes = _slopes(positives, negatives, edge_index(threshold))
    filled = counts > 0
    return {
        name: (math.sqrt(max(float(np.dot(variances, slope**2)), 0.0)), float(np.abs(slope[filled]).max(initial=0.0)))
        for name, slope in slopes.items()
    }


def _slopes(positives: Floats, negatives: Floats, cell: int) -> dict[str, Floats]:
    """By how much each score grows when a row of each cell is a positive in place of a negative."""
    rows, of_one, of_other = float((positives + negatives).sum()), float(positives.sum()), float(negatives.sum())
    flagged = np.arange(len(positives)) >= cell
    hits, called = float(positives[cell:].sum()), float((positives + negatives)[cell:].sum())
    recall, f1 = _ratio(hits, of_one), _ratio(2 * hits, called + of_one)
    area = curves.roc_auc(positives, negatives)
    beats = np.cumsum(negatives) - negatives / 2
    loses = of_one - np.cumsum(positives) + positives / 2
    by_positive, by_negative = curves.average_precision_slopes(positives, negatives)
    return {
        "roc_auc": (beats - loses) * _ratio(1.0, of_one * of_other) - _ratio(area, of_one) + _ratio(area, of_other),
        "pr_auc": by_positive - by_negative,
        "log_loss": _LOSS_MORE * _ratio(1.0, rows),
        "brier": _SQUARE_MORE * _ratio(1.0, rows),
        "accuracy": np.where(flagged, 1.0, -1.0) * _ratio(1.0, rows),
        "precision": np.where(flagged, _ratio(1.0, called), 0.0),
        "recall": (flagged - recall) * _ratio(1.0, of_one),
        "f1": (2.0 * flagged - f1) * _ratio(1.0, called + of_one),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
