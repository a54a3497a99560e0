"""The profile of a table of any size, batch by batch, with a layout taken from a sample of the reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa

from collectors.drift.kinds import as_numbers, as_text, as_truths, is_text, kind_of, named_type
from collectors.drift.passes import each_column, threads_for
from collectors.drift.plan import Plan
from collectors.drift.source import InputError, Source
from collectors.drift.written_times import as_times
from observability.cells import ProfileError
from observability.columns import Column
from observability.folding import Fold
from observability.profile import Profile
from observability.reference import fitted
from observability.scout import Scout

# A table in memory with more rows than this gets the bins and categories of a table that is not.
LAYOUT_ROWS = 1_000_000


def layout_of(source: Source, plan: Plan) -> Profile:
    """An empty profile with the source's bins and categories: its quantiles, or those of rows drawn evenly."""
    names = plan.compared
    if not names:
        return Profile({})
    try:
        if source.in_memory and source.rows <= LAYOUT_ROWS:
            sample = conformed(source.read(names), plan)
            given, kinds = plan.given, plan.kinds
            refined = {name: _refined(kinds[name], sample.column(name), name in given) for name in names}
            return Profile.of(sample, refined, threads=threads_for(source.rows * len(names))).empty()
        return Profile(_scouted(source, plan)).empty()
    except InputError:
        raise
    except ProfileError as error:
        raise InputError(f"{source.name}: {error}") from error


def _scouted(source: Source, plan: Plan) -> dict[str, Column]:
    """The columns of one pass over the rows: the range and the categories of all, the quantiles of some."""
    names, kinds, given = plan.compared, plan.kinds, plan.given
    of_kind = _conforming(source, plan)
    scouts: dict[str, Scout] = {}
    types: dict[str, pa.DataType] = {}
    done = dict.fromkeys(names, 0)

    def look(name: str, read: pa.Array) -> None:
        values = of_kind(name, read)
        if name not in scouts:
            scouts[name] = Scout(_refined(kinds[name], values, name in given), source.rows, len(names))
        scout, types[name] = scouts[name], values.type
        fitted(name, scout.kind, values.type, lambda: scout.add(values, done[name]))
        done[name] += len(values)

    each_column(source, names, look, _ignored)
    return {
        name: fitted(name, scouts[name].kind, types[name], partial(scouts[name].column, types[name])) for name in names
    }


def _refined(kind: str, values: pa.ChunkedArray | pa.Array, given: bool) -> Any:
    """The kind of a column; what is free text among the categories shows in the rows."""
    return "text" if kind == "categorical" and not given and is_text(values) else kind


def profile_of_rows(source: Source, layout: Profile, plan: Plan, progress: Callable[[int], None]) -> Profile:
    """The profile of all rows in an empty layout; `progress` gets the rows done."""
    names, of_kind = plan.compared, _conforming(source, plan)
    if not names:
        return layout
    folds = {name: Fold(name, layout.columns[name]) for name in names}
    try:
        each_column(source, names, lambda name, read: folds[name].add(of_kind(name, read)), progress)
    except InputError:
        raise
    except ProfileError as error:
        raise InputError(f"{source.name}: {error}") from error
    return Profile({name: fold.column() for name, fold in folds.items()})


def _ignored(_rows: int) -> None:
    """No progress is told."""


def conformed(table: pa.Table, plan: Plan) -> pa.Table:
    """The table with each column in a type of its kind.

    InputError for values that are none of their kind.
    """
    kinds = plan.kinds
    for place, name in enumerate(table.schema.names):
        values = table.column(place)
        found = as_kind(name, kinds[name], values)
        if found is not values:
            table = table.set_column(place, name, found)
    return table


def _conforming(source: Source, plan: Plan) -> Callable[[str, pa.Array], pa.Array]:
    """`as_kind` for the columns of a table; those whose type says that they need it not are handed on as they are."""
    kinds = {n: kind for n, kind in plan.kinds.items() if kind_of(source.schema.field(n).type) != kind and kind in _AS}
    return lambda name, values: as_kind(name, kinds[name], values) if name in kinds else values


def as_kind(name: str, kind: str, values: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """The values in a type of the kind: text read as numbers, codes and numbers as text. InputError for others."""
    if kind == kind_of(values.type) or kind not in _AS:
        return values
    try:
        return _AS[kind](values)
    except pa.ArrowException as error:
        raise InputError(
            f"column {name!r} of type {named_type(values.type)} cannot be read as {kind}: {error}"
        ) from error


_AS: dict[str, Callable[[pa.ChunkedArray], pa.ChunkedArray]] = {
    "numeric": lambda values: as_numbers(values)[0],
    "categorical": as_text,
    "text": as_text,
    "boolean": as_truths,
    "datetime": as_times,
}
