"""Worse predictions: bets on labels, as late as they come. Only a shift that does harm counts.

Paired: both versions have answered the same request (the shadow), and d = loss of the candidate - loss of the stable
version, once the label is there; requests differ more than models do, so this needs far fewer labels than two arms.
Unpaired: each label has the loss of the version that answered, and the routing probability.

Source: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 86(1), 2024: with d in
[low, high] and H0: E[d | past] <= tolerance, the wealth prod(1 + lambda_i (d_i - tolerance)) is an e-process for any
lambda_i in [0, 1 / (tolerance - low)] that is chosen before d_i is seen; here aGRAPA with half of that as the most.
Harm alone, as in Podkopaev & Ramdas, "Tracking the risk of a deployed model and detecting harmful distribution shifts",
ICLR 2022: a bet against "not worse by more than the tolerance" never gains from an improvement.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

# Of the largest bet that could lose all (c in the paper).
BOLDNESS = 0.5
# The prior of the mean's square deviation: that of one d a sixth of the range away.
_PRIOR_DEVIATION = 0.16


@dataclass(frozen=True, slots=True, kw_only=True)
class Bet:
    """The state of a bet that E[d] is above `tolerance`, d in [low, high]; `after` gives the next one.

    `count`, `total` and `squares` are of the d so far; `log_wealth` is the log e-value. Order matters, chunks do not.
    """

    tolerance: float
    low: float = -1.0
    high: float = 1.0
    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    log_wealth: float = 0.0

    def __post_init__(self) -> None:
        if not self.low < self.tolerance < self.high:
            raise ValueError(f"tolerance lies within ({self.low}, {self.high}), got {self.tolerance}")

    @property
    def mean(self) -> float:
        """Of the d so far; NaN without any."""
        return self.total / self.count if self.count else math.nan

    def after(self, differences: Iterable[float]) -> Bet:
        """With further d. ValueError for one that is out of range or no number: a label must not be left out unseen."""
        count, total, squares, wealth = self.count, self.total, self.squares, self.log_wealth
        prior = (_PRIOR_DEVIATION * (self.high - self.low)) ** 2
        most = BOLDNESS / (self.tolerance - self.low)
        for d in differences:
            if not self.low <= d <= self.high:
                raise ValueError(f"a difference of losses lies within [{self.low}, {self.high}], got {d}")
            # What was known before d: the mean with one d at the tolerance, the variance with the prior's.
            excess = (total - count * self.tolerance) / (count + 1)
            mean = excess + self.tolerance
            variance = max((prior + squares - 2 * mean * total + count * mean * mean) / (count + 1), 1e-12)
            stake = min(max(excess / (variance + excess * excess), 0.0), most)
            wealth += math.log1p(stake * (d - self.tolerance))
            count, total, squares = count + 1, total + d, squares + d * d
        return Bet(
            tolerance=self.tolerance, low=self.low, high=self.high,
            count=count, total=total, squares=squares, log_wealth=wealth,
        )  # fmt: skip

    def to_json(self) -> str:
        """The state as text; `from_json` gives the same bits."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Bet:
        """The state again. ValueError when it is none."""
        try:
            return Bet(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"this is no state of a bet: {error}") from error


def paired(tolerance: float) -> Bet:
    """Nothing seen yet of d = loss of the candidate - loss of the stable version, losses in [0, 1].

    `tolerance` is how much more the candidate may lose on average: 0.01 is a point of accuracy.
    """
    return Bet(tolerance=tolerance)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmsBet:
    """The state of a bet that the canary's risk exceeds the stable version's by more than `tolerance`.

    Losses lie in [0, 1], each of the version that answered, with the probability of the canary at its request. A part
    (`weighed`) is as uncertain as its probability is small, so that parts count by rho (1 - rho), and how far one may
    fall, which bounds the stake, is known before it is seen. `count` and `losses` are of all labels so far; `weight`,
    `total` and `squares` of the parts; `log_wealth` is the log e-value.
    """

    tolerance: float
    count: int = 0
    losses: float = 0.0
    weight: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    log_wealth: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.tolerance < 1.0:
            raise ValueError(f"tolerance lies within [0, 1), got {self.tolerance}")

    def after(self, labelled: Iterable[tuple[float, bool, float]]) -> ArmsBet:
        """With further (loss, whether it is the canary's, probability of the canary). ValueError for what cannot be."""
        count, losses, weight = self.count, self.losses, self.weight
        total, squares, wealth = self.total, self.squares, self.log_wealth
        for loss, canary, rho in labelled:
            if not 0.0 <= loss <= 1.0:
                raise ValueError(f"a loss lies within [0, 1], got {loss}")
            usual = (losses + 0.25) / (count + 1.0)
            part = weighed(loss, canary, rho, usual)
            lowest = -max(usual / rho, (1.0 - usual) / (1.0 - rho))
            share = rho * (1.0 - rho)
            excess = (total - weight * self.tolerance) / (weight + share)
            variance = (squares + _PRIOR_DEVIATION) / (count + 1.0) / share
            stake = min(max(excess / (variance + excess * excess), 0.0), BOLDNESS / (self.tolerance - lowest))
            wealth += math.log1p(stake * (part - self.tolerance))
            count, losses, weight = count + 1, losses + loss, weight + share
            total, squares = total + share * part, squares + share * part * part
        return ArmsBet(
            tolerance=self.tolerance, count=count, losses=losses, weight=weight, total=total, squares=squares,
            log_wealth=wealth,
        )  # fmt: skip


def weighed(loss: float, canary: bool, propensity: float, expected_loss: float = 0.0) -> float:
    """A label's part of the difference in risk, canary - stable: `(loss - expected) (A / rho - (1 - A) / (1 - rho))`.

    Inverse probability weighting: its mean is the difference at every request, whatever the mix. `expected_loss` may
    be anything known before the answer, such as the stable version's usual loss, and lessens the noise.
    """
    if not 0.0 < propensity < 1.0:
        raise ValueError(f"the probability of the routing lies within (0, 1), got {propensity}")
    excess = loss - expected_loss
    return excess / propensity if canary else -excess / (1.0 - propensity)
