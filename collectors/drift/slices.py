"""Two tables compared part by part: for each value of a column, or for each window of time."""

from __future__ import annotations

import time as clock
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from collectors.drift.comparison import Comparison, Mode, Part, Sides
from collectors.drift.parts import (
    MANY_PARTS,
    MOST_PARTS,
    by_time,
    by_value,
    profiles_of_parts,
    ranges_of,
    several,
    tables_of_parts,
    worst_first,
)
from collectors.drift.plan import Plan, planned
from collectors.drift.profiling import layout_of
from collectors.drift.source import InputError, Source
from collectors.drift.tables import Options, Report, compare_sides, profiles_of, silent
from observability.profile import Profile


def compare_values(
    sides: Sides[Source | Profile],
    by: str,
    mode: Mode,
    options: Options,
    columns: Sequence[str] | None,
    kinds: Mapping[str, str] | None,
    progress: Report,
    *,
    given: bool = True,
) -> tuple[tuple[Part, ...], Sides[tuple[str, ...]]]:
    """A comparison for each value of a column, worst first, and the values that only one side has.

    Of floating-point numbers with many different values, for each tenth of them. Where there are many parts they are
    compared by their profiles, unless the mode was `given`.
    """
    before, now = sides.reference, sides.current
    if isinstance(now, Profile):
        raise InputError("a profile cannot be split by a column: give the current table itself")
    plan = planned(sides, columns, kinds, ignored=[by])
    by_value(now, by, "the current table")
    if not given and mode == "exact" and options.method != "evidently" and several(now, by, MANY_PARTS):
        mode = "profile"
    sources = [side for side in (before, now) if isinstance(side, Source) and by in side.columns]
    ranges = ranges_of(sources, by)
    split = by_value(now, by, "the current table", ranges)

    def shown(done: int) -> None:
        progress("values", done, now.rows)

    pieces: list[tuple[object, Sides[Source | Profile]]]
    only: Sides[tuple[str, ...]] = Sides((), ())
    if isinstance(before, Profile) or by not in before.columns:
        if mode == "exact":
            tables = tables_of_parts(now, by, split, plan.compared)
            pieces = [(key, Sides(before, _part_of(now, table))) for key, table in tables.items()]
        else:
            whole = profiles_of(Sides(before, before), plan, silent).reference
            found = profiles_of_parts(now, by, split, whole.empty(), plan, shown)
            pieces = [(key, Sides(whole, profile)) for key, profile in found.items()]
    else:
        other = by_value(before, by, "the reference", ranges)
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


def compare_windows(
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
        whole = profiles_of(Sides(before, before), plan, silent).reference if isinstance(before, Source) else before
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
        found.append((key, compare_sides(pair, mode, divided, names, kinds, silent, clock.perf_counter())))
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
