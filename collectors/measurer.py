"""The thread on which accepted batches are measured, in the order in which they were committed."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from functools import partial

from collectors.measure import Content, Kind, Measures

logger = logging.getLogger(__name__)


class Measurer:
    """The thread that measures. `changed` is called after a tick that changed the values of the page."""

    def __init__(self, measures: Measures, changed: Callable[[], None], tick_seconds: float = 0.25) -> None:
        self._measures = measures
        self._changed = changed
        self._tick_seconds = tick_seconds
        self._closing = threading.Event()
        self._queue: queue.SimpleQueue[tuple[Kind, Content, int | None]] = queue.SimpleQueue()
        self._waiting = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="collector-measurer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, kind: Kind, content: Content, position: int | None = None) -> None:
        with self._lock:
            self._waiting += 1
        self._queue.put((kind, content, position))

    def waiting(self) -> int:
        """Batches committed but not measured yet, the one in work included."""
        with self._lock:
            return self._waiting

    def close(self) -> None:
        """Measures what waits, then ends the thread."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        ticked_at = time.monotonic()
        while True:
            wait = max(0.0, ticked_at + self._tick_seconds - time.monotonic())
            try:
                item = self._queue.get(timeout=wait) if wait else None
            except queue.Empty:
                item = None
            if item is not None:
                self._guarded(partial(self._measures.apply, *item))
                with self._lock:
                    self._waiting -= 1
            elif self._closing.is_set() and self._queue.empty():
                return
            if time.monotonic() - ticked_at >= self._tick_seconds:
                self._guarded(self._tick)
                ticked_at = time.monotonic()

    def _tick(self) -> None:
        if self._measures.tick():
            self._changed()

    def _guarded(self, work: Callable[[], None]) -> None:
        """A batch that cannot be measured must not end the measuring of all others; its rows are in the lake."""
        try:
            work()
        except Exception:
            logger.exception("a batch or a tick could not be measured; it goes on with the next")
