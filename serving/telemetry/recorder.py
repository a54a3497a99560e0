"""Turns finished calls into prediction events and spans, on a thread of its own, behind a bounded queue."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from opentelemetry.trace import SpanKind

from observability import names
from observability.metrics import Metrics
from observability.tracing import Tracing
from serving.calls import Call, LateCalls, Traced
from serving.router import Choice
from serving.telemetry.columns import Anchor, ServedGroup
from serving.telemetry.memory import Memory
from serving.telemetry.runs import Run


class Events(Protocol):
    """Makes events of what was answered and sends them; `serving.telemetry.event_maker.EventMaker` is one."""

    def put(self, calls: Sequence[Call], anchor: Anchor) -> None:
        """Calls of one version and arm that ended together."""

    def put_served(self, group: ServedGroup, anchor: Anchor) -> None:
        """Batches of the shortcut."""

    def close(self) -> None:
        """Sends what waits, as far as it goes."""


class Recorder:
    """`put(calls)` takes microseconds and never blocks; when the thread is behind, groups are dropped and counted."""

    def __init__(
        self,
        make_events: Callable[[], Events] | None,
        tracing: Tracing,
        metrics: Metrics,
        max_groups: int = 4096,
        max_bytes: int = 256 << 20,
    ) -> None:
        # Whether every call is recorded, or traced ones only.
        self.records_all = make_events is not None
        self._make_events = make_events
        self._events: Events | None = None
        self._tracing = tracing
        self._metrics = metrics
        # For the rows that events are made of.
        self.memory = Memory()
        self._groups: queue.Queue[tuple[Sequence[Call] | ServedGroup, Anchor, int] | None] = queue.Queue(max_groups)
        self._max_bytes = max_bytes
        # Of all groups so far, counted where they are put, and of those done with, counted by the thread.
        self._put_bytes = self._done_bytes = 0
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="trimtab-recorder", daemon=True)
        self._thread.start()

    def put(self, calls: Sequence[Call]) -> None:
        """Records calls of one version and arm that ended together."""
        size = calls.nbytes if isinstance(calls, LateCalls) else sum(map(_bytes, calls))
        if not self._take(calls, size):
            self._dropped_rows("recorder_full", _rows(calls))

    def put_served(self, model: str, choice: Choice, served: Sequence[Run], first: int) -> None:
        """Records batches of the shortcut; `first` is the number of their first request."""
        if not self.records_all:
            return
        group = ServedGroup(model, choice, served, first)
        if not self._take(group, sum(run.nbytes for run in served)):
            self._dropped_rows("recorder_full", group.count)

    def _take(self, told: Sequence[Call] | ServedGroup, size: int) -> bool:
        """Queues a group, which may be larger than all that may wait only when it is the first."""
        waiting = self._put_bytes - self._done_bytes
        if waiting and waiting + size > self._max_bytes:
            return False
        try:
            self._groups.put_nowait((told, Anchor(time.perf_counter(), time.time_ns()), size))
        except queue.Full:
            return False
        self._put_bytes += size
        return True

    def close(self, timeout: float = 5.0) -> None:
        """Records what waits and ends the thread. What it does not come to within `timeout` seconds is dropped, and
        counted: a thread that is still in Arrow when the interpreter ends takes the process down with it.
        """
        until = time.monotonic() + timeout
        for self._ending in (False, True):
            with suppress(queue.Full):
                self._groups.put(None, timeout=timeout)
            self._thread.join(timeout if self._ending else max(0.0, until - time.monotonic()))
            if not self._thread.is_alive():
                return

    def prepare(self) -> None:
        """Has the thread load what makes events before there are any; a server's start does not wait for it."""
        with suppress(queue.Full):
            self._groups.put_nowait(((), Anchor(0.0, 0), 0))

    def _work(self) -> None:
        while (entry := self._groups.get()) is not None:
            told, anchor, size = entry
            if self._ending:
                self._dropped_rows("closed", told.count if isinstance(told, ServedGroup) else _rows(told))
                continue
            try:
                if self._events is None and self._make_events is not None:
                    self._events = self._make_events()
                if isinstance(told, ServedGroup):
                    self._record_served(told, anchor)
                elif told:
                    self._record(told, anchor)
            except Exception:
                # Telemetry must not end with one odd batch; the counter says that something was lost.
                self._dropped_rows("invalid", told.count if isinstance(told, ServedGroup) else _rows(told))
            self._done_bytes += size
        if self._events is not None:
            self._events.close()

    def _record(self, calls: Sequence[Call], anchor: Anchor) -> None:
        if self._events is not None:
            self._events.put(calls, anchor)
        for call in calls:
            if call.span is not None:
                self._trace(call, anchor, call.id)

    def _record_served(self, group: ServedGroup, anchor: Anchor) -> None:
        if self._events is not None:
            self._events.put_served(group, anchor)
        first = group.first
        for run in group.served:
            for place, one in run.traced:
                self._trace(one, anchor, f"{one.instance}-{first + place}")
            first += run.requests

    def _dropped_rows(self, reason: str, rows: int) -> None:
        self._metrics[names.TELEMETRY_DROPPED].labels("events", reason).inc()
        self._metrics[names.TELEMETRY_DROPPED_ROWS].labels("events", reason).inc(rows)

    def _trace(self, call: Call | Traced, anchor: Anchor, id: str) -> None:
        record, parent = self._tracing.record, call.span
        model = {"model": call.model, "version": str(call.choice.version)}
        attributes: dict[str, Any] = {
            **model, "arm": call.choice.arm, "outcome": call.outcome, "rows": call.rows, "request.id": id,
        }  # fmt: skip
        if isinstance(call, Call) and call.cache:
            attributes["cache"] = call.cache
        error = None if call.outcome == "ok" else call.outcome
        begun, ended = anchor.unix(call.arrived), anchor.unix(call.done)
        record(
            names.SPAN_REQUEST, begun, ended, call.parent, attributes, (), SpanKind.SERVER, context=parent, error=error
        )
        if call.started is None or call.ended is None:
            record(names.SPAN_QUEUE, begun, ended, parent, model, error=error)
            return
        started, finished = anchor.unix(call.started), anchor.unix(call.ended)
        record(names.SPAN_QUEUE, begun, started, parent, model)
        # The request's own span is the batch's parent; the other traces that it worked for are links.
        others = [context for context in call.company if context != parent]
        batch = record(names.SPAN_BATCH, started, ended, parent, {**model, "batch.rows": call.batch_rows}, others)
        record(names.SPAN_MODEL, started, finished, batch, model, error=error)


def _bytes(call: Call) -> int:
    """What a call that waits holds: its request, and what the model made of it."""
    return call.bytes + sum(output.nbytes for output in call.outputs or ())


def _rows(calls: Sequence[Call]) -> int:
    return sum(call.rows for call in calls)
