"""Rows checked against a schema: which rule of which column each of them breaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from collectors.quality.schema import ColumnRules, Schema
from observability.events import FEATURE, PREDICTION

Rule = Literal["type", "required", "finite", "range", "categories", "unique", "unexpected"]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule of one column broken by the rows at `rows` (positions in the table, ascending)."""

    column: str
    rule: Rule
    rows: Rows


def check(table: pa.Table, schema: Schema) -> list[Violation]:
    """Every broken rule of the schema's columns in a table of events; `unexpected` are columns that it does not name.

    No rows, no violations. A prediction is required only of rows whose `outcome` is ok.
    """
    if not table.num_rows:
        return []
    found = [violation for name, rules in schema.columns.items() for violation in _column(table, name, rules)]
    everything = np.arange(table.num_rows)
    strangers = [
        name
        for name in table.schema.names
        if name.startswith((FEATURE, PREDICTION)) and name not in schema.columns and schema.columns
    ]
    return found + [Violation(name, "unexpected", everything) for name in strangers]


def _column(table: pa.Table, name: str, rules: ColumnRules) -> Iterator[Violation]:
    due = _rows_due(table, name)
    if name not in table.schema.names:
        if rules.required and len(due):
            yield Violation(name, "required", due)
        return
    values = table.column(name)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not _is(rules.type, values.type):
        yield Violation(name, "type", _where(pc.is_valid(values)))
        return
    present = pc.is_valid(values)
    if rules.type == "numeric":
        values = values.cast(pa.float64(), safe=False)
        present = pc.and_(present, pc.invert(pc.fill_null(pc.is_nan(values), False)))
        yield from _numeric(name, rules, values, present)
    if rules.required:
        yield from _some(name, "required", np.intersect1d(_where(pc.invert(present)), due, assume_unique=True))
    if rules.categories is not None and rules.type == "categorical":
        known = pc.is_in(values, value_set=pa.array(rules.categories, values.type))
        yield from _some(name, "categories", _where(pc.and_(present, pc.invert(known))))
    if rules.unique:
        yield from _some(name, "unique", _repeated(values, present))


def _numeric(name: str, rules: ColumnRules, values: pa.ChunkedArray, present: pa.ChunkedArray) -> Iterator[Violation]:
    finite = pc.fill_null(pc.is_finite(values), False)
    if rules.finite:
        yield from _some(name, "finite", _where(pc.and_(present, pc.invert(finite))))
    outside = []
    if rules.minimum is not None:
        outside.append(pc.less(values, rules.minimum))
    if rules.maximum is not None:
        outside.append(pc.greater(values, rules.maximum))
    for number, breaks in enumerate(outside):
        outside[number] = pc.and_(finite, pc.fill_null(breaks, False))
    if outside:
        yield from _some(name, "range", _where(outside[0] if len(outside) == 1 else pc.or_(*outside)))


def _some(name: str, rule: Rule, rows: Rows) -> Iterator[Violation]:
    if len(rows):
        yield Violation(name, rule, rows)


def _rows_due(table: pa.Table, name: str) -> Rows:
    """The rows that must have a value: of a prediction those that were answered."""
    if name.startswith(PREDICTION) and "outcome" in table.schema.names:
        return _where(pc.fill_null(pc.equal(table.column("outcome"), "ok"), False))
    return np.arange(table.num_rows)


def _where(mask: pa.ChunkedArray) -> Rows:
    return np.flatnonzero(np.asarray(mask.to_numpy(), bool))


def _repeated(values: pa.ChunkedArray, present: pa.ChunkedArray) -> Rows:
    """The rows whose value came in an earlier row already."""
    rows = _where(present)
    codes = values.take(pa.array(rows)).dictionary_encode()
    numbers = np.concatenate([np.empty(0, np.int64), *(chunk.indices.to_numpy() for chunk in codes.chunks)])
    _, first = np.unique(numbers, return_index=True)
    later = np.ones(len(rows), bool)
    later[first] = False
    return rows[later]


def _is(kind: str, arrow: pa.DataType) -> bool:
    """Whether values of an Arrow type can be of a kind; a column without any value can be of every kind."""
    if pa.types.is_null(arrow):
        return True
    textual = pa.types.is_string(arrow) or pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow)
    number = pa.types.is_integer(arrow) or pa.types.is_floating(arrow) or pa.types.is_decimal(arrow)
    fits = {
        "numeric": number,
        "categorical": textual,
        "text": textual,
        "boolean": pa.types.is_boolean(arrow),
        "datetime": pa.types.is_timestamp(arrow) or pa.types.is_date(arrow),
        "embedding": pa.types.is_list(arrow) or pa.types.is_fixed_size_list(arrow) or pa.types.is_large_list(arrow),
    }
    return bool(fits.get(kind, True))
