"""What a column of a table is compared as, by its Arrow type, and what to do when the two tables disagree."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from collectors.drift.comparison import Sides
from collectors.drift.source import InputError
from collectors.drift.written_numbers import are_numbers
from collectors.drift.written_times import clock_seconds
from observability.events import FEATURE, PREDICTION
from observability.kinds import KINDS, is_free_text, is_string, kind_of_type

SAMPLE = 4096
_TRUE, _FALSE = ("1", "true"), ("0", "false")
_INDEX = re.compile(r"__index_level_\d+__")


def kind_of(kind: pa.DataType) -> str | None:
    """The kind that values of an Arrow type are compared as; None for what cannot be compared."""
    found = kind_of_type(kind)
    return found if found in KINDS else None


def is_text(values: pa.ChunkedArray) -> bool:
    """Whether a column is free text and not a list of categories, by a few thousand of its values."""
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if not is_string(kind) or not len(values):
        return False
    step = -(-len(values) // SAMPLE)
    sample = values.take(pa.array(range(0, len(values), step)))
    texts = as_text(sample)
    # Spaces between thousands make no words.
    return is_free_text(texts) and not are_numbers(texts)


def as_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values as Arrow strings; NaN is a missing one. pa.ArrowException for what has no text."""
    values = without_nan(values)
    return values if values.type == pa.string() else values.cast(pa.string())


def without_nan(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values with null in place of NaN: among categories it is a missing value, too."""
    if not pa.types.is_floating(values.type):
        return values
    return pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)


def as_truths(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Truth values of any column: of numbers 0 and 1, of text what says so. pa.ArrowInvalid when they are others."""
    if pa.types.is_boolean(values.type):
        return values
    texts = pc.utf8_lower(pc.utf8_trim_whitespace(as_text(values)))
    known = pc.is_in(texts, pa.array([*_TRUE, *_FALSE]))
    other = texts.filter(pc.and_(pc.is_valid(texts), pc.invert(known)))
    if len(other):
        raise pa.ArrowInvalid(f"{other[0].as_py()!r} is no truth value: there are 0 and 1, false and true")
    truths = pc.is_in(texts, pa.array(_TRUE))
    return pc.if_else(pc.is_valid(texts), truths, pa.scalar(None, pa.bool_()))


def are_truths(values: pa.ChunkedArray | pa.Array, *, words: bool = False) -> bool:
    """Whether numbers are all 0 or 1, and texts all say true or false (with `words` not by 0 and 1), in any case."""
    texts = pc.utf8_lower(pc.utf8_trim_whitespace(as_text(values).drop_null().unique()))
    known = (_TRUE[1], _FALSE[1]) if words else (*_TRUE, *_FALSE)
    return bool(pc.all(pc.is_in(texts, pa.array(known)), min_count=0).as_py())


def named_type(kind: pa.DataType) -> str:
    """A type in messages: text is called text, however it is kept."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return "text" if is_string(kind) else str(kind)


def comparable_columns(names: Sequence[str]) -> list[str]:
    """The columns that are compared when none are named: of events the features and predictions, else all.

    Left out is what pandas writes for a frame's nameless index, row numbers, unless there is nothing else.
    """
    of_events = [name for name in names if name.startswith((FEATURE, PREDICTION))]
    return of_events or [name for name in names if not _INDEX.fullmatch(name)] or list(names)


def checked_kinds(kinds: Mapping[str, str] | None, known: list[str]) -> dict[str, str]:
    """`kinds` as given. InputError for a kind or a column that does not exist."""
    for name, kind in (kinds or {}).items():
        if kind not in KINDS:
            raise InputError(f"column {name!r} cannot be of the kind {kind!r}: known are {', '.join(KINDS)}")
        if name not in known:
            raise InputError(f"a kind is given for {name!r}, but there is no such column: {_listed(known)}")
    return dict(kinds or {})


def agreed_kind(types: Sides[pa.DataType]) -> tuple[str | None, str]:
    """The kind that both sides can be compared as, or None and the reason why not."""
    kinds = Sides(kind_of(types.reference), kind_of(types.current))
    if kinds.reference is None or kinds.current is None:
        why = str(kind_of_type(types.reference if kinds.reference is None else types.current))
        known = types.reference if kinds.reference is not None else types.current
        same = kinds.reference == kinds.current or pa.types.is_null(known)
        return None, why if same else f"{_changed(types)}; {why}"
    if kinds.reference == kinds.current:
        return kinds.reference, ""
    # A side without any value is of the other side's kind.
    if pa.types.is_null(types.current):
        return kinds.reference, ""
    if pa.types.is_null(types.reference):
        return kinds.current, ""
    pair = {kinds.reference, kinds.current}
    if pair == {"numeric", "boolean"}:
        return "numeric", ""
    if pair == {"boolean", "categorical"}:
        return "categorical", ""
    return None, _changed(types)


def _changed(types: Sides[pa.DataType]) -> str:
    return (
        f"the type changed: {named_type(types.reference)} in the reference, "
        f"{named_type(types.current)} in the current table"
    )


def as_numbers(values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
    """Numbers of any column: text is read as numbers, and how many values are none (they become null).

    Where no text is a number, times of day and lengths of time are read, in seconds.
    """
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = values.cast(kind.value_type)
        kind = values.type
    if pa.types.is_boolean(kind):
        return values.cast(pa.int8()), 0
    if pa.types.is_duration(kind) or pa.types.is_time(kind) or pa.types.is_timestamp(kind):
        # Seconds, whatever unit each side counts in.
        whole = values.cast(pa.int32() if pa.types.is_time32(kind) else pa.int64())
        return pc.divide(whole.cast(pa.float64(), safe=False), _A_SECOND[kind.unit]), 0
    if pa.types.is_date(kind):
        return values.cast(pa.timestamp("s")).cast(pa.int64()), 0
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return values, 0
    texts = pc.utf8_trim_whitespace(values.cast(pa.string()))
    is_number = pc.match_substring_regex(texts, _NUMBER)
    numbers = pc.if_else(is_number, texts, pa.scalar(None, pa.string())).cast(pa.float64())
    if numbers.null_count == len(numbers):
        numbers = clock_seconds(texts)
    return numbers, numbers.null_count - values.null_count


_A_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


def _listed(names: list[str], most: int = 20) -> str:
    shown = ", ".join(names[:most])
    return f"there are {shown}" + (f" and {len(names) - most} more" if len(names) > most else "")
