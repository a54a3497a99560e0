"""Scores computed from the rows themselves, equal to scikit-learn's; the histogram's are compared with these."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from collectors.scores.cells import checked_labels, checked_scores, probabilities_among

Floats = npt.NDArray[np.float64]

# What scikit-learn keeps probabilities away from 0 and 1 by, for float64.
PROBABILITY_FLOOR = float(np.finfo(np.float64).eps)


def row_log_loss(predictions: Floats, labels: Floats) -> Floats:
    """Minus the log likelihood of each row in nats, probabilities kept 2.2e-16 away from 0 and 1."""
    kept = np.clip(predictions, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return np.where(labels == 1, -np.log(kept), -np.log1p(-kept))


def row_errors(predictions: Floats, labels: Floats) -> tuple[Floats, str]:
    """How wrong each row is, and in what: `log_loss` of probabilities of 0/1 labels, else `absolute_error`."""
    fit, probabilities = probabilities_among(predictions)
    if fit.all() and np.isin(labels, (0.0, 1.0)).all():
        return row_log_loss(probabilities, labels), "log_loss"
    return np.abs(predictions - labels), "absolute_error"


def log_loss(predictions: Floats, labels: Floats) -> float:
    return float(row_log_loss(predictions, labels).mean()) if len(labels) else math.nan


def roc_auc(predictions: Floats, labels: Floats) -> float:
    """Area under the ROC curve by the rank sum, ties at half (Hanley & McNeil 1982); NaN with one class only."""
    positives = labels == 1
    num_positive, num_negative = int(positives.sum()), int((~positives).sum())
    if not num_positive or not num_negative:
        return math.nan
    _, inverse, counts = np.unique(predictions, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positives].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def average_precision(predictions: Floats, labels: Floats) -> float:
    """Σ (recall step × precision) over the distinct scores, highest first; NaN without positives."""
    positives = labels == 1
    if not positives.any():
        return math.nan
    _, inverse, counts = np.unique(predictions, return_inverse=True, return_counts=True)
    hits = np.bincount(inverse, positives, len(counts))
    above = np.cumsum(hits[::-1]) / np.cumsum(counts[::-1])
    return float(np.dot(hits[::-1], above) / hits.sum())


def calibration_error(predictions: Floats, labels: Floats, bins: int = 10) -> float:
    """Expected calibration error over `bins` of equal width: mean |mean prediction - share of positives| by rows."""
    if not len(labels):
        return math.nan
    place = np.searchsorted(np.arange(1, bins) / bins, predictions, side="right")
    return float(np.abs(np.bincount(place, predictions - labels, bins)).sum() / len(labels))


def classification_scores(predictions: Floats, labels: Floats, threshold: float = 0.5) -> dict[str, float]:
    """Scores of probabilities against 0/1 labels, by name; what has no meaning (one class, no rows) is left out.

    `roc_auc`, `pr_auc` (average precision), `log_loss`, `brier`, `ece` (10 bins), `accuracy`, `precision`, `recall`,
    `f1` (at score >= threshold), `positive_ratio`, `prediction_mean`. Raises ScoreError on other scores or labels.
    """
    p = checked_scores(predictions)
    y = checked_labels(labels, len(p))
    if not len(p):
        return {}
    predicted, actual = p >= threshold, y == 1
    hits = int((predicted & actual).sum())
    found = {
        "prediction_mean": float(p.mean()),
        "positive_ratio": float(y.mean()),
        "log_loss": log_loss(p, y),
        "brier": float(np.mean((p - y) ** 2)),
        "ece": calibration_error(p, y),
        "accuracy": float(np.mean(predicted == actual)),
        "roc_auc": roc_auc(p, y),
        "pr_auc": average_precision(p, y),
        "precision": _ratio(hits, int(predicted.sum())),
        "recall": _ratio(hits, int(actual.sum())),
        "f1": _ratio(2 * hits, int(predicted.sum() + actual.sum())),
    }
    return {name: value for name, value in found.items() if not math.isnan(value)}


def regression_scores(predictions: Floats, labels: Floats) -> dict[str, float]:
    """`mae`, `rmse`, `bias` (mean prediction less label), `r2` (left out for constant labels), `prediction_mean`.

    Shapes (rows,), finite; none without rows.
    """
    if not len(labels):
        return {}
    error = np.asarray(predictions, np.float64) - np.asarray(labels, np.float64)
    found = {
        "prediction_mean": float(np.mean(predictions)),
        "mae": float(np.abs(error).mean()),
        "rmse": math.sqrt(float(np.square(error).mean())),
        "bias": float(error.mean()),
    }
    spread = float(np.square(labels - np.mean(labels)).sum())
    if spread > 0:
        found["r2"] = 1 - float(np.square(error).sum()) / spread
    return found


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
