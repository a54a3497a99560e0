"""Requests whose header was met before skip the parser: clients send the same header again and again.

What llhttp makes of a header at the start of a message depends on its bytes alone. So the bytes of a header that it has
read completely, met a second time, are kept with what it made of them; a later request that begins with the same bytes
and is complete means the same. Headers with anything but a plain body of a stated length are never kept.
"""

from __future__ import annotations

from typing import Any

import httptools

from serving.transport.exchange import Head

_END = b"\r\n\r\n"
_MAX_BYTES = 4096
_MAX_HEADS = 1024
_NEVER = {b"transfer-encoding", b"expect", b"upgrade"}


class HeadCache:
    """Headers of inference requests by their bytes, at most `max_heads`; what was met once is remembered as a hash."""

    __slots__ = ("_heads", "_max_heads", "_met", "get")

    def __init__(self, max_heads: int = _MAX_HEADS) -> None:
        self._heads: dict[bytes, Head] = {}
        self._met: set[int] = set()
        self._max_heads = max_heads
        self.get = self._heads.get

    def meet(self, data: bytes) -> None:
        """Notes that a message which begins at the start of `data` was complete and of a kind worth keeping."""
        end = data.find(_END, 0, _MAX_BYTES) + len(_END)
        if end < len(_END):
            return
        header = data[:end]
        key = hash(header)
        if key not in self._met:
            if len(self._met) >= self._max_heads:
                self._met.clear()
            self._met.add(key)
            return
        head = _read(header)
        if head is not None:
            if len(self._heads) >= self._max_heads:
                self._heads.clear()
            self._heads[header] = head

    def known(self, header: bytes) -> Head | None:
        """The header of a request, like one that was met but for the digits of its content-length."""
        return self.get(header) or _read(header)


class _Reading:
    """What the parser says of one header."""

    def __init__(self) -> None:
        self.target = b""
        self.pairs: list[tuple[bytes, bytes]] = []
        self.ends = 0

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.pairs.append((name, value))

    def on_headers_complete(self) -> None:
        self.ends += 1


def _read(header: bytes) -> Head | None:
    """The header, if the parser finds its end at the last byte and nowhere before, and it is worth keeping."""
    reading = _Reading()
    parser: Any = httptools.HttpRequestParser(reading)
    try:
        parser.feed_data(header[:-1])
        early = reading.ends
        parser.feed_data(header[-1:])
        if early or not reading.ends or not parser.should_keep_alive():
            return None
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    head = Head(parser.get_method(), reading.target, reading.pairs, header)
    headers = head.headers
    # Many clients say of a connection what HTTP/1.1 says anyway.
    lasting = parser.get_http_version() == "1.1" and headers.get(b"connection", b"keep-alive").lower() == b"keep-alive"
    plain = head.model and b"content-length" in headers and not _NEVER & headers.keys()
    return head if plain and lasting else None
