"""Rows checked against a schema: which rule of which column each of them breaks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from collectors.quality.schema import ColumnRules, Schema
from observability.columns import DatetimeColumn
from observability.events import FEATURE, PREDICTION

Rule = Literal["type", "required", "finite", "range", "categories", "unique", "unexpected"]
Rows = npt.NDArray[np.int64]

_NO_TIMES = DatetimeColumn.layout()


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule of one column broken by the rows at `rows` (positions in the table, ascending)."""

    column: str
    rule: Rule
    rows: Rows


def check(table: pa.Table, schema: Schema) -> list[Violation]:
    """Every broken rule of the schema's columns in a table of events; `unexpected` are columns that it does not name.

    Predictions are unexpected only where it names one: a reference is often made of the training table, which has none.
    No rows, no violations. A prediction is required only of rows whose `outcome` is ok.
    """
    if not table.num_rows:
        return []
    found = [violation for name, rules in schema.columns.items() for violation in _column(table, name, rules)]
    everything, named = np.arange(table.num_rows), schema.columns.keys() | schema.unchecked
    kinds = (FEATURE, PREDICTION) if any(name.startswith(PREDICTION) for name in schema.columns) else FEATURE
    strangers = [name for name in table.schema.names if name.startswith(kinds) and name not in named and schema.columns]
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
        yield from _some(name, "type", _strange(rules, values))
        if rules.required:
            yield from _some(name, "required", np.intersect1d(_where(pc.is_null(values, nan_is_null=True)), due))
        return
    if rules.type == "numeric":
        yield from _numeric(name, rules, values, due)
    elif rules.type == "embedding":
        yield from _vectors(name, rules, values, due)
    else:
        yield from _named(name, rules, values, due)
    if rules.unique:
        yield from _some(name, "unique", _repeated(values))


def _numeric(name: str, rules: ColumnRules, values: pa.ChunkedArray, due: Rows) -> Iterator[Violation]:
    numbers = _numbers(values)
    low = -math.inf if rules.minimum is None else rules.minimum
    high = math.inf if rules.maximum is None else rules.maximum
    least, most = float(numbers.min()), float(numbers.max())
    # NaN and infinities show in the extremes, too: one look clears a column that breaks nothing.
    if low <= least and most <= high and math.isfinite(least) and math.isfinite(most):
        return
    infinite, missing = np.isinf(numbers), np.isnan(numbers)
    if rules.finite:
        yield from _some(name, "finite", np.flatnonzero(infinite))
    yield from _some(name, "range", np.flatnonzero(((numbers < low) | (numbers > high)) & ~infinite))
    if rules.required:
        yield from _some(name, "required", due[missing[due]])


def _vectors(name: str, rules: ColumnRules, values: pa.ChunkedArray, due: Rows) -> Iterator[Violation]:
    """A vector of another length is of another type; one with a NaN is missing, as it is in a profile."""
    valid = _where(pc.is_valid(values))
    lengths = pc.list_value_length(values).to_numpy()[valid].astype(np.int64)
    if rules.dimensions is not None:
        yield from _some(name, "type", valid[lengths != rules.dimensions])
    numbers = pc.list_flatten(values).to_numpy()
    ends = np.cumsum(lengths)
    odd = np.flatnonzero(~np.isfinite(numbers))
    owner = valid[np.searchsorted(ends, odd, side="right")]
    infinite = np.isinf(numbers[odd])
    if rules.finite:
        yield from _some(name, "finite", np.unique(owner[infinite]))
    if rules.required:
        missing = np.concatenate([_where(pc.is_null(values)), owner[~infinite]])
        yield from _some(name, "required", np.intersect1d(missing, due))


def _named(name: str, rules: ColumnRules, values: pa.ChunkedArray, due: Rows) -> Iterator[Violation]:
    if rules.required and values.null_count:
        yield from _some(name, "required", np.intersect1d(_where(pc.is_null(values)), due, assume_unique=True))
    if rules.categories is not None and rules.type == "categorical":
        known = pc.is_in(values, value_set=pa.array(rules.categories, values.type))
        if not pc.all(known).as_py():
            yield from _some(name, "categories", _where(pc.and_(pc.is_valid(values), pc.invert(known))))


def _strange(rules: ColumnRules, values: pa.ChunkedArray) -> Rows:
    """The rows with a value of another Arrow type, but for those that a profile counts as what they stand for: codes
    among the categories, times as text."""
    valid = _where(pc.is_valid(values))
    if rules.type == "categorical" and pa.types.is_floating(values.type):
        numbers = _numbers(values)
        known = np.isnan(numbers) if rules.categories else np.ones(len(numbers), bool)
        strange: Rows = np.flatnonzero(~(known | np.isin(numbers, _codes(rules.categories or ()))))
        return strange
    if rules.type == "datetime" and pa.types.is_string(values.type):
        coded = values.combine_chunks().dictionary_encode()
        texts = coded.dictionary
        if _are_times(texts):
            return valid[:0]
        bad = np.array([not _are_times(texts.slice(place, 1)) for place in range(len(texts))], bool)
        unread: Rows = valid[bad[coded.indices.drop_null().to_numpy()]]
        return unread
    return valid


@lru_cache(maxsize=256)
def _codes(categories: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """The numbers that a profile writes like one of the categories."""
    found = []
    for text in categories:
        try:
            number = float(text)
        except ValueError:
            continue
        if math.isfinite(number) and text in (str(int(number)), repr(number)):
            found.append(number)
    return np.array(found, np.float64)


def _are_times(texts: pa.Array) -> bool:
    try:
        _NO_TIMES.updated(texts)
    except pa.ArrowException:
        return False
    return True


def _numbers(values: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """The values as float64, NaN where they are missing."""
    floats = values if pa.types.is_floating(values.type) else values.cast(pa.float64(), safe=False)
    return np.asarray(floats.to_numpy(), np.float64)


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


def _repeated(values: pa.ChunkedArray) -> Rows:
    """The rows whose value came in an earlier row already; missing values repeat nothing."""
    rows = _where(pc.is_valid(values))
    if pa.types.is_nested(values.type):  # Arrow numbers no lists
        values = pa.chunked_array([pa.array(list(map(repr, values.to_pylist())), pa.utf8())])
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
