"""How a profile's layout is taken from a reference: its columns' kinds, bins and categories."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from observability.blocks import number_blocks
from observability.cells import Floats, Kind, ProfileError
from observability.columns import Column, NumericColumn, free_column, reference_column
from observability.events import FEATURE, PREDICTION
from observability.joint import MAX_COLUMNS, Joint
from observability.kinds import KINDS, is_free_text, is_string, kind_of_type
from observability.scout import Scout
from observability.tables import Rows, Stream

_JOINT_ROWS, _JOINT_SAMPLE = 4_096, 512
_GROUP = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """Empty columns, the empty joint part, and what was left out and why."""

    columns: dict[str, Column]
    left_out: dict[str, str] = field(default_factory=dict)
    joint: Joint | None = None


def memory_layout(rows: Rows, kinds: Mapping[str, Kind] | None, threads: int = 1) -> Layout:
    """The layout of a table in memory: exact quantiles, its most frequent categories."""
    chosen, left_out = _chosen(rows.names, lambda name: rows.column(name).type, kinds)

    def column(name: str) -> Column:
        values = rows.column(name)
        kind = _refined(chosen[name], values, kinds)
        found: Column = fitted(name, kind, values.type, lambda: reference_column(kind, values))
        return found

    if threads <= 1:
        return Layout({name: column(name) for name in chosen}, left_out)
    with ThreadPoolExecutor(threads) as pool:
        return Layout(dict(zip(chosen, pool.map(column, chosen), strict=True)), left_out)


def stream_layout(stream: Stream, kinds: Mapping[str, Kind] | None, joint: bool) -> Layout:
    """The layout of a table that is read in pieces, from one pass over it.

    Bins are the quantiles of rows drawn one from each of equal stretches, text is told from categories by the first
    piece. The range of a numeric column and, up to 65,536 different ones, the order of categories are exact.
    """
    if stream.rows is None:
        raise ProfileError("a stream that is read once makes no reference: read it into a table, or give its Parquet")
    types = {field.name: field.type for field in stream.schema}
    chosen, left_out = _chosen(stream.names, types.__getitem__, kinds)
    scouts: dict[str, Scout] = {}
    columns: dict[str, Column] = {}
    # The same for every group: the joint part needs the same rows of all columns.
    together = min(len(chosen), _GROUP)
    for group in column_groups(list(chosen)):
        found = _scouted(stream, {name: chosen[name] for name in group}, kinds, together)
        for name in group:
            scout = found.get(name) or Scout(chosen[name], 0, 0)
            columns[name] = fitted(name, scout.kind, types[name], lambda s=scout, n=name: s.column(types[n]))  # type: ignore[misc]
        if joint and len(scouts) < MAX_COLUMNS:
            scouts |= {name: scout for name, scout in found.items() if scout.kind == "numeric"}
    if not joint:
        return Layout(columns, left_out)
    samples = Rows(tuple(scouts), 0, lambda name: scouts[name].sample(types[name]))
    numeric = {
        name: column.updated(samples.column(name))
        for name, column in columns.items()
        if isinstance(column, NumericColumn) and name in scouts
    }
    lengths = {len(samples.column(name)) for name in numeric}
    if len(lengths) > 1:
        raise ProfileError("the files have different columns: a joint part needs the numeric ones in all of them")
    sampled = Rows(samples.names, next(iter(lengths), 0), samples.read)
    return Layout(columns, left_out, joint_layout(numeric, sampled))


def column_groups(names: list[str]) -> Iterator[list[str]]:
    """The columns in groups that are read together: a reader holds megabytes a column, and long pieces count faster."""
    for start in range(0, len(names), _GROUP):
        yield names[start : start + _GROUP]


def _scouted(
    stream: Stream, chosen: Mapping[str, Kind], kinds: Mapping[str, Kind] | None, together: int
) -> dict[str, Scout]:
    scouts: dict[str, Scout] = {}
    start = 0
    for piece in stream.pieces(list(chosen)):
        for name, kind in chosen.items():
            if name not in piece.names:
                continue
            values = piece.column(name)
            if name not in scouts:
                refined = _refined(kind, _as_declared(values, stream.schema.field(name).type), kinds)
                scouts[name] = Scout(refined, stream.rows or 0, together)
            scout = scouts[name]
            fitted(name, scout.kind, values.type, lambda s=scout, v=values, o=start: s.add(v, o))  # type: ignore[misc]
        start += piece.rows
    return scouts


def free_layout(source: Rows | Stream, kinds: Mapping[str, Kind] | None) -> Layout:
    """A layout that needs no reference; text is told from categories, and vectors' length taken, by the first piece."""
    if isinstance(source, Stream):
        if source.rows is None:
            raise ProfileError("the kinds of a stream that is read once are not known before it: read it into a table")
        chosen, _ = _chosen(source.names, {field.name: field.type for field in source.schema}.__getitem__, kinds)
        first = next(source.pieces(list(chosen)), None)
        types = {field.name: field.type for field in source.schema}
        nothing = {name: pa.chunked_array([], types[name]) for name in source.names}

        def read(name: str) -> pa.ChunkedArray:
            found = first.column(name) if first is not None and name in first.names else nothing[name]
            return _as_declared(found, types[name])

        return free_layout(Rows(source.names, 0, read), kinds)
    chosen, left_out = _chosen(source.names, lambda name: source.column(name).type, kinds)
    columns = {}
    for name in chosen:
        values = source.column(name)
        kind = _refined(chosen[name], values, kinds)
        columns[name] = fitted(name, kind, values.type, lambda k=kind, v=values: free_column(k, v))  # type: ignore[misc]
    return Layout(columns, left_out)


def joint_layout(columns: Mapping[str, Column], rows: Rows) -> Joint | None:
    """The empty joint part over the first 64 numeric columns that hold values, standardised by their moments."""
    chosen = [(name, column) for name, column in columns.items() if isinstance(column, NumericColumn) and column.count][
        :MAX_COLUMNS
    ]
    if not chosen:
        return None
    names = tuple(name for name, _ in chosen)
    places = np.unique(np.linspace(0, rows.rows - 1, min(rows.rows, _JOINT_SAMPLE)).astype(np.int64))
    taken = {name: rows.column(name).take(pa.array(places)) for name in names}
    sample = np.stack([_floats(taken[name], len(places)) for name in names], axis=1)
    center = np.array([column.mean for _, column in chosen])
    scale = np.array([math.sqrt(column.variance) for _, column in chosen])
    return Joint.layout(names, center, scale, sample)


def joint_blocks(names: Sequence[str], rows: Rows) -> Iterator[Floats]:
    """The rows of numeric columns as float64 blocks [n, len(names)], NaN where there is no value."""
    columns = {name: rows.column(name) for name in names if name in rows.names}
    for start in range(0, rows.rows, _JOINT_ROWS):
        block = np.full((min(_JOINT_ROWS, rows.rows - start), len(names)), np.nan)
        for place, name in enumerate(names):
            if name in columns:
                block[:, place] = _floats(columns[name].slice(start, _JOINT_ROWS), len(block))
        yield block


def fitted(name: str, kind: str, found: pa.DataType, make: Callable[[], Any]) -> Any:
    """What `make` gives; what goes wrong in it becomes a ProfileError that names the column."""
    try:
        return make()
    except ProfileError as error:
        raise ProfileError(f"column {name!r}: {error}") from error
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ProfileError(f"column {name!r} of type {found} is not {kind}: {error}") from error


def _chosen(
    names: Sequence[str], kind_of: Callable[[str], pa.DataType], kinds: Mapping[str, Kind] | None
) -> tuple[dict[str, Kind], dict[str, str]]:
    """The columns to profile with their kinds, and those that none holds with the reason."""
    if kinds is not None:
        lacking = [name for name in kinds if name not in names]
        if lacking:
            raise ProfileError(f"column {lacking[0]!r} is not in the table: it has {', '.join(names)}")
        return dict(kinds), {}
    of_events = [name for name in names if name.startswith((FEATURE, PREDICTION))]
    chosen: dict[str, Kind] = {}
    left_out: dict[str, str] = {}
    for name in of_events or names:
        kind = kind_of_type(kind_of(name))
        if kind in KINDS:
            chosen[name] = kind
        else:
            left_out[name] = kind
    return chosen, left_out


def _as_declared(values: pa.ChunkedArray, declared: pa.DataType) -> pa.ChunkedArray:
    """The values as texts where the table says that they are: Parquet's own dictionaries are read for all text."""
    if is_string(declared) and pa.types.is_dictionary(values.type):
        return values.cast(values.type.value_type)
    return values


def _refined(kind: Kind, values: pa.ChunkedArray, kinds: Mapping[str, Kind] | None) -> Kind:
    try:
        return "text" if kinds is None and kind == "categorical" and is_free_text(values) else kind
    except UnicodeDecodeError:  # told with the column's name by what counts it
        return kind


def _floats(values: pa.ChunkedArray, length: int) -> Floats:
    numbers = np.empty(length)
    place = 0
    for block, valid in number_blocks(values):
        part = numbers[place : place + len(block)]
        part[:] = block
        if valid is not None:
            part[~valid] = np.nan
        place += len(block)
    return numbers
