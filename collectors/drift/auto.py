"""The `auto` verdicts on the columns of one table: more than chance, large enough to matter, few of them false.

Ordered columns are scored by the root-mean-square difference of the distribution functions (`null.ordered_test`),
unordered ones by Cohen's w (`contingency.compare_categories`), and each column's missing share is a check of its own.
All checks of a table go through Benjamini–Hochberg together. A column's threshold is the larger of two scores: the one
that its p-value must have, and the one at which the score less chance is the smallest effect that matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from collectors.drift.bins import Counts, Floats
from collectors.drift.calibration import Between, Calibration
from collectors.drift.cells import Cells, cells_of
from collectors.drift.contingency import CategoriesTest, compare_tables, needed_scores
from collectors.drift.fdr import cut
from collectors.drift.laws import normal_isf, normal_sf
from collectors.drift.null import FEW_ORDERED, TwoCells, effective_rows, is_sparse, ordered_test
from collectors.drift.thresholds import DriftThresholds
from observability.profile import Profile

Method = Literal["cdf_distance", "chi_square", "rare_category", "new_categories", "mmd", "missing"]
Reason = Literal[
    "drifted",
    "missing_changed",
    "within_threshold",
    "constant",
    "too_few_rows",
    "no_values",
    "no_reference_values",
    "new_column",
    "gone_column",
]

# With fewer values on a side no verdict is given.
MIN_ROWS = 10
# An exact law is worth its sum only where the approximate p-value is below this.
WORTH_A_SUM = 0.3


@dataclass(frozen=True, slots=True)
class AutoVerdict:
    """What was found in one column. `drifted` is `score >= threshold or missing_changed`."""

    column: str
    method: Method
    score: float
    threshold: float
    """Infinity where no score would do: too few rows, or nothing that could vary."""
    p_value: float
    effect: float
    """The score beyond what chance explains: `√(score² − its mean under no change)`."""
    reference_missing: float
    window_missing: float
    missing_p_value: float
    missing_changed: bool
    drifted: bool
    reason: Reason
    part: str | None = None
    """Of a column of several parts (text, embedding): the one that moved most."""
    reference_values: int = 0
    window_values: int = 0


def auto_verdicts(
    reference: Profile,
    current: Profile,
    thresholds: DriftThresholds | None = None,
    calibration: Calibration | None = None,
    *,
    min_rows: int = MIN_ROWS,
) -> dict[str, AutoVerdict]:
    """The verdict on every column of either profile; both are of one layout.

    A column that only one side has is drift by itself, with the reason `new_column` or `gone_column`.
    """
    shared = {
        name: cells_of(column, current.columns[name])
        for name, column in reference.columns.items()
        if name in current.columns
    }
    found = judge_cells(shared, thresholds, calibration, min_rows=min_rows)
    gone = {name: _one_sided(name, "gone_column") for name in reference.columns if name not in current.columns}
    new = {name: _one_sided(name, "new_column") for name in current.columns if name not in reference.columns}
    return {**{name: found.get(name) or gone[name] for name in reference.columns}, **new}


def judge_cells(
    columns: Mapping[str, Sequence[Cells]],
    thresholds: DriftThresholds | None = None,
    calibration: Calibration | None = None,
    *,
    min_rows: int = MIN_ROWS,
) -> dict[str, AutoVerdict]:
    """The verdicts on columns given as counts over cells, one item a column or one a part of it."""
    limits = thresholds or DriftThresholds()
    known = calibration.columns if calibration else {}
    asked: list[_Asked] = []
    for name, parts in columns.items():
        share, between = 1 / len(parts), known.get(name, NONE)
        asked += [_Asked(name, cells, share, between) for cells in parts]
    tables = [_Ordered(group, min_rows) for group in _of_equal_length([one for one in asked if one.cells.ordered])]
    unordered = [one for one in asked if not one.cells.ordered]
    tested: list[_Test] = [
        *tables,
        _Unordered([one for one in unordered if one.cells.discrepancy is None], min_rows),
        _Embedded([one for one in unordered if one.cells.discrepancy is not None], min_rows),
    ]
    missing = _Missing({name: parts[0] for name, parts in columns.items()}, known, min_rows)
    best = _best(tested)
    pvalues = [test.p_values[place] for test, place in best.values() if test.testable[place]]
    level = cut(np.concatenate([np.array(pvalues), missing.p_values[missing.testable]]), limits.alpha)
    rows = {name: row for test in tested for name, row in _rows(test, level, limits, best).items()}
    changed = missing.changed(level, limits)
    shares, chances = missing.shares.tolist(), missing.p_values.tolist()
    verdicts = {}
    for place, name in enumerate(columns):
        method, score, threshold, p_value, chance, before, now, testable, part = rows[name]
        drifted = score >= threshold
        verdicts[name] = AutoVerdict(
            name,
            method,
            score,
            threshold,
            p_value,
            math.sqrt(max(score * score - chance, 0.0)),
            shares[place][0],
            shares[place][1],
            chances[place],
            changed[place],
            drifted or changed[place],
            _reason(before, now, drifted, changed[place], testable, _several(columns[name][0]), min_rows),
            part,
            before,
            now,
        )
    return verdicts


_Row = tuple[Method, float, float, float, float, int, int, bool, str | None]


def _rows(
    test: _Test, level: float, limits: DriftThresholds, best: Mapping[str, tuple[object, int]]
) -> dict[str, _Row]:
    """Method, score, threshold, p-value, chance, rows before and now, testable and part of the columns decided here."""
    lists = (
        test.methods(),
        test.scores.tolist(),
        test.thresholds(level, limits).tolist(),
        test.p_values.tolist(),
        test.chance.tolist(),
        test.before.tolist(),
        test.now.tolist(),
        test.testable.tolist(),
        [one.cells.part for one in test.asked],
    )
    rows: dict[str, _Row] = {}
    for place, (one, *row) in enumerate(zip(test.asked, *lists, strict=True)):
        if best[one.column] == (test, place):
            rows[one.column] = tuple(row)
    return rows


NONE = Between()


@dataclass(frozen=True, slots=True)
class _Asked:
    """One distribution to be judged, and the share of the level that it has."""

    column: str
    cells: Cells
    share: float
    between: Between


class _Ordered:
    """The scores of ordered columns with one number of cells, all at once."""

    def __init__(self, asked: Sequence[_Asked], min_rows: int) -> None:
        self.asked = asked
        reference = np.concatenate([one.cells.reference for one in asked]).reshape(len(asked), -1)
        window = np.concatenate([one.cells.window for one in asked]).reshape(len(asked), -1)
        self.before, self.now = reference.sum(axis=1), window.sum(axis=1)
        self.scores, self._law = ordered_test(reference, window)
        total = np.maximum(self.before + self.now, 1)
        self._effective = np.maximum(self.before / total * self.now, 1e-9)
        self._share = np.array([one.share for one in asked])
        self.testable = (self._law.first > 0) & (np.minimum(self.before, self.now) >= min_rows)
        self.chance = self._law.first / self._effective
        self._sampling = 2 * self._law.second / self._effective**2
        raw = self._law.pvalue(self._effective * self.scores**2)
        self._exact: dict[int, tuple[TwoCells, float]] = {}
        for place in np.flatnonzero(is_sparse(reference, window) & self.testable).tolist():
            raw[place] = self._summed(place, reference[place], window[place])
        self._between = [(place, one.between) for place, one in enumerate(asked) if one.between.mean]
        for place, between in self._between:
            seasonal = between.pvalue(
                float(self.scores[place]) ** 2, float(self.chance[place]), float(self._sampling[place])
            )
            raw[place] = max(raw[place], seasonal)
            self.chance[place] += between.mean
        self.p_values: Floats = np.where(self.testable, np.minimum(raw / self._share, 1.0), 1.0)

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
        needed = np.empty(len(self.asked))
        for share in np.unique(self._share):
            chosen = self._share == share
            needed[chosen] = np.sqrt(self._law.quantile(level * share) / self._effective)[chosen]
        for place, (law, unit) in self._exact.items():
            needed[place] = law.quantile(level * self._share[place]) * unit
        for place, between in self._between:
            chance = float(self.chance[place]) - between.mean
            squared = between.quantile(level * self._share[place], chance, float(self._sampling[place]))
            needed[place] = max(needed[place], math.sqrt(squared))
        smallest = np.sqrt(limits.distance**2 + self.chance)
        return np.where(self.testable, np.maximum(needed, smallest), np.inf)

    def methods(self) -> list[Method]:
        return ["cdf_distance"] * len(self.asked)


class _Unordered:
    """The scores of columns without an order."""

    def __init__(self, asked: Sequence[_Asked], min_rows: int) -> None:
        self.asked = asked
        self._tests = compare_tables([(one.cells.reference, one.cells.window, one.cells.rest) for one in asked])
        self.before = np.array([one.cells.reference.sum() for one in asked], np.int64)
        self.now = np.array([one.cells.window.sum() for one in asked], np.int64)
        self.scores = np.array([test.score for test in self._tests])
        testable = np.array([test.testable for test in self._tests], np.bool_)
        self.testable = testable & (np.minimum(self.before, self.now) >= min_rows)
        found = [_category(test, one) for test, one in zip(self._tests, asked, strict=True)]
        self.chance = np.array([chance for chance, _ in found])
        self.p_values: Floats = np.where(self.testable, np.array([p for _, p in found]), 1.0)

    def thresholds(self, level: float, limits: DriftThresholds) -> Floats:
        # Unordered columns have one part, so that all have the whole level.
        needed = needed_scores(self._tests, level)
        for place, (test, one) in enumerate(zip(self._tests, self.asked, strict=True)):
            if one.between.mean:
                sampling = 2 * test.chance / test.effective
                squared = one.between.quantile(level * test.share, test.chance, sampling)
                needed[place] = max(needed[place], math.sqrt(squared))
        smallest = np.sqrt(limits.association**2 + self.chance)
        return np.where(self.testable, np.maximum(needed, smallest), np.inf)

    def methods(self) -> list[Method]:
        return [test.method for test in self._tests]


def _category(test: CategoriesTest, one: _Asked) -> tuple[float, float]:
    """Mean of score² when nothing changed, and the p-value, between blocks and all."""
    if not one.between.mean:
        return test.chance, test.p_value
    sampling = 2 * test.chance / test.effective
    seasonal = min(one.between.pvalue(test.score**2, test.chance, sampling) / test.share, 1.0)
    return test.chance + one.between.mean, max(test.p_value, seasonal)


class _Embedded:
    """The distances of mean embeddings: maximum mean discrepancy (Gretton et al. 2012) of many columns.

    `n_eff · MMD²` is a weighted sum of chi-squares whose weights sum to the kernel's variance, which is known; how they
    are spread is not. All of it in one of them has the heaviest tail: the p-value is too large, never too small.
    """

    def __init__(self, asked: Sequence[_Asked], min_rows: int) -> None:
        self.asked = asked
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

    def methods(self) -> list[Method]:
        return ["mmd"] * len(self.asked)


_Test = _Ordered | _Unordered | _Embedded


class _Missing:
    """The difference of the missing shares of all columns."""

    def __init__(self, columns: Mapping[str, Cells], known: Mapping[str, Between], min_rows: int) -> None:
        cells = list(columns.values())
        self._missing = np.array([[c.reference_missing, c.window_missing] for c in cells], np.int64).reshape(-1, 2)
        # Only where something is missing is there a share to be told from another.
        self._rows = self._missing.copy()
        holes = np.flatnonzero(self._missing.any(axis=1))
        self._rows[holes, 0] += _totals([cells[place].reference for place in holes])
        self._rows[holes, 1] += _totals([cells[place].window for place in holes])
        total, pooled = self._rows.sum(axis=1), self._missing.sum(axis=1)
        self.shares = self._missing / np.maximum(self._rows, 1)
        self.differences = np.abs(self.shares[:, 1] - self.shares[:, 0])
        self.testable = (pooled > 0) & (pooled < total) & (self._rows.min(axis=1) >= min_rows)
        share = np.where(self.testable, pooled / np.maximum(total, 1), 0.5)
        between = np.array([known.get(name, NONE).missing for name in columns])
        inverse = (1 / np.maximum(self._rows, 1)).sum(axis=1)
        self._deviation = np.sqrt(share * (1 - share) * inverse + between)
        raw = 2 * normal_sf(self.differences / self._deviation)
        expected = self._rows.min(axis=1) * np.minimum(share, 1 - share)
        self._exact: dict[int, TwoCells] = {}
        for row in np.flatnonzero(self.testable & (expected < FEW_ORDERED) & (raw < WORTH_A_SUM)):
            law = TwoCells.of(int(pooled[row]), int(self._rows[row, 1]), int(self._rows[row, 0]))
            raw[row] = max(law.pvalue(float(self.differences[row])), raw[row] if between[row] else 0.0)
        self.p_values: Floats = np.where(self.testable, np.minimum(raw, 1.0), 1.0)

    def changed(self, level: float, limits: DriftThresholds) -> list[bool]:
        found = self.testable & (self.p_values <= level) & (self.differences >= limits.missing)
        return [bool(one) for one in found]


def _totals(counts: Sequence[Counts]) -> Counts:
    """The sum of each array; none is empty."""
    starts = np.cumsum([0, *(len(one) for one in counts[:-1])])
    return np.add.reduceat(np.concatenate(counts), starts) if counts else np.zeros(0, np.int64)


def _of_equal_length(asked: Iterable[_Asked]) -> list[list[_Asked]]:
    groups: dict[int, list[_Asked]] = {}
    for one in asked:
        groups.setdefault(len(one.cells.reference), []).append(one)
    return list(groups.values())


def _best(tests: Sequence[_Test]) -> dict[str, tuple[_Test, int]]:
    """Of each column the part with the smallest p-value."""
    best: dict[str, tuple[_Test, int]] = {}
    for test in tests:
        for place, one in enumerate(test.asked):
            held = best.get(one.column)
            if held is None or test.p_values[place] < held[0].p_values[held[1]]:
                best[one.column] = (test, place)
    return best


def _reason(
    before: int, now: int, drifted: bool, missing_changed: bool, testable: bool, several: bool, min_rows: int
) -> Reason:
    if not before:
        return "no_reference_values"
    if not now:
        return "no_values"
    if drifted:
        return "drifted"
    if missing_changed:
        return "missing_changed"
    if min(before, now) < min_rows:
        return "too_few_rows"
    return "within_threshold" if testable or several else "constant"


def _several(cells: Cells) -> bool:
    """Whether rows lie in several cells, though none can be told from the others: a list too short for its tail."""
    return cells.rest is not None and bool(np.count_nonzero(cells.reference + cells.window) > 1)


def _one_sided(name: str, reason: Reason) -> AutoVerdict:
    before, now = (1.0, 0.0) if reason == "new_column" else (0.0, 1.0)
    return AutoVerdict(name, "missing", 1.0, 1.0, 0.0, 1.0, before, now, 0.0, True, True, reason)
