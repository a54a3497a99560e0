"""The histograms of the times between requests' moments, counted for thousands of requests at once.

The event loop does this, and what it takes is what requests wait: one compiled call counts them all; without a compiler
numpy does, in half a millisecond for 4,096.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
from prometheus_client import Histogram

from observability.metrics import bounds_of, observe_cells, observe_many
from observability.native import extension


@cache
def native() -> ModuleType | None:
    """The compiled `count`; None where there is no compiler."""
    return extension(
        Path(__file__).with_name("durations.c"), "-O3", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"
    )


class Durations:
    """`histograms` (children), each of the seconds between two of the `width` moments of a request."""

    def __init__(self, width: int, histograms: Sequence[tuple[Histogram, int, int]]) -> None:
        self._width = width
        self._histograms = [histogram for histogram, _, _ in histograms]
        self._spans = np.array([span for _, *span in histograms], np.int64)
        bounds = [bounds_of(histogram) for histogram in self._histograms]
        # Those with fewer bounds have the last, infinity, several times.
        self._bounds = np.full((len(bounds), max(map(len, bounds))), np.inf)
        for row, known in zip(self._bounds, bounds, strict=True):
            row[: len(known)] = known

    def observe(self, moments: array[float]) -> None:
        """Counts requests by their moments, seconds, request behind request."""
        library = native()
        if library is None:
            by_moment = np.ascontiguousarray(np.array(moments).reshape(-1, self._width).T)
            for histogram, (begun, ended) in zip(self._histograms, self._spans.tolist(), strict=True):
                observe_many(histogram, by_moment[ended] - by_moment[begun])
            return
        below, sums = np.zeros(self._bounds.shape, np.int64), np.zeros(len(self._histograms))
        library.count(moments, self._width, self._spans, self._bounds, below, sums)
        cells = np.diff(below, axis=1, prepend=0).tolist()
        for histogram, of_it, total in zip(self._histograms, cells, sums.tolist(), strict=True):
            observe_cells(histogram, of_it, total)
