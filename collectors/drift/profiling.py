"""The profile of a table of any size, batch by batch, with a layout taken from a sample of the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from collectors.drift.kinds import as_numbers, as_text, as_truths, is_text, kind_of, named_type
from collectors.drift.plan import Plan
from collectors.drift.source import InputError, Source
from observability.cells import Kind, ProfileError
from observability.profile import Profile

# The bins and categories of a reference larger than this come from so many of its rows, evenly spread.
LAYOUT_ROWS = 1_000_000


def layout_of(source: Source, plan: Plan) -> Profile:
    """An empty profile whose bins and categories are those of the source, or of every k-th of its rows."""
    names = plan.compared
    step = -(-source.rows // LAYOUT_ROWS)
    if step <= 1:
        sample = conformed(source.read(names), plan)
    else:
        parts, offset = [], 0
        for batch in source.scan(names):
            rows = pa.array(range((-offset) % step, batch.num_rows, step))
            parts.append(batch.take(rows))
            offset += batch.num_rows
        sample = conformed(pa.Table.from_batches(parts), plan)
    try:
        return Profile.of(sample, _kinds(sample, plan)).empty()
    except ProfileError as error:
        raise InputError(f"{source.name}: {error}") from error


def _kinds(sample: pa.Table, plan: Plan) -> dict[str, Kind]:
    """The plan's kinds; what is free text among the categories shows in the rows."""
    found: dict[str, Any] = dict(plan.kinds)
    for name, kind in plan.kinds.items():
        if kind == "categorical" and name not in plan.given and is_text(sample.column(name)):
            found[name] = "text"
    return found


def profile_of_rows(source: Source, layout: Profile, plan: Plan, progress: Callable[[int], None]) -> Profile:
    """The profile of all rows in an empty layout; `progress` gets the rows done."""
    done, profile = 0, layout
    progress(0)
    try:
        for batch in source.scan(plan.compared):
            profile = profile.updated(conformed(pa.Table.from_batches([batch]), plan))
            done += batch.num_rows
            progress(done)
    except ProfileError as error:
        raise InputError(f"{source.name}: {error}") from error
    return profile


def conformed(table: pa.Table, plan: Plan) -> pa.Table:
    """The table with each column in a type of its kind: text read as numbers, codes and numbers as text.

    InputError for values that are none of their kind.
    """
    for place, name in enumerate(table.schema.names):
        kind, values = plan.kinds[name], table.column(place)
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
