"""The guard against exploding gradients: a norm far above its own history, on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.robust import middle, spread

# A norm that barely varies still may rise by this much of a logarithm without being odd.
_LEAST_SPREAD = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientRule:
    """A norm explodes when it is above `score` robust deviations and above `factor` times the median of its history."""

    score: float = 10.0
    factor: float = 8.0
    history: int = 200
    least: int = 50
    """Norms that must be known before anything is judged: the first steps' are no measure of the rest."""

    def __post_init__(self) -> None:
        if not (self.score > 0 and self.factor > 1 and 1 < self.least <= self.history):
            raise ValueError(
                f"score {self.score}, factor {self.factor}, least {self.least}, history {self.history}: "
                "score > 0, factor > 1, 1 < least <= history"
            )


@dataclass(frozen=True, slots=True)
class Explosion:
    """A gradient norm above its `ceiling`; `position` counts from the first of the norms just judged."""

    position: int
    norm: float
    usual: float
    ceiling: float

    @property
    def reason(self) -> str:
        """In words."""
        return (
            f"the gradient norm rose to {self.norm:.4g}, {self.norm / self.usual:.0f} times its usual {self.usual:.4g}"
        )


def ceiling(rule: GradientRule, history: Sequence[float]) -> float:
    """The norm above which a gradient has exploded; infinity while too few are known."""
    if len(history) < rule.least:
        return math.inf
    logs = np.log(history)
    usual = middle(logs)
    far = rule.score * max(spread(logs, usual), _LEAST_SPREAD)
    return math.exp(min(usual + max(far, math.log(rule.factor)), 700.0))


def judge_norms(
    rule: GradientRule, history: tuple[float, ...], norms: Sequence[float]
) -> tuple[tuple[float, ...], Explosion | None]:
    """Judges the norms of the last steps by the history before them; gives the history to go on with.

    All are held against one ceiling, which a training loop can compare on the device. Norms that are not finite are
    another guard's, and zeros tell nothing. An exploded norm joins the history too: a level that stays becomes usual.
    """
    known = [(position, norm) for position, norm in enumerate(norms) if math.isfinite(norm) and norm > 0]
    # The ceiling is at least `factor` times the median, and so it is not worth its price where no norm comes near.
    near = history and known and max(norm for _, norm in known) > rule.factor * min(history)
    limit = ceiling(rule, history) if near else math.inf
    above = [(position, norm) for position, norm in known if norm > limit]
    found = None
    if above:
        found = Explosion(above[0][0], max(norm for _, norm in above), middle(np.array(history)), limit)
    return (*history, *(norm for _, norm in known))[-rule.history :], found
