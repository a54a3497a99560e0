"""Calibration: the share of positives that a score stands for, learnt per cell from a labelled reference."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from collectors.scores.cells import CELLS, MIDDLES, Counts, Floats, ScoreError
from collectors.scores.histogram import ScoreHistogram

FOLDS = 10
# The width, in ranks of the reference, over which the isotonic steps are averaged. Among 0, 0.5, 1, 2 and 3 % it has
# the smallest worst excess of cross-validated log loss on five references of 50,000 to 69,000 rows (census, car loans,
# three kinds of cards; each alone would take 0.5 to 3 %). A small one of 5,832 rows would rather have 3 %.
SMOOTHING = 0.01
_GRID = 2_000
_FLOOR = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class ScoreCalibration:
    """Probability of a positive by score cell, shape (CELLS,), never falling with the score."""

    probabilities: Floats
    applied: bool
    """Whether the scores were changed: only when that predicts labels better that it has not seen."""
    gain: float
    """How much lower the log loss of calibrated scores is than that of raw ones, in nats a row, cross-validated."""

    @classmethod
    def learnt(cls, reference: ScoreHistogram, seed: int = 0) -> ScoreCalibration:
        """Isotonic regression (Ayer et al. 1955) on the reference's cells, smoothed over 1 % of its ranks.

        Kept only if its log loss in ten-fold cross-validation is lower than that of the scores as they are (NannyML
        compares calibration errors). Raises ScoreError when the reference lacks either class.
        """
        if not reference.positives.any() or not reference.negatives.any():
            raise ScoreError("a calibration needs a reference with labels of both classes: give it more labelled rows")
        generator = np.random.default_rng(seed)
        positives, negatives = _folds(reference.positives, generator), _folds(reference.negatives, generator)
        gain = 0.0
        for held_positives, held_negatives in zip(positives, negatives, strict=True):
            learnt = calibrated(reference.positives - held_positives, reference.negatives - held_negatives)
            gain += _log_loss(MIDDLES, held_positives, held_negatives) - _log_loss(
                learnt, held_positives, held_negatives
            )
        gain /= reference.rows
        if gain <= 0:
            return cls(MIDDLES.copy(), False, gain)
        return cls(calibrated(reference.positives, reference.negatives), True, gain)

    def to_json(self) -> bytes:
        return msgspec.json.encode(_Stored(self.probabilities.tolist(), self.applied, self.gain))

    @classmethod
    def from_json(cls, body: bytes) -> ScoreCalibration:
        """What `to_json` wrote. Raises ScoreError on any other bytes."""
        try:
            stored = msgspec.json.decode(body, type=_Stored)
        except msgspec.DecodeError as wrong:
            raise ScoreError(f"this is no stored calibration: {wrong}") from wrong
        found = np.array(stored.probabilities, np.float64)
        if found.shape != (CELLS,) or not (found.min() >= 0 and found.max() <= 1):
            raise ScoreError(f"a stored calibration holds {CELLS} probabilities, this one holds other numbers")
        return cls(found, stored.applied, stored.gain)


class _Stored(msgspec.Struct):
    probabilities: list[float]
    applied: bool
    gain: float


def calibrated(positives: Counts, negatives: Counts) -> Floats:
    """The smoothed isotonic probabilities of all cells, shape (CELLS,); between filled cells by interpolation."""
    rows = positives + negatives
    filled = rows > 0
    weights = rows[filled].astype(np.float64)
    if not len(weights):
        return MIDDLES.copy()
    steps = isotonic(positives[filled] / weights, weights)
    ranks = (np.cumsum(weights) - weights / 2) / weights.sum()
    return np.asarray(np.interp(MIDDLES, MIDDLES[filled], _smoothed(steps, ranks)), np.float64)


def isotonic(values: Floats, weights: Floats) -> Floats:
    """The never falling sequence nearest to `values` in weighted least squares: pool adjacent violators."""
    means: list[float] = []
    masses: list[float] = []
    sizes: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, mass, size = value, weight, 1
        while means and means[-1] >= mean:
            mean = (means[-1] * masses[-1] + mean * mass) / (masses[-1] + mass)
            mass += masses.pop()
            size += sizes.pop()
            means.pop()
        means.append(mean)
        masses.append(mass)
        sizes.append(size)
    return np.repeat(np.array(means, np.float64), sizes).astype(np.float64)


def _smoothed(steps: Floats, ranks: Floats) -> Floats:
    """The Gaussian average over ranks; the ends are continued by point reflection, so that they stay where they are."""
    grid = (np.arange(_GRID) + 0.5) / _GRID
    values = np.interp(grid, ranks, steps)
    reach = int(6 * SMOOTHING * _GRID)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (SMOOTHING * _GRID)) ** 2)
    before, after = 2 * values[0] - values[reach:0:-1], 2 * values[-1] - values[-2 : -reach - 2 : -1]
    smooth = np.convolve(np.concatenate([before, values, after]), kernel / kernel.sum(), "valid")
    return np.asarray(np.clip(np.interp(ranks, grid, np.maximum.accumulate(smooth)), 0.0, 1.0), np.float64)


def _folds(counts: Counts, generator: np.random.Generator) -> Counts:
    """Each cell's rows dealt to the folds at random, shape (FOLDS, CELLS)."""
    return np.asarray(generator.multinomial(counts, np.full(FOLDS, 1 / FOLDS)).T, np.int64)


def _log_loss(probabilities: Floats, positives: Counts, negatives: Counts) -> float:
    kept = np.clip(probabilities, _FLOOR, 1 - _FLOOR)
    return float(-(np.dot(positives, np.log(kept)) + np.dot(negatives, np.log1p(-kept))))
