"""A front's connection to one replica: frames out many a write, frames in, and whether the other end still lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from serving.fleet import frames
from serving.fleet.balance import Backend
from serving.fleet.frames import FrameError, FrameReader

_log = logging.getLogger(__name__)
# Larger frames are written by themselves: joining them would copy the body once more.
_JOINED_BYTES = 64 * 1024


class Carrier(Protocol):
    """What a link tells its owner."""

    def answer(self, link: Link, sequence: int, payload: bytes) -> None:
        """An ANSWER frame came."""

    def load(self, link: Link, payload: bytes) -> None:
        """A LOAD frame came."""

    def probed(self, link: Link, passed: bool) -> None:
        """The answer to a probe came."""

    def lost(self, link: Link, why: str) -> None:
        """The connection is gone, and with it all that was asked over it."""


class FrameWriter:
    """Collects the frames of one turn of the event loop and writes them together."""

    __slots__ = ("_call_soon", "_frames", "_size", "_transport")

    def __init__(self, transport: asyncio.WriteTransport, call_soon: Callable[..., object]) -> None:
        self._transport = transport
        self._call_soon = call_soon
        self._frames: list[bytes] = []
        self._size = 0

    def put(self, frame: bytes) -> None:
        """Writes the frame at the end of this turn, or at once when it is long."""
        if len(frame) > _JOINED_BYTES:
            self.flush()
            self._transport.write(frame)
            return
        if not self._frames:
            self._call_soon(self.flush)
        self._frames.append(frame)

    def flush(self) -> None:
        """Writes what is collected."""
        waiting, self._frames = self._frames, []
        if waiting and not self._transport.is_closing():
            self._transport.write(waiting[0] if len(waiting) == 1 else b"".join(waiting))


class Link(asyncio.Protocol):
    """One connection. `flights` is the owner's: what was asked by sequence number, until it is answered."""

    def __init__(self, backend: Backend, carrier: Carrier) -> None:
        self.backend = backend
        self.flights: dict[int, Any] = {}
        self._carrier = carrier
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._writer: FrameWriter | None = None
        self._asked: float | None = None
        self._why = "its connection closed"
        # Whether it was given up because it did not answer, or closed because all was answered.
        self.silent = False
        self.done = False
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._writer = FrameWriter(self._transport, asyncio.get_running_loop().call_soon)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._carrier.lost(self, self._why)

    def data_received(self, data: bytes) -> None:
        self._asked = None
        carrier = self._carrier
        try:
            for kind, sequence, payload in self._reader.feed(data):
                if kind == frames.ANSWER:
                    carrier.answer(self, sequence, payload)
                elif kind == frames.LOAD:
                    carrier.load(self, payload)
                elif kind == frames.PROBED:
                    carrier.probed(self, payload == b"\1")
                elif kind == frames.LEAVING:
                    self.backend.leaving = True
                    self.close_when_empty()
        except FrameError as error:
            _log.error("replica %d does not speak frames: %s", self.backend.number, error)
            self.abort("it sent what is not a frame")

    def send(self, frame: bytes) -> None:
        """Writes a frame with all others of this turn of the loop."""
        if self._writer is not None:
            self._writer.put(frame)

    def ask(self, now: float, limit: float) -> None:
        """Asks for a sign of life, or gives the connection up when the last question is `limit` seconds old."""
        if self._asked is None:
            self._asked = now
            self.send(frames.frame(frames.PING, 0))
        elif now - self._asked > limit:
            self.silent = True
            self.abort(f"it gave no sign of life for {now - self._asked:.1f} s")

    def forgive(self, now: float) -> None:
        """This process itself was late: its question counts from now."""
        if self._asked is not None:
            self._asked = now

    def close_when_empty(self) -> None:
        """Closes once everything asked is answered, if the replica said that it leaves."""
        if self.backend.leaving and not self.flights and self._transport is not None:
            self.done = True
            self._transport.close()

    def abort(self, why: str) -> None:
        """Closes at once; what was asked is lost."""
        self._why = why
        if self._transport is not None:
            self._transport.abort()
