"""The guard against loss spikes: a level that leaves the loss's own recent history, judged robustly and purely."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import cast

import numpy as np
from numpy.typing import NDArray

from observability.native import extension
from training.robust import middle, spread

# Where losses barely vary, a rise of this share of their level is still no spike.
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class SpikeRule:
    """When the loss has spiked: the median of the last `span` losses is `score` robust deviations above what follows
    from the history. It is judged once a span.
    """

    score: float = 6.0
    history: int = 200
    """Losses that the level is compared with, those of the span left out."""
    least: int = 50
    """Losses that must be known before anything is judged."""
    span: int = 5
    """So that a single odd batch is no spike."""

    def __post_init__(self) -> None:
        if not self.score > 0:
            raise ValueError(f"score is {self.score}: it must be positive")
        if not 1 <= self.span < self.least <= self.history:
            raise ValueError(
                f"span {self.span}, least {self.least}, history {self.history}: 1 <= span < least <= history"
            )


@dataclass(frozen=True, slots=True)
class SpikeState:
    """The latest losses, oldest first, and how many there have been. Those that are not finite are another guard's."""

    losses: tuple[float, ...] = ()
    count: int = 0


@dataclass(frozen=True, slots=True)
class Spike:
    """A spike, and how high it is.

    It began not before the loss with the number `first` of those just judged (negative: earlier): the span before the
    one in which it shows may hold its beginning.
    """

    first: int
    level: float
    usual: float
    score: float

    @property
    def reason(self) -> str:
        """In words."""
        return f"the loss rose to {self.level:.4g}, {self.score:.0f} robust deviations above its usual {self.usual:.4g}"


def judge_losses(rule: SpikeRule, state: SpikeState, losses: Sequence[float]) -> tuple[SpikeState, Spike | None]:
    """Goes through the losses of the last steps, oldest first; gives the first spike, and the state to go on with.

    After a spike the state is the one before it, so that a run that is set back is judged by its good history. What is
    found does not depend on how many losses come at a time.
    """
    finite = [(number, loss) for number, loss in enumerate(losses) if math.isfinite(loss)]
    known = (*state.losses, *(loss for _, loss in finite))
    count, are_quiet = state.count + len(finite), _are_quiet()
    if are_quiet is not None and are_quiet(
        known, count, len(finite), rule.span, rule.history, rule.least, rule.score, _LEAST_SPREAD
    ):
        return SpikeState(known[-rule.history - rule.span :], count), None
    found = _first_spike(rule, state, known, [number for number, _ in finite])
    return found or (SpikeState(known[-rule.history - rule.span :], count), None)


def _first_spike(
    rule: SpikeRule, state: SpikeState, known: tuple[float, ...], fresh: Sequence[int]
) -> tuple[SpikeState, Spike] | None:
    """Goes through what is known; `fresh` are the numbers of the losses that came after those of `state`."""
    numbers, first = np.array(known), len(state.losses)
    for place, number in enumerate(fresh, 1):
        end = first + place
        if (state.count + place) % rule.span or end < rule.least + rule.span:
            continue
        begin, middle_of = max(0, end - rule.span - rule.history), end - rule.span
        level = median(known[middle_of:end])
        score, usual = _scored(level, numbers[begin:middle_of], rule.score)
        if score > rule.score:
            found = Spike(number - 2 * rule.span + 1, level, usual, score)
            return SpikeState(known[begin:middle_of], state.count + place - rule.span), found
    return None


@cache
def _are_quiet() -> Callable[..., bool] | None:
    """The compiled look at losses, of which most hold no spike; None where it cannot be had."""
    made = extension(Path(__file__).with_suffix(".c"))
    return None if made is None else cast(Callable[..., bool], made.are_quiet)


def _scored(level: float, known: NDArray[np.float64], limit: float) -> tuple[float, float]:
    """How many robust deviations the level is above what follows from a history, and that; 0 for what is not above
    `limit` of them anyhow.

    The line goes through the medians of the two halves, so that a loss that falls does not count its fall as noise.
    """
    half = len(known) // 2
    early, late = middle(known[:half]), middle(known[half:])
    slope = (late - early) / (len(known) / 2)
    # The halves' medians stand at a quarter and at three quarters of the history.
    start = early - slope * len(known) / 4
    usual = start + slope * len(known)
    least = _LEAST_SPREAD * abs(late)
    if level <= usual + limit * least:
        return 0.0, usual
    deviation = max(spread(known - start - slope * np.arange(len(known)), 0.0), least)
    return (level - usual) / deviation if deviation else math.inf, usual
