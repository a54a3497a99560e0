"""Delivers what a host emits, from one background thread: bounded, retried, counted, and never in the host's way."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from observability import names
from observability.metrics import Metrics
from observability.sinks import Batch, Rejected, Sink, Unavailable

Item = TypeVar("Item")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait before a delivery is tried again: exponential, with full jitter above one half."""

    first_seconds: float = 0.1
    limit_seconds: float = 10.0
    # A receiver that is away is waited for; one that keeps failing on a body (500) is given it so many times.
    max_failures: int = 8
    # A Retry-After beyond this would park the telemetry for good.
    retry_after_limit_seconds: float = 120.0

    def delay(self, failures: int, retry_after: float | None, jitter: float) -> float:
        """Seconds to wait after the n-th failure in a row (n >= 1); `jitter` is uniform in [0, 1)."""
        full = min(self.limit_seconds, self.first_seconds * 2.0 ** min(failures - 1, 60))
        wanted = full * (0.5 + 0.5 * jitter)
        return wanted if retry_after is None else max(wanted, min(retry_after, self.retry_after_limit_seconds))


@dataclass(slots=True)
class _Waiting(Generic[Item]):
    item: Item
    size: int
    rows: int
    since: float


class BufferedExporter(Generic[Item]):
    """A bounded queue before a sink, emptied by one daemon thread.

    `put` takes microseconds and never raises: when `max_batches` or `max_bytes` are waiting, the oldest is dropped.
    Up to `max_rows` rows and `max_body_bytes` of items that may go `together` travel in one body, `encode`d on the
    thread; an item that is more goes alone. `linger_seconds` is how long a small body waits for more. Every item ends
    as delivered or dropped in the counters of `names.py`, by `signal`.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        signal: str,
        encode: Callable[[Sequence[Item]], Batch],
        measure: Callable[[Item], tuple[int, int]],
        together: Callable[[Item, Item], bool],
        max_batches: int = 10_000,
        max_bytes: int = 64 << 20,
        max_rows: int = 1,
        max_body_bytes: int = 16 << 20,
        linger_seconds: float = 0.0,
        backoff: Backoff | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._sink, self._encode, self._measure, self._together = sink, encode, measure, together
        self._max_batches, self._max_bytes, self._max_rows = max_batches, max_bytes, max_rows
        self._max_body_bytes = max_body_bytes
        self._linger_seconds = linger_seconds
        self._backoff = backoff or Backoff()
        self._signals = _Signals(Metrics() if metrics is None else metrics, signal)
        self._random = random.Random()  # not the host's: its seeds stay its own
        self._reset()
        _forget_in_child(self)

    def put(self, item: Item) -> None:
        """Queues one item (`measure` tells its bytes and rows). After `close` it is dropped, and counted."""
        try:
            size, rows = self._measure(item)
        except Exception:
            self._signals.dropped("invalid", 1, 0)
            return
        with self._changed:
            if self._closing:
                self._signals.dropped("closed", 1, rows)
                return
            self._waiting.append(_Waiting(item, size, rows, time.monotonic()))
            self._bytes += size
            self._rows += rows
            self._drop_overflow()
            # A waiting thread is woken only when there is work for it: a wake-up costs the host more than the append.
            if len(self._waiting) == 1 or self._fills_body():
                self._changed.notify_all()
            if self._thread is None:
                self._start()

    def flush(self, timeout: float = 5.0) -> bool:
        """Waits until all that was put is delivered or dropped; False if that took longer than `timeout` seconds."""
        with self._changed:
            self._hurry += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._waiting and not self._in_flight, timeout)
            finally:
                self._hurry -= 1

    def close(self, timeout: float = 5.0) -> bool:
        """Delivers what it can within `timeout` seconds, drops the rest (counted) and ends the thread."""
        flushed = self.flush(timeout)
        with self._changed:
            self._closing = True
            self._drop_all("closed")
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            # A delivery in progress ends by the sink's own time limit: the thread is a daemon, nobody need wait for it.
            thread.join(timeout=0.5 if flushed else 0.0)
        elif thread is None:
            self._close_sink()
        return flushed

    def _close_sink(self) -> None:
        close = getattr(self._sink, "close", None)
        if close is not None:
            close()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting[Item]] = deque()
        self._bytes = self._rows = self._in_flight = self._hurry = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"trimtab-{self._signals.signal}", daemon=True)
        self._thread.start()

    def _drop_overflow(self) -> None:
        while len(self._waiting) > self._max_batches or (self._bytes > self._max_bytes and self._waiting):
            oldest = self._pop()
            self._signals.dropped("queue_full", 1, oldest.rows)
        self._signals.waiting(len(self._waiting))

    def _drop_all(self, reason: str) -> None:
        while self._waiting:
            self._signals.dropped(reason, 1, self._pop().rows)
        self._signals.waiting(0)

    def _pop(self) -> _Waiting[Item]:
        oldest = self._waiting.popleft()
        self._bytes -= oldest.size
        self._rows -= oldest.rows
        return oldest

    def _run(self) -> None:
        while taken := self._take():
            rows = sum(waiting.rows for waiting in taken)
            reason = self._deliver([waiting.item for waiting in taken])
            with self._changed:
                self._in_flight = 0
                if reason is None:
                    self._signals.delivered(len(taken))
                else:
                    self._signals.dropped(reason, len(taken), rows)
                self._changed.notify_all()
        self._close_sink()

    def _take(self) -> list[_Waiting[Item]]:
        """The oldest items that fit in one body; waits for them. Nothing when the exporter is closed."""
        with self._changed:
            while not self._due():
                if self._closing:
                    return []
                self._changed.wait(self._seconds_until_due())
            taken, others = [self._pop()], []
            rows, size = taken[0].rows, taken[0].size
            while self._waiting and self._fits(rows + self._waiting[0].rows, size + self._waiting[0].size):
                following = self._pop()
                if self._together(taken[0].item, following.item):
                    taken.append(following)
                    rows, size = rows + following.rows, size + following.size
                else:
                    others.append(following)
            self._put_back(others)
            self._in_flight = len(taken)
            self._signals.waiting(len(self._waiting))
            return taken

    def _fits(self, rows: int, size: int) -> bool:
        return rows <= self._max_rows and size <= self._max_body_bytes

    def _fills_body(self) -> bool:
        return self._rows >= self._max_rows or self._bytes >= self._max_body_bytes

    def _put_back(self, items: list[_Waiting[Item]]) -> None:
        self._waiting.extendleft(reversed(items))
        self._bytes += sum(waiting.size for waiting in items)
        self._rows += sum(waiting.rows for waiting in items)

    def _due(self) -> bool:
        if not self._waiting:
            return False
        return bool(self._hurry) or self._fills_body() or (self._seconds_until_due() or 0.0) <= 0.0

    def _seconds_until_due(self) -> float | None:
        if not self._waiting:
            return None
        return max(0.0, self._waiting[0].since + self._linger_seconds - time.monotonic())

    def _deliver(self, items: Sequence[Item]) -> str | None:
        """Sends one body until it is taken (None) or given up; then the reason."""
        try:
            batch = self._encode(items)
        except Exception as error:  # whatever the host put in, the thread lives on
            _log.warning("%s: %d batches could not be encoded: %s", self._signals.signal, len(items), error)
            return "invalid"
        failures = refusals = 0
        while True:
            try:
                self._sink.send(batch)
                return None
            except Rejected as error:
                _log.warning("%s: a body was refused for good: %s", self._signals.signal, error)
                return "rejected"
            except Exception as error:
                failures += 1
                refusals += 0 if isinstance(error, Unavailable) else 1
                if refusals >= self._backoff.max_failures:
                    _log.warning("%s: a body was given up after %d failures: %s", self._signals.signal, refusals, error)
                    return "failed"
                self._signals.retried()
                if not self._pause(failures, getattr(error, "retry_after", None)):
                    return "closed"

    def _pause(self, failures: int, retry_after: float | None) -> bool:
        """Waits before the next try; False when the exporter is closed meanwhile."""
        seconds = self._backoff.delay(failures, retry_after, self._random.random())
        with self._changed:
            return not self._changed.wait_for(lambda: self._closing, seconds)


class Exporter(BufferedExporter[Batch]):
    """An exporter of ready bodies, one delivery each."""

    def __init__(
        self,
        sink: Sink,
        *,
        signal: str,
        max_batches: int = 1000,
        max_bytes: int = 64 << 20,
        backoff: Backoff | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__(
            sink,
            signal=signal,
            encode=lambda batches: batches[0],
            measure=lambda batch: (len(batch.body), batch.rows),
            together=lambda first, other: False,
            max_batches=max_batches,
            max_bytes=max_bytes,
            backoff=backoff,
            metrics=metrics,
        )


class _Signals:
    """The exporter's counters, their children looked up once."""

    def __init__(self, metrics: Metrics, signal: str) -> None:
        self.signal = signal
        self._metrics = metrics
        self._delivered = metrics[names.TELEMETRY_DELIVERED].labels(signal)
        self._retries = metrics[names.TELEMETRY_RETRIES].labels(signal)
        self._queue = metrics[names.TELEMETRY_QUEUE].labels(signal)

    def delivered(self, batches: int) -> None:
        self._delivered.inc(batches)

    def retried(self) -> None:
        self._retries.inc()

    def waiting(self, batches: int) -> None:
        self._queue.set(batches)

    def dropped(self, reason: str, batches: int, rows: int) -> None:
        self._metrics[names.TELEMETRY_DROPPED].labels(self.signal, reason).inc(batches)
        self._metrics[names.TELEMETRY_DROPPED_ROWS].labels(self.signal, reason).inc(rows)


def _forget_in_child(exporter: BufferedExporter[Item]) -> None:
    """A forked child has neither the thread nor a trustworthy lock; what waits is the parent's to deliver."""
    reference = weakref.ref(exporter)

    def reset() -> None:
        if (alive := reference()) is not None:
            alive._reset()
            # The parent's connection: two writers would tear its requests.
            alive._close_sink()

    os.register_at_fork(after_in_child=reset)
