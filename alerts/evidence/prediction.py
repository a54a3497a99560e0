"""Whether the canary's predictions are distributed as the stable version's, on live traffic split by chance.

"The prediction fell into this bin" is an event; if the arms predict alike, whose it is has the logged probability,
whatever the mix of requests. No verdict of harm follows: a better model predicts differently, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from alerts.evidence.sample_ratio import PRIOR, log_split_evidence
from alerts.evidence.segments import log_mean_exp
from collectors.releases import BINS


class Predicted(msgspec.Struct, frozen=True):
    """Predictions of both arms by bin while the router used one probability; bins are chosen without the arms."""

    propensity: float
    canary: tuple[float, ...]
    stable: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.canary) != len(self.stable):
            raise ValueError(f"the arms have {len(self.canary)} and {len(self.stable)} bins; they must be the same")

    def plus(self, other: Predicted) -> Predicted:
        """With further predictions of the same probability and the same bins."""
        return Predicted(
            self.propensity,
            tuple(a + b for a, b in zip(self.canary, other.canary, strict=True)),
            tuple(a + b for a, b in zip(self.stable, other.stable, strict=True)),
        )


def log_shift_evidence(predicted: Sequence[Predicted], prior: float = PRIOR) -> float:
    """Log e-value against "the canary's predictions fall into the bins as the stable version's do".

    Given the bins, arms are independent, so that the product of the bins' two-sided label tests (`log_split_evidence`)
    is an e-process, strong for a shift everywhere; their mean, too, strong for a shift in one bin. Half of each.
    """
    bins = len(predicted[0].canary) if predicted else 0
    if not bins:
        return 0.0
    by_bin = [
        log_split_evidence([(part.propensity, part.canary[place], part.stable[place]) for part in predicted], prior)
        for place in range(bins)
    ]
    return log_mean_exp((math.fsum(by_bin), log_mean_exp(by_bin)))


def one_bin(place: int, count: float) -> tuple[float, ...]:
    """So many predictions in one bin."""
    return tuple(count if other == place else 0.0 for other in range(BINS))


def total_variation(predicted: Sequence[Predicted]) -> float:
    """How much of the predictions lies elsewhere, 0 to 1: segments weighted by their canary predictions; 0 without any.

    The size that goes with the evidence: of a million predictions any difference is evidence.
    """
    distance = weight = 0.0
    for part in predicted:
        canary, stable = math.fsum(part.canary), math.fsum(part.stable)
        if canary and stable:
            gaps = [abs(c / canary - s / stable) for c, s in zip(part.canary, part.stable, strict=True)]
            distance += canary * math.fsum(gaps) / 2
            weight += canary
    return distance / weight if weight else 0.0
