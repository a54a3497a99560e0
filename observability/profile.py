"""Profile: what a table looks like, in a few kilobytes a column, so that drift needs no rows.

Profiles of one layout are a commutative monoid: `reference.empty()` is the identity, `a + b` the profile of both
tables. A window is the sum of its batches, a day of its windows, a cluster of its workers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from observability.columns import (
    BooleanColumn,
    CategoricalColumn,
    Column,
    Kind,
    NumericColumn,
    ProfileError,
)
from observability.events import FEATURE, PREDICTION

FORMAT = 1
_KINDS: dict[str, type[NumericColumn] | type[CategoricalColumn] | type[BooleanColumn]] = {
    "numeric": NumericColumn,
    "categorical": CategoricalColumn,
    "boolean": BooleanColumn,
}


@dataclass(frozen=True, slots=True)
class Profile:
    """Mergeable summaries of a table's columns, over bins and categories taken from a reference table."""

    columns: dict[str, Column]

    @staticmethod
    def of(table: pa.Table | pa.RecordBatch, kinds: Mapping[str, Kind] | None = None) -> Profile:
        """The reference profile of `table`: its quantiles become the bins, its categories the cells.

        Of a table of events the features and predictions are profiled, of another every column of a number, text or
        boolean type. `kinds` names the columns instead and says what they are (for example codes: "categorical").
        """
        table = _table(table)
        chosen = dict(kinds) if kinds is not None else _kinds(table.schema)
        layout = {name: _layout(table, name, kind) for name, kind in chosen.items()}
        return Profile(layout).updated(table)

    def empty(self) -> Profile:
        """No rows in the same layout: the identity of `+`."""
        return Profile({name: column.empty() for name, column in self.columns.items()})

    def updated(self, table: pa.Table | pa.RecordBatch) -> Profile:
        """This profile with the rows of `table` added. A column that the table lacks is missing in all its rows."""
        table = _table(table)
        return Profile({name: _updated(name, column, table) for name, column in self.columns.items()})

    def __add__(self, other: Profile) -> Profile:
        """The profile of both sets of rows. ProfileError unless both have the layout of one reference."""
        if self.columns.keys() != other.columns.keys():
            different = sorted(self.columns.keys() ^ other.columns.keys())
            raise ProfileError(f"only one of the profiles has the columns {', '.join(different)}")
        return Profile({name: _sum(name, column, other.columns[name]) for name, column in self.columns.items()})

    @property
    def rows(self) -> int:
        """Rows profiled."""
        return max((column.rows for column in self.columns.values()), default=0)

    def to_json(self) -> bytes:
        """The profile as UTF-8 JSON, exact to the bit."""
        columns = {name: column.to_json() for name, column in self.columns.items()}
        return json.dumps({"format": FORMAT, "columns": columns}, separators=(",", ":"), allow_nan=False).encode()

    @staticmethod
    def from_json(body: bytes) -> Profile:
        """The profile that `to_json` wrote. ProfileError if the body is something else."""
        try:
            value: dict[str, Any] = json.loads(body)
            if value["format"] != FORMAT:
                raise ProfileError(f"the profile has format {value['format']}, this version reads {FORMAT}")
            columns = value["columns"].items()
            return Profile({name: _KINDS[column["kind"]].from_json(column) for name, column in columns})
        except ProfileError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProfileError(f"the body is not a profile: {type(error).__name__}: {error}") from error


def distribution(column: Column) -> NDArray[np.float64]:
    """The share of each cell of `column.counts` in its values (missing ones aside); zeros where there are none."""
    return column.counts / max(column.count, 1)


def _table(table: pa.Table | pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table


def _kinds(schema: pa.Schema) -> dict[str, Kind]:
    of_events = [field for field in schema if field.name.startswith((FEATURE, PREDICTION))]
    found = {field.name: _kind(field.type) for field in of_events or schema}
    return {name: kind for name, kind in found.items() if kind is not None}


def _kind(kind: pa.DataType) -> Kind | None:
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "categorical"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return "numeric"
    return None


def _layout(table: pa.Table, name: str, kind: Kind) -> Column:
    if name not in table.schema.names:
        raise ProfileError(f"column {name!r} is not in the table: it has {', '.join(table.schema.names)}")
    if kind not in _KINDS:
        raise ProfileError(f"column {name!r} has the kind {kind!r}: known are {', '.join(_KINDS)}")
    try:
        return _KINDS[kind].layout(table.column(name))
    except pa.ArrowException as error:
        raise ProfileError(f"column {name!r} of type {table.column(name).type} is not {kind}: {error}") from error


def _updated(name: str, column: Column, table: pa.Table) -> Column:
    if name not in table.schema.names:
        return column.without_values(len(table))
    try:
        return column.updated(table.column(name))
    except pa.ArrowException as error:
        raise ProfileError(
            f"column {name!r} of type {table.column(name).type} is not {column.kind}: {error}"
        ) from error


def _sum(name: str, left: Column, right: Column) -> Column:
    if type(left) is not type(right):
        raise ProfileError(f"column {name!r} is {left.kind} in one profile and {right.kind} in the other")
    try:
        return left + right  # type: ignore[operator]  # the kinds are equal, which the union cannot say
    except ProfileError as error:
        raise ProfileError(f"column {name!r}: {error}") from error
