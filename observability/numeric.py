"""The numeric column of a profile: counts over the reference's quantile bins, and moments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from observability.blocks import finite_numbers, number_blocks
from observability.cells import Counts, Floats, Kind, ProfileError, count_of, counts_of, packed, plain, unpacked
from observability.native_tally import NativeTally, tally_over
from observability.tally import Tally

NUM_BINS = 128
COUNTERS = ("missing", "nan", "positive_infinite", "negative_infinite", "zeros")
MOMENTS = ("mean", "m2", "minimum", "maximum")


class Numbers:
    """What numbers have, over whatever cells they are counted."""

    __slots__ = ()

    counts: Counts
    missing: int
    nan: int
    positive_infinite: int
    negative_infinite: int
    m2: float

    @property
    def kind(self) -> Kind:
        return "numeric"

    @property
    def count(self) -> int:
        """Finite values: those in the cells and the moments."""
        return int(self.counts.sum())

    @property
    def rows(self) -> int:
        """All rows: finite, missing, NaN and infinite."""
        return self.count + self.missing + self.nan + self.positive_infinite + self.negative_infinite

    @property
    def variance(self) -> float:
        """Population variance of the finite values; NaN without any."""
        return self.m2 / self.count if self.count else math.nan


@dataclass(frozen=True, slots=True, eq=False)
class NumericColumn(Numbers):
    """Counts of a numeric column over its reference's quantile bins, with open tails, and its moments.

    `counts` has one cell more than `edges` (ascending): below the first edge (smaller than anything in the
    reference), between each two, and above the last (larger than anything in it). A value on an edge belongs to
    the bin that it opens, the reference's maximum to the last closed one. Values are counted as float64: integers
    beyond 2**53 and decimals as the nearest one.
    """

    edges: Floats
    counts: Counts
    missing: int = 0
    nan: int = 0
    positive_infinite: int = 0
    negative_infinite: int = 0
    zeros: int = 0
    mean: float = 0.0
    m2: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf

    @staticmethod
    def layout(values: pa.ChunkedArray, num_bins: int = NUM_BINS) -> NumericColumn:
        """An empty column whose bins hold equal shares of `values`; repeated quantiles collapse."""
        return NumericColumn.over(quantile_edges(finite_numbers(values), num_bins))

    @staticmethod
    def over(edges: Floats) -> NumericColumn:
        """An empty column over the bins between `edges`."""
        return NumericColumn(edges, np.zeros(len(edges) + 1, np.int64))

    def __post_init__(self) -> None:
        self.edges.setflags(write=False)
        self.counts.setflags(write=False)

    @property
    def out_of_range(self) -> int:
        """Values outside the reference's range: the two tails and the infinities."""
        tails = int(self.counts[0] + self.counts[-1]) if len(self.edges) else 0
        return tails + self.positive_infinite + self.negative_infinite

    def empty(self) -> NumericColumn:
        return NumericColumn.over(self.edges)

    def updated(self, values: pa.ChunkedArray | pa.Array) -> NumericColumn:
        """This column with `values` added, read where they lie. Raises pa.ArrowException if they are no numbers."""
        tally = tally_over(self.edges)
        tally.add_all(number_blocks(values))
        return self.tallied(tally)

    def without_values(self, rows: int) -> NumericColumn:
        missing = NumericColumn(self.edges, np.zeros_like(self.counts), missing=rows)
        return self + missing

    def tallied(self, tally: Tally | NativeTally) -> NumericColumn:
        """This column with what a tally over its edges has counted added."""
        found = tally.moments
        mean, m2 = merged_moments(self.count, self.mean, self.m2, found.count, found.mean, found.m2)
        return NumericColumn(
            edges=self.edges,
            counts=self.counts + tally.counts(),
            missing=self.missing + tally.missing,
            nan=self.nan + tally.nan,
            positive_infinite=self.positive_infinite + tally.positive_infinite,
            negative_infinite=self.negative_infinite + tally.negative_infinite,
            zeros=self.zeros + tally.zeros,
            mean=mean,
            m2=m2,
            minimum=min(self.minimum, found.minimum),
            maximum=max(self.maximum, found.maximum),
        )

    def __add__(self, other: NumericColumn) -> NumericColumn:
        """Both columns' rows."""
        if self.edges is not other.edges and not np.array_equal(self.edges, other.edges):
            raise ProfileError("the bins differ: profiles add up only within one reference")
        mean, m2 = merged_moments(self.count, self.mean, self.m2, other.count, other.mean, other.m2)
        return NumericColumn(
            edges=self.edges,
            counts=self.counts + other.counts,
            missing=self.missing + other.missing,
            nan=self.nan + other.nan,
            positive_infinite=self.positive_infinite + other.positive_infinite,
            negative_infinite=self.negative_infinite + other.negative_infinite,
            zeros=self.zeros + other.zeros,
            mean=mean,
            m2=m2,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NumericColumn) and self.to_json() == other.to_json()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "edges": packed(self.edges),
            "counts": self.counts.tolist(),
            **{name: getattr(self, name) for name in COUNTERS},
            **{name: plain(getattr(self, name)) for name in MOMENTS},
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> NumericColumn:
        edges, counts = unpacked(value["edges"]), counts_of(value["counts"])
        if len(counts) != len(edges) + 1:
            raise ProfileError(f"{len(edges)} edges need {len(edges) + 1} counts, there are {len(counts)}")
        if not (np.isfinite(edges).all() and (edges[1:] > edges[:-1]).all()):
            raise ProfileError("edges are finite numbers in ascending order")
        return NumericColumn(edges, counts, **_ranged(scalars(value), int(counts.sum())))


def scalars(value: dict[str, Any]) -> dict[str, Any]:
    """The counters and moments of a numeric column from its JSON. ProfileError where one is malformed."""
    found: dict[str, Any] = {name: count_of(value[name]) for name in COUNTERS}
    for name in MOMENTS:
        number = value[name]
        if isinstance(number, bool) or not isinstance(number, int | float | str) or math.isnan(float(number)):
            raise ProfileError(f"{name} is a number, not {number!r}")
        found[name] = float(number)
    if found["m2"] < 0:
        raise ProfileError(f"m2 is a sum of squares, not {found['m2']}")
    return found


def _ranged(found: dict[str, Any], count: int) -> dict[str, Any]:
    """The same. ProfileError where values have no range."""
    if count and not found["minimum"] <= found["maximum"]:
        raise ProfileError(f"the minimum {found['minimum']} is above the maximum {found['maximum']}")
    return found


def quantile_edges(finite: Floats, num_bins: int = NUM_BINS) -> Floats:
    """Ascending edges of bins that hold equal shares of `finite` (sorted in place); repeated quantiles collapse."""
    finite.sort()
    return edges_of_sorted(finite, num_bins)


def edges_of_sorted(ascending: Floats, num_bins: int = NUM_BINS) -> Floats:
    """The same of values that are in order.

    The edges are values that occur, so that a count of equal values never straddles an interpolated edge. The first is
    the minimum, the last the maximum; of few values the greatest is a cell of its own, closed by the next number above:
    in one cell with the value below it, a change between the two would not show.
    """
    if not len(ascending):
        return np.empty(0)
    places = np.arange(num_bins + 1) * (len(ascending) - 1) // num_bins
    edges = np.unique(ascending[places]) + 0.0
    if len(edges) == 1:
        # A constant column still needs a closed bin, or its own value would lie in a tail.
        return closed_bin(float(edges[0]))
    top = math.nextafter(float(edges[-1]), math.inf)
    return np.append(edges, top) if len(edges) <= num_bins and math.isfinite(top) else edges


def closed_bin(value: float) -> Floats:
    """The edges of the narrowest bin that holds `value`."""
    above = math.nextafter(value, math.inf)
    return np.array([value, above] if math.isfinite(above) else [math.nextafter(value, -math.inf), value])


def merged_moments(
    count: int, mean: float, m2: float, other_count: int, other_mean: float, other_m2: float
) -> tuple[float, float]:
    """Mean and squared deviations of two groups. Chan, Golub and LeVeque 1979, "Updating formulae", equation 2.1."""
    # A side without values has no mean: the other's stays as it is, to the bit.
    if not other_count:
        return mean, m2
    if not count:
        return other_mean, other_m2
    share = other_count / (count + other_count)
    delta = other_mean - mean
    return mean * (1.0 - share) + other_mean * share, m2 + other_m2 + delta * delta * count * share
