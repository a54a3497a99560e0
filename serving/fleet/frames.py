"""The frames between a front and a replica: length, kind, sequence number, then bytes that nobody decodes on the way.

A frame is `<u32 length><u8 kind><u64 sequence>` and `length` bytes, little-endian. Many go into one write. Requests
carry their body as it came; header fields travel separated by NUL, which no HTTP header can hold.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

HEADER = struct.Struct("<IBQ")
_REQUEST = struct.Struct("<dI")
_ANSWER = struct.Struct("<HI")
_LOAD = struct.Struct("<II")

# front -> replica
REQUEST, CANCEL, PING, PROBE = 1, 2, 3, 4
# replica -> front
ANSWER, PONG, PROBED, LOAD, LEAVING = 16, 17, 18, 19, 20
KINDS = frozenset((REQUEST, CANCEL, PING, PROBE, ANSWER, PONG, PROBED, LOAD, LEAVING))

_SEPARATOR = b"\0"
# One body, its header and the frame's own numbers; HTTP's limits are lower and come first.
MAX_FRAME_BYTES = 1 << 31


class FrameError(Exception):
    """The stream is not made of frames: the connection has no sense any more."""


class Request(NamedTuple):
    """A request as the front read it. `received` is `time.perf_counter()` of its last byte: one clock for a machine."""

    received: float
    head: bytes
    body: bytes


class Answer(NamedTuple):
    """`head` is header lines, each ended by CRLF, without content-length."""

    status: int
    head: bytes
    body: bytes


def frame(kind: int, sequence: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return HEADER.pack(len(payload), kind, sequence) + payload


def pack_head(method: bytes, target: bytes, peer: bytes, pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """What a REQUEST frame says of a request's header. `peer` is the client's host and port, with a tab between.

    Raises ValueError when a field holds NUL.
    """
    fields = [method, target, peer]
    for pair in pairs:
        fields += pair
    head = _SEPARATOR.join(fields)
    if head.count(_SEPARATOR) != len(fields) - 1:
        raise ValueError("a header field or the path holds a NUL")
    return head


def parse_head(head: bytes) -> tuple[bytes, bytes, bytes, list[tuple[bytes, bytes]]]:
    """The inverse of `pack_head`. Raises FrameError."""
    fields = head.split(_SEPARATOR)
    if len(fields) < 3 or len(fields) % 2 == 0:
        raise FrameError(f"a request head of {len(fields)} fields")
    return fields[0], fields[1], fields[2], list(zip(fields[3::2], fields[4::2], strict=True))


def request_frame(sequence: int, request: Request) -> bytes:
    """A REQUEST frame."""
    received, head, body = request
    length = _REQUEST.size + len(head) + len(body)
    return b"%b%b%b%b" % (HEADER.pack(length, REQUEST, sequence), _REQUEST.pack(received, len(head)), head, body)


def parse_request(payload: bytes) -> Request:
    """A REQUEST frame's payload. Raises FrameError."""
    try:
        received, length = _REQUEST.unpack_from(payload)
    except struct.error as error:
        raise FrameError(f"a request frame of {len(payload)} bytes") from error
    end = _REQUEST.size + length
    if end > len(payload):
        raise FrameError(f"a head of {length} bytes in a request frame of {len(payload)}")
    return Request(received, payload[_REQUEST.size : end], payload[end:])


def answer_frame(sequence: int, status: int, head: bytes, body: bytes) -> bytes:
    """An ANSWER frame."""
    length = _ANSWER.size + len(head) + len(body)
    return b"%b%b%b%b" % (HEADER.pack(length, ANSWER, sequence), _ANSWER.pack(status, len(head)), head, body)


def load_frame(requests: int, rows: int) -> bytes:
    """A LOAD frame: the requests that a replica holds, and the rows that wait in its queues."""
    return frame(LOAD, 0, _LOAD.pack(min(requests, 0xFFFFFFFF), min(rows, 0xFFFFFFFF)))


def parse_answer(payload: bytes) -> Answer:
    """An ANSWER frame's payload. Raises FrameError."""
    try:
        status, length = _ANSWER.unpack_from(payload)
    except struct.error as error:
        raise FrameError(f"an answer frame of {len(payload)} bytes") from error
    end = _ANSWER.size + length
    if end > len(payload):
        raise FrameError(f"a head of {length} bytes in an answer frame of {len(payload)}")
    return Answer(status, payload[_ANSWER.size : end], payload[end:])


def parse_load(payload: bytes) -> tuple[int, int]:
    """A LOAD frame's payload: requests held, rows that wait. Raises FrameError."""
    try:
        requests, rows = _LOAD.unpack(payload)
    except struct.error as error:
        raise FrameError(f"a load frame of {len(payload)} bytes") from error
    return requests, rows


class FrameReader:
    """Cuts a stream of bytes into frames, whatever the reads look like."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []
        self._held = 0
        self._needed = HEADER.size

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """(kind, sequence, payload) of every frame that is whole now. Raises FrameError."""
        if self._chunks:
            self._chunks.append(data)
            self._held += len(data)
            # Chunks of a long body are joined once, when all of them are there.
            if self._held < self._needed:
                return
            data, self._chunks = b"".join(self._chunks), []
        at, total = 0, len(data)
        self._needed = HEADER.size
        while total - at >= HEADER.size:
            length, kind, sequence = HEADER.unpack_from(data, at)
            if kind not in KINDS or length > self._max_bytes:
                raise FrameError(f"a frame of kind {kind} with {length} bytes")
            start = at + HEADER.size
            if total - start < length:
                self._needed = HEADER.size + length
                break
            at = start + length
            yield kind, sequence, data[start:at]
        if at < total:
            self._chunks = [data[at:] if at else data]
            self._held = total - at
