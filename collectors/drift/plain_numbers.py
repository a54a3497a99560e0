"""Texts that are to be read as numbers, in plain digits wherever they come from, and what is to be told of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from collectors.drift.comparison import Sides
from collectors.drift.kinds import kind_of
from collectors.drift.source import Source
from collectors.drift.written_numbers import Decimal, Writing, plain_numbers, writing_of
from observability.kinds import is_string
from observability.profile import Profile

Notes = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class PlainNumbers:
    """Both sides with such columns in plain digits, and what there is to say of them."""

    sides: Sides[Source | Profile]
    notes: Notes


def with_plain_numbers(sides: Sides[Source | Profile], kinds: Mapping[str, str] | None) -> PlainNumbers:
    """Both sides with plain numbers where a column is text, and numbers by `kinds` or on the other side.

    What begins a fraction is decided by all texts of a side; where none tells, by those of the other side. Columns and
    kinds that do not exist are left to others to complain of.
    """
    both = (sides.reference, sides.current)
    names = [name for name in _texts(both[0]) | _texts(both[1]) if _is_number(name, both, kinds or {})]
    if not names:
        return PlainNumbers(sides, {})
    written = [{name: _writing(side, name) for name in names if name in _texts(side)} for side in both]
    plain, notes = [], {}
    for name in names:
        notes[name] = _told(*(found.get(name) for found in written))
    for side, found, other in zip(both, written, reversed(written), strict=True):
        decimals = {name: one.decimal or other.get(name, one).decimal or "." for name, one in found.items()}
        plain.append(_plain(side, decimals) if isinstance(side, Source) else side)
    return PlainNumbers(Sides(plain[0], plain[1]), notes)


def _texts(side: Source | Profile) -> dict[str, None]:
    """The columns of a table that are text, in their order."""
    if isinstance(side, Profile):
        return {}
    kinds = ((field.name, field.type) for field in side.schema)
    return dict.fromkeys(n for n, k in kinds if is_string(k.value_type if pa.types.is_dictionary(k) else k))


def _is_number(name: str, sides: Sequence[Source | Profile], kinds: Mapping[str, str]) -> bool:
    if name in kinds:
        return kinds[name] == "numeric"
    return any(_has_numbers(side, name) for side in sides)


def _has_numbers(side: Source | Profile, name: str) -> bool:
    if isinstance(side, Profile):
        return name in side.columns and side.columns[name].kind == "numeric"
    kind = side.schema.field(name).type if name in side.columns else pa.null()
    return kind_of(kind) == "numeric" and not pa.types.is_null(kind)


def _writing(side: Source | Profile, name: str) -> Writing:
    assert isinstance(side, Source)
    return sum((writing_of(pc.unique(_as_strings(batch.column(0)))) for batch in side.scan([name])), Writing())


def _told(before: Writing | None, now: Writing | None) -> tuple[str, ...]:
    found = [one for one in (before, now) if one is not None]
    whole = sum(found, Writing())
    notes = []
    if "%" in whole.units:
        notes.append("percentages are read as hundredths: 12% is 0.12")
    if before and now and before.decimal != now.decimal and before.decimal and now.decimal:
        words = {",": "comma", ".": "point"}
        notes.append(
            f"fractions begin with a {words[before.decimal]} in the reference and with a {words[now.decimal]} in the "
            "current table"
        )
    elif any(one.points and one.commas for one in found):
        notes.append("some fractions begin with a point, some with a comma")
    if whole.either is not None and whole.decimal is None:
        notes.append(f"{whole.either!r} is read as {plain_numbers(pa.array([whole.either]), '.')[0].as_py()}")
    money = [one.units - {"", "%"} for one in found]
    if (len(money) == 2 and money[0] != money[1]) or any(len(units) > 1 for units in money):
        signs = [", ".join(sorted(units)) or "none" for units in money]
        notes.append(f"the currencies differ and are not converted: {' in the reference, now '.join(signs)}")
    return tuple(notes)


def _plain(source: Source, decimals: Mapping[str, Decimal]) -> Source:
    """The same rows with the columns' numbers in plain digits."""

    def batches(given: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in given:
            yield from _converted(pa.Table.from_batches([batch]), decimals).to_batches() or [batch]

    lanes = source.lanes
    fields = [field.with_type(pa.string()) if field.name in decimals else field for field in source.schema]
    return replace(
        source,
        schema=pa.schema(fields),
        scan=lambda columns: batches(source.scan(columns)),
        read=lambda columns: _converted(source.read(columns), decimals),
        lanes=None if lanes is None else lambda columns, most: (list(map(batches, s)) for s in lanes(columns, most)),
    )


def _converted(table: pa.Table, decimals: Mapping[str, Decimal]) -> pa.Table:
    for place, name in enumerate(table.schema.names):
        if name in decimals:
            chunks = [_each(chunk, decimals[name]) for chunk in table.column(place).chunks]
            table = table.set_column(place, name, pa.chunked_array(chunks, pa.string()))
    return table


def _each(values: pa.Array, decimal: Decimal) -> pa.Array:
    """Each different text is read once."""
    coded = _as_strings(values).dictionary_encode()
    return plain_numbers(coded.dictionary, decimal).take(coded.indices)


def _as_strings(values: pa.Array) -> pa.Array:
    return values if values.type == pa.string() else values.cast(pa.string())
