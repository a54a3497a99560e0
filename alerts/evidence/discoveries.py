"""Several questions: which checks of one release, and how many releases of one model, may be false alarms."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from collectors.drift.fdr import e_bh


def log_weighted_mean(logs: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Log e-value that some check is rightly raised: the mean of their e-values, weighted.

    A mean of e-values is one however they depend on each other (Vovk & Wang 2021). A weight is the check's share of the
    risk; what is left to 1 is never bet, and a check without a weight does not count. ValueError for weights above 1.
    """
    total, idle, highest, parts = 0.0, 1.0, -math.inf, []
    for check, weight in weights.items():
        total += weight
        value = logs.get(check)
        if weight and value is not None:
            parts.append((weight, value))
            idle -= weight
            highest = max(highest, value)
        if weight < 0.0:
            total = math.inf
    if total > 1.0 + 1e-9:
        raise ValueError(f"the checks' shares of the risk are at least 0 and at most 1 together, got {dict(weights)}")
    # A check that has not been looked at has an e-value of 1, and so has what is not bet.
    if idle > 1e-9:
        parts.append((idle, 0.0))
        highest = max(highest, 0.0)
    if highest == math.inf:
        return highest
    mean = 0.0
    for weight, value in parts:
        mean += weight * math.exp(value - highest)
    return highest + math.log(mean)


def to_blame(logs: Mapping[str, float], alpha: float) -> tuple[str, ...]:
    """The checks that are raised with a false discovery rate of at most `alpha`, the strongest first: e-BH.

    Wang & Ramdas, "False discovery rate control with e-values", JRSS-B 84(3), 2022.
    """
    ordered = sorted(logs, key=lambda check: -logs[check])
    evalues = np.array([math.exp(min(logs[check], 690.0)) for check in ordered])
    return tuple(check for check, raised in zip(ordered, e_bh(evalues, alpha), strict=True) if raised)


def level(release: int, rollbacks: int, alpha: float) -> float:
    """The risk that the model's release number `release` (1, 2, …) may take, `rollbacks` of those before rolled back.

    e-LOND: alpha_t = alpha gamma_t (R_(t-1) + 1) with gamma_t = 1 / (t (t + 1)), whose sum is 1; act if the e-value
    reaches 1 / alpha_t. Over all releases the expected share of false rollbacks stays below alpha, whatever they have
    in common (Xu & Ramdas, "Online multiple testing with e-values", AISTATS 2024). ValueError for impossible numbers.
    """
    if release < 1 or not 0 <= rollbacks < release:
        raise ValueError(f"releases count from 1 and fewer were rolled back before, got {release} and {rollbacks}")
    return alpha * (rollbacks + 1) / (release * (release + 1))
