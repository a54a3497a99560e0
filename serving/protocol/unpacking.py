"""A request's body unpacked from gzip or deflate piece by piece, in bounded memory."""

from __future__ import annotations

import zlib

from serving.errors import InvalidRequest, TooLarge

ENCODINGS = (b"gzip", b"x-gzip", b"deflate")
# Bytes that one step takes and gives at most; zlib keeps a copy of what it was fed and did not come to.
_FED = 64 * 1024
_GIVEN = 256 * 1024
# Behind a member's end the steps begin small: what was fed of the next one is copied.
_FED_FIRST = 1024
_MAX_MEMBERS = 10_000


class Unpacking:
    """A packed body on its way: `step` until it says True, then `plain`. One thread at a time.

    Members of gzip that follow one another are one body. Raises InvalidRequest for an encoding that is not known.
    """

    def __init__(self, packed: bytes, encoding: bytes, limit: int) -> None:
        """`limit`: bytes that the body may have when it is unpacked."""
        if encoding not in ENCODINGS:
            raise InvalidRequest(
                f"content-encoding {encoding.decode('latin-1')!r} is not understood; use gzip or deflate"
            )
        self._packed = memoryview(packed)
        self._encoding = encoding.decode()
        self._limit = limit
        self._unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._members = 1
        self._at = 0  # what lies before was fed
        self._fed = _FED
        self._pieces: list[bytes] = []
        self._size = 0

    def step(self) -> bool:
        """Unpacks the next piece, a fraction of a millisecond's work; whether it was the last one.

        Raises TooLarge over the limit, InvalidRequest for a body that is broken or cut off.
        """
        unpack, room = self._unpack, min(_GIVEN, self._limit - self._size + 1)
        feed: bytes | memoryview = unpack.unconsumed_tail
        if not feed:
            feed = self._packed[self._at : self._at + self._fed]
            self._at += len(feed)
            self._fed = min(2 * self._fed, _FED)
        try:
            piece = unpack.decompress(feed, room)
        except zlib.error as error:
            raise InvalidRequest(f"the body is not {self._encoding}: {error}") from error
        if piece:
            self._pieces.append(piece)
            self._size += len(piece)
        if self._size > self._limit:
            raise TooLarge(f"the unpacked body is over the limit of {self._limit} bytes")
        if unpack.eof:
            return self._ended(self._at - len(unpack.unused_data))
        if len(piece) < room and not unpack.unconsumed_tail and self._at >= len(self._packed):
            raise InvalidRequest(f"the {self._encoding} body is cut off")
        return False

    def plain(self) -> bytes:
        """The whole body, after the last step."""
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _ended(self, at: int) -> bool:
        """A member ends at this place: whether it is the last."""
        left = len(self._packed) - at
        if not left:
            return True
        if self._encoding == "deflate" or bytes(self._packed[at : at + 2]) != b"\x1f\x8b":
            raise InvalidRequest(f"{left} bytes follow the {self._encoding} body; send it as one")
        if self._members >= _MAX_MEMBERS:
            raise InvalidRequest(f"the {self._encoding} body has over {_MAX_MEMBERS} members; send it as one")
        self._members += 1
        self._unpack = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._at, self._fed = at, _FED_FIRST
        return False
