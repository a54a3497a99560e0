"""Estimated performance: the scores that predictions are expected to have, before any of their labels is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from collectors.scores import curves
from collectors.scores.calibration import ScoreCalibration
from collectors.scores.cells import MIDDLES, Counts, ScoreError, edge_index
from collectors.scores.histogram import ScoreHistogram
from collectors.scores.intervals import logit_interval, normal_quantile
from collectors.scores.label_noise import label_errors

ESTIMATED = ("roc_auc", "pr_auc", "log_loss", "brier", "accuracy", "precision", "recall", "f1")
HIGHER_IS_BETTER = frozenset(ESTIMATED) - {"log_loss", "brier"}
_MIDDLE_LOSS_OF_POSITIVE, _MIDDLE_LOSS_OF_NEGATIVE = -np.log(MIDDLES), -np.log1p(-MIDDLES)


@dataclass(frozen=True, slots=True)
class Estimate:
    """An expected score: `low` to `high` is where the realised one lies with the estimator's confidence.

    That is while scores mean what they meant on the reference: it knows the labels' chance among this window's very
    scores, what blocks differ by, and that the reference has only so many rows.
    `band_low` to `band_high` is where a window of as many rows scores while nothing has changed; outside, `alert`.
    """

    value: float
    low: float
    high: float
    band_low: float
    band_high: float
    alert: bool
    worse: bool
    """Whether the alert is for the worse."""


@dataclass(frozen=True, slots=True)
class Usual:
    """A score on the reference: its value, the standard error of one row, the deviation between blocks beyond that."""

    value: float
    row_error: float
    spread: float

    def error(self, rows: int) -> float:
        """The standard deviation of the score of a window of so many rows."""
        return math.sqrt(self.row_error**2 / rows + self.spread**2)


@dataclass(frozen=True, slots=True)
class PerformanceEstimator:
    """Confidence-based performance estimation: a score of p is a positive with the calibrated probability of p.

    All expected scores follow from the counts of the score cells alone, so windows add up before they are estimated.
    It sees changes in the scores' distribution (covariate shift), not changes of what a score means (concept drift):
    `honesty` says how far off it was. Source: CBPE as in NannyML; Białek et al. 2024 (arXiv 2401.08348).
    """

    calibration: ScoreCalibration
    usual: Mapping[str, Usual]
    threshold: float = 0.5
    confidence: float = 0.95
    sigmas: float = 3.0
    rows: int = 0
    """Labelled rows that it was learnt from; 0: not known."""

    @classmethod
    def learnt(
        cls,
        reference: ScoreHistogram | Sequence[ScoreHistogram],
        *,
        threshold: float = 0.5,
        confidence: float = 0.95,
        sigmas: float = 3.0,
    ) -> PerformanceEstimator:
        """From labelled scores that the model was not trained on; in blocks (hours, days, pages) when there are some.

        The band of an alert is the reference's score ± `sigmas` standard deviations: the sampling error at the
        window's size and what the blocks differ by beyond theirs. Raises ScoreError when a class is missing.
        """
        blocks = [reference] if isinstance(reference, ScoreHistogram) else list(reference)
        whole = sum(blocks, ScoreHistogram())
        calibration = ScoreCalibration.learnt(whole)
        scores = whole.scores(threshold, confidence)
        z = normal_quantile(confidence)
        usual = {}
        for name in ESTIMATED:
            if name not in scores or not math.isfinite(scores[name].high - scores[name].low):
                continue
            score = scores[name]
            row_error = (score.high - score.low) / 2 / z * math.sqrt(whole.rows)
            usual[name] = Usual(score.value, row_error, _spread(name, blocks, row_error, threshold))
        return cls(calibration, usual, threshold, confidence, sigmas, whole.rows)

    def estimate(self, counts: Counts) -> dict[str, Estimate]:
        """The expected scores of a window, given its rows by score cell (`score_counts`); none without rows."""
        rows = int(counts.sum())
        if not rows:
            return {}
        z = normal_quantile(self.confidence)
        found = {}
        chance = label_errors(counts, self.calibration.probabilities, self.threshold)
        for name, value in expected_scores(counts, self.calibration, self.threshold).items():
            usual = self.usual.get(name)
            if usual is None or math.isnan(value) or math.isnan(chance[name][0]):
                continue
            band, most = self.sigmas * usual.error(rows), math.inf if name == "log_loss" else 1.0
            low, high = max(usual.value - band, 0.0), min(usual.value + band, most)
            labels, step = chance[name]
            start, end = _interval(value, self._error(labels, usual, rows), step, z, most)
            bad = value < low if name in HIGHER_IS_BETTER else value > high
            found[name] = Estimate(value, start, end, low, high, not low <= value <= high, bad)
        return found

    def _error(self, chance: float, usual: Usual, rows: int) -> float:
        """The standard deviation of realised less expected: labels, blocks, and the reference's own sampling."""
        learnt = max(usual.row_error**2, chance**2 * rows) / self.rows if self.rows else 0.0
        return math.sqrt(chance**2 + usual.spread**2 + learnt)

    def honesty(self, realised: ScoreHistogram) -> dict[str, float]:
        """Estimated less realised scores of rows whose labels have come."""
        found = realised.scores(self.threshold, self.confidence)
        expected = expected_scores(realised.counts, self.calibration, self.threshold) if realised.rows else {}
        return {name: value - found[name].value for name, value in expected.items() if name in found}

    def to_json(self) -> bytes:
        stored = _Stored(
            msgspec.Raw(self.calibration.to_json()),
            dict(self.usual),
            self.threshold,
            self.confidence,
            self.sigmas,
            self.rows,
        )
        return msgspec.json.encode(stored)

    @classmethod
    def from_json(cls, body: bytes) -> PerformanceEstimator:
        """What `to_json` wrote. Raises ScoreError on any other bytes."""
        try:
            stored = msgspec.json.decode(body, type=_Stored)
        except msgspec.DecodeError as wrong:
            raise ScoreError(f"this is no stored estimator: {wrong}") from wrong
        calibration = ScoreCalibration.from_json(bytes(stored.calibration))
        return cls(calibration, stored.usual, stored.threshold, stored.confidence, stored.sigmas, stored.rows)


class _Stored(msgspec.Struct):
    calibration: msgspec.Raw
    usual: dict[str, Usual]
    threshold: float
    confidence: float
    sigmas: float
    rows: int = 0


def expected_scores(counts: Counts, calibration: ScoreCalibration, threshold: float = 0.5) -> dict[str, float]:
    """The scores of the expected class counts of each cell; NaN where one has no meaning."""
    positives = counts * calibration.probabilities
    negatives = counts - positives
    cell = edge_index(threshold)
    rows = float(counts.sum())
    hits, false = float(positives[cell:].sum()), float(negatives[cell:].sum())
    missed = float(positives[:cell].sum())
    loss = float(np.dot(positives, _MIDDLE_LOSS_OF_POSITIVE) + np.dot(negatives, _MIDDLE_LOSS_OF_NEGATIVE))
    squares = float(np.dot(positives, (1 - MIDDLES) ** 2) + np.dot(negatives, MIDDLES**2))
    return {
        "roc_auc": curves.roc_auc(positives, negatives),
        "pr_auc": curves.average_precision(positives, negatives),
        "log_loss": _ratio(loss, rows),
        "brier": _ratio(squares, rows),
        "accuracy": _ratio(rows - false - missed, rows),
        "precision": _ratio(hits, hits + false),
        "recall": _ratio(hits, hits + missed),
        "f1": _ratio(2 * hits, 2 * hits + false + missed),
    }


def _spread(name: str, blocks: Sequence[ScoreHistogram], row_error: float, threshold: float) -> float:
    """The standard deviation between blocks that sampling does not explain, by the method of moments."""
    found = [(block.rows, block.scores(threshold).get(name)) for block in blocks if block.rows]
    known = [(rows, score.value) for rows, score in found if score is not None]
    if len(known) < 3:
        return 0.0
    values = np.array([value for _, value in known])
    sampling = float(np.mean([row_error**2 / rows for rows, _ in known]))
    return math.sqrt(max(0.0, float(values.var(ddof=1)) - sampling))


def _interval(value: float, error: float, step: float, z: float, most: float) -> tuple[float, float]:
    """Value ± z errors and half a step, corrected for continuity, and what is beyond on the logit scale.

    Few labels move a score in large steps up to its very ends, which the logit scale never reaches.
    """
    half = z * error + step / 2
    low, high = max(value - half, 0.0), min(value + half, most)
    if most == 1.0 and 0 < value < 1:
        other = logit_interval(value, error, z)
        return min(low, other[0]), max(high, other[1])
    return low, high


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
