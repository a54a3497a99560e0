"""Text that is not UTF-8, as old programs left it in Parquet and Arrow: found when it is read, told by its column."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from collectors.drift.comparison import Sides
from collectors.drift.source import InputError, Source
from observability.kinds import is_string
from observability.profile import Profile


@contextmanager
def told_encoding(sides: Sides[Source | Profile]) -> Iterator[None]:
    """InputError that names the column whose text cannot be read; nothing is looked at before that happens."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(_found(sides) or f"some text is not UTF-8: {error}") from error


def _found(sides: Sides[Source | Profile]) -> str | None:
    for side in (sides.reference, sides.current):
        if isinstance(side, Profile):
            continue
        for field in side.schema:
            if _is_text(field.type) and not all(_is_utf8(batch) for batch in side.scan([field.name])):
                return (
                    f"column {field.name!r} of {side.name} holds text that is not UTF-8: write it again as UTF-8, or "
                    "name the columns to compare without it"
                )
    return None


def _is_utf8(batch: pa.RecordBatch) -> bool:
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _is_text(kind: pa.DataType) -> bool:
    return is_string(kind.value_type if pa.types.is_dictionary(kind) else kind)
