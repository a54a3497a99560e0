"""ROC and precision–recall areas of class counts over score cells, with standard errors and bounds of the binning.

`positives` and `negatives` have shape (cells,), lowest score first; they may be fractional (expected counts).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


def roc_auc(positives: Numbers, negatives: Numbers) -> float:
    """Area under the ROC curve with ties (rows of one cell) at half; NaN with one class only."""
    num_positive, num_negative = float(positives.sum()), float(negatives.sum())
    if num_positive <= 0 or num_negative <= 0:
        return math.nan
    below = np.cumsum(negatives) - negatives
    return float(np.dot(positives, below + negatives / 2)) / num_positive / num_negative


def roc_auc_bound(positives: Numbers, negatives: Numbers) -> float:
    """How far at most the area of the rows is from `roc_auc`: half the share of pairs that fell into one cell."""
    pairs = float(positives.sum()) * float(negatives.sum())
    return float(np.dot(positives, negatives)) / 2 / pairs if pairs > 0 else math.nan


def roc_auc_error(positives: Numbers, negatives: Numbers) -> float:
    """The standard error of `roc_auc` (DeLong, DeLong & Clarke-Pearson 1988), rows of a cell taken as tied.

    NaN with fewer than two rows of a class.
    """
    num_positive, num_negative = float(positives.sum()), float(negatives.sum())
    if num_positive < 2 or num_negative < 2:
        return math.nan
    area = roc_auc(positives, negatives)
    beats = (np.cumsum(negatives) - negatives / 2) / num_negative
    loses = 1 - (np.cumsum(positives) - positives / 2) / num_positive
    of_positives = float(np.dot(positives, (beats - area) ** 2)) / (num_positive - 1)
    of_negatives = float(np.dot(negatives, (loses - area) ** 2)) / (num_negative - 1)
    return math.sqrt(of_positives / num_positive + of_negatives / num_negative)


def average_precision(positives: Numbers, negatives: Numbers) -> float:
    """Average precision (area under the precision–recall steps), a cell's rows evenly mixed; NaN without positives."""
    total = float(positives.sum())
    if total <= 0:
        return math.nan
    hits, misses = _middle(positives) + 0.5, _middle(negatives)  # the positive itself is a hit, too
    return float(np.dot(positives, _share(hits, hits + misses))) / total


def tied_average_precision(positives: Numbers, negatives: Numbers) -> float:
    """Average precision when the rows of a cell have one score, as scikit-learn counts ties; NaN without positives."""
    total = float(positives.sum())
    if total <= 0:
        return math.nan
    hits, misses = _above(positives) + positives, _above(negatives) + negatives
    return float(np.dot(positives, _share(hits, hits + misses))) / total


def average_precision_bound(positives: Numbers, negatives: Numbers) -> float:
    """How far at most the average precision of the rows is from `average_precision`, whatever their order in a cell."""
    total = float(positives.sum())
    if total <= 0:
        return math.nan
    hits, misses = _above(positives), _above(negatives)
    # At best a cell's positives are tied and above its negatives; at worst one by one below them.
    highest = float(np.dot(positives, _share(hits + positives, hits + positives + misses)))
    lowest = float(_run(positives, hits, misses + negatives).sum())
    found = average_precision(positives, negatives)
    return max(highest / total - found, found - lowest / total)


def _run(positives: Numbers, hits: Floats, misses: Floats) -> Floats:
    """The sum of precisions over a cell's positives in a row, `hits` and `misses` being before them.

    It is Σ (h + k) / (h + k + m), k from 1 to p: p less m times a difference of harmonic numbers.
    """
    return positives - misses * (_harmonic(hits + misses + positives) - _harmonic(hits + misses))


def _harmonic(n: Floats) -> Floats:
    """Harmonic numbers less Euler's constant: the asymptotic series, shifted by eight so that it holds from 0 on."""
    shifted = n + 8
    series = (
        np.log(shifted) + 1 / (2 * shifted) - 1 / (12 * shifted**2) + 1 / (120 * shifted**4) - 1 / (252 * shifted**6)
    )
    correction = sum(1 / (n + k) for k in range(1, 9))
    return np.asarray(series - correction, np.float64)


def average_precision_error(positives: Numbers, negatives: Numbers) -> float:
    """The standard error of `average_precision`: the delta method on independent Poisson counts of the cells."""
    by_positive, by_negative = average_precision_slopes(positives, negatives)
    return math.sqrt(float(np.dot(positives, by_positive**2) + np.dot(negatives, by_negative**2)))


def average_precision_slopes(positives: Numbers, negatives: Numbers) -> tuple[Floats, Floats]:
    """By how much `average_precision` grows with a positive, and a negative, more in each cell; NaN without any."""
    total = float(positives.sum())
    if total <= 0:
        return np.full(len(positives), math.nan), np.full(len(positives), math.nan)
    hits, misses = _middle(positives) + 0.5, _middle(negatives)
    both = hits + misses
    precision = _share(hits, both)
    area = float(np.dot(positives, precision)) / total
    # A row adds to `hits` (or `misses`) of its own cell by half and of every lower cell by one.
    gain, loss = positives * _share(misses, both * both), positives * _share(hits, both * both)
    by_positive = (precision - area + np.cumsum(gain) - gain / 2) / total
    return by_positive, -(np.cumsum(loss) - loss / 2) / total


def _above(counts: Numbers) -> Floats:
    """Rows in the cells above each."""
    return np.asarray(np.cumsum(counts[::-1])[::-1] - counts, np.float64)


def _middle(counts: Numbers) -> Floats:
    """Rows above the middle of each cell."""
    return _above(counts) + counts / 2


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(whole, np.float64), where=whole > 0)
