"""Losses of labelled predictions, scaled into [0, 1], so that a bet on them can be bounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_EPSILON = 1e-15


class Unfit(ValueError):
    """A prediction and a label that the loss says nothing of."""


def _zero_one(prediction: float, label: float) -> float:
    """1 for a wrong class: a probability's class is 1 from 0.5 on, any other number is the class itself."""
    if label in (0.0, 1.0) and 0.0 <= prediction <= 1.0:
        return float((prediction >= 0.5) != (label == 1.0))
    return float(prediction != label)


def _brier(prediction: float, label: float) -> float:
    return (_probability(prediction, label) - label) ** 2


def _log(prediction: float, label: float) -> float:
    p = _probability(prediction, label)
    return -math.log(max(p if label == 1.0 else 1.0 - p, _EPSILON))


def _absolute(prediction: float, label: float) -> float:
    return abs(prediction - label)


def _squared(prediction: float, label: float) -> float:
    return (prediction - label) ** 2


def _probability(prediction: float, label: float) -> float:
    if label not in (0.0, 1.0) or not 0.0 <= prediction <= 1.0:
        raise Unfit(f"the loss is of a probability and a label 0 or 1, got {prediction} and {label}")
    return prediction


LOSSES: Mapping[str, Callable[[float, float], float]] = {
    "zero-one": _zero_one, "brier": _brier, "log": _log, "absolute": _absolute, "squared": _squared,
}  # fmt: skip
# Bounds of losses that have one of their own; a log loss above 5 is that of a probability below 0.7 %.
_BOUNDS = {"zero-one": 1.0, "brier": 1.0, "log": 5.0}


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss by name; what is above `bound` counts as `bound`."""

    name: str
    bound: float

    @staticmethod
    def of(name: str, bound: float = 0.0) -> Loss:
        """The loss with its bound, 0 for its own. ValueError where there is none, or it has none of its own."""
        if name not in LOSSES:
            raise ValueError(f"the loss is one of {', '.join(LOSSES)}, got {name!r}")
        chosen = bound or _BOUNDS.get(name, 0.0)
        if not 0.0 < chosen < math.inf:
            raise ValueError(
                f"the {name} loss needs loss_bound, a number above 0: what is worse than that counts as that"
            )
        return Loss(name, chosen)

    def __call__(self, prediction: float, label: float) -> float:
        """The loss as a share of the bound. Unfit for what it says nothing of."""
        if not (math.isfinite(prediction) and math.isfinite(label)):
            raise Unfit(f"a loss is of numbers, got {prediction} and {label}")
        return min(LOSSES[self.name](prediction, label) / self.bound, 1.0)
