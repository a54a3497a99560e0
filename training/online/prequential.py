"""Scores of predictions that were made before their labels were learned from, and what they say over time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.evaluate import row_log_loss, student_t_quantile

Vector = npt.NDArray[np.float64]
CLIP = 0.5


@dataclass(frozen=True, slots=True)
class Faded:
    """A mean that forgets: each row counts `fading` times as much as the next. Source: Gama, Sebastião, Rodrigues 2013.

    With `fading` 1 it is the mean of all rows.
    """

    fading: float
    total: float = 0.0
    weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.fading <= 1:
            raise ValueError(f"fading is {self.fading}: it must be above 0 and at most 1")

    def added(self, values: Vector) -> Faded:
        """With the values of more rows `[rows]`, oldest first."""
        powers = self.fading ** np.arange(len(values) - 1, -1, -1, dtype=float)
        kept = self.fading ** len(values)
        return Faded(self.fading, self.total * kept + float(values @ powers), self.weight * kept + float(powers.sum()))

    @property
    def mean(self) -> float:
        """NaN without rows."""
        return self.total / self.weight if self.weight else float("nan")


@dataclass(frozen=True, slots=True)
class Prequential:
    """Faded log loss and accuracy of one learner."""

    log_loss: Faded
    accuracy: Faded
    rows: int = 0

    @classmethod
    def empty(cls, fading: float) -> Prequential:
        """No rows yet."""
        return cls(Faded(fading), Faded(fading))

    def added(self, labels: Vector, probabilities: Vector) -> Prequential:
        """With more rows `[rows]`."""
        right = ((probabilities >= 0.5) == (labels >= 0.5)).astype(float)
        return Prequential(
            self.log_loss.added(row_log_loss(labels, probabilities)),
            self.accuracy.added(right),
            self.rows + len(labels),
        )


@dataclass(frozen=True, slots=True)
class Excess:
    """Evidence that one learner has become worse than another, looked at after every batch.

    An e-detector (Shin, Ramdas, Rinaldo 2022) of CUSUM form over bets on the batches' mean differences of log loss,
    each kept within half a nat: while their mean is at most `tolerance`, evidence above a number comes at most once in
    so many batches on average, however often one looks. The bet is the growth-optimal one by the batches before
    (Waudby-Smith, Ramdas 2020), at most nine tenths of what could be lost.
    """

    tolerance: float = 0.0
    evidence: float = 0.0
    mean: float = 0.0
    variance: float = 0.01
    weight: float = 0.0
    fading: float = 0.98

    def added(self, difference: float) -> Excess:
        """With the mean difference of another batch (learner's log loss less the rival's)."""
        observed = max(-CLIP, min(CLIP, difference)) - self.tolerance
        most = 0.9 / (CLIP + self.tolerance)
        bet = max(0.0, min(most, self.mean / (self.variance + self.mean**2)))
        # Before there is anything to bet on, a small bet: evidence must be able to begin.
        bet = max(bet, 0.02 * most)
        weight = self.weight * self.fading + 1.0
        mean = self.mean + (observed - self.mean) / (weight + 1.0)
        spread = self.variance + ((observed - self.mean) * (observed - mean) - self.variance) / (weight + 1.0)
        evidence = max(1.0, self.evidence) * (1.0 + bet * observed)
        return Excess(self.tolerance, evidence, mean, max(spread, 1e-6), weight, self.fading)

    def calmed(self) -> Excess:
        """Evidence from nothing, what is known of the spread kept."""
        return Excess(self.tolerance, 0.0, 0.0, self.variance, self.weight, self.fading)


def excess_bounds(differences: Vector, confidence: float) -> tuple[float, float, float]:
    """Mean of the batches' mean differences `[batches]` and its one-sided lower and upper bound (Student's t); NaN of
    fewer than two."""
    count = len(differences)
    if count < 2:
        return float("nan"), float("nan"), float("nan")
    mean = float(differences.mean())
    reach = student_t_quantile(confidence, count - 1) * float(differences.std(ddof=1)) / math.sqrt(count)
    return mean, mean - reach, mean + reach


@dataclass(frozen=True, slots=True)
class LossDrift:
    """A rise of a learner's own loss, by a CUSUM (Page 1954) of batches standardised by the faded mean and spread.

    A rise of half a deviation is allowed; `limit` deviations in sum are a drift.
    """

    limit: float = 8.0
    total: float = 0.0
    mean: float = 0.0
    variance: float = 0.0
    batches: int = 0

    def added(self, loss: float, warm_up: int = 20, fading: float = 0.99) -> tuple[LossDrift, bool]:
        """With the mean loss of another batch, and whether that shows a drift; what it knows then begins anew."""
        batches = self.batches + 1
        rate = max(1.0 / batches, 1.0 - fading)
        gap = loss - self.mean
        mean, variance = self.mean + rate * gap, (1 - rate) * (self.variance + rate * gap * gap)
        if batches <= warm_up or self.variance <= 0:
            return LossDrift(self.limit, 0.0, mean, variance, batches), False
        total = max(0.0, self.total + min(gap / math.sqrt(self.variance), 4.0) - 0.5)
        if total > self.limit:
            return LossDrift(self.limit), True
        return LossDrift(self.limit, total, mean, variance, batches), False
