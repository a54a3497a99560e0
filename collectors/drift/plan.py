"""Which columns two tables have in common, and what each of them is compared as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from collectors.drift.comparison import Sides
from collectors.drift.kinds import agreed_kind, are_truths, checked_kinds, comparable_columns, kind_of, named_type
from collectors.drift.source import InputError, Source
from collectors.drift.written_times import are_times
from observability.profile import Profile


@dataclass(frozen=True, slots=True)
class ColumnPlan:
    """One column of both tables; without a kind it cannot be compared, for a reason."""

    name: str
    kind: str | None
    reason: str = ""
    changed: bool = False
    """Whether it cannot be compared because its type changed."""
    parsed: bool = False
    """Whether one side is text that has to be read as numbers."""
    given: bool = False
    """Whether the caller said what the column is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is compared, and what only one table has."""

    columns: tuple[ColumnPlan, ...]
    only_in_reference: tuple[str, ...]
    only_in_current: tuple[str, ...]

    @property
    def compared(self) -> list[str]:
        return [column.name for column in self.columns if column.kind is not None]

    @property
    def given(self) -> dict[str, str]:
        """The kinds that the caller gave."""
        return {column.name: column.kind for column in self.columns if column.kind is not None and column.given}

    @property
    def kinds(self) -> dict[str, str]:
        return {column.name: column.kind for column in self.columns if column.kind is not None}


def planned(
    sides: Sides[Source | Profile],
    columns: Sequence[str] | None,
    kinds: Mapping[str, str] | None,
    ignored: Sequence[str] = (),
) -> Plan:
    """The plan for two tables. InputError when they have nothing in common, or a named column does not exist."""
    before, now = _names(sides.reference), _names(sides.current)
    known, present = set(before), set(now)
    if columns is not None:
        wanted = list(dict.fromkeys(columns))
        if not wanted:
            raise InputError(f"no column is named to compare: {_listed(before)}")
        for name in wanted:
            absent = [
                side for side, names in (("the reference", before), ("the current table", now)) if name not in names
            ]
            if absent:
                there = before if "the reference" in absent else now
                raise InputError(f"column {name!r} is not in {' and not in '.join(absent)}: {_listed(there)}")
    else:
        wanted = [name for name in _default(sides.reference) if name in present]
    if ignored and set(wanted) <= set(ignored):
        raise InputError(f"nothing is left to compare beside {', '.join(map(repr, ignored))}: name other columns, too")
    wanted = [name for name in wanted if name not in ignored]
    if not wanted:
        raise InputError(
            f"the tables have no column in common: the reference has {', '.join(before[:20])}; "
            f"the current table has {', '.join(now[:20])}"
        )
    given = checked_kinds(kinds, list(dict.fromkeys([*before, *now])))
    only = (
        tuple(name for name in _default(sides.reference) if name not in present),
        tuple(name for name in _default(sides.current) if name not in known),
    )
    if columns is not None:
        only = ((), ())
    both = sides.reference, sides.current
    counted = all(isinstance(side, Profile) and not side.left_out for side in both)
    if isinstance(both[0], Profile) and isinstance(both[1], Profile) and counted and not given:
        found = [[side.columns[name].kind for name in wanted] for side in (both[0], both[1])]
        if found[0] == found[1]:
            return Plan(tuple(map(ColumnPlan, wanted, found[0])), *only)
    return Plan(tuple(_column(sides, name, given.get(name)) for name in wanted), *only)


def _names(side: Source | Profile) -> list[str]:
    """A table's columns; of a profile also those that it had no kind for."""
    return list(side.columns) if isinstance(side, Source) else list(dict.fromkeys([*side.columns, *side.left_out]))


def _default(side: Source | Profile) -> list[str]:
    return _names(side) if isinstance(side, Profile) else comparable_columns(side.columns)


def _column(sides: Sides[Source | Profile], name: str, given: str | None) -> ColumnPlan:
    before, now = sides.reference, sides.current
    for side, across in ((before, now), (now, before)):
        if isinstance(side, Profile) and name not in side.columns:
            changed = _is_known(across, name)
            reason = side.left_out[name]
            return ColumnPlan(name, None, f"the type changed; {reason}" if changed else reason, changed=changed)
    if isinstance(before, Profile):
        kind: str = before.columns[name].kind
        if given is not None and given != kind:
            raise InputError(f"column {name!r} is {kind} in the profile: it cannot be compared as {given}")
        if isinstance(now, Profile):
            other = now.columns[name].kind
            if other != kind:
                reason = f"the type changed: {kind} in the reference, {other} in the current profile"
                return ColumnPlan(name, None, reason, changed=True)
            return ColumnPlan(name, kind)
        current = now.schema.field(name).type
        if _fits(kind, current):
            return ColumnPlan(name, kind)
        if kind == "numeric" and kind_of(current) == "categorical" and before.columns[name].count:
            return ColumnPlan(name, kind, parsed=True)
        if kind == "boolean" and kind_of(current) in ("numeric", "categorical") and _has_truths(now, name, words=False):
            return ColumnPlan(name, kind)
        if kind == "datetime" and kind_of(current) == "categorical" and _has_times(now, name):
            return ColumnPlan(name, kind)
        reason = f"the type changed: {kind} in the reference, {named_type(current)} in the current table"
        return ColumnPlan(name, None, reason, changed=True)
    if isinstance(now, Profile):
        raise InputError("a profile can only be compared with a profile: give the reference as a profile, too")
    types = Sides(before.schema.field(name).type, now.schema.field(name).type)
    if given is not None:
        if given == "datetime":
            for side, of in ((before, types.reference), (now, types.current)):
                if kind_of(of) == "categorical" and _has_values(side, name) and not _has_times(side, name):
                    raise InputError(f"column {name!r} of {side.name} cannot be read as datetime: no text is ISO 8601")
        return ColumnPlan(name, given, given=True)
    agreed, reason = agreed_kind(types)
    kinds = {kind_of(types.reference), kind_of(types.current)}
    if agreed == "embedding" and pa.types.is_null(types.reference):
        # Nothing tells how long the vectors were.
        found = _has_values(now, name)
        reason = "the reference has no value" if found else "neither table has a value"
        return ColumnPlan(name, None, reason, changed=found)
    if kinds in ({"boolean", "categorical"}, {"numeric", "categorical"}):
        # Among numbers, texts of numbers are numbers.
        words = "numeric" in kinds
        if _has_truths(before, name, words=words) and _has_truths(now, name, words=words):
            return ColumnPlan(name, "boolean")
    if kinds == {"datetime", "categorical"} and _has_times(before, name) and _has_times(now, name):
        return ColumnPlan(name, "datetime")
    if agreed is None and kinds == {"numeric", "categorical"}:
        numbers = before if kind_of(types.reference) == "numeric" else now
        # Numbers that are all missing are of the other side's kind: pandas has no other nothing.
        return ColumnPlan(name, "numeric" if _has_numbers(numbers, name) else "categorical", reason, parsed=True)
    return ColumnPlan(name, agreed, reason, changed=agreed is None and "changed" in reason)


def _has_numbers(source: Source, name: str) -> bool:
    """Whether a numeric column has any value; it is read up to the first."""
    for batch in source.scan([name]):
        values = batch.column(0)
        if len(values) > values.null_count and len(values) > pc.sum(pc.is_null(values, nan_is_null=True)).as_py():
            return True
    return False


def _is_known(side: Source | Profile, name: str) -> bool:
    """Whether a column is of some kind, and not of nothing but nulls."""
    if isinstance(side, Profile):
        return name in side.columns and side.columns[name].count > 0
    kind = side.schema.field(name).type
    return kind_of(kind) is not None and not pa.types.is_null(kind)


def _has_values(source: Source, name: str) -> bool:
    return any(len(batch) > batch.column(0).null_count for batch in source.scan([name]))


def _has_times(source: Source, name: str) -> bool:
    """Whether a column has times, be it as text; it is read up to the first."""
    return any(are_times(batch.column(0)) for batch in source.scan([name]))


def _has_truths(source: Source, name: str, *, words: bool) -> bool:
    """Whether a column has truth values and nothing else: 0 and 1, and (of texts with `words` only) true and false."""
    kind = source.schema.field(name).type
    if kind_of(kind) == "numeric" and not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return False
    words = words and kind_of(kind) == "categorical"
    return all(are_truths(batch.column(0), words=words) for batch in source.scan([name])) and _has_values(source, name)


def _fits(kind: str, current: pa.DataType) -> bool:
    found = kind_of(current)
    return (
        found == kind
        or pa.types.is_null(current)
        or (kind in ("categorical", "text") and found in ("categorical", "boolean", "numeric"))
        or (kind == "numeric" and found == "boolean")
    )


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"there are {', '.join(names[:most])}{more}"
