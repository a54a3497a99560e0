"""From many clients' updates to one: means, and means that a few bad clients cannot move far.

Every function takes updates as one matrix float32 `[clients, parameters]` and gives one `[parameters]`. The order of
the clients changes nothing but the rounding of sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

METHODS = ("mean", "median", "trimmed_mean", "krum")


class AggregationError(ValueError):
    """Updates that cannot be aggregated as asked; the message says what is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """Which function, and how many bad clients it withstands.

    `mean` is FedAvg's, weighted by rows (McMahan et al. 2017), and withstands none. `median` and `trimmed_mean` are
    taken coordinate by coordinate (Yin et al. 2018); `trim` is the share cut off at each end. `krum` averages the
    `keep` updates that lie closest to their neighbours, `bad` clients being assumed (Blanchard et al. 2017); it needs
    2 bad + 3 clients. None but `mean` looks at weights: a client states its own.
    """

    method: str = "mean"
    trim: float = 0.1
    bad: int = 1
    keep: int = 1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"there is no aggregation {self.method!r}; there are: {', '.join(METHODS)}")
        if not 0 <= self.trim < 0.5 or self.bad < 0 or self.keep < 1:
            raise ValueError(f"trim {self.trim} in [0, 0.5), bad {self.bad} >= 0 and keep {self.keep} >= 1 are needed")

    @property
    def fewest(self) -> int:
        """Updates below which it cannot do what it promises."""
        return 2 * self.bad + 3 if self.method == "krum" else 1

    def __call__(self, updates: Tensor, weights: Tensor) -> Tensor:
        """One update of many, `weights` `[clients]` being above 0. AggregationError for too few updates."""
        if len(updates) < self.fewest:
            raise AggregationError(f"{self.method} needs {self.fewest} updates, {len(updates)} came")
        if self.method == "mean":
            return weighted_mean(updates, weights)
        if self.method == "median":
            return median(updates)
        if self.method == "trimmed_mean":
            return trimmed_mean(updates, self.trim)
        return krum(updates, self.bad, self.keep)


def weighted_mean(updates: Tensor, weights: Tensor) -> Tensor:
    """The mean weighted by `weights` `[clients]`, which must be above 0; summed in double precision."""
    shares = weights.double() / weights.double().sum()
    return (updates.double() * shares[:, None]).sum(dim=0).to(updates.dtype)


def median(updates: Tensor) -> Tensor:
    """The median of each coordinate; of an even number the mean of the middle two."""
    ordered = updates.sort(dim=0).values
    count = len(updates)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def trimmed_mean(updates: Tensor, trim: float) -> Tensor:
    """The mean of each coordinate without the floor(trim · clients) smallest and as many of the largest."""
    cut = int(trim * len(updates))
    kept = updates.sort(dim=0).values[cut : len(updates) - cut]
    return kept.double().mean(dim=0).to(updates.dtype)


def krum(updates: Tensor, bad: int, keep: int = 1) -> Tensor:
    """The mean of the `keep` updates with the least sum of squared distances to their clients - bad - 2 nearest."""
    count = len(updates)
    distances = torch.cdist(updates.double(), updates.double()).square()
    nearest = distances.sort(dim=1).values[:, 1 : count - bad - 1]
    chosen = nearest.sum(dim=1).argsort(stable=True)[: min(keep, count - bad)]
    return updates[chosen.sort().values].double().mean(dim=0).to(updates.dtype)


def clipped(update: Tensor, bound: float) -> tuple[Tensor, bool]:
    """The update scaled down to the norm `bound` if its norm is above, and whether it was; 0 bounds nothing."""
    norm = float(torch.linalg.vector_norm(update.double()))
    if not bound or norm <= bound:
        return update, False
    return (update.double() * (bound / norm)).to(update.dtype), True


def suspicion(updates: Tensor) -> Tensor:
    """How far each update lies from the coordinate-wise median of all: robust deviations `[clients]` of that distance.

    A deviation counts as at least a tenth of the median distance: clients that are alike do not accuse each other.
    """
    distances = torch.linalg.vector_norm((updates - median(updates)).double(), dim=1)
    centre = distances.median()
    spread = 1.4826 * (distances - centre).abs().median()
    score: Tensor = (distances - centre) / torch.clamp(torch.maximum(spread, 0.1 * centre), min=1e-12)
    return score
