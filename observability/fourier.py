"""The random-Fourier mean embedding of rows: a fixed-size state from which the MMD of two tables is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from observability.cells import Floats, ProfileError, count_of, packed, unpacked

NUM_FEATURES = 256
SEED = 20_071_203
_HEURISTIC_ROWS = 512
# A matrix product of more multiplications is given to threads by OpenBLAS: they wait for each other longer than it
# takes, at the expense of whatever else the machine does.
_PRODUCTS, _FEWEST_ROWS = 262_144, 32


@dataclass(frozen=True, slots=True, eq=False)
class FourierEmbedding:
    """Sums of random Fourier features over rows: their mean stands for the distribution in a Gaussian kernel's space.

    With frequencies w ~ N(0, 1/bandwidth²) and the features (cos w·x, sin w·x) / √F of F frequencies, the squared
    distance of two means is an unbiased estimate (over the frequencies) of the biased MMD² under the kernel
    exp(−|x−y|² / (2 bandwidth²)). Rahimi and Recht 2007; Gretton et al. 2012. `sums` holds 2 F numbers of scale 1: the
    cosines, then the sines.
    """

    dimensions: int
    bandwidth: float
    count: int
    sums: Floats
    seed: int = SEED

    @staticmethod
    def layout(dimensions: int, bandwidth: float, features: int = NUM_FEATURES) -> FourierEmbedding:
        """No rows, with `features` numbers a row (half as many frequencies)."""
        return FourierEmbedding(dimensions, bandwidth, 0, np.zeros(features))

    def __post_init__(self) -> None:
        self.sums.setflags(write=False)

    @property
    def mean(self) -> Floats:
        """The mean embedding: |a.mean − b.mean|² estimates MMD². Zeros without rows."""
        mean: Floats = self.sums / (max(self.count, 1) * np.sqrt(len(self.sums) // 2))
        return mean

    def empty(self) -> FourierEmbedding:
        return FourierEmbedding(self.dimensions, self.bandwidth, 0, np.zeros_like(self.sums), self.seed)

    def updated(self, rows: Floats) -> FourierEmbedding:
        """With the finite rows [n, dimensions] added; pass blocks, since it holds [n, features] at once."""
        if not len(rows):
            return self
        found = self.features(rows).sum(axis=0)
        return FourierEmbedding(self.dimensions, self.bandwidth, self.count + len(rows), self.sums + found, self.seed)

    def features(self, rows: Floats) -> Floats:
        """The cosines and the sines [n, 2 F] of finite rows [n, dimensions]: what `sums` adds up."""
        frequencies = _frequencies(self.dimensions, len(self.sums) // 2, self.seed)
        number = len(frequencies)
        found = np.empty((len(rows), 2 * number))
        for start, stop in _pieces(len(rows), _PRODUCTS // max(frequencies.size, 1)):
            angles = rows[start:stop] @ frequencies.T
            angles /= self.bandwidth
            np.cos(angles, out=found[start:stop, :number])
            np.sin(angles, out=found[start:stop, number:])
        return found

    def __add__(self, other: FourierEmbedding) -> FourierEmbedding:
        if self._layout() != other._layout():
            raise ProfileError("the Fourier features differ: profiles add up only within one reference")
        sums = self.sums + other.sums
        return FourierEmbedding(self.dimensions, self.bandwidth, self.count + other.count, sums, self.seed)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FourierEmbedding) and self.to_json() == other.to_json()

    def _layout(self) -> tuple[int, float, int, int]:
        return self.dimensions, self.bandwidth, len(self.sums), self.seed

    def to_json(self) -> dict[str, Any]:
        return {
            "dimensions": self.dimensions,
            "bandwidth": self.bandwidth,
            "seed": self.seed,
            "count": self.count,
            "sums": packed(self.sums),
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> FourierEmbedding:
        sums, bandwidth = unpacked(value["sums"]), float(value["bandwidth"])
        if len(sums) % 2 or not len(sums) or not (np.isfinite(sums).all() and 0 < bandwidth < np.inf):
            raise ProfileError("Fourier sums are pairs of finite numbers over a positive bandwidth")
        return FourierEmbedding(
            count_of(value["dimensions"]), bandwidth, count_of(value["count"]), sums, count_of(value["seed"])
        )


def median_distance(rows: Floats) -> float:
    """The median of the distances between rows (at most 512, evenly taken), 1 where it is zero: the usual bandwidth.

    Gretton et al. 2012, "A kernel two-sample test", section 8.
    """
    if len(rows) < 2:
        return 1.0
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, _HEURISTIC_ROWS).astype(np.int64))]
    chosen = chosen - chosen.mean(axis=0)
    squares = np.einsum("ij,ij->i", chosen, chosen)
    distances = squares[:, None] + squares[None, :] - 2.0 * (chosen @ chosen.T)
    found = float(np.sqrt(max(np.median(distances[np.triu_indices(len(chosen), 1)]), 0.0)))
    return found if np.isfinite(found) and found > 1e-12 * np.sqrt(max(squares.max(), 1e-300)) else 1.0


def _pieces(rows: int, most: int) -> Iterator[tuple[int, int]]:
    """Where to cut rows into pieces of at most `most` and, if there are so many, at least half of that."""
    # Long vectors are worth the threads: products of a few rows cost more.
    most = most if most >= _FEWEST_ROWS else rows
    start = 0
    while start < rows:
        stop = rows if rows - start <= most else start + most // 2
        yield start, stop
        start = stop


@lru_cache(maxsize=64)
def _frequencies(dimensions: int, number: int, seed: int) -> Floats:
    # The legacy generator's stream is frozen: the same on every machine and in every version of numpy.
    drawn = np.random.RandomState(seed).standard_normal((number, dimensions))
    drawn.setflags(write=False)
    return drawn
