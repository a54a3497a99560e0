"""The schema message of an Arrow stream, for the few types that events have, without Arrow's libraries.

They take 4.5 MB and their time to load, and a server that only sends events needs no more of them than this: a table of
flatbuffers (format/Schema.fbs and Message.fbs of Arrow, version 5), written front to back.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["utf8", "time", "float64", "float32", "bool"]
ZONE = "UTC"
# Of the union `Type`.
_FLOATING_POINT, _UTF8, _BOOL, _TIMESTAMP, _FIXED_SIZE_LIST = 3, 5, 6, 10, 16
_SINGLE, _DOUBLE, _NANOSECOND = 1, 2, 3
_VERSION_5, _SCHEMA = 4, 1
# A field of a table: a number of so many bytes that struct names, or what writes the thing that is referred to.
_Write: TypeAlias = Callable[[], int]
_Slot: TypeAlias = tuple[str, int] | _Write | None


@dataclass(frozen=True, slots=True)
class Field:
    """A column: its name, the type of its values (`time` is nanoseconds, UTC), and of a vector how many it has.

    With a `size` it is an embedding, a list of so many numbers; 0 is a plain column.
    """

    name: str
    kind: Kind
    nullable: bool = True
    size: int = 0


def schema_message(fields: Sequence[Field]) -> bytes:
    """What a stream of such columns begins with. Raises ValueError for a vector of anything but floats."""
    return _message(tuple(fields))


# A server writes the same few again and again.
@lru_cache(256)
def _message(fields: tuple[Field, ...]) -> bytes:
    body = _Flatbuffer()
    body.message(fields)
    written = bytes(body.bytes) + bytes(-len(body.bytes) % 8)
    return struct.pack("<Ii", 0xFFFFFFFF, len(written)) + written


class _Flatbuffer:
    """Tables, vectors and texts behind each other, each before what it refers to."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self._layouts: dict[bytes, int] = {}

    def message(self, fields: Sequence[Field]) -> None:
        self._number("I", 0)
        self._refer(0, self._table(("h", _VERSION_5), ("B", _SCHEMA), lambda: self._schema(fields)))

    def _schema(self, fields: Sequence[Field]) -> int:
        return self._table(None, lambda: self._vector([lambda field=field: self._field(field) for field in fields]))  # type: ignore[misc]

    def _field(self, field: Field) -> int:
        value = Field("item", field.kind)
        if field.size and field.kind not in ("float64", "float32"):
            raise ValueError(f"column {field.name!r} is a list of {field.kind}: only floats are")
        kind, of_kind = (_FIXED_SIZE_LIST, [("i", field.size)]) if field.size else self._kind(field.kind)
        return self._table(
            lambda: self._text(field.name),
            ("B", int(field.nullable)),
            ("B", kind),
            lambda: self._table(*of_kind),
            None,
            lambda: self._vector([lambda: self._field(value)] if field.size else []),
        )

    def _kind(self, kind: Kind) -> tuple[int, list[_Slot]]:
        """The type's number, and the fields of its table."""
        match kind:
            case "utf8":
                return _UTF8, []
            case "bool":
                return _BOOL, []
            case "time":
                return _TIMESTAMP, [("h", _NANOSECOND), lambda: self._text(ZONE)]
            case "float32":
                return _FLOATING_POINT, [("h", _SINGLE)]
            case "float64":
                return _FLOATING_POINT, [("h", _DOUBLE)]

    def _table(self, *slots: _Slot) -> int:
        """Where the table begins. Numbers of four bytes and references come first, so that all are aligned."""
        sizes = [0 if slot is None else 4 if callable(slot) else struct.calcsize(slot[0]) for slot in slots]
        places, end = [0] * len(slots), 4
        for place in sorted(range(len(slots)), key=lambda place: -sizes[place]):
            if slots[place] is not None:
                places[place] = end
                end += sizes[place]
        self._align()
        layout = struct.pack(f"<HH{len(slots)}H", 4 + 2 * len(slots), end, *places)
        # Tables that are alike have one layout.
        at = self._layouts.setdefault(layout, len(self.bytes))
        if at == len(self.bytes):
            self.bytes += layout
            self._align()
        start = len(self.bytes)
        self._number("i", start - at)
        self.bytes += bytes(end - 4)
        for slot, place in zip(slots, places, strict=True):
            if isinstance(slot, tuple):
                struct.pack_into(f"<{slot[0]}", self.bytes, start + place, slot[1])
        for slot, place in zip(slots, places, strict=True):
            if callable(slot):
                self._refer(start + place, slot())
        return start

    def _vector(self, items: Sequence[_Write]) -> int:
        self._align()
        start = len(self.bytes)
        self._number("I", len(items))
        self.bytes += bytes(4 * len(items))
        for place, write in enumerate(items):
            self._refer(start + 4 + 4 * place, write())
        return start

    def _text(self, text: str) -> int:
        self._align()
        start, written = len(self.bytes), text.encode()
        self._number("I", len(written))
        self.bytes += written + b"\0"
        return start

    def _refer(self, place: int, target: int) -> None:
        struct.pack_into("<I", self.bytes, place, target - place)

    def _number(self, kind: str, number: int) -> None:
        self.bytes += struct.pack(f"<{kind}", number)

    def _align(self) -> None:
        self.bytes += bytes(-len(self.bytes) % 4)
