"""The text column of a profile: the shape of free text, in no language."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from observability.blocks import chunks
from observability.cells import Counts, Floats, Kind, ProfileError
from observability.loglinear import LogLinearColumn
from observability.numeric import NumericColumn

PARTS = ("length", "words", "word_length", "letters", "capitals", "digits", "punctuation", "foreign")
# Texts measured at a time: no more than so many, nor (unless one alone is longer) so many bytes.
_ROWS, _BYTES = 8_192, 1 << 20

# What each byte of UTF-8 is. A byte ≥ 0xC0 begins a character outside ASCII, one from 0x80 to 0xBF goes on with it.
_BYTE = np.arange(256)
_SPACE = np.isin(_BYTE, [9, 10, 11, 12, 13, 32])
_CAPITAL = (ord("A") <= _BYTE) & (ord("Z") >= _BYTE)
_LETTER = _CAPITAL | ((ord("a") <= _BYTE) & (ord("z") >= _BYTE))
_DIGIT = (ord("0") <= _BYTE) & (ord("9") >= _BYTE)
_FOREIGN = _BYTE >= 0xC0
_CHARACTER = (_BYTE < 0x80) | _FOREIGN
_PUNCTUATION = (_BYTE > 32) & (_BYTE < 127) & ~_LETTER & ~_DIGIT

Part = NumericColumn | LogLinearColumn


@dataclass(frozen=True, slots=True, eq=False)
class TextColumn:
    """The shape of a column of free text: a numeric column each for what is measured of every text.

    `parts`: `length` (characters), `words` (runs without white space), `word_length` (characters a word), and the
    shares of characters that are ASCII `letters`, ASCII `capitals`, `digits`, ASCII `punctuation` and `foreign` (not
    ASCII).
    """

    parts: dict[str, Part]

    @staticmethod
    def layout(values: pa.ChunkedArray | pa.Array) -> TextColumn:
        """An empty column with the bins of `values`' own measures."""
        measured = list(_measures(values))
        return TextColumn({name: NumericColumn.layout(_column(measured, place)) for place, name in enumerate(PARTS)})

    @staticmethod
    def without_layout() -> TextColumn:
        """An empty column over log-linear cells."""
        return TextColumn({name: LogLinearColumn.layout() for name in PARTS})

    @property
    def kind(self) -> Kind:
        return "text"

    @property
    def length(self) -> Part:
        return self.parts["length"]

    @property
    def counts(self) -> Counts:
        """Those of the lengths."""
        return self.length.counts

    @property
    def count(self) -> int:
        """Values that are not null."""
        return self.length.count

    @property
    def missing(self) -> int:
        return self.length.missing

    @property
    def rows(self) -> int:
        return self.length.rows

    def empty(self) -> TextColumn:
        return self._each(lambda part: part.empty())

    def updated(self, values: pa.ChunkedArray | pa.Array) -> TextColumn:
        """This column with `values` added. Raises pa.ArrowException if they are no texts."""
        total = self
        for measured in _measures(values):
            total = total + total._measured(measured)
        return total

    def without_values(self, rows: int) -> TextColumn:
        return self._each(lambda part: part.without_values(rows))

    def rebuilt(self, each: Callable[[str, Part], Part]) -> TextColumn:
        """This column with every part replaced."""
        return TextColumn({name: each(name, part) for name, part in self.parts.items()})

    def __add__(self, other: TextColumn) -> TextColumn:
        return TextColumn({name: _sum(part, other.parts[name]) for name, part in self.parts.items()})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextColumn) and self.parts == other.parts

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "parts": {name: part.to_json() for name, part in self.parts.items()}}

    @staticmethod
    def from_json(value: dict[str, Any]) -> TextColumn:
        if set(value["parts"]) != set(PARTS):
            raise ProfileError(f"the parts of a text column are {', '.join(PARTS)}")
        return TextColumn({name: part_from_json(value["parts"][name]) for name in PARTS})

    def _each(self, change: Callable[[Part], Part]) -> TextColumn:
        return TextColumn({name: change(part) for name, part in self.parts.items()})

    def _measured(self, measured: NDArray[Any]) -> TextColumn:
        parts = {}
        for place, name in enumerate(PARTS):
            values = measured[place]
            missing = np.isnan(values)
            parts[name] = self.parts[name].empty().updated(pa.array(values, mask=missing if missing.any() else None))
        return TextColumn(parts)


def part_from_json(value: dict[str, Any]) -> Part:
    """A numeric column, over bins or over log-linear cells."""
    return LogLinearColumn.from_json(value) if "cells" in value else NumericColumn.from_json(value)


def _sum(left: Part, right: Part) -> Part:
    if isinstance(left, NumericColumn) and isinstance(right, NumericColumn):
        return left + right
    if isinstance(left, LogLinearColumn) and isinstance(right, LogLinearColumn):
        return left + right
    raise ProfileError("one text column has a reference's bins and the other has none: use `rebinned`")


def _column(measured: list[NDArray[Any]], place: int) -> pa.Array:
    values = np.concatenate([block[place] for block in measured]) if measured else np.empty(0)
    return pa.array(values, mask=np.isnan(values))


def _measures(values: pa.ChunkedArray | pa.Array) -> Iterator[Floats]:
    """The measures of the texts in blocks [len(PARTS), rows]; NaN where a text is null."""
    for chunk in chunks(values):
        start = 0
        while start < len(chunk):
            part = _texts(chunk.slice(start, _ROWS))
            offsets = np.frombuffer(part.buffers()[1], np.int64)[part.offset : part.offset + len(part) + 1]
            rows = max(1, int(np.searchsorted(offsets, offsets[0] + _BYTES, side="right")) - 1)
            yield _shape(part.slice(0, rows))
            start += min(rows, len(part))


def _texts(part: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(part.type):
        part = part.dictionary_decode()
    return part if pa.types.is_large_string(part.type) else part.cast(pa.large_utf8())


def _shape(texts: pa.Array) -> Floats:
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    buffer = texts.buffers()[2]
    data = np.frombuffer(buffer, np.uint8)[first:last] if buffer is not None and last > first else np.empty(0, np.uint8)
    starts, ends = offsets[:-1] - first, offsets[1:] - first
    spaces = _SPACE[data]
    begins = ~spaces
    begins[1:] &= spaces[:-1]
    inside = starts[(ends > starts)]
    begins[inside] = ~spaces[inside]

    def counted(flags: NDArray[np.bool_]) -> Floats:
        totals = np.concatenate([[0], np.cumsum(flags, dtype=np.int64)])
        return np.asarray(totals[ends] - totals[starts], np.float64)

    length, words = counted(_CHARACTER[data]), counted(begins)
    dark = length - counted(spaces)
    shares = [counted(kind[data]) for kind in (_LETTER, _CAPITAL, _DIGIT, _PUNCTUATION, _FOREIGN)]
    measured = np.stack(
        [length, words, dark / np.maximum(words, 1.0), *(share / np.maximum(length, 1.0) for share in shares)]
    )
    if texts.null_count:
        measured[:, np.asarray(texts.is_null())] = np.nan
    return measured
