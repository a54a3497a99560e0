"""What kind of column an Arrow type is, and which text is free text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from observability.blocks import chunks
from observability.cells import Kind

KINDS: tuple[Kind, ...] = ("numeric", "categorical", "boolean", "datetime", "text", "embedding")

# Free text: of up to so many values taken evenly, at least so many are there, at least this share of them differ,
# and they have at least so many words, or are as long and mostly outside ASCII (languages without spaces).
_TEXT_SAMPLE, _TEXT_MINIMUM, _TEXT_DISTINCT, _TEXT_WORDS, _TEXT_LENGTH = 4_096, 50, 0.5, 3.0, 20


def kind_of_type(kind: pa.DataType) -> Kind | str:
    """The kind of a column of this type, or the reason (with spaces in it) why it has none.

    Integers, floats, decimals, durations and times of day are numeric (the last two in seconds), as is a column of
    nothing but nulls; timestamps and dates are datetime; fixed-size lists of numbers and lists of floats are
    embeddings. A dictionary is of the kind of its values.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return kind_of_type(kind.storage_type)
    is_a = pa.types
    if is_a.is_dictionary(kind) or is_a.is_run_end_encoded(kind):
        return kind_of_type(kind.value_type)
    if is_a.is_boolean(kind):
        return "boolean"
    if is_string(kind):
        return "categorical"
    if is_a.is_timestamp(kind) or is_a.is_date(kind):
        return "datetime"
    numeric = (is_a.is_integer, is_a.is_floating, is_a.is_decimal, is_a.is_null, is_a.is_duration, is_a.is_time)
    if any(test(kind) for test in numeric):
        return "numeric"
    if is_a.is_fixed_size_list(kind) and (is_a.is_integer(kind.value_type) or is_a.is_floating(kind.value_type)):
        return "embedding"
    if (is_a.is_list(kind) or is_a.is_large_list(kind)) and is_a.is_floating(kind.value_type):
        return "embedding"
    if is_a.is_binary(kind) or is_a.is_large_binary(kind) or is_a.is_fixed_size_binary(kind):
        return f"the type {kind} is bytes: cast it to text, or name a kind for it"
    return f"no kind of column holds the type {kind}: take the values out of it that matter"


def is_string(kind: pa.DataType) -> bool:
    """Whether the type is one of Arrow's three of text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_free_text(values: pa.ChunkedArray | pa.Array) -> bool:
    """Whether a column of strings is free text and not categories.

    Of up to 4,096 values taken evenly at least 50 are there, half of them differ, and they have three words or more on
    average, or at least 20 characters of which most are not ASCII. Codes and identifiers are neither, however long.
    """
    if not is_string(values.type):
        return False
    rows = len(values)
    places = np.unique(np.linspace(0, rows - 1, min(rows, _TEXT_SAMPLE)).astype(np.int64)) if rows else np.empty(0, int)
    sample = [text for text in _taken(values, places) if text is not None]
    if len(sample) < _TEXT_MINIMUM or len(set(sample)) < _TEXT_DISTINCT * len(sample):
        return False
    words = sum(len(text.split()) for text in sample) / len(sample)
    characters = sum(map(len, sample))
    foreign = sum(not character.isascii() for text in sample for character in text[:200])
    long = characters >= _TEXT_LENGTH * len(sample)
    return words >= _TEXT_WORDS or (long and foreign > 0.5 * sum(min(len(text), 200) for text in sample))


def _taken(values: pa.ChunkedArray | pa.Array, places: Any) -> list[str | None]:
    """The values at ascending places, taken chunk by chunk: what lies between is not copied."""
    found: list[str | None] = []
    start = 0
    for chunk in chunks(values):
        here = places[(places >= start) & (places < start + len(chunk))] - start
        found += [chunk[int(place)].as_py() for place in here]
        start += len(chunk)
    return found
