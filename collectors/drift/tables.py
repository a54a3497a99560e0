"""Two opened tables compared as a whole: every column measured, then all judged together."""

from __future__ import annotations

import math
import os
import time as clock
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, starmap
from typing import Literal

import numpy as np
import pyarrow as pa

from collectors.drift.automatic import JudgedColumns, with_threshold
from collectors.drift.comparison import ColumnComparison, Comparison, Mode, Sides
from collectors.drift.evidently_method import DRIFT_SHARE
from collectors.drift.layouts import in_one_layout
from collectors.drift.memory import free_memory
from collectors.drift.methods import METHODS, TESTS
from collectors.drift.number_block import totals
from collectors.drift.pairs import EXACT_INTEGERS, ROUNDED, Asked, ColumnPair, Pairs
from collectors.drift.pairs import profile_pairs as measured_together
from collectors.drift.plain_numbers import Notes
from collectors.drift.plan import ColumnPlan, Plan, planned
from collectors.drift.profiling import layout_of, profile_of_rows
from collectors.drift.row_pairs import exact_pair
from collectors.drift.source import InputError, Source
from collectors.drift.thresholds import DriftThresholds
from collectors.drift.written_numbers import hint
from observability.columns import CategoricalColumn, Column, NumericColumn
from observability.profile import Profile

# Exact mode by default when both tables take at most this share of the memory that is free.
MEMORY_SHARE = 0.25
# Threads for fewer values than this cost more than they bring.
LITTLE = 500_000
Report = Callable[[str, int, int], None]
"""Called with what is being done, and how much of how much of it."""
Engine = Literal["numpy", "spark"]


@dataclass(frozen=True, slots=True)
class Options:
    """How to compare."""

    method: str = "auto"
    threshold: float | None = None
    alpha: float | None = None
    thresholds: DriftThresholds | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"there is no method {self.method!r}: known are {', '.join(METHODS)}")
        if self.threshold is not None and not self.threshold > 0:
            raise InputError(f"the threshold must be positive, it is {self.threshold}")
        if self.threshold is not None and self.threshold >= (1.0 if self.method in TESTS else math.inf):
            limit = f"of {self.method}, a p-value, must be below 1" if self.method in TESTS else "must be finite"
            raise InputError(f"the threshold {limit}, it is {self.threshold}")
        if self.alpha is not None and not 0 < self.alpha < 1:
            raise InputError(f"alpha lies between 0 and 1, it is {self.alpha}")
        if self.method == "auto" and self.alpha is not None and self.alpha >= 0.5:
            raise InputError(f"alpha, the share of false discoveries, is less than one half, it is {self.alpha}")

    @property
    def asked(self) -> Asked:
        return Asked(self.method, self.threshold, self.alpha)

    @property
    def limits(self) -> DriftThresholds:
        """The thresholds of the calibrated verdict."""
        return with_threshold(self.thresholds or DriftThresholds(), self.threshold, self.alpha)


@np.errstate(over="ignore", invalid="ignore")
def compare_sides(
    sides: Sides[Source | Profile],
    mode: Mode | None,
    options: Options,
    columns: Sequence[str] | None,
    kinds: Mapping[str, str] | None,
    progress: Report,
    started: float,
    ignored: Sequence[str] = (),
    notes: Notes | None = None,
) -> Comparison:
    """The comparison of what `opened` gave; `notes` are what to say of columns beside what is found."""
    rows = Sides(_rows_of(sides.reference), _rows_of(sides.current))
    for name, number in (("reference", rows.reference), ("current table", rows.current)):
        if not number:
            raise InputError(f"the {name} has no rows: there is nothing to compare")
    chosen = chosen_mode(sides, mode, options)
    plan = planned(sides, columns, kinds, ignored)
    before, now = sides.reference, sides.current
    if not isinstance(before, Profile) or not isinstance(now, Profile) or now is before:
        work = exact_pairs if chosen == "exact" else profile_pairs
        pairs = _noted(_hinted(work(sides, plan, options, progress), plan), notes or {})
        return concluded(pairs, plan, rows, chosen, options, started)
    aligned = in_one_layout(Sides(before, now), plan.compared)
    refused = {name: ColumnPlan(name, None, why) for name, why in aligned.refused.items()}
    plan = replace(plan, columns=tuple(refused.get(column.name, column) for column in plan.columns))
    pairs = profile_pairs(Sides(aligned.profiles.reference, aligned.profiles.current), plan, options, progress)
    return concluded(
        _noted(pairs, {name: (note,) for name, note in aligned.notes.items()}), plan, rows, chosen, options, started
    )


def _noted(pairs: Pairs, notes: Notes) -> Pairs:
    """The same with something to say of some columns."""
    others = {
        name: replace(pair, notes=(*pair.notes, *notes[name])) if name in notes else pair
        for name, pair in pairs.others.items()
    }
    blocks = {name: "; ".join(some) for name, some in notes.items() if some}
    return replace(pairs, notes={**pairs.notes, **blocks}, others=others)


def _hinted(pairs: Pairs, plan: Plan) -> Pairs:
    """The same with a word on categories that look like numbers, unless the caller said that they are none."""
    notes = {}
    for name, pair in pairs.others.items():
        before, now = pair.cells.reference, pair.cells.current
        if isinstance(before, CategoricalColumn) and isinstance(now, CategoricalColumn) and name not in plan.given:
            notes[name] = hint(name, chain(before.categories, before.strangers, now.strangers))
    return _noted(pairs, notes)


def _rows_of(side: Source | Profile) -> int:
    if not isinstance(side, Profile):
        return side.rows
    numbers = [column for column in side.columns.values() if isinstance(column, NumericColumn)]
    # Their rows all at once: a thousand sums take as long as all else before the measuring.
    others = [one.missing + one.nan + one.positive_infinite + one.negative_infinite for one in numbers]
    counted = [sum(both) for both in zip(totals([one.counts for one in numbers]), others, strict=True)]
    rest = [column.rows for column in side.columns.values() if not isinstance(column, NumericColumn)]
    return max([*counted, *rest], default=0)


def chosen_mode(sides: Sides[Source | Profile], mode: Mode | None, options: Options) -> Mode:
    """The mode that was asked for, or the one that fits. InputError when it cannot be had."""
    if mode not in (None, "exact", "profile"):
        raise InputError(f"there is no mode {mode!r}: known are exact and profile")
    both = (sides.reference, sides.current)
    has_rows = all(isinstance(side, Source) for side in both)
    if options.method == "evidently":
        if not has_rows:
            raise InputError("method 'evidently' works on rows: give the tables, not a profile")
        if mode == "profile":
            raise InputError("method 'evidently' works on rows: leave out the mode, or give --mode exact")
        return "exact"
    if mode == "exact" and not has_rows:
        raise InputError("a profile has no rows: leave out the mode, or give --mode profile")
    if mode is not None:
        return mode
    budget = free_memory() * MEMORY_SHARE
    size = sum(side.size for side in both if isinstance(side, Source))
    return "exact" if has_rows and size <= budget else "profile"


def exact_pairs(sides: Sides[Source | Profile], plan: Plan, options: Options, progress: Report) -> Pairs:
    """Every column from its values, a thread a processor; a few columns in memory at a time."""
    before, now = sides.reference, sides.current
    assert isinstance(before, Source)
    assert isinstance(now, Source)
    compared = [column for column in plan.columns if column.kind is not None]
    found: dict[str, ColumnPair] = {}
    asked, progressed = options.asked, partial(progress, "columns")
    little = (before.rows + now.rows) * len(compared) < LITTLE
    with nullcontext() if little else ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for group in _groups(compared, before, now):
            names = [column.name for column in group]
            tables = (before.read(names), now.read(names))
            progressed(len(found), len(compared))
            work = [(column, *(table.column(column.name) for table in tables), asked) for column in group]
            each = starmap(exact_pair, work) if pool is None else pool.map(exact_pair, *zip(*work, strict=True))
            for column, result in zip(group, each, strict=True):
                found[column.name] = result
                progressed(len(found), len(compared))
    return Pairs(tuple(found), (), found, asked)


def profile_pairs(sides: Sides[Source | Profile], plan: Plan, options: Options, progress: Report) -> Pairs:
    """Every column from counts over the reference's bins, read batch by batch."""
    profiles = profiles_of(sides, plan, progress)
    before, now = profiles.reference.columns, profiles.current.columns
    found = measured_together({name: Sides(before[name], now[name]) for name in plan.compared}, options.asked)
    rounded = [
        name
        for name in plan.compared
        if any(map(_is_rounded, (sides.reference, sides.current), (before, now), (name, name)))
    ]
    return replace(found, notes=dict.fromkeys(rounded, ROUNDED))


def _is_rounded(side: Source | Profile, columns: Mapping[str, Column], name: str) -> bool:
    """Whether a column has integers that are too large for float64 to have each of them."""
    column = columns[name]
    if isinstance(side, Profile) or not isinstance(column, NumericColumn) or not column.count:
        return False
    large = max(-column.minimum, column.maximum) > EXACT_INTEGERS
    return large and bool(pa.types.is_integer(side.schema.field(name).type))


def profiles_of(sides: Sides[Source | Profile], plan: Plan, progress: Report) -> Sides[Profile]:
    """Both tables as profiles of one layout: the reference's."""
    before, now = sides.reference, sides.current
    if isinstance(before, Profile):
        names = plan.compared
        reference = replace(before, columns={name: before.columns[name] for name in names})
    else:
        layout = layout_of(before, plan)
        reference = profile_of_rows(before, layout, plan, lambda done: progress("reference", done, before.rows))
    if now is before:
        return Sides(reference, reference)
    if isinstance(now, Profile):
        return Sides(reference, now)
    return Sides(
        reference,
        profile_of_rows(now, reference.empty(), plan, lambda done: progress("current", done, now.rows)),
    )


def concluded(pairs: Pairs, plan: Plan, rows: Sides[int], mode: Mode, options: Options, started: float) -> Comparison:
    """The verdicts on all columns, and on the tables."""
    columns = JudgedColumns(pairs, options.method, options.limits)
    judged, drifted = columns.decided()
    found: Mapping[str, ColumnComparison] = columns
    if len(columns) < len(plan.columns):
        found = {column.name: columns.get(column.name) or _incomparable(column) for column in plan.columns}
        changed = sum(column.kind is None and column.changed for column in plan.columns)
        judged, drifted = judged + changed, drifted + changed
    share = drifted / judged if judged else 0.0
    # A column that vanished is a finding, too; Evidently would refuse to compare at all.
    evidently = options.method == "evidently"
    return Comparison(
        rows=rows,
        columns=found,
        drifted_share=share,
        drifted=share >= DRIFT_SHARE if evidently else share > 0 or bool(plan.only_in_reference),
        seconds=clock.perf_counter() - started,
        mode=mode,
        method=options.method,
        only_in_reference=plan.only_in_reference,
        only_in_current=plan.only_in_current,
    )


def _incomparable(column: ColumnPlan) -> ColumnComparison:
    nothing = Sides(0, 0)
    return ColumnComparison(
        type="unknown",
        missing=nothing,
        missing_share=Sides(0.0, 0.0),
        drifted=column.changed,
        reason=column.reason,
    )


def _groups(columns: Sequence[ColumnPlan], before: Source, now: Source) -> Iterable[Sequence[ColumnPlan]]:
    """Columns that are read together: as many as take a quarter of the free memory."""
    budget = free_memory() * MEMORY_SHARE
    each = before.size / max(len(before.columns), 1) + now.size / max(len(now.columns), 1)
    step = max(1, int(budget / each)) if each else len(columns)
    return (columns[at : at + step] for at in range(0, len(columns), step))


def silent(_what: str, _done: int, _all: int) -> None:
    """No progress is shown."""
