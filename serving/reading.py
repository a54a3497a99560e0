"""Bodies that take long to read: they are unpacked and decoded in threads, in short steps, beside the event loop."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from serving.errors import Expired, ServingError
from serving.protocol.long_lists import LONG_BODY, parse_long
from serving.protocol.unpacking import Unpacking
from serving.v2 import InferRequest

# Bytes of a packed body from which nobody tries whether one step on the loop does: a hand-off costs about as much.
_LONG_PACKED = 32 * 1024
# Seconds in which the loop gets the interpreter, after each step that holds it.
PAUSE_SECONDS = 0.00005
_MAX_THREADS = 4


class _GivenUp(Exception):
    """Nobody waits for the body any more."""


class Reading:
    """One request's body on its way: `body` when it is plain, and its `request` where that was read besides.

    `error` is what was wrong with it. What runs here runs in one thread at a time; `given_up` may be set in any.
    """

    __slots__ = ("_json", "_unpacking", "body", "deadline", "done", "error", "given_up", "request")

    def __init__(
        self, body: bytes, unpacking: Unpacking | None, *, json: bool, deadline: float | None, done: Callable[[], None]
    ) -> None:
        """`json`: the whole body is JSON; `deadline` in seconds of time.perf_counter; `done` is called on the loop."""
        self._unpacking = unpacking
        self._json = json
        self.body = body
        self.request: InferRequest | None = None
        self.deadline = deadline
        self.done: Callable[[], None] | None = done
        self.error: ServingError | None = None
        self.given_up = False

    def at_once(self) -> bool:
        """Whether the body is read, or so small that it was read now. Raises InvalidRequest, TooLarge."""
        unpacking = self._unpacking
        if unpacking is not None:
            if len(self.body) >= _LONG_PACKED or not unpacking.step():
                return False
            self.body, self._unpacking = unpacking.plain(), None
        return not (self._json and len(self.body) >= LONG_BODY)

    def run(self) -> None:
        """Reads to the end, to an error, or until it is given up."""
        try:
            unpacking = self._unpacking
            if unpacking is not None:
                self._go_on()
                while not unpacking.step():
                    self._go_on()
                self.body, self._unpacking = unpacking.plain(), None
            if self._json and len(self.body) >= LONG_BODY:
                self.request = parse_long(self.body, self._pause)
        except ServingError as error:
            # Its frames hold the body, and this.
            self.error = error.with_traceback(None)
        except _GivenUp:
            self.body = b""
        finally:
            self._unpacking = None

    def check(self) -> None:
        """Raises the error, if there is one, and holds it no longer."""
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            # Else it and this frame would keep each other alive until a garbage collection.
            del error

    def _pause(self) -> None:
        time.sleep(PAUSE_SECONDS)
        self._go_on()

    def _go_on(self) -> None:
        if self.given_up:
            raise _GivenUp
        if self.deadline is not None and self.deadline <= time.perf_counter():
            raise Expired("the deadline passed while the body was read")


class Job(Protocol):
    """What takes long: `run` in a thread, then `done` on the loop, with an `error` where that failed."""

    done: Callable[[], None] | None
    error: ServingError | None
    given_up: bool

    def run(self) -> None: ...


class Reader:
    """Reads bodies, and does other jobs, in a few threads, first come, first served; those are begun with the first.

    No more bodies are plain and not yet taken than there are threads. All but the jobs' `run` is on the loop.
    """

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._threads = min(_MAX_THREADS, os.cpu_count() or 1)
        self._running: set[Job] = set()
        self._pool: ThreadPoolExecutor | None = None

    def put(self, reading: Job) -> None:
        """Does it, and calls its `done`, also when it was given up."""
        self._waiting.append(reading)
        self._begin()

    def give_up(self, reading: Job) -> None:
        """Nobody waits for it any more."""
        reading.given_up = True
        if reading in self._waiting:
            self._waiting.remove(reading)
            asyncio.get_running_loop().call_soon(self._tell, reading)

    def close(self) -> None:
        """Ends the threads; what waits is not read."""
        for reading in (*self._waiting, *self._running):
            reading.given_up = True
        self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self._threads:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, "reading")
            reading = self._waiting.popleft()
            self._running.add(reading)
            future = asyncio.get_running_loop().run_in_executor(self._pool, reading.run)
            future.add_done_callback(lambda future, reading=reading: self._ended(reading, future))  # type: ignore[misc]

    def _ended(self, reading: Job, future: asyncio.Future[None]) -> None:
        self._running.discard(reading)
        if not future.cancelled() and (trouble := future.exception()) is not None:
            reading.error = ServingError(f"it could not be read or written: {trouble!r}")
        self._tell(reading)
        self._begin()

    @staticmethod
    def _tell(reading: Job) -> None:
        done, reading.done = reading.done, None
        if done is not None:
            done()
