"""What a query gives back: a scalar, a string, a vector or a matrix, as plain values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from collectors.store import Labels


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number at a time (unix ms)."""

    t_ms: int
    value: float


@dataclass(frozen=True, slots=True)
class String:
    """A text at a time (unix ms)."""

    t_ms: int
    value: str


class VectorElement(NamedTuple):
    """One series' value at a time (unix ms)."""

    labels: Labels
    t_ms: int
    value: float


@dataclass(frozen=True, slots=True)
class Vector:
    """Series with one value each, in the order of the query."""

    elements: tuple[VectorElement, ...]

    def __iter__(self) -> Iterator[VectorElement]:
        return iter(self.elements)

    def __len__(self) -> int:
        return len(self.elements)


@dataclass(frozen=True, slots=True)
class MatrixSeries:
    """One series over time: `t` int64 unix ms and `v` float64, of the same length."""

    labels: Labels
    t: NDArray[np.int64]
    v: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Series over time, sorted by labels."""

    series: tuple[MatrixSeries, ...]

    def __iter__(self) -> Iterator[MatrixSeries]:
        return iter(self.series)

    def __len__(self) -> int:
        return len(self.series)


Result = Scalar | String | Vector | Matrix
