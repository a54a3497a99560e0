"""What stands around the values of answers that are written in bulk, kept from batch to batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from serving.protocol.outputs import Outputs
from serving.protocol.responder import Responder

# What a kind of request asks for: its rows, the outputs it names, and whether they are binary where it does not say.
Asked = tuple[int, Mapping[str, bool] | None, bool]
# Header, what stands before and after a request's values, those of all rows, and a row's bytes where they are joined.
How = tuple[bytes, bytes, bytes, bytes | list[bytes], int]
_MAX_FRAMES = 64


class _Frame:
    """Of one kind of request, which it keeps alive, as long as the output has one shape."""

    __slots__ = ("before", "binary", "head", "header_length", "kind", "line", "shape")

    def __init__(self, kind: Asked, shape: Sequence[int], binary: bool, before: bytes) -> None:
        self.kind, self.shape, self.binary, self.before = kind, shape, binary, before
        self.header_length = len(before) if binary else None
        self.head = self.line = b""


class Frames:
    """Of the answers of one version with one output.

    `head` gives the header lines, by the length of the JSON part where binary values follow: the same object as long as
    they are the same.
    """

    def __init__(self, responder: Responder, head: Callable[[int | None], bytes]) -> None:
        self._responder = responder
        self._head = head
        self._known: dict[int, _Frame] = {}

    def hows(self, batch: Outputs, kinds: Sequence[Asked]) -> tuple[How, ...] | None:
        """How requests of each kind are answered; None where one asks for no output. Kinds are known by identity."""
        hows: list[How] = []
        shape = batch.arrays[0].shape[1:]
        for kind in kinds:
            frame = self._known.get(id(kind))
            if frame is None or frame.shape != shape:
                made = self._made(batch, kind, shape)
                if made is None:
                    return None
                frame = made
            head = self._head(frame.header_length)
            if head is not frame.head:
                frame.head, frame.line = head, b"HTTP/1.1 200 OK\r\n%bcontent-length: " % head
            if frame.binary:
                content = batch.contents(0)
                hows.append((frame.line, frame.before, b"", content, len(content) // batch.rows))
            else:
                hows.append((frame.line, frame.before, b"]}]}", batch.texts(0), 0))
        return tuple(hows)

    def _made(self, batch: Outputs, kind: Asked, shape: Sequence[int]) -> _Frame | None:
        place, binary, before = self._responder.frame(batch, *kind)
        if place is None:
            return None
        if len(self._known) >= _MAX_FRAMES:
            self._known.clear()
        frame = self._known[id(kind)] = _Frame(kind, shape, binary, before)
        return frame
