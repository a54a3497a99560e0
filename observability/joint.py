"""What a profile keeps of the numeric columns together: their covariance and their mean embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from observability.cells import Counts, Floats, ProfileError, count_of, counts_of, packed, unpacked
from observability.fourier import FourierEmbedding, median_distance

# The state grows with the square of the columns: 64 take 28 kB of JSON.
MAX_COLUMNS = 64
# One absurd value must not be the whole covariance.
CLIP = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Covariance:
    """Count, means [d] and co-moments [d, d] (sums of products of deviations) of rows. Adds up as Chan et al. 1979."""

    count: int
    mean: Floats
    comoment: Floats

    def __post_init__(self) -> None:
        self.mean.setflags(write=False)
        self.comoment.setflags(write=False)

    @staticmethod
    def empty(dimensions: int) -> Covariance:
        return Covariance(0, np.zeros(dimensions), np.zeros((dimensions, dimensions)))

    @staticmethod
    def of(rows: Floats) -> Covariance:
        """That of finite rows [n, d]."""
        if not len(rows):
            return Covariance.empty(rows.shape[1])
        mean = rows.mean(axis=0)
        deviations = rows - mean
        return Covariance(len(rows), mean, deviations.T @ deviations)

    @property
    def matrix(self) -> Floats:
        """The population covariance [d, d]; zeros without rows."""
        return self.comoment / max(self.count, 1)

    def __add__(self, other: Covariance) -> Covariance:
        if not other.count:
            return self
        if not self.count:
            return other
        share = other.count / (self.count + other.count)
        delta = other.mean - self.mean
        return Covariance(
            self.count + other.count,
            self.mean * (1.0 - share) + other.mean * share,
            self.comoment + other.comoment + np.outer(delta, delta) * (self.count * share),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """The numeric columns of a table as one vector a row, in the reference's standard deviations from its mean.

    A value is clipped to ±10; one that is missing or not finite becomes the reference's mean (0), and `imputed` counts
    those of each column. Multivariate distances are functions of two of these: MMD from `fourier`, the error of
    the reference's principal components from `covariance`.
    """

    columns: tuple[str, ...]
    center: Floats
    scale: Floats
    imputed: Counts
    covariance: Covariance
    fourier: FourierEmbedding

    @staticmethod
    def layout(columns: tuple[str, ...], center: Floats, scale: Floats, sample: Floats) -> Joint:
        """No rows. The bandwidth is the median distance of the rows of `sample` [n, d], NaN where a value is missing.

        A column without spread is measured in units of 1.
        """
        scale = np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)
        center = np.where(np.isfinite(center), center, 0.0)
        standard, _ = _standard(sample, center, scale)
        fourier = FourierEmbedding.layout(len(columns), median_distance(standard))
        none = np.zeros(len(columns), np.int64)
        return Joint(columns, center, scale, none, Covariance.empty(len(columns)), fourier)

    def __post_init__(self) -> None:
        for array in (self.center, self.scale, self.imputed):
            array.setflags(write=False)

    @property
    def count(self) -> int:
        """Rows."""
        return self.covariance.count

    def empty(self) -> Joint:
        none, covariance = np.zeros_like(self.imputed), Covariance.empty(len(self.columns))
        return Joint(self.columns, self.center, self.scale, none, covariance, self.fourier.empty())

    def updated(self, rows: Floats) -> Joint:
        """With raw rows [n, d] added, NaN where a value is missing; pass blocks of at most some thousand rows."""
        standard, imputed = _standard(rows, self.center, self.scale)
        return Joint(
            self.columns,
            self.center,
            self.scale,
            self.imputed + imputed,
            self.covariance + Covariance.of(standard),
            self.fourier.updated(standard),
        )

    def __add__(self, other: Joint) -> Joint:
        if self.columns != other.columns or not (
            np.array_equal(self.center, other.center) and np.array_equal(self.scale, other.scale)
        ):
            raise ProfileError("the joint columns differ: profiles add up only within one reference")
        return Joint(
            self.columns,
            self.center,
            self.scale,
            self.imputed + other.imputed,
            self.covariance + other.covariance,
            self.fourier + other.fourier,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Joint) and self.to_json() == other.to_json()

    def to_json(self) -> dict[str, Any]:
        upper = np.triu_indices(len(self.columns))
        return {
            "columns": list(self.columns),
            "center": packed(self.center),
            "scale": packed(self.scale),
            "imputed": self.imputed.tolist(),
            "count": self.covariance.count,
            "mean": packed(self.covariance.mean),
            "comoment": packed(self.covariance.comoment[upper]),
            "fourier": self.fourier.to_json(),
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> Joint:
        columns = tuple(str(name) for name in value["columns"])
        size = len(columns)
        center, scale, mean = (unpacked(value[name]) for name in ("center", "scale", "mean"))
        imputed, triangle = counts_of(value["imputed"]), unpacked(value["comoment"])
        fourier = FourierEmbedding.from_json(value["fourier"])
        sizes = {len(center), len(scale), len(mean), len(imputed), fourier.dimensions}
        if size > MAX_COLUMNS or sizes != {size} or len(triangle) != size * (size + 1) // 2:
            raise ProfileError(f"the joint part of {size} columns has arrays of other sizes")
        if not (scale > 0).all():
            raise ProfileError("the scales of the joint part are positive numbers")
        comoment = np.zeros((size, size))
        upper = np.triu_indices(size)
        comoment[upper] = triangle
        comoment.T[upper] = triangle
        return Joint(columns, center, scale, imputed, Covariance(count_of(value["count"]), mean, comoment), fourier)


def _standard(rows: Floats, center: Floats, scale: Floats) -> tuple[Floats, Counts]:
    with np.errstate(over="ignore", invalid="ignore"):
        standard = (rows - center) / scale
    wrong = ~np.isfinite(rows)
    standard[wrong] = 0.0
    np.clip(standard, -CLIP, CLIP, out=standard)
    return standard, wrong.sum(axis=0)
