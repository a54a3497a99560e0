"""Two samples over categories: Pearson's X² from fifty rows on, for two to a million categories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from collectors.drift.bins import Counts, Floats
from collectors.drift.laws import chi2_isf, chi2_sf, normal_isf
from collectors.drift.null import TwoCells, effective_rows

# Cochran's (1954) rule: groups in which the smaller sample expects at least so many rows.
EXPECTED = 5.0
# Up to so many possible tables of two cells their law is summed, not approximated.
MOST_TABLES = 4096
MOST_KNOWN = 4096
# The share of the level that is spent on looking at each rare category by itself, and on all new ones together.
RARE_SHARE = 0.1
NEW_SHARE = 0.1
# A category that the reference lacks by chance has at most so many rows, but for this probability.
BY_CHANCE = 1e-3
# From this variance on a binomial law is taken for a normal one.
NEARLY_NORMAL = 25.0


@dataclass(frozen=True, slots=True)
class NewRows:
    """The law of how many rows of the window are of categories that the reference lacks; a bound from above.

    Given its pooled count t, a category lies wholly in the window with the probability q(t) = (n / (n + N))^t. Those
    that do not, which are listed, say how many do: t · q / (1 − q) rows for each (Horvitz and Thompson 1952), with a
    variance of t² · q / (1 − q)². What no listed category is evidence of has the probability (n / (n + N))^rows; both
    are joined as in Bernstein's inequality.
    """

    rows: int
    """Of the window."""
    expected: float
    variance: float
    unit: float
    """Rows that make it e times as improbable."""

    @staticmethod
    def of(listed: Counts, before: int, now: int) -> NewRows:
        """From the pooled counts of the categories that the reference has."""
        decay = math.log1p(before / now)
        absent = np.exp(-decay * listed[listed > 0])
        odds = absent / (1 - absent)
        sizes = listed[listed > 0].astype(np.float64)
        return NewRows(now, float(sizes @ odds), float(np.sum(sizes * sizes * odds * (1 + odds))), 1 / decay)

    def pvalue(self, difference: float) -> float:
        """At a share of new rows, in the window."""
        excess = abs(difference) * self.rows - self.expected
        if excess <= 0:
            return 1.0
        spread = 2 * self.variance
        root = 2 * excess / (math.sqrt(spread) + math.sqrt(spread + 4 * self.unit * excess))
        return math.exp(-root * root)

    def quantile(self, pvalue: float) -> float:
        """The share of new rows whose p-value is `pvalue`; infinity beyond all rows."""
        depth = -math.log(max(pvalue, 1e-300))
        share = (self.expected + math.sqrt(2 * depth * self.variance) + depth * self.unit) / self.rows
        return share if share <= 1 else math.inf


@dataclass(frozen=True, slots=True)
class CategoriesTest:
    """What two samples over categories say: score, p-value, and what the score that a p-value needs depends on."""

    method: Literal["chi_square", "rare_category", "new_categories"]
    score: float
    """`√(X² / n_eff)`: Cohen's (1988) w between the window and the reference; 0.1 is small, 0.3 medium, 0.5 large."""
    p_value: float
    effective: float
    groups: int
    share: float
    """The part of the level that this test was given: thresholds are at `level · share`."""
    correction: float = 1.0
    """The mean of X² given the margins is `(groups − 1) · correction`."""
    exact: TwoCells | NewRows | None = None
    unit: float = 1.0
    """Score of a difference of shares of one, where the law is of that difference."""
    place: int = -1
    """The cell that the test of a rare category is about."""

    @property
    def chance(self) -> float:
        """The mean of score² when nothing changed."""
        return (self.groups - 1) / self.effective

    @property
    def testable(self) -> bool:
        """Whether there are two groups to tell apart."""
        return self.groups > 1


def compare_categories(
    reference: Counts, window: Counts, rest: int | None = None, *, look_at_rare: bool = True
) -> CategoriesTest:
    """The test of equal shares, given the pooled counts of each category (conditional on both margins).

    Categories are ordered by their pooled count, which says nothing about the difference, and neighbours are joined
    until the smaller sample expects five rows in each; a table of two is tested exactly, by mid-p. Categories too rare
    to stand alone are also looked at one by one, at a tenth of the level, so that a new one is not lost among others.

    `rest` is the cell of everything outside the reference's list. Who is on the list was decided by the reference's own
    counts, so the cell is joined with the categories that are as rare in both together: chance may have left them out.
    Where all categories of the reference are listed, the rest is also tested for more new rows than those rare ones
    let expect, at a tenth of the level.
    """
    return compare_tables([(reference, window, rest)], look_at_rare=look_at_rare)[0]


def compare_tables(
    tables: Sequence[tuple[Counts, Counts, int | None]], *, look_at_rare: bool = True
) -> list[CategoriesTest]:
    """`compare_categories` of many columns at once."""
    grouped = [_Grouped.of(*table, look_at_rare=look_at_rare) for table in tables]
    tests = [one.main for one in grouped]
    asked = [row for row, test in enumerate(tests) if test.groups > 1 and test.exact is None]
    if asked:
        degrees = np.array([tests[row].groups - 1 for row in asked], float)
        squared = np.array([tests[row].effective * tests[row].score ** 2 / tests[row].correction for row in asked])
        for row, raw in zip(asked, chi2_sf(squared, degrees).tolist(), strict=True):
            tests[row] = replace(tests[row], p_value=min(raw / tests[row].share, 1.0))
    return [one.chosen(test) for one, test in zip(grouped, tests, strict=True)]


def needed_scores(tests: Sequence[CategoriesTest], level: float) -> Floats:
    """The score of each test from which its p-value is at most `level`; infinity where no table reaches it."""
    needed = np.full(len(tests), math.inf)
    asked = [row for row, test in enumerate(tests) if test.groups > 1 and test.exact is None]
    for row, test in enumerate(tests):
        if test.exact is not None:
            needed[row] = test.exact.quantile(level * test.share) * test.unit
    if asked:
        pairs = [(level * tests[row].share, tests[row].groups - 1) for row in asked]
        quantiles = _quantiles(set(pairs))
        for row, pair in zip(asked, pairs, strict=True):
            needed[row] = math.sqrt(quantiles[pair] * tests[row].correction / tests[row].effective)
    return needed


# Few different pairs of level and degrees occur in many columns, windows and parts of tables.
_KNOWN: dict[tuple[float, int], float] = {}


def _quantiles(pairs: set[tuple[float, int]]) -> dict[tuple[float, int], float]:
    """Chi-square's quantile of each pair of a level and degrees of freedom."""
    found = {pair: _KNOWN[pair] for pair in pairs if pair in _KNOWN}
    unknown = sorted(pairs - found.keys())
    if unknown:
        levels, degrees = np.array(unknown, float).T
        new = dict(zip(unknown, chi2_isf(levels, degrees).tolist(), strict=True))
        if len(_KNOWN) > MOST_KNOWN:
            _KNOWN.clear()
        _KNOWN.update(new)
        found |= new
    return found


@dataclass(frozen=True, slots=True)
class _Grouped:
    """A table in descending order of its pooled counts, its rare cells, and the test of its groups, p-value to come."""

    reference: Counts
    window: Counts
    places: Counts
    rare: NDArray[np.bool_]
    main: CategoriesTest
    new: CategoriesTest | None = None
    """The test of all new categories together, where the table has no other cell that tells them apart."""

    @staticmethod
    def of(reference: Counts, window: Counts, rest: int | None, *, look_at_rare: bool) -> _Grouped:
        places, new = np.arange(len(reference)), None
        if rest is not None:
            listed = reference, window
            reference, window, places = _with_rare(reference, window, rest)
            if len(reference) < len(listed[0]) and not listed[0][rest]:
                new = _new_categories(*listed, rest, 1.0 if len(reference) < 2 else NEW_SHARE)
        pooled = reference + window
        # Ties are broken by lot: cells often come in the order of the reference's counts, which is half the outcome.
        lot = np.random.default_rng(0).permutation(len(pooled))
        order = lot[np.argsort(-pooled[lot], kind="stable")]
        order = order[: int(np.count_nonzero(pooled))]
        reference, window, places, pooled = reference[order], window[order], places[order], pooled[order]
        before, now = int(reference.sum()), int(window.sum())
        none = np.zeros(len(pooled), np.bool_)
        if len(pooled) < 2 or not before or not now:
            effective = max(effective_rows(now, before), 1.0)
            return _Grouped(
                reference, window, places, none, new or CategoriesTest("chi_square", 0.0, 1.0, effective, 1, 1.0)
            )
        expected: Floats = np.asarray(pooled * (min(before, now) / (before + now)), np.float64)
        few = expected < EXPECTED
        starts = _group_starts(expected, few)
        # Two cells are one question: looking at the rarer by itself would ask it again.
        rare = few if look_at_rare and len(pooled) > 2 else none
        share = 1 - (RARE_SHARE if rare.any() else 0.0) - (NEW_SHARE if new else 0.0)
        main = _main(np.add.reduceat(reference, starts), np.add.reduceat(window, starts), share)
        return _Grouped(reference, window, places, rare, main, new)

    def chosen(self, main: CategoriesTest) -> CategoriesTest:
        """The most surprising of the tests of this table."""
        best = self.rarest(main) if self.rare.any() else main
        return self.new if self.new is not None and self.new.p_value < best.p_value else best

    def rarest(self, main: CategoriesTest) -> CategoriesTest:
        """The rare category that stands out most, if that is more surprising than `main`."""
        before, now = int(self.reference.sum()), int(self.window.sum())
        pooled = (self.reference + self.window) / (before + now)
        difference = self.window / now - self.reference / before
        away = np.where(self.rare, difference * difference / pooled, -1.0)
        place = int(np.argmax(away))
        share = RARE_SHARE / int(self.rare.sum())
        successes = int(self.reference[place] + self.window[place])
        # No table of so few rows is rarer than all of them on one side.
        if successes * math.log(min(now, before) / (now + before)) - math.log(share) > math.log(main.p_value or 1e-300):
            return main
        exact = TwoCells.of(successes, now, before)
        p_value = min(exact.pvalue(float(difference[place])) / share, 1.0)
        if p_value >= main.p_value:
            return main
        unit = 1 / math.sqrt(float(pooled[place] * (1 - pooled[place])))
        score = abs(float(difference[place])) * unit
        return CategoriesTest(
            "rare_category", score, p_value, main.effective, 2, share, 1.0, exact, unit, int(self.places[place])
        )


def _main(reference: Counts, window: Counts, share: float) -> CategoriesTest:
    before, now = int(reference.sum()), int(window.sum())
    total, effective, groups = before + now, effective_rows(now, before), len(reference)
    pooled = (reference + window) / total
    difference = window / now - reference / before
    score = math.sqrt(float(np.sum(difference * difference / pooled)))
    successes = int(reference[-1] + window[-1])
    if groups == 2 and min(successes, before, now) < MOST_TABLES:
        exact = TwoCells.of(successes, now, before)
        unit = 1 / math.sqrt(float(pooled[0] * pooled[1]))
        p_value = min(exact.pvalue(float(difference[1])) / share, 1.0)
        return CategoriesTest("chi_square", score, p_value, effective, 2, share, 1.0, exact, unit)
    return CategoriesTest("chi_square", score, 1.0, effective, groups, share, total / (total - 1))


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


def _new_categories(reference: Counts, window: Counts, rest: int, share: float) -> CategoriesTest:
    """The test of the `rest`, which the reference lacks, against all that it has."""
    before, now = int(reference.sum()), int(window.sum())
    law = NewRows.of(np.delete(reference + window, rest), before, now)
    difference = float(window[rest]) / now
    pooled = float(window[rest]) / (before + now)
    unit = 1 / math.sqrt(pooled * (1 - pooled))
    p_value = min(law.pvalue(difference) / share, 1.0)
    effective = effective_rows(now, before)
    return CategoriesTest("new_categories", difference * unit, p_value, effective, 2, share, 1.0, law, unit, rest)


def _with_rare(reference: Counts, window: Counts, rest: int) -> tuple[Counts, Counts, Counts]:
    """Counts with the `rest` joined by every category that by chance might not be listed; and the cells' places.

    A list was chosen by the reference's counts, so those that made it are too large there. Joined by pooled count, rest
    and list are told apart by what says nothing about the difference.
    """
    before, now = int(reference.sum()), int(window.sum())
    places = np.arange(len(reference))
    pooled = reference + window
    listed = np.delete(reference, rest)
    complete = not reference[rest]
    if not before or not now or (complete and not window[rest]) or not listed.any():
        return reference, window, places
    share = before / (before + now)
    if complete:
        # A category of t rows lies wholly in the window with the probability (n / (n + N))^t.
        most = math.log(BY_CHANCE) / math.log1p(-share)
    else:
        most = _most_unlisted(int(listed[listed > 0].min()), share)
    joined = (pooled > 0) & (pooled <= most)
    joined[rest] = True
    if not complete and joined[pooled > 0].all():
        # Nothing is left but list against rest: the list, which was chosen for its counts, at the least it can be.
        least_listed = int(np.maximum(listed - float(normal_isf(BY_CHANCE)) * np.sqrt(listed), 0.0).sum())
        if (now - int(window[rest])) * before < least_listed * now:
            ends = np.array([0, rest])
            counts = np.array([[least_listed, before - least_listed], [now - window[rest], window[rest]]], np.int64)
            return counts[0], counts[1], ends
    return (
        np.append(reference[~joined], reference[joined].sum()),
        np.append(window[~joined], window[joined].sum()),
        np.append(places[~joined], rest),
    )


def _most_unlisted(least: int, share: float) -> float:
    """The largest pooled count of a category that by chance has no more rows in the reference than `least`.

    Each row is of the reference with the probability `share`. Where that is nearly 1, as of a small window, the law is
    far from normal: of two rows both are, or else one is not.
    """
    spread = float(normal_isf(BY_CHANCE)) * math.sqrt(share * (1 - share))
    most = ((spread + math.sqrt(spread * spread + 4 * share * (least + 0.5))) / (2 * share)) ** 2
    if most * share * (1 - share) > NEARLY_NORMAL:
        return most
    low, high = least, least + 1
    while _at_most(least, high, share) > BY_CHANCE:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _at_most(least, middle, share) > BY_CHANCE else (low, middle)
    return low


def _at_most(successes: int, rows: int, share: float) -> float:
    """The probability that of so many rows at most `successes` are of a kind of which each is with `share`."""
    turned = rows - successes <= successes  # then it is 1 less the chance of that few others, which are fewer terms
    last, share = (rows - successes - 1, 1 - share) if turned else (successes, share)
    term = total = math.exp(rows * math.log1p(-share))
    for number in range(1, last + 1):
        term *= (rows - number + 1) / number * share / (1 - share)
        total += term
    return 1 - total if turned else total
