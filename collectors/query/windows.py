"""Windows of samples: for every step, which rows of a matrix of samples lie in the range before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collectors.query.frame import Bools, Floats, Ints
from collectors.store import Block, Labels, is_stale

_CHUNK_VALUES = 4_000_000


@dataclass(frozen=True, slots=True)
class Samples:
    """Series that share their sample times: `t` int64 ms [n], `v` float64 [n, series]; no stale markers."""

    labels: list[Labels]
    t: Ints
    v: Floats


@dataclass(frozen=True, slots=True)
class Windows:
    """Samples with one window a step, all [steps]: rows `low` up to `high`, for the range (start, end] in ms."""

    samples: Samples
    low: Ints
    high: Ints
    start: Ints
    end: Ints

    @property
    def counts(self) -> Ints:
        """Samples in each window."""
        return self.high - self.low

    @property
    def first_rows(self) -> Ints:
        """The first row of each window; of an empty one, some row."""
        return np.minimum(self.low, len(self.samples.t) - 1)

    @property
    def last_rows(self) -> Ints:
        """The last row of each window; of an empty one, some row."""
        return np.maximum(self.high - 1, 0)

    def reduce(self, ufunc: np.ufunc, values: Floats | None = None) -> Floats:
        """`ufunc` over the rows of each window: [steps, series]; of an empty window, some value.

        The pairs (low, high) go to `reduceat`, which folds from one index to the next; every second fold is a window.
        """
        source = self.samples.v if values is None else values
        padded = np.concatenate([source, source[-1:]])
        pairs = np.stack([self.first_rows, np.maximum(self.high, self.first_rows)], axis=1).ravel()
        folded: Floats = ufunc.reduceat(padded, pairs, axis=0)[::2]
        return folded

    def padded(self) -> Iterator[tuple[slice, Floats, Floats, Bools]]:
        """The windows as rectangles, some steps at a time.

        Each is (steps, v [s, width, series], t [s, width], inside [s, width]).
        """
        width = max(int(self.counts.max(initial=0)), 1)
        size = max(1, _CHUNK_VALUES // (width * max(1, self.samples.v.shape[1])))
        offsets = np.arange(width)
        for begin in range(0, len(self.low), size):
            steps = slice(begin, begin + size)
            rows = self.low[steps, None] + offsets
            inside = rows < self.high[steps, None]
            rows = np.where(inside, rows, self.first_rows[steps, None])
            yield steps, self.samples.v[rows], self.samples.t[rows].astype(np.float64), inside


def from_blocks(blocks: list[Block]) -> list[Samples]:
    """Blocks without their stale markers; series whose markers differ no longer share their times."""
    found: list[Samples] = []
    for block in blocks:
        found.extend(split_by_presence(block.labels, block.t, block.v, ~is_stale(block.v)))
    return found


def split_by_presence(labels: list[Labels], t: Ints, v: Floats, present: Bools) -> list[Samples]:
    """Samples where `present` [n, series] holds, grouped by equal times; series without any sample are left out."""
    if present.all():
        return [Samples(labels, t, v)] if labels and len(t) else []
    groups: dict[bytes, list[int]] = {}
    for column in range(len(labels)):
        groups.setdefault(present[:, column].tobytes(), []).append(column)
    found = []
    for columns in groups.values():
        rows = np.flatnonzero(present[:, columns[0]])
        if len(rows):
            found.append(Samples([labels[c] for c in columns], t[rows], v[np.ix_(rows, np.array(columns))]))
    return found


def windows(samples: Samples, moments: NDArray[np.int64], range_ms: int, left_open: bool) -> Windows:
    """One window a moment: (moment - range, moment], or closed on the left as before Prometheus 3."""
    start = moments - range_ms
    low = np.searchsorted(samples.t, start, side="right" if left_open else "left")
    high = np.searchsorted(samples.t, moments, side="right")
    return Windows(samples, low, high, start, moments)
