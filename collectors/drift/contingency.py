"""Two samples over categories: Pearson's X² from fifty rows on, for two to a million categories."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from collectors.drift.bins import Counts, Floats
from collectors.drift.laws import chi2_isf, chi2_sf
from collectors.drift.null import TwoCells, effective_rows

# Cochran's (1954) rule: groups in which the smaller sample expects at least so many rows.
EXPECTED = 5.0
# Up to so many possible tables of two cells their law is summed, not approximated.
MOST_TABLES = 4096
# The share of the level that is spent on looking at each rare category by itself.
RARE_SHARE = 0.1
# A category that the reference lacks by chance has at most so many rows, but for this probability.
BY_CHANCE = 1e-3


@dataclass(frozen=True, slots=True)
class CategoriesTest:
    """What two samples over categories say: score, p-value, and the score that a p-value needs."""

    method: Literal["chi_square", "rare_category"]
    score: float
    """`√(X² / n_eff)`: Cohen's (1988) w between the window and the reference; 0.1 is small, 0.3 medium, 0.5 large."""
    p_value: float
    chance: float
    """The mean of score² when nothing changed."""
    effective: float
    groups: int
    correction: float
    share: float
    """The part of the level that this test was given: thresholds are at `level · share`."""
    exact: TwoCells | None = None
    unit: float = 1.0
    """Score of a difference of shares of one, where the law is of that difference."""

    def threshold(self, level: float) -> float:
        """The score from which the p-value is at most `level`."""
        if self.exact is not None:
            return self.exact.quantile(level * self.share) * self.unit
        if self.groups < 2:
            return math.inf
        quantile = float(chi2_isf(level * self.share, self.groups - 1))
        return math.sqrt(quantile * self.correction / self.effective)


def compare_categories(
    reference: Counts, window: Counts, unseen: int | None = None, *, look_at_rare: bool = True
) -> CategoriesTest:
    """The test of equal shares, given the pooled counts of each category (conditional on both margins).

    Categories are ordered by their pooled count, which says nothing about the difference, and neighbours are joined
    until the smaller sample expects five rows in each; a table of two is tested exactly, by mid-p. Categories too rare
    to stand alone are also looked at one by one, at a tenth of the level, so that a new one is not lost among others.

    `unseen` is the cell of everything outside the reference's list. The reference has none of it by construction, and a
    category of few rows may lack in it by chance: it is joined with the categories that are as rare in both together.
    """
    if unseen is not None:
        reference, window = _with_rare(reference, window, unseen)
    pooled = reference + window
    held = pooled > 0
    reference, window, pooled = reference[held], window[held], pooled[held]
    before, now = int(reference.sum()), int(window.sum())
    effective = effective_rows(now, before)
    if len(pooled) < 2 or not effective:
        return CategoriesTest("chi_square", 0.0, 1.0, 0.0, max(effective, 1.0), 1, 1.0, 1.0)
    order = np.argsort(-pooled, kind="stable")
    reference, window, pooled = reference[order], window[order], pooled[order]
    expected: Floats = np.asarray(pooled * (min(before, now) / (before + now)), np.float64)
    rare = expected < EXPECTED
    # Two cells are one question: looking at the rarer by itself would ask it again.
    num_rare = int(rare.sum()) if len(pooled) > 2 and look_at_rare else 0
    starts = _group_starts(expected, rare)
    main = _main(np.add.reduceat(reference, starts), np.add.reduceat(window, starts), 1 - RARE_SHARE * (num_rare > 0))
    return _rarest(reference, window, rare, main) if num_rare else main


def _main(reference: Counts, window: Counts, share: float) -> CategoriesTest:
    before, now = int(reference.sum()), int(window.sum())
    total, effective, groups = before + now, effective_rows(now, before), len(reference)
    pooled = (reference + window) / total
    difference = window / now - reference / before
    score = math.sqrt(float(np.sum(difference * difference / pooled)))
    chance = (groups - 1) / effective
    if groups == 2 and min(int(reference[1] + window[1]), before, now) < MOST_TABLES:
        successes = int(reference[1] + window[1])
        exact = TwoCells.of(successes, now, before)
        unit = 1 / math.sqrt(float(pooled[0] * pooled[1]))
        p_value = min(exact.pvalue(float(difference[1])) / share, 1.0)
        return CategoriesTest("chi_square", score, p_value, chance, effective, 2, 1.0, share, exact, unit)
    # The mean of X² given the margins is (groups − 1) · total / (total − 1).
    correction = total / (total - 1)
    p_value = min(float(chi2_sf(effective * score * score / correction, groups - 1)) / share, 1.0)
    return CategoriesTest("chi_square", score, p_value, chance, effective, groups, correction, share)


def _rarest(reference: Counts, window: Counts, rare: NDArray[np.bool_], main: CategoriesTest) -> CategoriesTest:
    """The rare category that stands out most, if that is more surprising than `main`."""
    before, now = int(reference.sum()), int(window.sum())
    pooled = (reference + window) / (before + now)
    difference = window / now - reference / before
    away = np.where(rare, difference * difference / pooled, -1.0)
    place = int(np.argmax(away))
    share = RARE_SHARE / int(rare.sum())
    exact = TwoCells.of(int(reference[place] + window[place]), now, before)
    p_value = min(exact.pvalue(float(difference[place])) / share, 1.0)
    if p_value >= main.p_value:
        return main
    unit = 1 / math.sqrt(float(pooled[place] * (1 - pooled[place])))
    score = abs(float(difference[place])) * unit
    return CategoriesTest(
        "rare_category", score, p_value, 1 / main.effective, main.effective, 2, 1.0, share, exact, unit
    )


def _group_starts(expected: Floats, rare: NDArray[np.bool_]) -> Counts:
    """Where groups of neighbours start, for `np.add.reduceat`; at least two groups."""
    common = int(np.argmax(rare)) if rare.any() else len(expected)
    filled = np.ceil(np.cumsum(expected[common:]) / EXPECTED - 1e-9)
    starts = common + np.flatnonzero(np.diff(filled, prepend=-1.0) > 0)
    groups = np.concatenate([np.arange(common), starts])
    # What is left over at the end joins its neighbour.
    if len(groups) > 1 and expected[groups[-1] :].sum() < EXPECTED / 2:
        groups = groups[:-1]
    return groups.astype(np.int64) if len(groups) > 1 else np.array([0, 1], np.int64)


def _with_rare(reference: Counts, window: Counts, unseen: int) -> tuple[Counts, Counts]:
    """Both counts with the unseen cell joined by every category that is so rare that the reference might lack it."""
    before, now = int(reference.sum()), int(window.sum())
    if not window[unseen] or not before or not now:
        return reference, window
    pooled = reference + window
    # A category of t rows lies wholly in the window with the probability (n / (n + N))^t.
    joined = (pooled > 0) & (pooled <= math.log(BY_CHANCE) / math.log(now / (now + before)))
    joined[unseen] = True
    return (
        np.append(reference[~joined], reference[joined].sum()),
        np.append(window[~joined], window[joined].sum()),
    )
