"""Two tables compared, whatever and wherever they are: frames, tables, files, folders or saved profiles."""

from __future__ import annotations

import os
import time as clock
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import psutil
import pyarrow as pa

from collectors.drift.automatic import judged_columns, with_threshold
from collectors.drift.comparison import ColumnComparison, Comparison, Mode, Part, Sides
from collectors.drift.evidently_method import DRIFT_SHARE
from collectors.drift.inputs import Data, opened
from collectors.drift.methods import METHODS
from collectors.drift.pairs import Asked, ColumnPair, exact_pair, profile_pair
from collectors.drift.parts import (
    MOST_PARTS,
    by_time,
    by_value,
    profiles_of_parts,
    since_when,
    tables_of_parts,
    worst_first,
)
from collectors.drift.plan import ColumnPlan, Plan, planned
from collectors.drift.profiling import layout_of, profile_of_rows
from collectors.drift.source import InputError, Source
from collectors.drift.spark_engine import spark_profiles
from collectors.drift.thresholds import DriftThresholds
from collectors.query.parse import parse_duration_ms
from observability.profile import Profile

# Exact mode by default when both tables take at most this share of the memory that is free.
MEMORY_SHARE = 0.25
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
        if self.alpha is not None and not 0 < self.alpha < 1:
            raise InputError(f"alpha lies between 0 and 1, it is {self.alpha}")

    @property
    def asked(self) -> Asked:
        return Asked(self.method, self.threshold, self.alpha)

    @property
    def limits(self) -> DriftThresholds:
        """The thresholds of the calibrated verdict."""
        return with_threshold(self.thresholds or DriftThresholds(), self.threshold, self.alpha)


def compare(
    reference: Data,
    current: Data,
    *,
    mode: Mode | None = None,
    method: str = "auto",
    columns: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    by: str | None = None,
    window: str | None = None,
    time: str | None = None,
    threshold: float | None = None,
    alpha: float | None = None,
    thresholds: DriftThresholds | None = None,
    engine: Engine = "numpy",
    progress: Report | None = None,
) -> Comparison:
    """Compare two tables column by column.

    `reference` and `current` are Arrow tables, batches or datasets, pandas frames, mappings of arrays, paths (Parquet,
    CSV, Arrow, Feather; folders and patterns too), profiles, or paths of saved profiles. `mode="exact"` works on the
    rows, a few columns at a time; `"profile"` on counts over the reference's bins, in memory that does not grow with
    the rows. Without a mode it is exact where both tables have rows that fit into a quarter of the free memory.
    `method` is "auto" (calibrated for the number of rows, false discoveries controlled over the columns), "evidently",
    or one of `methods.METHODS`. `columns` are the columns to compare, `kinds` what some of them are (codes:
    "categorical").

    `by` compares also the rows of each value of a column with the reference's rows of that value (all of them, where
    the reference lacks the column), `window` (a duration, "1d") with `time` (a column) each window of the current table
    with the reference. `engine="spark"` counts Parquet in Spark. InputError says what cannot be compared.
    """
    started = clock.perf_counter()
    options = Options(method, threshold, alpha, thresholds)
    width = _window(window, time)
    sides = Sides(opened(reference, "the reference"), opened(current, "the current table"))
    if engine == "spark":
        sides = spark_profiles(sides, Sides(reference, current), columns, kinds)
    elif engine != "numpy":
        raise InputError(f"there is no engine {engine!r}: known are numpy and spark")
    show = progress or _silent
    found = compare_sides(sides, mode, options, columns, kinds, show, started)
    if by is not None:
        values, only = _values(sides, by, found.mode, options, columns, kinds, show)
        found = replace(found, by=by, values=values, values_only_in=only, seconds=clock.perf_counter() - started)
    if width is not None and time is not None:
        windows = _windows(sides, time, width, options, columns, kinds, show)
        since, seconds = since_when(windows), clock.perf_counter() - started
        found = replace(found, time=time, windows=windows, since=since, seconds=seconds)
    return found


def saved_profile(
    reference: Data, *, columns: Sequence[str] | None = None, kinds: Mapping[str, str] | None = None
) -> bytes:
    """The reference's profile as a file to be saved; `compare` takes its path in place of the rows."""
    opened_reference = opened(reference, "the reference")
    if isinstance(opened_reference, Profile):
        return opened_reference.to_json()
    sides: Sides[Source | Profile] = Sides(opened_reference, opened_reference)
    plan = planned(sides, columns, kinds)
    return profiles_of(sides, plan, _silent).reference.to_json()


def compare_sides(
    sides: Sides[Source | Profile],
    mode: Mode | None,
    options: Options,
    columns: Sequence[str] | None,
    kinds: Mapping[str, str] | None,
    progress: Report,
    started: float,
    ignored: Sequence[str] = (),
) -> Comparison:
    """The comparison of what `opened` gave."""
    rows = Sides(sides.reference.rows, sides.current.rows)
    for name, number in (("reference", rows.reference), ("current table", rows.current)):
        if not number:
            raise InputError(f"the {name} has no rows: there is nothing to compare")
    chosen = chosen_mode(sides, mode, options)
    plan = planned(sides, columns, kinds, ignored)
    work = exact_pairs if chosen == "exact" else profile_pairs
    return concluded(work(sides, plan, options, progress), plan, rows, chosen, options, started)


def _window(window: str | None, time: str | None) -> int | None:
    """The length of a window in milliseconds. InputError unless both or neither of window and time are given."""
    if (window is None) != (time is None):
        raise InputError("windows need both their length and the column of times: --window 1d --time COLUMN")
    if window is None:
        return None
    try:
        return parse_duration_ms(window)
    except ValueError as error:
        raise InputError(f"{window!r} is not a length of time: give one like 15m, 6h, 1d or 1w") from error


def _values(
    sides: Sides[Source | Profile],
    by: str,
    mode: Mode,
    options: Options,
    columns: Sequence[str] | None,
    kinds: Mapping[str, str] | None,
    progress: Report,
) -> tuple[tuple[Part, ...], Sides[tuple[str, ...]]]:
    """A comparison for each value of a column, worst first, and the values that only one side has."""
    before, now = sides.reference, sides.current
    if isinstance(now, Profile):
        raise InputError("a profile cannot be split by a column: give the current table itself")
    plan = planned(sides, columns, kinds, ignored=[by])
    split = by_value(now, by, "the current table")

    def shown(done: int) -> None:
        progress("values", done, now.rows)

    pieces: list[tuple[object, Sides[Source | Profile]]]
    only: Sides[tuple[str, ...]] = Sides((), ())
    if isinstance(before, Profile) or by not in before.columns:
        if mode == "exact":
            tables = tables_of_parts(now, by, split, plan.compared)
            pieces = [(key, Sides(before, _part_of(now, table))) for key, table in tables.items()]
        else:
            whole = profiles_of(Sides(before, before), plan, _silent).reference
            found = profiles_of_parts(now, by, split, whole.empty(), plan, shown)
            pieces = [(key, Sides(whole, profile)) for key, profile in found.items()]
    else:
        other = by_value(before, by, "the reference")
        first: Mapping[object, Source | Profile]
        second: Mapping[object, Source | Profile]
        if mode == "exact":
            first = _sources(before, tables_of_parts(before, by, other, plan.compared))
            second = _sources(now, tables_of_parts(now, by, split, plan.compared))
        else:
            layout = layout_of(before, plan)
            first = profiles_of_parts(before, by, other, layout, plan, lambda _: None)
            second = profiles_of_parts(now, by, split, layout, plan, shown)
        pieces = [(key, Sides(first[key], part)) for key, part in second.items() if key in first]
        only = Sides(_missing_keys(first, second), _missing_keys(second, first))
    _check_number(len(pieces), by)
    parts = _compared(pieces, options, plan, progress)
    return worst_first([Part(label=str(key), comparison=comparison) for key, comparison in parts]), only


def _windows(
    sides: Sides[Source | Profile],
    time: str,
    width_ms: int,
    options: Options,
    columns: Sequence[str] | None,
    kinds: Mapping[str, str] | None,
    progress: Report,
) -> tuple[Part, ...]:
    """A comparison for each window of the current table, in order of time; the reference is counted once."""
    before, now = sides.reference, sides.current
    if isinstance(now, Profile):
        raise InputError("a profile cannot be split by time: give the current table itself")
    windows = by_time(now, time, width_ms)
    plan = planned(sides, columns, kinds, ignored=[time])
    if options.method == "evidently":
        assert isinstance(before, Source)
        tables = tables_of_parts(now, time, windows, plan.compared)
        _check_number(len(tables), time)
        pieces: list[tuple[object, Sides[Source | Profile]]] = [
            (key, Sides(before, _part_of(now, table))) for key, table in tables.items()
        ]
    else:
        whole = profiles_of(Sides(before, before), plan, _silent).reference if isinstance(before, Source) else before
        found = profiles_of_parts(
            now, time, windows, whole.empty(), plan, lambda done: progress("windows", done, now.rows)
        )
        pieces = [(key, Sides(whole, profile)) for key, profile in found.items()]
    pieces = [(key, pair) for key, pair in pieces if key is not None]
    if not pieces:
        raise InputError(f"column {time!r} of the current table holds no times")
    parts = sorted(_compared(pieces, options, plan, progress), key=lambda part: int(str(part[0])))
    return tuple(
        Part(
            label=windows.start(int(str(key))),
            comparison=comparison,
            start=windows.start(int(str(key))),
            end=windows.end(int(str(key))),
        )
        for key, comparison in parts
    )


def _compared(
    pieces: Sequence[tuple[object, Sides[Source | Profile]]], options: Options, plan: Plan, progress: Report
) -> list[tuple[object, Comparison]]:
    """Each part compared, at the level divided by their number."""
    alpha = options.limits.alpha / max(len(pieces), 1)
    divided = replace(options, alpha=alpha) if options.method == "auto" else options
    found = []
    for number, (key, pair) in enumerate(pieces):
        mode: Mode = "exact" if all(isinstance(side, Source) for side in (pair.reference, pair.current)) else "profile"
        names, kinds = plan.compared, plan.given
        if not pair.reference.rows or not pair.current.rows:
            continue
        found.append((key, compare_sides(pair, mode, divided, names, kinds, _silent, clock.perf_counter())))
        progress("parts", number + 1, len(pieces))
    return found


def _sources(source: Source, tables: Mapping[object, pa.Table]) -> dict[object, Source]:
    return {key: _part_of(source, table) for key, table in tables.items()}


def _missing_keys(keys: Iterable[object], among: Container[object]) -> tuple[str, ...]:
    return tuple(sorted(str(key) for key in keys if key not in among))


def _part_of(source: Source, table: pa.Table) -> Source:
    return Source.of_table(source.name, table)


def _check_number(parts: int, column: str) -> None:
    if parts > MOST_PARTS:
        raise InputError(
            f"column {column!r} splits the current table into {parts:,} parts, more than {MOST_PARTS:,}: "
            "take a longer window, or a column with fewer values"
        )


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
    budget = psutil.virtual_memory().available * MEMORY_SHARE
    size = sum(side.size for side in both if isinstance(side, Source))
    return "exact" if has_rows and size <= budget else "profile"


def exact_pairs(
    sides: Sides[Source | Profile], plan: Plan, options: Options, progress: Report
) -> dict[str, ColumnPair]:
    """Every column from its values, a thread a processor; a few columns in memory at a time."""
    before, now = sides.reference, sides.current
    assert isinstance(before, Source)
    assert isinstance(now, Source)
    compared = [column for column in plan.columns if column.kind is not None]
    found: dict[str, ColumnPair] = {}
    workers, asked = os.cpu_count() or 1, options.asked
    with ThreadPoolExecutor(workers) as pool:
        for group in _groups(compared, before, now):
            names = [column.name for column in group]
            tables = (before.read(names), now.read(names))
            progress("columns", len(found), len(compared))
            work = [
                pool.submit(exact_pair, column, tables[0].column(column.name), tables[1].column(column.name), asked)
                for column in group
            ]
            for column, result in zip(group, work, strict=True):
                found[column.name] = result.result()
                progress("columns", len(found), len(compared))
    return found


def profile_pairs(
    sides: Sides[Source | Profile], plan: Plan, options: Options, progress: Report
) -> dict[str, ColumnPair]:
    """Every column from counts over the reference's bins, read batch by batch."""
    profiles = profiles_of(sides, plan, progress)
    return {
        name: profile_pair(profiles.reference.columns[name], profiles.current.columns[name], options.asked)
        for name in plan.compared
    }


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


def concluded(
    pairs: Mapping[str, ColumnPair], plan: Plan, rows: Sides[int], mode: Mode, options: Options, started: float
) -> Comparison:
    """The verdicts on all columns, and on the tables."""
    columns = judged_columns(pairs, options.method, options.limits)
    found = {column.name: columns.get(column.name) or _incomparable(column) for column in plan.columns}
    judged = [column for column in found.values() if column.judged]
    share = sum(column.drifted for column in judged) / len(judged) if judged else 0.0
    # A column that vanished is a finding, too; Evidently would refuse to compare at all.
    evidently = options.method == "evidently"
    drifted = share >= DRIFT_SHARE if evidently else share > 0 or bool(plan.only_in_reference)
    return Comparison(
        rows=rows,
        columns=found,
        drifted_share=share,
        drifted=drifted,
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
    budget = psutil.virtual_memory().available * MEMORY_SHARE
    each = before.size / max(len(before.columns), 1) + now.size / max(len(now.columns), 1)
    step = max(1, int(budget / each)) if each else len(columns)
    return (columns[at : at + step] for at in range(0, len(columns), step))


def _silent(_what: str, _done: int, _all: int) -> None:
    """No progress is shown."""
