"""What a change detector looks for, how seldom it may be wrong, and the alarm that it raises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from collectors.drift.shiryaev_roberts import Floats, Form, block_length

Kind = Literal["bernoulli", "bounded", "normal", "evalue"]
Side = Literal["up", "down", "both"]
Base = float | tuple[float, float] | None

DEFAULT_ALTERNATIVES: dict[Kind, tuple[float, ...]] = {
    "bernoulli": (1.5, 2.5),
    "bounded": (1.5, 3.0, 12.0),
    "normal": (0.25, 0.5, 1.0, 2.0),
    "evalue": (1.0,),
}


class DetectorError(ValueError):
    """Settings, values or a stored state that a detector cannot work with."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A change that was found. Indices count the samples that the detector was given, from 0."""

    stream: int
    index: int
    """The sample that raised it."""
    since: int
    """The most likely first sample of the change."""
    evidence: float
    """The sum, at least the threshold."""
    before: float
    """Mean of the stream up to the change, or the known base."""
    after: float
    """Mean from the change to the alarm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorSettings:
    """What a detector looks for, and how seldom it may be wrong."""

    kind: Kind = "bernoulli"
    """`bernoulli`: 0 and 1. `bounded`: values in [0, 1]. `normal`: any scale. `evalue`: e-values, made elsewhere."""
    alpha: float = 1e-5
    """One over the mean number of samples (of e-values, of blocks) between false alarms of a stream."""
    side: Side = "up"
    """Which way is worse; two-sided detection halves the weight of each alternative."""
    base: Base = None
    """The rate or mean while nothing changed, for `normal` (mean, deviation). None learns it from the stream."""
    learn: int = 1000
    """Samples from which the base is learned before a change is looked for; learning goes on after that."""
    alternatives: tuple[float, ...] = ()
    """Odds ratios above 1 for `bernoulli` and `bounded`, deviations for `normal`; the kind's own when empty."""
    weights: tuple[float, ...] = ()
    """Of the alternatives, summing to 1; equal when empty."""
    form: Form = "sr"
    """`sr` adds up all possible changes (faster at the same guarantee); `cusum` takes the most likely one."""
    block: int = 1
    """Samples averaged into one observation: longer than the memory of an autocorrelated stream, with `normal`."""
    family: bool = False
    """Whether `alpha` is for all streams together: alarms are then those that e-BH rejects (Wang & Ramdas 2022)."""
    after_alarm: Literal["relearn", "keep"] = "relearn"
    """Whether the base is learned anew after an alarm (from the reference on), or stays as it was before the change."""

    def __post_init__(self) -> None:
        for name, kind in (("kind", Kind), ("side", Side), ("form", Form)):
            if getattr(self, name) not in get_args(kind):
                raise DetectorError(f"{name} must be one of {', '.join(get_args(kind))}, not {getattr(self, name)!r}")
        if self.after_alarm not in ("relearn", "keep"):
            raise DetectorError(f"after_alarm must be relearn or keep, not {self.after_alarm!r}")
        if not 0 < self.alpha < 1:
            raise DetectorError(f"alpha must be between 0 and 1, not {self.alpha}")
        if self.learn < 0 or self.block < 1:
            raise DetectorError(f"learn must be at least 0 and block at least 1, not {self.learn} and {self.block}")
        if self.block > 1 and self.kind in ("bernoulli", "evalue"):
            raise DetectorError(f"means of blocks are no {self.kind} stream: use kind='normal' with block={self.block}")
        if self.kind == "evalue" and (self.base is not None or self.alternatives or self.side != "up"):
            raise DetectorError("e-values have no base, side or alternatives: those went into making them")
        _check_base(self.kind, self.base)
        _check_alternatives(self.kind, self.alternatives, self.weights)

    @property
    def threshold(self) -> float:
        """The sum that is an alarm for a stream of its own."""
        return 1.0 / self.alpha


def _check_base(kind: Kind, base: Base) -> None:
    if base is None:
        return
    if kind == "normal":
        good = isinstance(base, Sequence) and len(base) == 2 and all(map(math.isfinite, base)) and base[1] > 0
        if not good:
            raise DetectorError(f"the base of a normal stream is its mean and its deviation above 0, not {base!r}")
    elif not isinstance(base, int | float) or not 0 < base < 1:
        raise DetectorError(f"the base of a {kind} stream is a rate between 0 and 1, not {base!r}")


def _check_alternatives(kind: Kind, alternatives: tuple[float, ...], weights: tuple[float, ...]) -> None:
    least, what = (0.0, "shifts in deviations above 0") if kind == "normal" else (1.0, "odds ratios above 1")
    if not all(math.isfinite(value) and least < value <= 1e6 for value in alternatives):
        raise DetectorError(f"alternatives of a {kind} stream are {what}, not {alternatives}")
    expected = len(alternatives) or len(DEFAULT_ALTERNATIVES[kind])
    if weights and (len(weights) != expected or min(weights) <= 0 or not math.isclose(sum(weights), 1, abs_tol=1e-9)):
        raise DetectorError(f"weights must be {expected} positive numbers with sum 1, not {weights}")


@dataclass(frozen=True, slots=True)
class Bets:
    """The settings as arrays: alternatives and weights (J,), with both sides mirrored."""

    values: Floats
    weights: Floats
    block: int
    cap: float

    @classmethod
    def of(cls, settings: DetectorSettings, streams: int) -> Bets:
        values = np.array(settings.alternatives or DEFAULT_ALTERNATIVES[settings.kind])
        weights = np.array(settings.weights or np.full(len(values), 1 / len(values)))
        mirrored = -values if settings.kind == "normal" else 1 / values
        if settings.side == "down":
            values = mirrored
        elif settings.side == "both":
            values, weights = np.concatenate([values, mirrored]), np.concatenate([weights, weights]) / 2
        # An e-value of `cap` is an alarm by itself, so that more would change nothing.
        cap = 2 * settings.threshold * streams / float(weights.min())
        bound = (
            float(np.maximum(values, 1 / np.abs(values)).max()) if settings.kind in ("bernoulli", "bounded") else cap
        )
        return cls(values, weights, block_length(max(bound, 1024.0 if bound == cap else 1.0)), cap)
