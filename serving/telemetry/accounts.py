"""What is counted of answered requests: one account for each choice of the router, written in bulk.

An answered request appends six moments to an array and itself to a list; the series are written when somebody looks,
and a few times a second besides.
"""

from __future__ import annotations

from array import array
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from observability.names import FAULTS
from observability.tracing import format_trace_id
from serving.router import Choice
from serving.telemetry.runs import Run
from serving.telemetry.signals import MOMENTS, Signals

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

    from serving.calls import Call


class Account:
    """The requests of one choice that have ended since the last flush. Times are seconds of the lanes' clock.

    Where no release is in progress, the shortcut's are counted batch by batch: `counts` says so.
    """

    __slots__ = (
        "_firsts",
        "_signals",
        "_sticky",
        "_traced",
        "_version",
        "calls",
        "choice",
        "counts",
        "extend",
        "model",
        "moments",
        "ok",
        "others",
        "served",
    )

    def __init__(self, model: str, choice: Choice, signals: Signals) -> None:
        self.model = model
        self.choice = choice
        self._signals = signals
        self._version = signals.version(model, choice.version)
        self.ok = 0
        self.others: Counter[str] = Counter()
        # arrived, queued, started, ended, encoded, done of each request.
        self.moments = array("d")
        self.extend = self.moments.extend
        self.counts = choice.release is None
        # Durations of those whose trace is kept, and where units keep their arm, of units' first requests.
        self._traced = array("d")
        self._firsts = array("d")
        self._sticky = False
        # What the recorder gets.
        self.calls: list[Call] = []
        self.served: list[Run] = []

    def add(self, call: Call, ended: float) -> None:
        """A request that ended otherwise than with a batch's outputs, whose trace is kept, or that has a unit.

        `ended` is when its answer was made. What failed, was sent again and failed again is one request for a release.
        """
        if call.outcome == "ok":
            self.ok += 1
        elif self._signals.failed_again(self.model, self.choice, call.outcome, call.request.id or ""):
            self._version.requests(call.outcome, 1)
        else:
            self.others[call.outcome] += 1
        if call.unit is not None:
            self._sticky = True
            if call.outcome != "ok":
                self._signals.failed_unit(self.model, self.choice, call.outcome, call.unit)
            answered = call.outcome == "ok" or call.outcome in FAULTS
            first = answered and self._signals.first_of_unit(self.model, self.choice, call.unit)
            call.drawn = first or self.choice.candidate is None
            if first:
                self._firsts.append(call.done - call.arrived)
        queued = call.arrived if call.queued is None else call.queued
        started = ended if call.started is None else call.started
        worked = started if call.ended is None else call.ended
        moments = (call.arrived, queued, started, worked, max(ended, worked), call.done)
        if call.span is None:
            self.extend(moments)
        else:
            self._version.traced(moments, call.started is not None, format_trace_id(call.span) or "")
            self._traced.append(moments[-1] - moments[0])

    def add_many(self, moments: bytes) -> None:
        """Requests that ended with a batch's outputs, by the moments of each, as doubles."""
        if self.counts:
            self._version.add_latencies(moments)
        else:
            self.moments.frombytes(moments)
        self.ok += len(moments) // (MOMENTS * 8)

    def point_to(self, seconds: float, span: SpanContext) -> None:
        """The trace of a request that `add_many` took."""
        self._version.point_to(seconds, format_trace_id(span) or "")

    def flush(self) -> None:
        """Writes the series."""
        signals, version = self._signals, self._version
        if self.ok:
            version.requests("ok", self.ok)
            signals.release(self.model, self.choice, "ok", self.ok)
            self.ok = 0
        if self.others:
            for outcome, count in self.others.items():
                version.requests(outcome, count)
                signals.release(self.model, self.choice, outcome, count)
            self.others.clear()
        if self._traced:
            if not self._sticky:
                signals.release_latencies(self.model, self.choice, np.array(self._traced))
            del self._traced[:]
        if self._firsts:
            signals.release_latencies(self.model, self.choice, np.array(self._firsts))
            del self._firsts[:]
        if self.moments:
            version.add_latencies(self.moments.tobytes())
            if not self._sticky and self.choice.release is not None:
                moments = np.array(self.moments).reshape(-1, MOMENTS)
                signals.release_latencies(self.model, self.choice, moments[:, -1] - moments[:, 0])
            del self.moments[:]
        version.write()
