"""The thread on which accepted batches are measured, in the order in which they were committed."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from collectors.measure import Content, Kind, Measures
from collectors.signals import Signals
from observability import names

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is committed but not measured yet, the batch in work included."""

    batches: int = 0
    rows: int = 0
    size_bytes: int = 0
    """Memory that it takes."""
    seconds: float = 0.0
    """How long the oldest batch has waited."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    rows: int
    size_bytes: int
    since: float


class Measurer:
    """The thread that measures. `changed` is called after a tick that changed the values of the page.

    How long batches wait is read from `clock`.
    """

    def __init__(
        self,
        measures: Measures,
        changed: Callable[[], None],
        tick_seconds: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._measures = measures
        self._changed = changed
        self._tick_seconds = tick_seconds
        self._clock = clock
        self._closing = threading.Event()
        self._queue: queue.SimpleQueue[tuple[Kind, Content, int | None]] = queue.SimpleQueue()
        # In the order of the queue; the first is in work. The sums are kept: there may be thousands.
        self._waiting: deque[_Waiting] = deque()
        self._rows = self._bytes = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="collector-measurer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, kind: Kind, content: Content, position: int | None = None) -> None:
        waiting = _Waiting(content.num_rows, _size(content), self._clock())
        with self._lock:
            self._waiting.append(waiting)
            self._rows += waiting.rows
            self._bytes += waiting.size_bytes
            # Under the lock: the order is that of the queue.
            self._queue.put((kind, content, position))

    def waiting(self) -> int:
        """Batches committed but not measured yet, the one in work included."""
        with self._lock:
            return len(self._waiting)

    def backlog(self) -> Backlog:
        """How far measuring is behind what is committed."""
        with self._lock:
            if not self._waiting:
                return Backlog()
            seconds = self._clock() - self._waiting[0].since
            return Backlog(len(self._waiting), self._rows, self._bytes, seconds)

    def show(self, signals: Signals) -> None:
        """Shows the backlog on the collector's page, as it is when the page is asked for."""
        signals.metrics[names.BACKLOG_ROWS].set_function(lambda: self.backlog().rows)
        signals.metrics[names.BACKLOG_BYTES].set_function(lambda: self.backlog().size_bytes)
        signals.metrics[names.BACKLOG_SECONDS].set_function(lambda: self.backlog().seconds)

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
                item = self._queue.get(timeout=wait)
            except queue.Empty:
                item = None
            if item is not None:
                self._guarded(partial(self._measures.apply, *item))
                item = None  # or its memory would wait for the next batch
                with self._lock:
                    done = self._waiting.popleft()
                    self._rows -= done.rows
                    self._bytes -= done.size_bytes
            elif self._closing.is_set() and self._queue.empty():
                return
            if time.monotonic() - ticked_at >= self._tick_seconds:
                self._guarded(self._tick)
                ticked_at = time.monotonic()

    def _tick(self) -> None:
        if self._measures.tick(self.backlog().seconds):
            self._changed()

    def _guarded(self, work: Callable[[], None]) -> None:
        """A batch that cannot be measured must not end the measuring of all others; its rows are in the lake."""
        try:
            work()
        except Exception:
            logger.exception("a batch or a tick could not be measured; it goes on with the next")


def _size(content: Content) -> int:
    """The bytes that a batch holds in memory."""
    if isinstance(content, pa.Table):
        return int(content.nbytes)
    return sum(column.counts.nbytes for column in content.profile.columns.values())
