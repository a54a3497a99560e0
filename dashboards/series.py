"""Labelled time series and the stretch of time that is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Series:
    """One labelled time series. `times` are unix seconds; a point that is missing is simply not there."""

    labels: Mapping[str, str]
    times: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]

    @property
    def finite(self) -> Series:
        """The points that have a value."""
        keep = np.isfinite(self.values)
        return Series(self.labels, self.times[keep], self.values[keep])

    @property
    def last(self) -> float | None:
        """The newest finite value."""
        finite = self.values[np.isfinite(self.values)]
        return float(finite[-1]) if len(finite) else None


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time to look at, on the grid of its step, so that a refresh does not make lines tremble."""

    start: float
    end: float
    step: float

    @classmethod
    def last(cls, duration: float, now: float, points: int = 180) -> Span:
        """The `duration` seconds before `now` in at most `points` steps of a round length."""
        step = next((s for s in _STEPS if duration / s <= points), _STEPS[-1])
        end = float(np.floor(now / step) * step)
        return cls(end - duration, end, step)

    def since_first(self, known: Iterable[Series], least: float = 60.0) -> Span:
        """This span without the stretch before the first point of the series; at least `least` seconds stay."""
        first = min((float(item.times[0]) for item in known if len(item.times)), default=self.start)
        start = min(first - self.step, self.end - least)
        if start <= self.start:
            return self
        shorter = Span.last(self.end - start, self.end)
        return Span(float(np.floor(start / shorter.step) * shorter.step), shorter.end, shorter.step)


_STEPS = (1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0, 21600.0, 86400.0)
