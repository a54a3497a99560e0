"""Answers packed for the clients that ask for it by name."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Mapping

# Smaller answers grow, larger ones would hold up everybody else: 256 KiB take about 10 ms on the loop.
_SIZES = range(1024, 256 * 1024)
_PACKERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": lambda body: gzip.compress(body, 1, mtime=0),
    b"deflate": lambda body: zlib.compress(body, 1),
}


def packed(headers: Mapping[bytes, bytes], body: bytes) -> tuple[bytes, bytes]:
    """Header lines and the body as it goes out.

    Only for a client that accepts exactly one encoding, as Triton's clients do when they are told to. Most HTTP
    libraries send a list of all that they know with every request, and packing tensors for them would be a loss.
    """
    encoding = headers.get(b"accept-encoding")
    if encoding not in _PACKERS or len(body) not in _SIZES:
        return b"", body
    return b"content-encoding: %b\r\nvary: accept-encoding\r\n" % encoding, _PACKERS[encoding](body)
