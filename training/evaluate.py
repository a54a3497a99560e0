"""How good a model is, and the gate: whether a model may be registered, with the numbers that say why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Rival = Literal["base rate", "champion"]
_SMALLEST = 1e-7


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of probabilities against labels. `base_rate_log_loss` is that of the best constant in hindsight."""

    rows: int
    log_loss: float
    base_rate_log_loss: float
    brier: float
    roc_auc: float
    accuracy: float
    calibration_error: float
    positive_ratio: float
    prediction_mean: float

    def to_json(self) -> dict[str, float | int]:
        """Every score by name; a score that is not defined (NaN) is left out."""
        return {name: value for name, value in asdict(self).items() if not math.isnan(value)}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Self:
        """The scores that `to_json` gave."""
        return cls(**{one.name: said.get(one.name, math.nan) for one in fields(cls)})


@dataclass(frozen=True, slots=True)
class GateDecision:
    """Whether the candidate passes, why, and the paired difference of log loss, candidate less rival, behind it."""

    passed: bool
    reason: str
    rival: Rival
    candidate_log_loss: float
    rival_log_loss: float
    difference: float
    upper_bound: float
    tolerance: float
    confidence: float
    rows: int
    groups: int

    def to_json(self) -> dict[str, Any]:
        """The decision as a JSON object; numbers that are not defined are null."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Self:
        """The decision that `to_json` gave."""
        known: dict[str, Any] = {name: math.nan if value is None else value for name, value in said.items()}
        return cls(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Passes a candidate whose mean log loss is, with confidence, at most `tolerance` above its rival's.

    The bound is one-sided and cluster-robust: rows of one group (a day's weather) are not independent, groups are
    taken to be. Source: Liang & Zeger 1986, with G/(G-1) and Student's t of G-1 degrees of freedom.
    """

    confidence: float = 0.95
    """Probability that a candidate that is worse by more than the tolerance is refused."""
    tolerance: float = 0.0
    """Log loss that a challenger may be worse than the champion."""
    min_groups: int = 5
    """Groups below which nothing is judged, and so nothing passes."""
    min_rows: int = 500

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}: it must be in [0.5, 1)")
        if self.min_groups < 2:
            raise ValueError(f"min_groups is {self.min_groups}: a spread needs at least two")

    def against_base_rate(self, labels: Vector, candidate: Vector, groups: npt.NDArray[Any]) -> GateDecision:
        """A first model: strictly better than the held-out rows' own base rate, the best constant there is."""
        constant = np.full(len(labels), labels.mean() if len(labels) else float("nan"))
        return self._decide("base rate", row_log_loss(labels, candidate), row_log_loss(labels, constant), groups)

    def against_champion(
        self, labels: Vector, candidate: Vector, champion: Vector, groups: npt.NDArray[Any]
    ) -> GateDecision:
        """A challenger: no worse than the champion on the same rows, but for the tolerance."""
        return self._decide("champion", row_log_loss(labels, candidate), row_log_loss(labels, champion), groups)

    def _decide(self, rival: Rival, candidate: Vector, other: Vector, groups: npt.NDArray[Any]) -> GateDecision:
        rows, num_groups = len(candidate), len(set(groups.tolist()))
        # A constant gains nothing: to tie with the base rate is to have learned nothing, so there is no tolerance.
        tolerance = self.tolerance if rival == "champion" else 0.0
        mean = bound = float("nan")
        if rows < self.min_rows or num_groups < self.min_groups:
            passed = False
            reason = f"{rows} rows in {num_groups} groups; {self.min_rows} rows in {self.min_groups} groups are needed"
        elif not (np.isfinite(candidate).all() and np.isfinite(other).all()):
            passed = False
            reason = f"{int((~np.isfinite(candidate)).sum())} of {rows} predictions are not finite"
        else:
            mean, error = clustered_mean(candidate - other, groups)
            bound = mean + student_t_quantile(self.confidence, num_groups - 1) * error
            passed = bound <= tolerance if rival == "champion" else bound < tolerance
            reason = (
                f"log loss differs from the {rival}'s by {mean:+.4f}, at most {bound:+.4f} at {self.confidence:.0%}: "
                f"{'within' if passed else 'not surely within'} the tolerance of {tolerance:g}"
            )
        return GateDecision(
            passed=passed,
            reason=reason,
            rival=rival,
            candidate_log_loss=float(candidate.mean()) if rows else float("nan"),
            rival_log_loss=float(other.mean()) if rows else float("nan"),
            difference=mean,
            upper_bound=bound,
            tolerance=tolerance,
            confidence=self.confidence,
            rows=rows,
            groups=num_groups,
        )


def score(labels: Vector, probabilities: Vector) -> Scores:
    """All scores of probabilities `[rows]` against labels of 0 and 1 `[rows]`."""
    if len(labels) == 0 or len(labels) != len(probabilities):
        raise ValueError(
            f"{len(probabilities)} predictions for {len(labels)} labels: equal and positive numbers needed"
        )
    base = float(labels.mean())
    return Scores(
        rows=len(labels),
        log_loss=float(row_log_loss(labels, probabilities).mean()),
        base_rate_log_loss=float(row_log_loss(labels, np.full(len(labels), base)).mean()),
        brier=float(np.square(probabilities - labels).mean()),
        roc_auc=roc_auc(labels, probabilities),
        accuracy=float(((probabilities >= 0.5) == (labels >= 0.5)).mean()),
        calibration_error=calibration_error(labels, probabilities),
        positive_ratio=base,
        prediction_mean=float(probabilities.mean()),
    )


def row_log_loss(labels: Vector, probabilities: Vector) -> Vector:
    """Minus the log likelihood of each row in nats; probabilities are kept 1e-7 away from 0 and 1, NaN stays NaN."""
    kept = np.clip(probabilities, _SMALLEST, 1 - _SMALLEST)
    return -(labels * np.log(kept) + (1 - labels) * np.log1p(-kept))


def roc_auc(labels: Vector, probabilities: Vector) -> float:
    """Probability that a positive row ranks above a negative one, ties counted half; NaN with one class only."""
    positive = labels >= 0.5
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative or not np.isfinite(probabilities).all():
        return float("nan")
    _, place, count = np.unique(probabilities, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((rank[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def calibration_error(labels: Vector, probabilities: Vector, bins: int = 10) -> float:
    """Expected calibration error over `bins` of equal width: mean |mean prediction - share of positives|, by rows."""
    if not np.isfinite(probabilities).all():
        return float("nan")
    place = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(place, probabilities - labels, minlength=bins)).sum() / len(labels))


def clustered_mean(values: Vector, groups: npt.NDArray[Any]) -> tuple[float, float]:
    """Mean of the values and its standard error when only groups, not rows, are independent."""
    _, place = np.unique(groups.astype(str), return_inverse=True)
    mean = float(values.mean())
    residuals = np.bincount(place, values - mean)
    count = len(residuals)
    return mean, float(np.sqrt(count / (count - 1) * np.square(residuals).sum()) / len(values))


def student_t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t for a probability in [0.5, 1) and whole degrees of freedom, by bisection of its CDF."""
    low, high = 0.0, 1.0
    while _student_t_cdf(high, degrees) < probability:
        low, high = high, high * 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_t_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _student_t_cdf(value: float, degrees: int) -> float:
    """For value >= 0. Source: Abramowitz & Stegun 26.7.3 and 26.7.4, finite sums for whole degrees."""
    angle = math.atan(value / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for step in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine * cosine * ((step - 1) / step)
        total += term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + inside / 2
