"""The calibrated verdicts on all columns of a table as arrays: checked together, made into objects when asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from collectors.drift.asked import NONE, Asked, Method, asked_of
from collectors.drift.bins import Counts, Floats
from collectors.drift.calibration import Between
from collectors.drift.cells import Cells
from collectors.drift.fdr import cut
from collectors.drift.missing_shares import MissingTest
from collectors.drift.number_block import NumberBlock
from collectors.drift.ordered_columns import OrderedTest
from collectors.drift.thresholds import DriftThresholds
from collectors.drift.unordered_columns import EmbeddedTest, UnorderedTest

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
Test = OrderedTest | UnorderedTest | EmbeddedTest


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


@dataclass(frozen=True, eq=False)
class Judged:
    """The verdicts on columns, one item a column in every array."""

    names: Sequence[str]
    min_rows: int
    scores: Floats
    thresholds: Floats
    p_values: Floats
    chance: Floats
    before: Counts
    """Values of the reference."""
    now: Counts
    testable: NDArray[np.bool_]
    missing: MissingTest
    missing_changed: NDArray[np.bool_]
    decided: Sequence[tuple[Test, int]]
    """For each test the number that its first row has, in `rows`."""
    rows: Counts
    """The row of all tests by which a column was decided."""

    def __len__(self) -> int:
        return len(self.names)

    def methods(self, start: int, number: int) -> list[Method]:
        """The method by which each of some columns was decided, of one test all of them."""
        row = int(self.rows[start])
        test, first = self._test(row)
        return [test.method(row - first)] * number

    def _test(self, row: int) -> tuple[Test, int]:
        """The test that has a row, and the number that its first one has."""
        return next(one for one in reversed(self.decided) if one[1] <= row)

    def verdict(self, place: int) -> AutoVerdict:
        """The verdict on the column at `place`."""
        score, threshold, p_value, chance, before, now, testable, changed, missing_p, *shares, row = [
            numbers[place] for numbers in self._lists
        ]
        test, start = self._test(row)
        drifted, varies = score >= threshold, testable or test.several(row - start)
        return AutoVerdict(
            self.names[place],
            test.method(row - start),
            score,
            threshold,
            p_value,
            math.sqrt(max(score * score - chance, 0.0)),
            shares[0],
            shares[1],
            missing_p,
            changed,
            drifted or changed,
            _reason(before, now, drifted, changed, varies, self.min_rows),
            test.part(row - start),
            before,
            now,
        )

    @cached_property
    def _lists(self) -> list[list[Any]]:
        """Single numbers come out of lists ten times as fast as out of arrays."""
        arrays = (
            self.scores,
            self.thresholds,
            self.p_values,
            self.chance,
            self.before,
            self.now,
            self.testable,
            self.missing_changed,
            self.missing.p_values,
            *self.missing.shares.T,
            self.rows,
        )
        return [array.tolist() for array in arrays]


def judged(
    blocks: Sequence[NumberBlock],
    columns: Mapping[str, Sequence[Cells]],
    limits: DriftThresholds,
    known: Mapping[str, Between],
    min_rows: int,
) -> Judged:
    """The verdicts on the blocks' columns, then on `columns`, each one item or one a part of it; at least one column.

    `known` is what is known of the differences between the reference's own blocks.
    """
    names = [name for block in blocks for name in block.names]
    number = len(names) + len(columns)
    missing, values = np.zeros((number, 2), np.int64), np.zeros((number, 2), np.int64)
    tests: list[Test] = []
    start = 0
    for block in blocks:
        places = np.arange(start, start + len(block.names))
        between = [(row, known[name]) for row, name in enumerate(block.names) if name in known and known[name].mean]
        tests.append(
            OrderedTest(places, block.with_infinite.reference, block.with_infinite.current, min_rows, between=between)
        )
        missing[places] = block.missing
        start += len(block.names)
    if columns:
        asked = asked_of(columns, known, start)
        firsts = [one.cells for one in asked if one.part == 0]
        missing[start:] = [(cells.reference_missing, cells.window_missing) for cells in firsts]
        tests += _tests(asked, min_rows)
        names += columns
    for test in tests:
        first = test.parts == 0
        values[test.places[first], 0], values[test.places[first], 1] = test.before[first], test.now[first]
    spread = np.array([known.get(name, NONE).missing for name in names]) if known else np.zeros(number)
    return _together(names, tests, MissingTest(missing, values, spread, min_rows), limits, min_rows)


def _tests(asked: Sequence[Asked], min_rows: int) -> list[Test]:
    lengths: dict[int, list[Asked]] = {}
    for one in asked:
        if one.cells.ordered:
            lengths.setdefault(len(one.cells.reference), []).append(one)
    tests: list[Test] = [OrderedTest.of_cells(group, min_rows) for group in lengths.values()]
    unordered = [one for one in asked if not one.cells.ordered]
    categories = [one for one in unordered if one.cells.discrepancy is None]
    embedded = [one for one in unordered if one.cells.discrepancy is not None]
    if categories:
        tests.append(UnorderedTest(categories, min_rows))
    if embedded:
        tests.append(EmbeddedTest(embedded, min_rows))
    return tests


def _together(
    names: Sequence[str], tests: Sequence[Test], missing: MissingTest, limits: DriftThresholds, min_rows: int
) -> Judged:
    p_values = np.concatenate([test.p_values for test in tests])
    testable = np.concatenate([test.testable for test in tests])
    places, parts = np.concatenate([test.places for test in tests]), np.concatenate([test.parts for test in tests])
    # Of each column the row with the smallest p-value, the first part of equal ones.
    order = np.lexsort((parts, p_values, places))
    rows = order[np.searchsorted(places[order], np.arange(len(names)))]
    asked = p_values[rows][testable[rows]]
    level = cut(np.concatenate([asked, missing.p_values[missing.testable]]), limits.alpha)

    def of_columns(arrays: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
        return np.concatenate(arrays)[rows]

    starts = np.cumsum([0, *(len(test.places) for test in tests[:-1])]).tolist()
    return Judged(
        names=names,
        min_rows=min_rows,
        scores=of_columns([test.scores for test in tests]),  # type: ignore[arg-type]
        thresholds=of_columns([test.thresholds(level, limits) for test in tests]),  # type: ignore[arg-type]
        p_values=p_values[rows],
        chance=of_columns([test.chance for test in tests]),  # type: ignore[arg-type]
        before=of_columns([test.before for test in tests]),  # type: ignore[arg-type]
        now=of_columns([test.now for test in tests]),  # type: ignore[arg-type]
        testable=testable[rows],
        missing=missing,
        missing_changed=missing.changed(level, limits),
        decided=list(zip(tests, starts, strict=True)),
        rows=rows,
    )


def _reason(before: int, now: int, drifted: bool, missing_changed: bool, varies: bool, min_rows: int) -> Reason:
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
    return "within_threshold" if varies else "constant"
