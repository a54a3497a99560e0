"""Threads that deliver: they do not keep the process from ending, however long a receiver takes to answer."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

GRACE_SECONDS = 5.0
_Task = Callable[[], None]


class DeliveryThreads(Executor):
    """An executor whose `shutdown` waits a moment for what is running, and starts nothing more."""

    def __init__(self, threads: int, *, grace_seconds: float = GRACE_SECONDS) -> None:
        self._most = threads
        self._grace_seconds = grace_seconds
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function in a thread, soon."""
        future: Future[Any] = Future()

        def task() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        with self._lock:
            if self._closed:
                future.cancel()
                return future
            if len(self._threads) < self._most:
                thread = threading.Thread(target=self._run, name="notify", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._tasks.put(task)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Start nothing more; with `wait`, give what runs its moment."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._tasks.put(None)
        deadline = time.monotonic() + self._grace_seconds
        for thread in threads if wait else ():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._closed:
                return
            task()
