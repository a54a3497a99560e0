"""ScoreHistogram: what is kept of probabilities and their 0/1 labels, a monoid from which every score is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import msgspec
import numpy as np

from collectors.scores import curves
from collectors.scores.cells import (
    CELLS,
    COARSE,
    COARSE_BINS,
    MIDDLES,
    Counts,
    Floats,
    ScoreError,
    cells_of,
    checked_labels,
    checked_scores,
    edge_index,
)
from collectors.scores.exact import exact_sum
from collectors.scores.intervals import (
    Interval,
    area_interval,
    f1_interval,
    few_interval,
    normal_quantile,
    rare_interval,
    wilson_interval,
)
from collectors.scores.means import Score, mean_and_variance, mean_score
from collectors.scores.rows import row_log_loss

_FORMAT = 1
# Mean scores of the coarse bins are summed in whole 2**-32ths: exact in float64 up to 2**20 rows at a time.
_FIXED = float(1 << 32)
_CHUNK_ROWS = 1 << 20


@dataclass(frozen=True, slots=True)
class Confusion:
    """Rows by prediction at a threshold and by label."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


@dataclass(frozen=True, slots=True, eq=False)
class ScoreHistogram:
    """Labelled scores: rows of either class by score cell, and exact sums of the score, its losses and their squares.

    `a + b` is the histogram of both, bit for bit, in any order and partition; `a - b` takes rows out again.
    """

    positives: Counts = field(default_factory=lambda: np.zeros(CELLS, np.int64))
    negatives: Counts = field(default_factory=lambda: np.zeros(CELLS, np.int64))
    coarse_sums: Counts = field(default_factory=lambda: np.zeros(COARSE_BINS, np.int64))
    """Sum of the scores in each coarse bin, in units of 2**-32."""
    sums: tuple[int, ...] = (0,) * 6
    """Exact sums (`exact_sum`) of the score, the log loss and the squared error, each before that of its square."""

    @classmethod
    def of(cls, scores: Floats, labels: Floats) -> ScoreHistogram:
        """The histogram of probabilities and 0/1 labels, shape (rows,) each. Raises ScoreError on anything else."""
        p = checked_scores(scores)
        y = checked_labels(labels, len(p))
        cells, positive = cells_of(p), y == 1
        coarse = np.zeros(COARSE_BINS, np.int64)
        for start in range(0, len(p), _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            fixed = np.bincount(COARSE[cells[part]], np.rint(p[part] * _FIXED), COARSE_BINS)
            coarse += fixed.astype(np.int64)
        parts = (p, row_log_loss(p, y), (p - y) ** 2)
        return cls(
            np.bincount(cells[positive], minlength=CELLS),
            np.bincount(cells[~positive], minlength=CELLS),
            coarse,
            tuple(exact_sum(values) for part in parts for values in (part, part * part)),
        )

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        if not isinstance(other, ScoreHistogram):
            return NotImplemented
        return self._with(other, 1)

    def __sub__(self, other: ScoreHistogram) -> ScoreHistogram:
        """Without the rows of `other`, which must have been added. Raises ScoreError when a count would be negative."""
        if not isinstance(other, ScoreHistogram):
            return NotImplemented
        left = self._with(other, -1)
        if left.positives.min() < 0 or left.negatives.min() < 0:
            raise ScoreError("rows can only be taken out of a histogram that they are in")
        return left

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ScoreHistogram)
            and self.sums == other.sums
            and np.array_equal(self.positives, other.positives)
            and np.array_equal(self.negatives, other.negatives)
            and np.array_equal(self.coarse_sums, other.coarse_sums)
        )

    __hash__ = None  # type: ignore[assignment]

    def _with(self, other: ScoreHistogram, sign: int) -> ScoreHistogram:
        sums = tuple(a + sign * b for a, b in zip(self.sums, other.sums, strict=True))
        return ScoreHistogram(
            self.positives + sign * other.positives,
            self.negatives + sign * other.negatives,
            self.coarse_sums + sign * other.coarse_sums,
            sums,
        )

    @property
    def rows(self) -> int:
        return int(self.positives.sum() + self.negatives.sum())

    @property
    def counts(self) -> Counts:
        """Rows by cell, labels forgotten: what `score_counts` gives."""
        return self.positives + self.negatives

    def confusion(self, threshold: float = 0.5) -> Confusion:
        """Rows by prediction (score >= threshold) and label; exact. Raises ScoreError when it is no edge of a cell."""
        cell = edge_index(threshold)
        hits, misses = int(self.positives[cell:].sum()), int(self.negatives[cell:].sum())
        return Confusion(hits, misses, int(self.positives.sum()) - hits, int(self.negatives.sum()) - misses)

    def calibration_error(self, bins: int = 10) -> float:
        """Expected calibration error over bins of equal width: mean |mean score - share of positives| by rows.

        `bins` divides 60. Off by at most 2**-33 from that of the rows (Naeini, Cooper & Hauskrecht 2015).
        """
        gaps, _, rows = self._bins(bins)
        return float(np.abs(gaps).sum() / rows.sum()) if rows.sum() else math.nan

    def calibration(self, bins: int = 10) -> tuple[Floats, Floats, Counts]:
        """The reliability diagram: mean score, share of positives (NaN where empty) and rows of each bin."""
        gaps, positives, rows = self._bins(bins)
        share = np.divide(positives, rows, out=np.full(bins, math.nan), where=rows > 0)
        mean = np.divide(gaps + positives, rows, out=np.full(bins, math.nan), where=rows > 0)
        return mean, share, rows

    def _bins(self, bins: int) -> tuple[Floats, Counts, Counts]:
        """Sum of scores less positives, positives, rows; by bin."""
        if bins < 1 or COARSE_BINS % bins:
            raise ScoreError(f"{bins} calibration bins: use a number that divides {COARSE_BINS}, such as 10, 15 or 20")
        coarse = np.zeros((2, COARSE_BINS), np.int64)
        np.add.at(coarse[0], COARSE, self.positives)
        np.add.at(coarse[1], COARSE, self.counts)
        positives, rows = coarse.reshape(2, bins, -1).sum(axis=2)
        return self.coarse_sums.reshape(bins, -1).sum(axis=1) / _FIXED - positives, positives, rows

    def scores(self, threshold: float = 0.5, confidence: float = 0.95, bins: int = 10) -> dict[str, Score]:
        """Every score that has a meaning, by name; none without rows.

        `roc_auc` (DeLong's error, logit scale, wider where few rows decide: `few_interval` with Hanley & McNeil's) and
        `pr_auc` (average precision, delta method, alike; of rows evenly mixed in their cells and of tied ones) have a
        binning error, stated and bounded for each histogram; `log_loss`, `brier` (`rare_interval`, the rare row being
        one that is as wrong as the scores let expect), `prediction_mean` (Student), `accuracy`, `precision`, `recall`,
        `positive_ratio` (Wilson), `f1` (Wilson on TP / (TP + FP + FN)) have none; `ece` has 2**-33 and an interval that
        is wide on purpose: chance alone adds to it, so the interval is the estimate ± the 95 % bound of that chance.
        """
        rows = self.rows
        if not rows:
            return {}
        z = normal_quantile(confidence)
        found = self._areas(z) | self._at(threshold, z)
        positives = int(self.positives.sum())
        found["positive_ratio"] = Score(positives / rows, *wilson_interval(positives, rows, z))
        found["prediction_mean"] = mean_score(self.sums[0], self.sums[1], rows, z)
        found |= self._losses(z)
        found["ece"] = self._calibration_score(bins, z)
        return found

    def _losses(self, z: float) -> dict[str, Score]:
        filled = self.counts > 0
        less = np.minimum(MIDDLES, 1 - MIDDLES)[filled]
        wrong = self.counts[filled] * less
        events = {"log_loss": -np.log(less), "brier": (1 - less) ** 2}
        found = {}
        for place, (name, losses) in enumerate(events.items(), start=1):
            mean, variance = mean_and_variance(self.sums[2 * place], self.sums[2 * place + 1], self.rows)
            event = float(np.dot(wrong, losses) / wrong.sum()) / self.rows
            low, high = rare_interval(mean, variance, event, z) if self.rows > 1 else (math.nan, math.nan)
            found[name] = Score(mean, low, high if name == "log_loss" else min(1.0, high))
        return found

    def _areas(self, z: float) -> dict[str, Score]:
        found: dict[str, Score] = {}
        positives, negatives = int(self.positives.sum()), int(self.negatives.sum())
        least = min(positives, negatives)
        if least:
            area = curves.roc_auc(self.positives, self.negatives)
            error = curves.roc_auc_error(self.positives, self.negatives)
            interval = few_interval(area, error, least, area_interval(area, positives, negatives, z), z)
            found["roc_auc"] = Score(area, *interval, curves.roc_auc_bound(self.positives, self.negatives))
        if positives:
            area = curves.average_precision(self.positives, self.negatives)
            tied = curves.tied_average_precision(self.positives, self.negatives)
            error = curves.average_precision_error(self.positives, self.negatives)

            def interval_of(value: float) -> Interval:
                return few_interval(value, error, positives, wilson_interval(value * positives, positives, z), z)

            (low, high), (tied_low, tied_high) = interval_of(area), interval_of(tied)
            bound = curves.average_precision_bound(self.positives, self.negatives)
            found["pr_auc"] = Score(area, min(low, tied_low), max(high, tied_high), bound)
        return found

    def _at(self, threshold: float, z: float) -> dict[str, Score]:
        cells = self.confusion(threshold)
        hits, wrong = cells.true_positive, cells.false_positive + cells.false_negative
        right = hits + cells.true_negative
        found = {"accuracy": Score(right / self.rows, *wilson_interval(right, self.rows, z))}
        if hits + wrong:
            found["f1"] = Score(2 * hits / (2 * hits + wrong), *f1_interval(hits, wrong, z))
        if predicted := hits + cells.false_positive:
            found["precision"] = Score(hits / predicted, *wilson_interval(hits, predicted, z))
        if actual := hits + cells.false_negative:
            found["recall"] = Score(hits / actual, *wilson_interval(hits, actual, z))
        return found

    def _calibration_score(self, bins: int, z: float) -> Score:
        gaps, positives, rows = self._bins(bins)
        filled = rows > 0
        share = (positives[filled] + 0.5) / (rows[filled] + 1)
        noise = np.sqrt(rows[filled] * share * (1 - share)) / self.rows
        # Each gap is off by half a normal variable at most: mean sqrt(2/pi) and variance 1 - 2/pi times its own.
        chance = math.sqrt(2 / math.pi) * noise.sum() + z * math.sqrt((1 - 2 / math.pi) * np.square(noise).sum())
        value = float(np.abs(gaps).sum() / self.rows)
        return Score(value, max(0.0, value - float(chance)), min(1.0, value + float(chance)), 2.0**-33)

    def to_json(self) -> bytes:
        """A few kB of JSON: only cells that hold rows."""
        chosen = np.flatnonzero(self.counts)
        stored = _Stored(
            format=_FORMAT,
            cells=chosen.tolist(),
            positives=self.positives[chosen].tolist(),
            negatives=self.negatives[chosen].tolist(),
            coarse=self.coarse_sums.tolist(),
            sums=[format(total, "x") for total in self.sums],
        )
        return msgspec.json.encode(stored)

    @classmethod
    def from_json(cls, body: bytes) -> ScoreHistogram:
        """The histogram that `to_json` wrote. Raises ScoreError on any other bytes."""
        try:
            stored = msgspec.json.decode(body, type=_Stored)
            cells = np.array(stored.cells, np.int64)
            found = cls(sums=tuple(int(total, 16) for total in stored.sums))
            found.positives[cells] = stored.positives
            found.negatives[cells] = stored.negatives
            found.coarse_sums[:] = stored.coarse
        except (msgspec.DecodeError, ValueError, IndexError) as wrong:
            raise ScoreError(f"this is no stored score histogram: {wrong}") from wrong
        if stored.format != _FORMAT or len(found.sums) != 6:
            raise ScoreError(f"a score histogram of format {stored.format} cannot be read: this is format {_FORMAT}")
        return found


class _Stored(msgspec.Struct):
    format: int
    cells: list[int]
    positives: list[int]
    negatives: list[int]
    coarse: list[int]
    sums: list[str]
