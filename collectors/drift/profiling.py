"""The profile of a table of any size, batch by batch, with a layout taken from a sample of the reference."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa

from collectors.drift.kinds import as_numbers, as_text, as_truths, is_text, kind_of, named_type
from collectors.drift.plan import Plan
from collectors.drift.source import InputError, Source
from observability.cells import Kind, ProfileError
from observability.columns import Column
from observability.profile import Profile
from observability.reference import fitted
from observability.scout import Scout

# A table in memory with more rows than this gets the bins and categories of a table that is not.
LAYOUT_ROWS = 1_000_000
# Threads for a batch of fewer values than this cost more than they bring.
_LITTLE = 250_000


def layout_of(source: Source, plan: Plan) -> Profile:
    """An empty profile with the source's bins and categories: its quantiles, or those of rows drawn evenly."""
    names = plan.compared
    if not names:
        return Profile({})
    try:
        if source.in_memory and source.rows <= LAYOUT_ROWS:
            sample = conformed(source.read(names), plan)
            return Profile.of(sample, _kinds(sample, plan), threads=_threads(sample)).empty()
        return Profile(_scouted(source, plan)).empty()
    except ProfileError as error:
        raise InputError(f"{source.name}: {error}") from error


def _scouted(source: Source, plan: Plan) -> dict[str, Column]:
    """The columns of one pass over the rows: the range and the categories of all, the quantiles of some."""
    names = plan.compared
    scouts: dict[str, Scout] = {}
    types: dict[str, pa.DataType] = {}
    done = Counter(dict.fromkeys(names, 0))
    for batch in source.batches(names):
        table = conformed(pa.Table.from_batches([batch]), plan)
        new = [name for name in table.schema.names if name not in scouts]
        for name, kind in _kinds(table.select(new), plan).items() if new else ():
            scouts[name] = Scout(kind, source.rows, len(names))
        types |= {field.name: field.type for field in table.schema}

        def add(name: str, table: pa.Table = table) -> None:
            values, scout = table.column(name), scouts[name]
            fitted(name, scout.kind, values.type, lambda: scout.add(values, done[name]))

        with ThreadPoolExecutor(_threads(table)) as pool:
            for name, _ in zip(table.schema.names, pool.map(add, table.schema.names), strict=True):
                done[name] += table.num_rows
    return {
        name: fitted(name, scouts[name].kind, types[name], partial(scouts[name].column, types[name])) for name in names
    }


def _kinds(sample: pa.Table, plan: Plan) -> dict[str, Kind]:
    """The plan's kinds of the sample's columns; what is free text among the categories shows in the rows."""
    kinds = plan.kinds
    found: dict[str, Any] = {name: kinds[name] for name in sample.schema.names}
    for name, kind in found.items():
        if kind == "categorical" and name not in plan.given and is_text(sample.column(name)):
            found[name] = "text"
    return found


def profile_of_rows(source: Source, layout: Profile, plan: Plan, progress: Callable[[int], None]) -> Profile:
    """The profile of all rows in an empty layout; `progress` gets the rows done."""
    columns, names, done = dict(layout.columns), plan.compared, 0
    if not names:
        return layout
    progress(0)
    try:
        for batch in source.batches(names):
            table = conformed(pa.Table.from_batches([batch]), plan)
            here = Profile({name: columns[name] for name in table.schema.names})
            columns |= here.updated(table, threads=_threads(table)).columns
            done += table.num_rows * len(here.columns)
            progress(done // len(names))
    except ProfileError as error:
        raise InputError(f"{source.name}: {error}") from error
    return Profile(columns)


def _threads(table: pa.Table) -> int:
    return (os.cpu_count() or 1) if table.num_rows * table.num_columns >= _LITTLE else 1


def conformed(table: pa.Table, plan: Plan) -> pa.Table:
    """The table with each column in a type of its kind: text read as numbers, codes and numbers as text.

    InputError for values that are none of their kind.
    """
    kinds = plan.kinds
    for place, name in enumerate(table.schema.names):
        kind, values = kinds[name], table.column(place)
        found = kind_of(values.type)
        if kind != found and kind in _AS:
            try:
                table = table.set_column(place, name, _AS[kind](values))
            except pa.ArrowException as error:
                raise InputError(
                    f"column {name!r} of type {named_type(values.type)} cannot be read as {kind}: {error}"
                ) from error
    return table


_AS: dict[str, Callable[[pa.ChunkedArray], pa.ChunkedArray]] = {
    "numeric": lambda values: as_numbers(values)[0],
    "categorical": as_text,
    "text": as_text,
    "boolean": as_truths,
}
