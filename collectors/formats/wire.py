"""Reading protobuf by hand, straight from the bytes: the few wire types of remote write, and lengths of messages."""

from __future__ import annotations

import struct
from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_DOUBLE = struct.Struct("<d")


class BadMessage(ValueError):
    """Bytes that are not the message that they should be."""


def varint(body: bytes, position: int, end: int) -> tuple[int, int]:
    """An unsigned varint and where it ends. BadMessage when it is cut off or too long."""
    value = shift = 0
    while position < end and shift < 70:
        byte = body[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise BadMessage(f"a number at byte {position} is cut off or too long")


def fields(body: bytes, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, wire type, value or start, end) of the fields between two offsets. BadMessage.

    Of a varint the third is its value; of bytes, 64 and 32 bits they are the offsets of the content.
    """
    while position < end:
        tag, position = varint(body, position, end)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, position = varint(body, position, end)
            yield number, kind, value, position
            continue
        if kind == BYTES:
            size, position = varint(body, position, end)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise BadMessage(f"wire type {kind} at byte {position} is not in use")
        if number == 0 or position + size > end:
            raise BadMessage(f"field {number} at byte {position} is cut off")
        yield number, kind, position, position + size
        position += size


def double(body: bytes, start: int) -> float:
    """The 64-bit float at an offset, bit for bit."""
    value: float = _DOUBLE.unpack_from(body, start)[0]
    return value


def signed(value: int) -> int:
    """An int64 that was sent as an unsigned varint."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    return value - (1 << 64) if value >= 1 << 63 else value


def text(body: bytes, start: int, end: int) -> str:
    """UTF-8 text. BadMessage."""
    try:
        return body[start:end].decode()
    except UnicodeDecodeError as error:
        raise BadMessage(f"the text at byte {start} is not UTF-8: {error}") from error


def packed(body: bytes, kind: int, start: int, end: int) -> list[int]:
    """Numbers of a repeated varint field: packed, or one by one."""
    if kind == VARINT:
        return [start]
    block = body[start:end]
    if not block or max(block) < 0x80:
        return list(block)
    numbers, position = [], start
    while position < end:
        number, position = varint(body, position, end)
        numbers.append(number)
    return numbers
