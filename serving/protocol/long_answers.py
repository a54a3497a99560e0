"""Answers with many numbers, written piece by piece: no step keeps other threads waiting for long."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from serving.protocol.outputs import values_text
from serving.protocol.tensors import Array

# Numbers of an output that are written as text in one step, about a third of a millisecond's work; bytes that are
# copied in one, and of a piece as the connection gets it.
_STEP_VALUES = 8 * 1024
PIECE_BYTES = 256 * 1024
_PACK_BYTES = 64 * 1024
_WINDOWS = {b"gzip": zlib.MAX_WBITS | 16, b"deflate": zlib.MAX_WBITS}


class LongBody:
    """An answer's body in pieces; `len` is its bytes."""

    __slots__ = ("pieces", "size")

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self.pieces = deque(piece for piece in pieces if len(piece))
        self.size = sum(map(len, self.pieces))

    def __len__(self) -> int:
        return self.size

    @staticmethod
    def of(body: bytes) -> LongBody:
        """The pieces of a body, which stays where it is."""
        view = memoryview(body)
        return LongBody(view[at : at + PIECE_BYTES] for at in range(0, len(body), PIECE_BYTES))


def whole(body: bytes | LongBody) -> bytes:
    """The body as one."""
    return b"".join(body.pieces) if isinstance(body, LongBody) else body


def text_pieces(values: Array) -> Iterator[bytes]:
    """The values as JSON in C order, without brackets and with the commas between the pieces."""
    comma = b""
    for part in _parts(values, _STEP_VALUES):
        yield comma + values_text(part)
        comma = b","


def content_pieces(values: Array) -> Iterator[bytes]:
    """The values as the binary extension has them."""
    for part in _parts(values, max(1, PIECE_BYTES // values.itemsize)):
        yield part.tobytes()


def packed_long(body: LongBody, encoding: bytes, between: Callable[[], None]) -> LongBody:
    """The body packed with gzip or deflate, `between` called after each step; its pieces are let go of on the way."""
    pack = zlib.compressobj(1, zlib.DEFLATED, _WINDOWS[encoding])
    pieces = []
    while body.pieces:
        piece = memoryview(body.pieces.popleft())
        for at in range(0, len(piece), _PACK_BYTES):
            pieces.append(pack.compress(piece[at : at + _PACK_BYTES]))
            between()
    return LongBody((*pieces, pack.flush()))


def _parts(values: Array, count: int) -> Iterator[Array]:
    """The values in C order, `count` a time; a part of an array that is not in this order is copied by itself."""
    if values.flags.c_contiguous:
        flat = values.reshape(-1)
        for at in range(0, flat.size, count):
            yield flat[at : at + count]
        return
    width = values[:1].size
    rows = max(1, count // max(1, width))
    for at in range(0, len(values), rows):
        if width <= count:
            yield np.ascontiguousarray(values[at : at + rows]).reshape(-1)
        else:
            yield from _parts(values[at], count)
