"""The histograms of the times between requests' moments, counted batch by batch and written for thousands at once.

The event loop does both, and what it takes is what requests wait: compiled code counts a batch's while they are still
at hand, in a microsecond or two, and what was counted is written a few times a second; without a compiler numpy counts
when it is written, in half a millisecond for 4,096.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from prometheus_client import Histogram

from observability.metrics import bounds_of, observe_cells, observe_many
from observability.native import extension


@cache
def native() -> ModuleType | None:
    """The compiled `Cells`; None where there is no compiler."""
    return extension(
        Path(__file__).with_name("durations.c"), "-O3", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"
    )


class Durations:
    """`histograms` (children), each of the seconds between two of the `width` moments of a request."""

    def __init__(self, width: int, histograms: Sequence[tuple[Histogram, int, int]]) -> None:
        self._width = width
        self._histograms = [histogram for histogram, _, _ in histograms]
        self._spans = np.array([span for _, *span in histograms], np.int64)
        # Requests that are not counted, only kept.
        self._kept = array("d")
        self._cells = self._compiled()
        # Takes requests in, by their moments as doubles, seconds, request behind request.
        self.add = self._kept.frombytes if self._cells is None else self._cells.add

    def _compiled(self) -> Any:
        library = native()
        if library is None:
            return None
        bounds = [bounds_of(histogram) for histogram in self._histograms]
        # Those with fewer bounds have the last, infinity, several times.
        alike = np.full((len(bounds), max(map(len, bounds))), np.inf)
        for row, known in zip(alike, bounds, strict=True):
            row[: len(known)] = known
        return library.Cells(self._width, self._spans, alike)

    def write(self) -> None:
        """Writes what was taken in since the last time."""
        if self._cells is not None:
            if self._cells.requests:
                for histogram, (cells, total) in zip(self._histograms, self._cells.take(), strict=True):
                    observe_cells(histogram, cells, total)
        elif self._kept:
            by_moment = np.ascontiguousarray(np.array(self._kept).reshape(-1, self._width).T)
            del self._kept[:]
            for histogram, (begun, ended) in zip(self._histograms, self._spans.tolist(), strict=True):
                observe_many(histogram, by_moment[ended] - by_moment[begun])
