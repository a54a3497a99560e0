"""Numbers as people and spreadsheets write them: `$1,234.50`, `1.234,50 €`, `12 %`, `1 234,5`, `(99.00)`.

Whether a comma or a point divides thousands or begins the fraction shows only in some values ("12,5" against "1,234"),
so that it is decided for a whole column.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

Decimal = Literal[".", ","]
# At so many texts a look is taken before a column is called numbers, at least so many; this share of them must be.
LOOKED_AT, LEAST, NEARLY_ALL = 1_000, 3, 0.9
_SPACE = r"[ \x{a0}\x{2009}\x{202f}]"
_CODES = (
    "AUD BRL CAD CHF CNY CZK DKK EUR GBP HKD HUF ILS INR JPY KRW MXN NOK NZD PLN RUB SEK SGD TRY USD ZAR kr zł Kč Ft"
)
_UNIT = rf"(?:[A-Z]{{0,2}}\p{{Sc}}|{'|'.join(_CODES.split())})"


def _number(decimal: Decimal) -> str:
    point, group = (r"\.", ",") if decimal == "." else (",", r"\.")
    groups = [rf"[1-9][0-9]{{0,2}}(?:{sign}[0-9]{{3}})+" for sign in (group, _SPACE, "['’]")]
    # As in India: 12,34,567.
    lakhs = rf"[1-9][0-9]?(?:{group}[0-9]{{2}})+{group}[0-9]{{3}}"
    whole = "|".join([*groups, lakhs, "[0-9]+"])
    return rf"(?:(?:{whole})(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?"


def _whole(decimal: Decimal) -> str:
    return (
        rf"^(?P<open>\(?)(?P<sign>[+\-−]?)(?P<before>(?:{_UNIT}{_SPACE}?)?)(?P<inner>[+\-−]?)"
        rf"(?P<number>{_number(decimal)})(?P<after>(?:{_SPACE}?(?:%|{_UNIT}))?)(?P<close>\)?)$"
    )


_WRITTEN: dict[Decimal, str] = {".": _whole("."), ",": _whole(",")}
# What nobody needs to be told how to read.
_PLAIN = r"^[+-]?(?:0|[1-9][0-9]*)$"
_DIGITS = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
# Thousands, or a fraction of three digits.
_EITHER = r"^[^0-9.,]*[1-9][0-9]{0,2}[.,][0-9]{3}[^0-9.,]*$"


@dataclass(frozen=True, slots=True)
class Writing:
    """How a column of texts writes its numbers. Of two parts of a column the sum of both is that of the whole."""

    points: int = 0
    """Texts that are numbers only where a point begins the fraction, as in "1,234.50" and "0.5"."""
    commas: int = 0
    """Those where a comma does."""
    either: str | None = None
    """A text that is a number both ways, and not the same one."""
    units: frozenset[str] = frozenset()
    """Currencies, and the sign of a percentage; "" of numbers without one."""

    def __add__(self, other: Writing) -> Writing:
        return Writing(
            self.points + other.points,
            self.commas + other.commas,
            self.either or other.either,
            self.units | other.units,
        )

    @property
    def decimal(self) -> Decimal | None:
        """What most numbers begin their fraction with; None where none tells."""
        if self.points == self.commas:
            return None if not self.points else "."
        return "," if self.commas > self.points else "."


def writing_of(texts: pa.ChunkedArray | pa.Array) -> Writing:
    """How a column's texts write numbers; those that are none say nothing."""
    texts = pc.utf8_trim_whitespace(texts.cast(pa.string())).drop_null()
    point, comma = (pc.match_substring_regex(texts, _WRITTEN[decimal]) for decimal in (".", ","))
    units: set[str] = set()
    for pattern, matched in ((_WRITTEN["."], point), (_WRITTEN[","], pc.and_(comma, pc.invert(point)))):
        parts = pc.extract_regex(texts.filter(matched), pattern)
        for name in ("before", "after"):
            units |= {str(unit).strip() for unit in pc.unique(pc.struct_field(parts, name)).to_pylist()}
    if units - {""} and not _bare(texts.filter(pc.or_(point, comma))):
        units.discard("")
    undecided = texts.filter(pc.and_(pc.and_(point, comma), pc.match_substring_regex(texts, _EITHER)))
    return Writing(
        _true(pc.and_(point, pc.invert(comma))),
        _true(pc.and_(comma, pc.invert(point))),
        undecided[0].as_py() if len(undecided) else None,
        frozenset(units),
    )


def numbers_written(texts: pa.ChunkedArray | pa.Array, decimal: Decimal) -> pa.ChunkedArray | pa.Array:
    """The numbers that trimmed texts are, float64, null for what is none; a percentage is so many hundredths.

    `decimal` is what begins a fraction; the other sign, spaces and apostrophes divide thousands.
    """
    parts = pc.extract_regex(texts, _WRITTEN[decimal])
    number, opened, closed = (pc.struct_field(parts, name) for name in ("number", "open", "close"))
    digits = pc.replace_substring_regex(number, rf"[{',' if decimal == '.' else '.'}'’]|{_SPACE}", "")
    if decimal == ",":
        digits = pc.replace_substring(digits, ",", ".")
    # One bracket is a slip of the pen, two signs are none that anybody writes.
    signs = pc.binary_join_element_wise(pc.struct_field(parts, "sign"), pc.struct_field(parts, "inner"), "")
    whole = pc.and_(pc.equal(pc.utf8_length(opened), pc.utf8_length(closed)), pc.less(pc.utf8_length(signs), 2))
    found = pc.if_else(whole, digits, pa.scalar(None, pa.string())).cast(pa.float64())
    negative = pc.or_(pc.is_in(signs, pa.array(["-", "−"])), pc.equal(opened, "("))
    found = pc.if_else(negative, pc.negate(found), found)
    return pc.if_else(pc.match_substring(pc.struct_field(parts, "after"), "%"), pc.divide(found, 100.0), found)


def plain_numbers(texts: pa.ChunkedArray | pa.Array, decimal: Decimal) -> pa.ChunkedArray | pa.Array:
    """The texts with their numbers in plain digits, as in "-1234.5"; what is no number stays as it is.

    A number that only the other sign can begin the fraction of is read by that.
    """
    trimmed = pc.utf8_trim_whitespace(texts)
    numbers = pc.coalesce(*(numbers_written(trimmed, sign) for sign in (decimal, "," if decimal == "." else ".")))
    found = pc.coalesce(numbers.cast(pa.string()), texts)
    # Not through float64, where nothing has to be done.
    return found if decimal == "," else pc.if_else(pc.match_substring_regex(trimmed, _DIGITS), texts, found)


def hint(name: str, texts: Iterable[str]) -> tuple[str, ...]:
    """What to say of a column of categories of which nearly all are numbers that were not read as such.

    Not of nearly nothing but whole numbers, nor of those that begin with zeros: codes are kept as text on purpose. But
    of whole numbers among which something is none.
    """
    some = pa.array(islice(texts, LOOKED_AT), pa.string())
    numbers = _read(some)
    count = len(some) - numbers.null_count
    plain, codes = (_true(pc.match_substring_regex(some, pattern)) for pattern in (_PLAIN, r"^0[0-9]"))
    if (
        len(some) < LEAST
        or count < NEARLY_ALL * len(some)
        or codes
        or (plain > NEARLY_ALL * count and count == len(some))
    ):
        return ()
    shown = some.filter(pc.is_valid(numbers))[0].as_py()
    return (f"nearly all values are numbers in text, as {shown!r}: --kinds {name}=numeric reads them",)


def are_numbers(texts: pa.ChunkedArray | pa.Array) -> bool:
    """Whether nearly all texts are numbers, however they are written."""
    numbers = _read(texts)
    return bool(len(texts) - numbers.null_count >= max(NEARLY_ALL * (len(texts) - texts.null_count), 1))


def _read(texts: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    return numbers_written(pc.utf8_trim_whitespace(texts), writing_of(texts).decimal or ".")


def _bare(texts: pa.ChunkedArray | pa.Array) -> bool:
    """Whether some texts are numbers without a unit."""
    return bool(pc.any(pc.match_substring_regex(texts, r"^[(+\-−]*[0-9.,'’ \x{a0}\x{2009}\x{202f}eE+-]+\)?$")).as_py())


def _true(found: pa.Array | pa.ChunkedArray) -> int:
    return int(pc.sum(found).as_py() or 0)
