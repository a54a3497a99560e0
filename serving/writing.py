"""Answers that take long to write: they are encoded and packed in threads, in short steps, beside the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from serving.calls import Call
from serving.errors import Cancelled, ServingError
from serving.protocol.long_answers import LongBody, packed_long
from serving.protocol.outputs import Rows
from serving.protocol.packing import packing_head
from serving.reading import PAUSE_SECONDS, Reader

if TYPE_CHECKING:
    from serving.versions.deployment import Deployment, Version

# Bytes of answers that go to a thread together, and seconds after which those that are ready are handed back.
_TOGETHER_BYTES = 1024 * 1024
_HAND_BACK_SECONDS = 0.001


class _GivenUp(Exception):
    """Nobody waits for the answer any more."""


class Answer:
    """One call's answer on its way: at the end `body` with the `lines` that packing adds to its header, or `error`."""

    __slots__ = ("body", "call", "deployment", "error", "header_length", "lines", "rows", "version")

    def __init__(
        self, call: Call, deployment: Deployment, version: Version, rows: Rows,
        body: bytes | None = None, header_length: int | None = None,
    ) -> None:  # fmt: skip
        """With a `body` it is only packed."""
        self.call = call
        self.deployment = deployment
        self.version = version
        self.rows = rows
        self.body: LongBody | None = None if body is None else LongBody.of(body)
        self.header_length = header_length
        self.lines = b""
        self.error: ServingError | None = None

    def write(self, between: Callable[[], None]) -> None:
        """Fills it in."""
        call, body = self.call, self.body
        try:
            if body is None:
                body, self.header_length = self.version.responder.long_body(call.request, self.rows, between)
            encoding = call.exchange.headers.get(b"accept-encoding")
            self.lines = packing_head(encoding, len(body))
            if self.lines and encoding is not None:
                body = packed_long(body, encoding, between)
            self.body = body
        except _GivenUp:
            self.error = Cancelled("the client closed the connection")
        except Exception as error:
            # One answer that cannot be written must not take the others with it.
            self.error = ServingError(f"the answer could not be encoded: {error!r}")


class Writing:
    """Answers that one thread writes, one after another; each is handed back to the loop, written or not."""

    __slots__ = ("_answers", "_done", "_given", "_loop", "_ready", "done", "error", "given_up", "size")

    def __init__(self, done: Callable[[Answer], None]) -> None:
        """`done` is called on the loop, once for each answer."""
        self._loop = asyncio.get_running_loop()
        self._answers: list[Answer] = []
        self._ready: list[Answer] = []
        self._done = done
        self._given = 0
        self.size = 0
        self.done: Callable[[], None] | None = self._end
        self.error: ServingError | None = None
        self.given_up = False

    def put(self, answer: Answer, size: int) -> None:
        """One more, of about so many bytes, before it is begun."""
        self._answers.append(answer)
        self.size += size

    def run(self) -> None:
        """Writes them; those whose clients have left, and all after it was given up, not to their end."""
        since = time.monotonic()
        for answer in self._answers:
            answer.write(lambda answer=answer: self._pause(answer))  # type: ignore[misc]
            self._ready.append(answer)
            now = time.monotonic()
            if now - since > _HAND_BACK_SECONDS:
                since = now
                self._hand_back()

    def _pause(self, answer: Answer) -> None:
        time.sleep(PAUSE_SECONDS)
        if self.given_up or answer.call.exchange.answer is not None:
            raise _GivenUp

    def _hand_back(self) -> None:
        ready, self._ready = self._ready, []
        try:
            self._loop.call_soon_threadsafe(self._deliver, ready)
        except RuntimeError:
            # The loop is closed: nobody waits for answers any more.
            return

    def _deliver(self, ready: Sequence[Answer]) -> None:
        for answer in ready:
            self._given += 1
            self._done(answer)

    def _end(self) -> None:
        """On the loop, when the thread has ended."""
        ready, self._ready = self._ready, []
        self._deliver(ready)
        for answer in self._answers[self._given :]:
            answer.error = self.error or Cancelled("the server ends")
            self._done(answer)
        self._answers = []


class Writer:
    """Hands answers to the threads, those of one turn of the loop together."""

    def __init__(self, threads: Reader, done: Callable[[Answer], None]) -> None:
        self._threads = threads
        self._done = done
        self._next: Writing | None = None

    def put(self, answer: Answer, size: int) -> None:
        """Has an answer of about so many bytes written."""
        writing = self._next
        if writing is None:
            writing = self._next = Writing(self._done)
            asyncio.get_running_loop().call_soon(self._begin, writing)
        writing.put(answer, size)
        if writing.size >= _TOGETHER_BYTES:
            self._begin(writing)

    def _begin(self, writing: Writing) -> None:
        if self._next is writing:
            self._next = None
            self._threads.put(writing)
