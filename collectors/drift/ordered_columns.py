"""The calibrated scores of ordered columns that have one number of cells, all at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from collectors.drift.asked import Asked, Method
from collectors.drift.bins import Counts, Floats
from collectors.drift.calibration import Between
from collectors.drift.null import TwoCells, is_sparse, ordered_test
from collectors.drift.thresholds import DriftThresholds


class OrderedTest:
    """The scores of `(columns, cells)` counts of both sides, for the columns at `places`."""

    def __init__(
        self,
        places: Counts,
        reference: Counts,
        window: Counts,
        min_rows: int,
        *,
        shares: Floats | None = None,
        between: Sequence[tuple[int, Between]] = (),
        parts: Counts | None = None,
        names: Sequence[str | None] | None = None,
    ) -> None:
        self.places = places
        self.parts = np.zeros(len(places), np.int64) if parts is None else parts
        self.before, self.now = reference.sum(axis=1), window.sum(axis=1)
        self.scores, self._law = ordered_test(reference, window)
        total = np.maximum(self.before + self.now, 1)
        self._effective = np.maximum(self.before / total * self.now, 1e-9)
        self._share = np.ones(len(places)) if shares is None else shares
        self._names = names
        self.testable = (self._law.first > 0) & (np.minimum(self.before, self.now) >= min_rows)
        self.chance = self._law.first / self._effective
        self._sampling = 2 * self._law.second / self._effective**2
        raw = self._law.pvalue(self._effective * self.scores**2)
        self._exact: dict[int, tuple[TwoCells, float]] = {}
        for place in np.flatnonzero(is_sparse(reference, window) & self.testable).tolist():
            raw[place] = self._summed(place, reference[place], window[place])
        self._between = between
        for place, one in between:
            seasonal = one.pvalue(
                float(self.scores[place]) ** 2, float(self.chance[place]), float(self._sampling[place])
            )
            raw[place] = max(raw[place], seasonal)
            self.chance[place] += one.mean
        self.p_values: Floats = np.where(self.testable, np.minimum(raw / self._share, 1.0), 1.0)

    @staticmethod
    def of_cells(asked: Sequence[Asked], min_rows: int) -> OrderedTest:
        """Of distributions that have one number of cells, at least one."""
        return OrderedTest(
            np.array([one.place for one in asked]),
            np.concatenate([one.cells.reference for one in asked]).reshape(len(asked), -1),
            np.concatenate([one.cells.window for one in asked]).reshape(len(asked), -1),
            min_rows,
            shares=np.array([one.share for one in asked]),
            between=[(place, one.between) for place, one in enumerate(asked) if one.between.mean],
            parts=np.array([one.part for one in asked]),
            names=[one.cells.part for one in asked],
        )

    def _summed(self, place: int, reference: Counts, window: Counts) -> float:
        """The exact p-value of the largest cell against the rest; the threshold scales with the score."""
        largest = int(np.argmax(reference + window))
        before, now = int(self.before[place]), int(self.now[place])
        difference = abs(float(window[largest] / now - reference[largest] / before))
        law = TwoCells.of(int(before + now - reference[largest] - window[largest]), now, before)
        unit = float(self.scores[place]) / difference if difference else math.sqrt(0.5)
        self._exact[place] = (law, unit)
        return law.pvalue(difference)

    def thresholds(self, level: float, limits: DriftThresholds) -> Floats:
        needed = np.empty(len(self.places))
        for share in np.unique(self._share):
            chosen = self._share == share
            needed[chosen] = np.sqrt(self._law[chosen].quantile(level * share) / self._effective[chosen])
        for place, (law, unit) in self._exact.items():
            needed[place] = law.quantile(level * self._share[place]) * unit
        for place, between in self._between:
            chance = float(self.chance[place]) - between.mean
            squared = between.quantile(level * self._share[place], chance, float(self._sampling[place]))
            needed[place] = max(needed[place], math.sqrt(squared))
        smallest = np.sqrt(limits.distance**2 + self.chance)
        return np.where(self.testable, np.maximum(needed, smallest), np.inf)

    def method(self, row: int) -> Method:
        return "cdf_distance"

    def part(self, row: int) -> str | None:
        return None if self._names is None else self._names[row]

    def several(self, row: int) -> bool:
        return False
