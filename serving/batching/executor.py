"""Where batches run that are too long for the event loop: one thread a version."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from serving.batching.execution import Executed


class Loop(Protocol):
    """The part of an event loop that lanes use; a fake one makes time a parameter."""

    def call_soon(self, callback: Callable[..., object], *args: Any) -> Any: ...

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Any: ...


class Executor(Protocol):
    """Runs a job elsewhere and calls `done` with its result on the event loop."""

    def start(self, job: Callable[[], Executed], done: Callable[[Executed], None]) -> None: ...

    def poll(self) -> None:
        """Calls `done` at once for a job that is ready and whose turn on the loop has not come."""

    def stop(self) -> None: ...


class InferenceThread:
    """One thread that runs batches one after another; its first job starts it."""

    def __init__(self, name: str, call_soon_threadsafe: Callable[..., object]) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Executed], Callable[[Executed], None]] | None]
        self._jobs = queue.SimpleQueue()
        self._hand_back = call_soon_threadsafe
        self._ready: deque[tuple[Callable[[Executed], None], Executed]] = deque()
        self._name = name
        self._thread: threading.Thread | None = None

    def start(self, job: Callable[[], Executed], done: Callable[[Executed], None]) -> None:
        """Queues the job."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put((job, done))

    def poll(self) -> None:
        """Delivers what is ready; on the event loop."""
        while self._ready:
            done, result = self._ready.popleft()
            done(result)

    def stop(self) -> None:
        """Ends the thread after its last job; does not wait for it."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, done = entry
            self._ready.append((done, job()))
            try:
                self._hand_back(self.poll)
            except RuntimeError:
                # The loop is closed: the process is going down and nobody waits for this answer any more.
                return
