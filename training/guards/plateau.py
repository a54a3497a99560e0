"""The guard against plateaus: a loss that, for all its noise, certainly falls no more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

_BLOCKS = 20
_MAD_TO_SD = 1.4826
# Standard error of a line's rise over n equidistant blocks of unit noise: n / sqrt(n (n² - 1) / 12).
_RISE_ERROR = _BLOCKS / math.sqrt(_BLOCKS * (_BLOCKS**2 - 1) / 12)
# The Theil–Sen line is a little less certain than least squares under normal noise (efficiency 0.91, Sen 1968).
_ERROR = _RISE_ERROR / math.sqrt(0.91)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlateauRule:
    """The loss has stopped falling when over `window` steps it fell by less than `improvement` of its level.

    That must be certain: the upper bound of the fall (`deviations` standard errors) is below it. Where noise hides so
    small a fall, there is no plateau to speak of.
    """

    window: int = 2000
    improvement: float = 0.01
    deviations: float = 3.0

    def __post_init__(self) -> None:
        if self.window < _BLOCKS or not self.improvement > 0:
            raise ValueError(f"window {self.window} and improvement {self.improvement}: at least {_BLOCKS}, above 0")


@dataclass(frozen=True, slots=True)
class PlateauState:
    """The latest losses, oldest first, and whether the plateau they are on was told."""

    losses: tuple[float, ...] = ()
    fresh: int = 0
    told: bool = False


@dataclass(frozen=True, slots=True)
class Plateau:
    """The loss fell by `fall` of its level over the window, and at most by `bound`."""

    level: float
    fall: float
    bound: float
    window: int

    @property
    def reason(self) -> str:
        """In words."""
        return (
            f"over the last {self.window} steps the loss of {self.level:.4g} fell by {self.fall:.2%} "
            f"and by no more than {self.bound:.2%}"
        )


def judge_plateau(
    rule: PlateauRule, state: PlateauState, losses: Sequence[float]
) -> tuple[PlateauState, Plateau | None]:
    """Takes in the losses of the last steps; gives a plateau once, until the loss falls again.

    It is judged every quarter of a window. The line through the medians of twenty blocks is Theil and Sen's.
    """
    known = (*state.losses, *(loss for loss in losses if math.isfinite(loss)))[-rule.window :]
    fresh = state.fresh + len(losses)
    if len(known) < rule.window or fresh < rule.window // 4:
        return PlateauState(known, fresh, state.told), None
    size = rule.window // _BLOCKS
    recent = known[-size * _BLOCKS :]
    levels = [median(recent[first : first + size]) for first in range(0, len(recent), size)]
    slope = median((levels[late] - levels[early]) / (late - early) for early, late in combinations(range(_BLOCKS), 2))
    start = median(level - slope * index for index, level in enumerate(levels))
    noise = _MAD_TO_SD * median(abs(level - start - slope * index) for index, level in enumerate(levels))
    level = abs(median(levels)) or 1.0
    fall = -slope * _BLOCKS / level
    error = rule.deviations * _ERROR * noise / level
    flat = fall + error < rule.improvement
    found = Plateau(median(levels), fall, fall + error, rule.window) if flat and not state.told else None
    return PlateauState(known, 0, flat or (state.told and fall - error < rule.improvement)), found
