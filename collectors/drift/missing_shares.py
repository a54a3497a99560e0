"""Whether the missing shares of many columns differ by more than chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from collectors.drift.bins import Counts, Floats
from collectors.drift.laws import normal_sf
from collectors.drift.null import FEW_ORDERED, TwoCells
from collectors.drift.thresholds import DriftThresholds

# An exact law is worth its sum only where the approximate p-value is below this.
WORTH_A_SUM = 0.3


class MissingTest:
    """The difference of the missing shares of all columns, from (columns, 2) missing rows and values of both sides."""

    def __init__(self, missing: Counts, values: Counts, between: Floats, min_rows: int) -> None:
        rows = missing + values
        total, pooled = rows.sum(axis=1), missing.sum(axis=1)
        self.shares = missing / np.maximum(rows, 1)
        self.differences = np.abs(self.shares[:, 1] - self.shares[:, 0])
        self.testable: NDArray[np.bool_] = (pooled > 0) & (pooled < total) & (rows.min(axis=1) >= min_rows)
        self.p_values: Floats = np.ones(len(missing))
        chosen = np.flatnonzero(self.testable)
        share = pooled[chosen] / total[chosen]
        deviation = np.sqrt(share * (1 - share) * (1 / rows[chosen]).sum(axis=1) + between[chosen])
        raw = 2 * normal_sf(self.differences[chosen] / deviation)
        expected = rows[chosen].min(axis=1) * np.minimum(share, 1 - share)
        for place in np.flatnonzero((expected < FEW_ORDERED) & (raw < WORTH_A_SUM)).tolist():
            row = chosen[place]
            law = TwoCells.of(int(pooled[row]), int(rows[row, 1]), int(rows[row, 0]))
            raw[place] = max(law.pvalue(float(self.differences[row])), raw[place] if between[row] else 0.0)
        self.p_values[chosen] = np.minimum(raw, 1.0)

    def changed(self, level: float, limits: DriftThresholds) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self.testable & (self.p_values <= level) & (self.differences >= limits.missing)
        return found
