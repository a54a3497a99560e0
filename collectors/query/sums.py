"""Sums of floats where digits matter: when terms cancel or a plain sum overflows (promql/engine.go, kahansum)."""

from __future__ import annotations

import math

import numpy as np

from collectors.query.frame import Bools, Floats


def _added(term: float, total: float, lost: float) -> tuple[float, float]:
    """Neumaier's step: the new sum and the digits lost so far."""
    following = total + term
    if math.isinf(following):
        return following, 0.0
    if abs(total) >= abs(term):
        return following, lost + ((total - following) + term)
    return following, lost + ((term - following) + total)


class CompensatedSum:
    """Sums of many rows of terms at once, each with the digits that it lost (Neumaier)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._sum = np.zeros(shape)
        self._lost = np.zeros(shape)

    def add(self, terms: Floats) -> None:
        """Adds one term to every sum."""
        following = self._sum + terms
        larger = np.abs(self._sum) >= np.abs(terms)
        lost = np.where(larger, (self._sum - following) + terms, (terms - following) + self._sum)
        self._lost = np.where(np.isinf(following), 0.0, self._lost + lost)
        self._sum = following

    @property
    def total(self) -> Floats:
        """The sums."""
        total: Floats = self._sum + self._lost
        return total


def careful_sum(values: Floats) -> float:
    """The sum of a few values as Prometheus compensates it."""
    total = lost = 0.0
    for value in values.tolist():
        total, lost = _added(value, total, lost)
    return total if math.isinf(total) else total + lost


def careful_mean(values: Floats) -> float:
    """The mean of a few values, whose sum may overflow: from then on the mean runs along."""
    total, lost, mean = float(values[0]), 0.0, 0.0
    running = False
    for count, value in enumerate(values[1:].tolist(), start=2):
        if not running:
            following, left = _added(value, total, lost)
            if not math.isinf(following):
                total, lost = following, left
                continue
            running, mean, lost = True, total / (count - 1), lost / (count - 1)
        share = (count - 1) / count
        mean, lost = _added(value / count, share * mean, share * lost)
    return mean + lost if running else total / len(values) + lost / len(values)


def cancelled(total: Floats, magnitude: Floats) -> Bools:
    """Where the terms, whose absolute values add up to `magnitude`, nearly cancel in a finite sum."""
    close: Bools = np.isfinite(total) & (np.abs(total) < magnitude * 1e-7)
    return close


def overflowed(total: Floats, largest: Floats) -> Bools:
    """Where a sum is infinite or NaN though its terms, the largest being `largest`, are finite."""
    lost: Bools = ~np.isfinite(total) & np.isfinite(largest)
    return lost
