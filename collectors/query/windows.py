"""Windows of samples: for every step, which rows of a matrix of samples lie in the range before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collectors.query.frame import Bools, Floats, Ints, LabelSets, joined
from collectors.store import Block, is_stale

_CHUNK_VALUES = 4_000_000
# Values that a function works on at a time: few enough to stay in the processor's cache.
_SLICE_VALUES = 200_000


@dataclass(frozen=True, slots=True)
class Samples:
    """Series that share their sample times: `t` int64 ms [n], `v` float64 [n, series]; no stale markers."""

    labels: LabelSets
    t: Ints
    v: Floats


@dataclass(frozen=True, slots=True)
class Windows:
    """Samples `t` [n] and `v` [n, series] with one window a step: rows `low` up to `high` for (start, end] in ms."""

    t: Ints
    v: Floats
    low: Ints
    high: Ints
    start: Ints
    end: Ints

    @property
    def shape(self) -> tuple[int, int]:
        """Steps and series: the shape of an answer."""
        return len(self.low), self.v.shape[1]

    @property
    def counts(self) -> Ints:
        """Samples in each window."""
        return self.high - self.low

    @property
    def first_rows(self) -> Ints:
        """The first row of each window; of an empty one, some row."""
        return np.minimum(self.low, len(self.t) - 1)

    @property
    def last_rows(self) -> Ints:
        """The last row of each window; of an empty one, some row."""
        return np.maximum(self.high - 1, 0)

    def slices(self) -> Iterator[tuple[slice, Windows]]:
        """The same windows over some series at a time."""
        width = max(1, _SLICE_VALUES // max(1, len(self.t), len(self.low)))
        if width >= self.v.shape[1]:
            yield slice(None), self
            return
        for begin in range(0, self.v.shape[1], width):
            columns = slice(begin, begin + width)
            v = np.ascontiguousarray(self.v[:, columns])
            yield columns, Windows(self.t, v, self.low, self.high, self.start, self.end)

    def reduce(self, ufunc: np.ufunc, values: Floats | None = None) -> Floats:
        """`ufunc` over the rows of each window: [steps, series]; of an empty window, some value.

        The pairs (low, high) go to `reduceat`, which folds from one index to the next; every second fold is a window.
        """
        source = self.v if values is None else values
        if len(self.low) == 1:
            first = int(self.first_rows[0])
            whole: Floats = ufunc.reduce(source[first : max(int(self.high[0]), first + 1)], axis=0)[None]
            return whole
        padded = np.concatenate([source, source[-1:]])
        pairs = np.stack([self.first_rows, np.maximum(self.high, self.first_rows)], axis=1).ravel()
        folded: Floats = ufunc.reduceat(padded, pairs, axis=0)[::2]
        return folded

    def extreme(self, ufunc: np.ufunc) -> Floats:
        """As `reduce`, for a ufunc that gives the same however often it sees a value, such as the maximum.

        Answers for spans of 1, 2, 4, … rows are made from those of half the length; a window is two such spans.
        """
        if len(self.low) == 1:
            return self.reduce(ufunc)
        result = np.empty(self.shape)
        first, last = self.first_rows, self.last_rows
        level = np.maximum(np.log2(np.maximum(last - first + 1, 1)).astype(np.int64), 0)
        spans, length = self.v, 1
        for exponent in range(int(level.max(initial=0)) + 1):
            here = np.flatnonzero(level == exponent)
            if len(here):
                result[here] = ufunc(spans[first[here]], spans[np.maximum(last[here] - length + 1, first[here])])
            if length < len(spans):
                spans = ufunc(spans[:-length], spans[length:])
            length *= 2
        return result

    def padded(self) -> Iterator[tuple[slice, Floats, Floats, Bools]]:
        """The windows as rectangles, some steps at a time.

        Each is (steps, v [s, width, series], t [s, width], inside [s, width]).
        """
        width = max(int(self.counts.max(initial=0)), 1)
        size = max(1, _CHUNK_VALUES // (width * max(1, self.v.shape[1])))
        offsets = np.arange(width)
        for begin in range(0, len(self.low), size):
            steps = slice(begin, begin + size)
            rows = self.low[steps, None] + offsets
            inside = rows < self.high[steps, None]
            rows = np.where(inside, rows, self.first_rows[steps, None])
            yield steps, self.v[rows], self.t[rows].astype(np.float64), inside


def from_blocks(blocks: list[Block]) -> list[Samples]:
    """Blocks without their stale markers; series whose markers differ no longer share their times."""
    found: list[Samples] = []
    for block in blocks:
        labels = joined([block.labels])
        # A stale marker is a NaN: where there is none, nothing else has to be looked at.
        present = ~is_stale(block.v) if np.isnan(block.v).any() else None
        found.extend(split_by_presence(labels, block.t, block.v, present))
    return found


def split_by_presence(labels: LabelSets, t: Ints, v: Floats, present: Bools | None) -> list[Samples]:
    """Samples where `present` [n, series] holds, grouped by equal times; series without any sample are left out."""
    if present is None or present.all():
        return [Samples(labels, t, v)] if labels and len(t) else []
    groups: dict[bytes, list[int]] = {}
    packed = np.packbits(present, axis=0).T
    for column, pattern in enumerate(np.ascontiguousarray(packed)):
        groups.setdefault(pattern.tobytes(), []).append(column)
    found = []
    for columns in groups.values():
        rows = np.flatnonzero(present[:, columns[0]])
        if len(rows):
            chosen = np.array(columns, dtype=np.int64)
            found.append(Samples(labels.rows(chosen), t[rows], v[np.ix_(rows, chosen)]))
    return found


def windows(samples: Samples, moments: NDArray[np.int64], range_ms: int, left_open: bool) -> Windows:
    """One window a moment: (moment - range, moment], or closed on the left as before Prometheus 3."""
    start = moments - range_ms
    low = np.searchsorted(samples.t, start, side="right" if left_open else "left")
    high = np.searchsorted(samples.t, moments, side="right")
    return Windows(samples.t, samples.v, low, high, start, moments)
