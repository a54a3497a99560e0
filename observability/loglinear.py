"""The numeric column of a profile before there is a reference: counts over log-linear cells that need no layout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from observability.blocks import number_blocks
from observability.cells import Counts, Floats, ProfileError, counts_of, plain
from observability.moments import Moments
from observability.numeric import (
    COUNTERS,
    MOMENTS,
    NUM_BINS,
    Numbers,
    NumericColumn,
    closed_bin,
    merged_moments,
    scalars,
)

# Sign, exponent and the first seven bits of the fraction of a float64: the cells of a float32's upper half, unrounded.
_SHIFT = np.int64(45)
_MAGNITUDE = np.int64(0x7FFF_FFFF_FFFF_FFFF)
_CELLS_PER_OCTAVE = 128
# Parts wait in a list until so many are there; then they are merged into one.
_PARTS = 64

Cells = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class LogLinearColumn(Numbers):
    """Counts of a numeric column over cells that are fixed for all columns, kept where they are not zero.

    Cell c ≥ 0 holds the values whose float64 bits, shifted right by 45, are c: 128 cells to a factor of two, each
    0.4 to 0.8 % wide; cell −c − 1 holds their negatives. Any two such columns add up exactly, whoever counted them.
    A column whose values lie close together far from zero (times as numbers) fills few cells: it is `coarse`, and is
    told apart only by its moments. Give it the kind "datetime", or subtract what is common first.
    """

    cells: Cells
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
    def layout(values: pa.ChunkedArray | None = None) -> LogLinearColumn:
        """An empty column; its cells are the same for all values."""
        return LogLinearColumn(np.empty(0, np.int64), np.empty(0, np.int64))

    def __post_init__(self) -> None:
        self.cells.setflags(write=False)
        self.counts.setflags(write=False)

    @property
    def coarse(self) -> bool:
        """Whether a cell at the mean is wider than a quarter of a standard deviation, and the column not constant."""
        width = abs(self.mean) / _CELLS_PER_OCTAVE
        return bool(self.count and self.minimum < self.maximum and math.sqrt(self.variance) < 4.0 * width)

    def empty(self) -> LogLinearColumn:
        return LogLinearColumn.layout()

    def updated(self, values: pa.ChunkedArray | pa.Array) -> LogLinearColumn:
        """This column with `values` added. Raises pa.ArrowException if they are no numbers."""
        return self + _counted(values)

    def without_values(self, rows: int) -> LogLinearColumn:
        return self + LogLinearColumn(np.empty(0, np.int64), np.empty(0, np.int64), missing=rows)

    def __add__(self, other: LogLinearColumn) -> LogLinearColumn:
        """Both columns' rows."""
        cells, counts = _merged([(self.cells, self.counts), (other.cells, other.counts)])
        mean, m2 = merged_moments(self.count, self.mean, self.m2, other.count, other.mean, other.m2)
        return LogLinearColumn(
            cells,
            counts,
            **{name: getattr(self, name) + getattr(other, name) for name in COUNTERS},
            mean=mean,
            m2=m2,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogLinearColumn) and self.to_json() == other.to_json()

    def binned(self, num_bins: int = NUM_BINS) -> NumericColumn:
        """The same rows over bins of about equal shares, as a reference. Counts are exact: edges lie between cells."""
        if not self.count:
            return self._over(np.empty(0), np.zeros(1, np.int64))
        if self.minimum == self.maximum:
            return self._over(closed_bin(self.minimum), np.array([0, self.count, 0], np.int64))
        below = np.cumsum(self.counts)
        wanted = np.arange(1, num_bins) * (self.count / num_bins)
        # The edge behind the cell in which the share is reached opens the next one.
        places = np.unique(np.searchsorted(below, wanted))
        places = places[places < len(self.cells) - 1]
        inner = _lower(self.cells[places + 1])
        keep = (inner > self.minimum) & (inner <= self.maximum)
        edges = np.concatenate([[self.minimum], inner[keep], [self.maximum]])
        shares = np.diff(np.concatenate([[0], below[places[keep]], [self.count]]))
        if edges[-1] == edges[-2]:
            edges[-1] = math.nextafter(float(edges[-2]), math.inf)
        return self._over(edges, np.concatenate([[0], shares, [0]]).astype(np.int64))

    def rebinned(self, edges: Floats) -> NumericColumn:
        """The same rows over a reference's bins.

        A cell that an edge cuts goes whole to the bin that holds its middle, so each distribution function is off by
        at most `rebinning_error(edges)` at an edge.
        """
        if not len(edges):
            return self._over(edges, np.array([self.count], np.int64))
        low, high = _bounds(self.cells)
        with np.errstate(over="ignore"):
            middles = np.clip(low + (high - low) / 2.0, self.minimum, self.maximum)
        places = np.searchsorted(edges, middles, side="right")
        places[middles == edges[-1]] = len(edges) - 1
        counts = np.bincount(places, weights=None if not len(places) else self.counts, minlength=len(edges) + 1)
        return self._over(edges, counts.astype(np.int64))

    def rebinning_error(self, edges: Floats) -> float:
        """The largest share of values in one cell that an edge cuts: 0 means that `rebinned` is exact."""
        if not len(edges) or not self.count:
            return 0.0
        low, high = _bounds(self.cells)
        low, high = np.maximum(low, self.minimum), np.minimum(high, math.nextafter(self.maximum, math.inf))
        bounds = np.concatenate([edges[:-1], [math.nextafter(float(edges[-1]), math.inf)]])
        # The first bound above the cell's lowest value cuts it unless it lies behind the cell's highest.
        first = np.searchsorted(bounds, low, side="right")
        cut = (first < len(bounds)) & (bounds[np.minimum(first, len(bounds) - 1)] < high)
        return float(self.counts[cut].max(initial=0) / self.count)

    def _over(self, edges: Floats, counts: Counts) -> NumericColumn:
        return NumericColumn(edges, counts, **{name: getattr(self, name) for name in (*COUNTERS, *MOMENTS)})

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "cells": np.diff(self.cells, prepend=0).tolist(),
            "counts": self.counts.tolist(),
            **{name: getattr(self, name) for name in COUNTERS},
            **{name: plain(getattr(self, name)) for name in MOMENTS},
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> LogLinearColumn:
        steps, counts = np.array(value["cells"], np.int64), counts_of(value["counts"])
        if len(steps) != len(counts) or (steps[1:] <= 0).any():
            raise ProfileError("log-linear cells come in ascending order with one count each")
        return LogLinearColumn(np.cumsum(steps), counts, **scalars(value))


def _counted(values: pa.ChunkedArray | pa.Array) -> LogLinearColumn:
    totals, parts = Moments(), [(np.empty(0, np.int64), np.empty(0, np.int64))]
    counters = dict.fromkeys(COUNTERS, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        for block, valid in number_blocks(values):
            present = (block if valid is None else block[valid]).astype(np.float64, copy=False)
            finite = present[np.isfinite(present)]
            counters["missing"] += len(block) - len(present)
            if len(finite) < len(present):
                for name, kind in (("positive_infinite", np.inf), ("negative_infinite", -np.inf)):
                    counters[name] += int(np.count_nonzero(present == kind))
                counters["nan"] += int(np.count_nonzero(np.isnan(present)))
            if not len(finite):
                continue
            counters["zeros"] += int(np.count_nonzero(finite == 0.0))
            totals.minimum = min(totals.minimum, float(finite.min()))
            totals.maximum = max(totals.maximum, float(finite.max()))
            totals.add(finite)
            parts.append(np.unique(_cells_of(finite), return_counts=True))
            if len(parts) >= _PARTS:
                parts = [_merged(parts)]
    cells, counts = _merged(parts)
    found = {name: getattr(totals, name) for name in MOMENTS}
    return LogLinearColumn(cells, counts, **counters, **found)


def _cells_of(finite: Floats) -> Cells:
    # Adding zero turns −0.0 into 0.0.
    bits = (finite + 0.0).view(np.int64)
    cells = (bits & _MAGNITUDE) >> _SHIFT
    return np.where(bits < 0, -cells - 1, cells)


def _merged(parts: list[tuple[Cells, Counts]]) -> tuple[Cells, Counts]:
    cells = np.concatenate([part[0] for part in parts])
    counts = np.concatenate([part[1] for part in parts])
    if not len(cells):
        return cells, counts
    order = np.argsort(cells, kind="stable")
    cells, counts = cells[order], counts[order]
    starts = np.flatnonzero(np.diff(cells, prepend=cells[0] - 1))
    return cells[starts], np.add.reduceat(counts, starts)


def _lower(cells: Cells) -> Floats:
    """The smallest value of each cell."""
    positive = (np.maximum(cells, 0) << _SHIFT).view(np.float64)
    behind = (np.maximum(-cells, 0) << _SHIFT).view(np.float64)
    with np.errstate(over="ignore"):
        return np.where(cells >= 0, positive, np.nextafter(-behind, np.inf))


def _bounds(cells: Cells) -> tuple[Floats, Floats]:
    """The smallest value of each cell and the smallest above it."""
    return _lower(cells), _lower(cells + 1)
