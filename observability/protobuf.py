"""Protobuf's wire format, as far as what is sent needs it: https://protobuf.dev/programming-guides/encoding/."""

from __future__ import annotations

from functools import cache

# Of a field: a number in seven bits a byte; eight bytes; bytes behind their count; four bytes.
VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5
_ONE_BYTE = [bytes((value,)) for value in range(0x80)]


def varint(value: int) -> bytes:
    """A number that is not negative, seven bits a byte, the lowest first."""
    if value < 0x80:
        return _ONE_BYTE[value]
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


@cache
def tag(field: int, kind: int) -> bytes:
    """What stands before a field's value: its number, and how the value is written."""
    return varint(field << 3 | kind)


def message(field: int, content: bytes) -> bytes:
    """A field of bytes: a text, or a message within the message."""
    return tag(field, BYTES) + varint(len(content)) + content
