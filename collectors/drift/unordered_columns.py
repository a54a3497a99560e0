"""The calibrated scores of columns without an order: categories by Cohen's w, mean embeddings by their distance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from collectors.drift.asked import Asked, Method
from collectors.drift.bins import Floats
from collectors.drift.contingency import CategoriesTest, compare_tables, needed_scores
from collectors.drift.laws import normal_isf, normal_sf
from collectors.drift.null import effective_rows
from collectors.drift.thresholds import DriftThresholds


class UnorderedTest:
    """The scores of columns without an order."""

    def __init__(self, asked: Sequence[Asked], min_rows: int) -> None:
        self.asked = asked
        self.places = np.array([one.place for one in asked], np.int64)
        self.parts = np.array([one.part for one in asked], np.int64)
        self._tests = compare_tables([(one.cells.reference, one.cells.window, one.cells.rest) for one in asked])
        self.before = np.array([one.cells.reference.sum() for one in asked], np.int64)
        self.now = np.array([one.cells.window.sum() for one in asked], np.int64)
        self.scores = np.array([test.score for test in self._tests])
        testable = np.array([test.testable for test in self._tests], np.bool_)
        self.testable = testable & (np.minimum(self.before, self.now) >= min_rows)
        found = [_category(test, one) for test, one in zip(self._tests, asked, strict=True)]
        self.chance = np.array([chance for chance, _ in found])
        # Of a column that is several, each has a part of the level.
        self._share = np.array([one.share for one in asked])
        raw = np.array([p for _, p in found])
        self.p_values: Floats = np.where(self.testable, np.minimum(raw / self._share, 1.0), 1.0)

    def thresholds(self, level: float, limits: DriftThresholds) -> Floats:
        needed = np.empty(len(self._tests))
        for share in np.unique(self._share):
            chosen = np.flatnonzero(self._share == share)
            needed[chosen] = needed_scores([self._tests[place] for place in chosen.tolist()], level * float(share))
        for place, (test, one) in enumerate(zip(self._tests, self.asked, strict=True)):
            if one.between.mean:
                sampling = 2 * test.chance / test.effective
                squared = one.between.quantile(level * one.share * test.share, test.chance, sampling)
                needed[place] = max(needed[place], math.sqrt(squared))
        smallest = np.sqrt(limits.association**2 + self.chance)
        return np.where(self.testable, np.maximum(needed, smallest), np.inf)

    def method(self, row: int) -> Method:
        return self._tests[row].method

    def part(self, row: int) -> str | None:
        return self.asked[row].cells.part

    def several(self, row: int) -> bool:
        """Whether rows lie in several cells, though none can be told from the others: a list too short for its tail."""
        cells = self.asked[row].cells
        return cells.rest is not None and bool(np.count_nonzero(cells.reference + cells.window) > 1)


def _category(test: CategoriesTest, one: Asked) -> tuple[float, float]:
    """Mean of score² when nothing changed, and the p-value, between blocks and all."""
    if not one.between.mean:
        return test.chance, test.p_value
    sampling = 2 * test.chance / test.effective
    seasonal = min(one.between.pvalue(test.score**2, test.chance, sampling) / test.share, 1.0)
    return test.chance + one.between.mean, max(test.p_value, seasonal)


class EmbeddedTest:
    """The distances of mean embeddings: maximum mean discrepancy (Gretton et al. 2012) of many columns.

    `n_eff · MMD²` is a weighted sum of chi-squares whose weights sum to the kernel's variance, which is known; how they
    are spread is not. All of it in one of them has the heaviest tail: the p-value is too large, never too small.
    """

    def __init__(self, asked: Sequence[Asked], min_rows: int) -> None:
        self.asked = asked
        self.places = np.array([one.place for one in asked], np.int64)
        self.parts = np.array([one.part for one in asked], np.int64)
        self.before = np.array([one.cells.reference.sum() for one in asked], np.int64)
        self.now = np.array([one.cells.window.sum() for one in asked], np.int64)
        squared = np.array([one.cells.discrepancy for one in asked], np.float64)
        self.scores: Floats = np.sqrt(squared)
        self._spread = np.array([one.cells.spread for one in asked], np.float64)
        self._share = np.array([one.share for one in asked], np.float64)
        effective = np.array([effective_rows(n, m) for n, m in zip(self.now, self.before, strict=True)], np.float64)
        self.testable = (self._spread > 0) & (np.minimum(self.before, self.now) >= min_rows)
        self.chance: Floats = self._spread / np.maximum(effective, 1.0)
        raw = 2 * normal_sf(self.scores / np.sqrt(np.where(self.testable, self.chance, 1.0)))
        self.p_values: Floats = np.where(self.testable, np.minimum(raw / self._share, 1.0), 1.0)

    def thresholds(self, level: float, limits: DriftThresholds) -> Floats:
        needed = normal_isf(level * self._share / 2) * np.sqrt(self.chance)
        smallest = np.sqrt(limits.association**2 + self.chance)
        return np.where(self.testable, np.maximum(needed, smallest), np.inf)

    def method(self, row: int) -> Method:
        return "mmd"

    def part(self, row: int) -> str | None:
        return self.asked[row].cells.part

    def several(self, row: int) -> bool:
        return False
