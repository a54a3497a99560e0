"""A loop, an executor, a model and requests whose every step a test decides."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from serving.batcher import Pending, Result
from serving.batching.lane_policy import LanePolicy
from serving.engine import Executed, Lane
from serving.protocol.signature import Input, Output, Signature
from serving.protocol.tensors import Array

SIGNATURE = Signature((Input.of("x", "FP32"),), (Output("y"),))
RAISES, NOT_FINITE = 666.0, -1.0


class FakeLoop:
    """Callbacks and timers by hand; `now` is the clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self._soon: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._timers: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = itertools.count()

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        self._soon.append((callback, args))

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> FakeTimer:
        timer = FakeTimer(callback)
        heapq.heappush(self._timers, (self.now + delay, next(self._order), timer, args))
        return timer

    def spin(self) -> None:
        while self._soon:
            callback, args = self._soon.pop(0)
            callback(*args)

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        self.spin()
        while self._timers and self._timers[0][0] <= end:
            self.now, _, callback, args = heapq.heappop(self._timers)
            callback(*args)
            self.spin()
        self.now = end


class FakeTimer:
    def __init__(self, callback: Callable[..., object]) -> None:
        self._callback: Callable[..., object] | None = callback

    def __call__(self, *args: Any) -> None:
        if self._callback is not None:
            self._callback(*args)

    def cancel(self) -> None:
        self._callback = None


class FakeExecutor:
    """Holds the job until the test lets it finish."""

    def __init__(self) -> None:
        self._held: tuple[Callable[[], Executed], Callable[[Executed], None]] | None = None

    def start(self, job: Callable[[], Executed], done: Callable[[Executed], None]) -> None:
        assert self._held is None, "a lane hands over one batch at a time"
        self._held = (job, done)

    def poll(self) -> None:
        return

    def finish(self) -> bool:
        if self._held is None:
            return False
        (job, done), self._held = self._held, None
        done(job())
        return True

    def stop(self) -> None:
        return


class Doubling:
    """y = 2 x; raises when a row is RAISES; NaN for NOT_FINITE. Keeps what it was given."""

    signature = SIGNATURE

    def __init__(self, on_run: Callable[[int], None] | None = None) -> None:
        self.seen: list[float] = []
        self._on_run = on_run

    def run(self, columns: Sequence[Array]) -> list[Array]:
        (x,) = columns
        if self._on_run is not None:
            self._on_run(len(x))
        if (x == RAISES).any():
            raise RuntimeError("666")
        self.seen += x.tolist()
        return [np.where(x == NOT_FINITE, np.nan, 2 * x)]


class Recorded(Pending):
    """Keeps every result that it is given."""

    def __init__(self, values: list[float], arrived: float = 0.0, deadline: float | None = None, **more: Any) -> None:
        super().__init__([values], len(values), arrived, deadline, **more)
        self.results: list[Result] = []

    def finish(self, result: Result) -> None:
        self.results.append(result)

    @property
    def only(self) -> Result:
        assert len(self.results) == 1, f"a request must end exactly once, not {len(self.results)} times"
        return self.results[0]


def lane_of(model: Doubling, loop: FakeLoop, executor: FakeExecutor, **options: Any) -> Lane:
    """A lane of at most 8 rows a batch and 24 waiting, unless `options` say otherwise."""
    wiring = ("device", "total", "warm_up", "on_batch", "on_shed", "on_late")
    wired = {name: options.pop(name) for name in wiring if name in options}
    policy = LanePolicy(**({"max_rows": 8, "limit_rows": 24} | options))
    return Lane(model, executor, loop, policy, clock=lambda: loop.now, **wired)


class TimedExecutor:
    """Takes `seconds(rows)` of the loop's time for a batch."""

    def __init__(self, loop: FakeLoop, seconds: Callable[[int], float]) -> None:
        self._loop = loop
        self._seconds = seconds
        self.busy_seconds = 0.0
        self.batches: list[int] = []

    def start(self, job: Callable[[], Executed], done: Callable[[Executed], None]) -> None:
        rows = sum(pending.rows for pending in job.args[1])  # type: ignore[attr-defined]
        seconds = self._seconds(rows)
        self.busy_seconds += seconds
        self.batches.append(rows)
        executed = job()
        self._loop.call_later(seconds, done, replace(executed, ended=executed.started + seconds))

    def poll(self) -> None:
        return

    def stop(self) -> None:
        return
