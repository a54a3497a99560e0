"""A thread of low priority that runs shadows' batches one after another."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)


class ShadowThread:
    """Runs shadow batches one after another at a lower priority than the rest of the process (Linux)."""

    def __init__(self, nice: int, call_soon_threadsafe: Callable[..., object]) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], Callable[[], None]] | None] = queue.SimpleQueue()
        self._hand_back = call_soon_threadsafe
        self._nice = nice
        threading.Thread(target=self._work, name="trimtab-shadow", daemon=True).start()

    def start(self, job: Callable[[], Callable[[], None]]) -> None:
        """Queues the job; what it returns is called on the event loop."""
        self._jobs.put(job)

    def stop(self) -> None:
        """Ends the thread after its last job; does not wait for it."""
        self._jobs.put(None)

    def _work(self) -> None:
        if self._nice and hasattr(os, "setpriority"):
            thread = threading.get_native_id()
            try:
                os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + self._nice)
            except OSError as error:  # a sandbox may forbid it: shadows then run at the usual priority
                _log.debug("the shadows' thread keeps its priority: %s", error)
        while (job := self._jobs.get()) is not None:
            try:
                self._hand_back(job())
            except RuntimeError:  # the loop is closed: the process is going down
                return
