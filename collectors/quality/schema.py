"""The schema of a model's rows: inferred from the reference profile, changed by an edit that outlives versions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from collectors.drift.judge import missing_ratio
from observability.columns import CategoricalColumn, Column, EmbeddingColumn, NumericColumn
from observability.events import FEATURE
from observability.profile import Profile

# A column that never missed a value in so many reference rows is taken to be required.
REQUIRED_ROWS = 1_000


class SchemaError(ValueError):
    """A schema or an edit of one that says something impossible; the message names the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnRules:
    """What a column's values must be. None: anything."""

    type: str
    """numeric, categorical, boolean, datetime, text or embedding."""
    required: bool = False
    """Every row has a value; NaN is none."""
    finite: bool = True
    minimum: float | None = None
    maximum: float | None = None
    categories: tuple[str, ...] | None = None
    dimensions: int | None = None
    """Numbers of each vector."""
    unique: bool = False
    """No two rows of a batch hold the same value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The rules of a model's columns, and how many rows are expected."""

    columns: Mapping[str, ColumnRules] = field(default_factory=dict)
    rows_per_second: float | None = None
    """Expected rows a second; None: the median of the windows before."""
    max_age_seconds: float | None = None
    """Age of the latest row at which the data is stale; None: ten times the usual gap between windows."""
    unchecked: frozenset[str] = frozenset()
    """Columns that an edit stopped checking: they may come, with anything in them."""
    not_applied: Mapping[str, str] = field(default_factory=dict)
    """What an edit says of columns that are otherwise in this version's reference, and why that does not hold here."""

    @staticmethod
    def inferred(reference: Profile) -> Schema:
        """What the reference's rows say: types, columns that never miss, ranges doubled on each side, categories."""
        return Schema(columns={name: _inferred(name, column) for name, column in reference.columns.items()})

    def edited(self, edit: SchemaEdit) -> Schema:
        """This schema with what the edit names changed; a column that only the edit names is added.

        A column for which the edit makes no sense stays as it is and is told in `not_applied`: an edit is older than
        the versions that come after it, whose columns may be of other types.
        """
        columns, not_applied = dict(self.columns), {}
        for name, change in edit.columns.items():
            if change is None:
                columns.pop(name, None)
                continue
            try:
                columns[name] = _changed(name, columns.get(name), change)
            except SchemaError as error:
                not_applied[name] = str(error)
        return replace(
            self,
            columns=columns,
            rows_per_second=edit.rows_per_second or self.rows_per_second,
            max_age_seconds=edit.max_age_seconds or self.max_age_seconds,
            unchecked=frozenset(name for name, change in edit.columns.items() if change is None),
            not_applied=not_applied,
        )

    def to_json(self) -> dict[str, Any]:
        """The schema as plain values; rules that allow anything are left out."""
        columns = {
            name: {key: value for key, value in msgspec.to_builtins(rules).items() if value is not None}
            for name, rules in self.columns.items()
        }
        body = {
            "columns": columns,
            "rows_per_second": self.rows_per_second,
            "max_age_seconds": self.max_age_seconds,
        }
        told = {"unchecked": sorted(self.unchecked), "not_applied": dict(self.not_applied)}
        return body | {name: what for name, what in told.items() if what}


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaEdit:
    """Changes to an inferred schema: by column the rules that differ, or None to stop checking it."""

    columns: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    rows_per_second: float | None = None
    max_age_seconds: float | None = None

    @staticmethod
    def from_json(body: bytes) -> SchemaEdit:
        """The edit in a JSON body. SchemaError that names the field when it is none."""
        try:
            read = msgspec.json.decode(body, type=_Edit)
        except msgspec.DecodeError as error:
            raise SchemaError(f"the body is not a schema: {error}") from error
        for name in ("rows_per_second", "max_age_seconds"):
            value = getattr(read, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SchemaError(f"{name} is {value}: it must be a positive number")
        columns = {name: None if rules is None else _given(rules) for name, rules in read.columns.items()}
        return SchemaEdit(columns=columns, rows_per_second=read.rows_per_second, max_age_seconds=read.max_age_seconds)

    def to_json(self) -> bytes:
        """The edit as `from_json` reads it."""
        return msgspec.json.encode(self)


class _Rules(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    type: str | msgspec.UnsetType = msgspec.UNSET
    required: bool | msgspec.UnsetType = msgspec.UNSET
    finite: bool | msgspec.UnsetType = msgspec.UNSET
    minimum: float | msgspec.UnsetType | None = msgspec.UNSET
    maximum: float | msgspec.UnsetType | None = msgspec.UNSET
    categories: list[str] | msgspec.UnsetType | None = msgspec.UNSET
    dimensions: int | msgspec.UnsetType | None = msgspec.UNSET
    unique: bool | msgspec.UnsetType = msgspec.UNSET


class _Edit(msgspec.Struct, forbid_unknown_fields=True):
    columns: dict[str, _Rules | None] = {}
    rows_per_second: float | None = None
    max_age_seconds: float | None = None


_TYPES = ("numeric", "categorical", "boolean", "datetime", "text", "embedding")


def _given(rules: _Rules) -> dict[str, Any]:
    given = {name: getattr(rules, name) for name in _Rules.__struct_fields__}
    given = {name: value for name, value in given.items() if value is not msgspec.UNSET}
    if given.get("categories") is not None:
        given["categories"] = tuple(given["categories"])
    return given


def _changed(name: str, base: ColumnRules | None, change: Mapping[str, Any]) -> ColumnRules:
    """The rules of a column with what an edit says of it. SchemaError."""
    if base is None and "type" not in change:
        raise SchemaError(f"column {name!r} is not in the reference: give its type, too")
    if base is None or change.get("type", base.type) != base.type:
        # Bounds and categories that were inferred are those of the other type.
        required, unique = (base.required, base.unique) if base is not None else (False, False)
        base = ColumnRules(type=str(change["type"]), required=required, unique=unique)
    return _checked(name, replace(base, **change))


def _checked(name: str, rules: ColumnRules) -> ColumnRules:
    if rules.type not in _TYPES:
        raise SchemaError(f"column {name!r} has the type {rules.type!r}: known are {', '.join(_TYPES)}")
    for bound in (rules.minimum, rules.maximum):
        if bound is not None and not math.isfinite(bound):
            raise SchemaError(f"column {name!r} has the bound {bound}: leave it out for none")
    if rules.minimum is not None and rules.maximum is not None and rules.minimum > rules.maximum:
        raise SchemaError(f"column {name!r} has minimum {rules.minimum} above its maximum {rules.maximum}")
    if rules.type != "numeric" and (rules.minimum is not None or rules.maximum is not None):
        raise SchemaError(f"column {name!r} is {rules.type}: only a numeric one has a minimum and a maximum")
    if rules.type != "categorical" and rules.categories is not None:
        raise SchemaError(f"column {name!r} is {rules.type}: only a categorical one has categories")
    if rules.dimensions is not None and (rules.type != "embedding" or rules.dimensions < 1):
        raise SchemaError(f"column {name!r} is {rules.type}: only vectors have dimensions, of one number at least")
    if rules.categories is not None and not rules.categories:
        raise SchemaError(f"column {name!r} allows no category: leave `categories` out to allow any")
    return rules


def _inferred(name: str, column: Column) -> ColumnRules:
    # A failed prediction has no value, and that is the release's fault, not the data's.
    required = name.startswith(FEATURE) and missing_ratio(column) == 0 and column.rows >= REQUIRED_ROWS
    if isinstance(column, NumericColumn):
        return _numeric(column, required)
    if isinstance(column, CategoricalColumn) and column.categories and not column.truncated:
        return ColumnRules(type=column.kind, required=required, categories=column.categories)
    if isinstance(column, EmbeddingColumn):  # vectors with an infinity are counted with those that have a NaN
        finite = column.missing == 0
        return ColumnRules(type=column.kind, required=required, finite=finite, dimensions=column.dimensions)
    return ColumnRules(type=column.kind, required=required)


def _numeric(column: NumericColumn, required: bool) -> ColumnRules:
    finite = not (column.positive_infinite or column.negative_infinite)
    if not column.count:
        return ColumnRules(type="numeric", required=required, finite=finite)
    # New extremes are drift's business; a rule is there for the absurd, such as the wrong unit.
    reach = column.maximum - column.minimum
    if reach == 0:
        reach = abs(column.maximum) or 1.0
    low, high = column.minimum - reach, column.maximum + reach
    bounded = math.isfinite(low) and math.isfinite(high)
    return ColumnRules(
        type="numeric",
        required=required,
        finite=finite,
        minimum=low if bounded else None,
        maximum=high if bounded else None,
    )
