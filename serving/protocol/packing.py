"""Answers packed for the clients that ask for it by name."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Mapping

# Smaller answers grow; so many bytes take about a millisecond on the loop, and larger ones are packed beside it.
_LEAST = 1024
LONG_PACKED = 24 * 1024
_PACKERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": lambda body: gzip.compress(body, 1, mtime=0),
    b"deflate": lambda body: zlib.compress(body, 1),
}


def packed(headers: Mapping[bytes, bytes], body: bytes) -> tuple[bytes, bytes]:
    """Header lines and the body as it goes out."""
    encoding = headers.get(b"accept-encoding")
    lines = packing_head(encoding, len(body))
    return (lines, _PACKERS[encoding](body)) if lines and encoding else (lines, body)


def packing_head(encoding: bytes | None, size: int) -> bytes:
    """Header lines of an answer of so many bytes that is packed; nothing of one that is not.

    Only for a client that accepts exactly one encoding, as Triton's clients do when they are told to. Most HTTP
    libraries send a list of all that they know with every request, and packing tensors for them would be a loss.
    """
    if encoding not in _PACKERS or size < _LEAST:
        return b""
    return b"content-encoding: %b\r\nvary: accept-encoding\r\n" % encoding
