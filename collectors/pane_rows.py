"""Rows on their way into a pane: batches put together, columns of another type set aside, rows divided by a value."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collectors.profiles import Source
from observability.columns import ProfileError
from observability.kinds import is_string
from observability.profile import Profile


def joined(tables: Iterable[pa.Table], alike: Callable[[pa.Table], Hashable]) -> list[pa.Table]:
    """The tables as few as they can be: those that are `alike` as one, unless their types do not go together."""
    groups: dict[Hashable, list[pa.Table]] = {}
    for table in tables:
        groups.setdefault(alike(table), []).append(table)
    return [table for group in groups.values() for table in _one(group)]


def added(profile: Profile, table: pa.Table, source: Source) -> tuple[Profile, list[str]]:
    """The profile with the rows of events added, and the columns that had no value of their kind in them.

    Such a column is missing in these rows; all others are counted. Of text the type alone decides, so that it makes no
    difference which batches come together.
    """
    strange = [name for name in table.schema.names if not _fits(profile, table, name, 1)]
    try:
        return _updated(profile, _without(table, strange), source), strange
    except (pa.ArrowException, ProfileError):
        strange = [name for name in table.schema.names if not _fits(profile, table, name, table.num_rows)]
        return _updated(profile, _without(table, strange), source), strange


def texts_of(table: pa.Table, column: str) -> pa.Array:
    """The values of a column as text, null where there is none: also where it is absent, or has no text (a vector)."""
    if column not in table.schema.names:
        return pa.nulls(table.num_rows, pa.utf8())
    try:
        return table.column(column).cast(pa.utf8()).combine_chunks()
    except pa.ArrowNotImplementedError:
        return pa.nulls(table.num_rows, pa.utf8())


def by_value(
    table: pa.Table, values: pa.Array, known: frozenset[str], missing: str, other: str
) -> list[tuple[str, pa.Table]]:
    """The rows of each `known` one of the values; the rest is `other`, and null is `missing`."""
    encoded = pc.dictionary_encode(values)
    labels = [value if value in known else other for value in encoded.dictionary.to_pylist()]
    names = sorted({*labels, missing})
    place = {name: number for number, name in enumerate(names)}
    position = np.array([place[label] for label in [*labels, missing]], np.int64)
    codes = position[pc.fill_null(encoded.indices, len(labels)).to_numpy(zero_copy_only=False)]
    order = np.argsort(codes, kind="stable")
    if len(codes) and codes[order[0]] == codes[order[-1]]:
        return [(names[codes[0]], table)]
    ordered = table.take(pa.array(order))
    ends = np.searchsorted(codes[order], np.arange(len(names)), side="right")
    starts = np.concatenate([[0], ends[:-1]])
    return [
        (name, ordered.slice(start, end - start))
        for name, start, end in zip(names, starts.tolist(), ends.tolist(), strict=True)
        if end > start
    ]


def _one(tables: list[pa.Table]) -> list[pa.Table]:
    """The tables as one, or as they are when their types do not go together."""
    if len(tables) < 2:
        return tables
    try:
        return [pa.concat_tables(tables, promote_options="default")]
    except pa.ArrowException:
        return tables


def _without(table: pa.Table, columns: list[str]) -> pa.Table:
    return table.drop_columns(columns) if columns else table


def _fits(profile: Profile, table: pa.Table, name: str, rows: int) -> bool:
    """Whether the first values of a column are of its kind. Text is no number, even where it reads like one."""
    column, kind = profile.columns.get(name), table.schema.field(name).type
    if column is None or (column.kind == "numeric" and pa.types.is_floating(kind)):
        return True
    if is_string(kind) and column.kind != "datetime":
        return column.kind in ("categorical", "text")
    try:
        column.empty().updated(table.column(name).slice(0, rows))
    except (pa.ArrowException, ProfileError, TypeError, ValueError):
        return False
    return True


def _updated(profile: Profile, table: pa.Table, source: Source) -> Profile:
    """The profile with the rows of events added, in the columns that come with events."""
    if not source.columns:
        return profile.updated(table)
    joint = None if source.joint or not _whole(profile, table) else profile.joint
    distinct = profile.distinct
    own = {name: column for name, column in profile.columns.items() if name not in source.columns}
    sketches = None if distinct is None else {name: distinct[name] for name in own}
    part = Profile(own, joint, sketches).updated(table)
    return Profile(
        {**profile.columns, **part.columns},
        profile.joint if joint is None else part.joint,
        None if distinct is None else {**distinct, **(part.distinct or {})},
        profile.left_out,
    )


def _whole(profile: Profile, table: pa.Table) -> bool:
    """Whether rows have all columns of the joint part: half of a row says nothing of how columns go together."""
    return profile.joint is not None and set(profile.joint.columns) <= set(table.schema.names)
