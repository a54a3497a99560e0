"""Runs batches of one model version: on the event loop where they are short, else one hand-off to a thread and back."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from serving.batcher import Batch, BatchQueue, Pending, State, Wait
from serving.errors import Cancelled, Expired, Refused, ServingError
from serving.execution import Executed, Runnable, execute
from serving.models import WarmUp
from serving.steptimes import InlineRule, StepTimes


class Loop(Protocol):
    """The part of an event loop that lanes use; a fake one makes time a parameter."""

    def call_soon(self, callback: Callable[..., object], *args: Any) -> Any: ...

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Any: ...


class Executor(Protocol):
    """Runs a job elsewhere and calls `done` with its result on the event loop."""

    def start(self, job: Callable[[], Executed], done: Callable[[Executed], None]) -> None: ...

    def stop(self) -> None: ...


class InferenceThread:
    """One thread that runs batches one after another."""

    def __init__(self, name: str, call_soon_threadsafe: Callable[..., object]) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Executed], Callable[[Executed], None]] | None]
        self._jobs = queue.SimpleQueue()
        self._hand_back = call_soon_threadsafe
        self._name = name
        self._thread: threading.Thread | None = None

    def start(self, job: Callable[[], Executed], done: Callable[[Executed], None]) -> None:
        """Queues the job; the first one starts the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put((job, done))

    def stop(self) -> None:
        """Ends the thread after its last job; does not wait for it."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, done = entry
            result = job()
            try:
                self._hand_back(done, result)
            except RuntimeError:
                # The loop is closed: the process is going down and nobody waits for this answer any more.
                return


class Lane:
    """The queue and the executor of one version. All methods run on the event loop; every request ends exactly once."""

    def __init__(
        self,
        model: Runnable,
        executor: Executor,
        loop: Loop,
        *,
        max_rows: int,
        max_delay: float,
        limit_rows: int,
        inline_seconds: float = 0.0,
        warm_up: WarmUp | None = None,
        clock: Callable[[], float] = time.perf_counter,
        on_batch: Callable[[Batch, Executed], None] | None = None,
    ) -> None:
        self.queue = BatchQueue(max_rows=max_rows, max_delay=max_delay, limit_rows=limit_rows)
        self.model = model
        measured = warm_up.seconds if warm_up else None
        self.times = StepTimes(measured, max_rows)
        self._inline = InlineRule(measured, max_rows, inline_seconds)
        self._executor = executor
        self._loop = loop
        self._clock = clock
        self._on_batch = on_batch
        self._running: Batch | None = None
        self._scheduled = False
        self._timer: Any = None
        self._draining = False

    @property
    def busy(self) -> bool:
        """Whether a batch is with the model."""
        return self._running is not None

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return self._running is None and self.queue.rows == 0

    def submit(self, pending: Pending, *, admitted: bool = False) -> None:
        """Queues a request. Raises Expired when its deadline has passed, and Refused when the queue is full.

        One that another lane `admitted` before is taken whatever the queue holds.
        """
        now = self._clock()
        if pending.deadline is not None and pending.deadline <= now:
            raise Expired(f"the deadline passed {now - pending.deadline:.6f} s before the request could be queued")
        if not self.queue.offer(pending, admitted=admitted):
            raise Refused(
                f"the queue is full: {self.queue.rows} of {self.queue.limit_rows} rows wait and the request has "
                f"{pending.rows}; they take about {self.drain_seconds():.3f} s",
                retry_after_seconds=self.drain_seconds(),
            )
        pending.lane = self
        if pending.deadline is not None:
            self._loop.call_later(pending.deadline - now, _expire, pending, self._clock)
        self._schedule()

    def cancel(self, pending: Pending) -> None:
        """Ends a request whose client went away; queued rows never reach the model."""
        self.end_early(pending, Cancelled("the client closed the connection"))

    def drain_seconds(self) -> float:
        """Estimated time to work off what waits."""
        return max(1e-3, self.queue.rows / self.queue.max_rows * self.times.of(self.queue.max_rows))

    def drain(self) -> None:
        """From now on no batch waits for company."""
        self._draining = True
        self._schedule()

    def withdraw(self) -> list[Pending]:
        """Takes the queued requests out, to be submitted to another lane."""
        return self.queue.remove_all()

    def abandon(self) -> list[Pending]:
        """Takes the requests of the running batch back; what the model says of them later is thrown away."""
        if self._running is None:
            return []
        live = [pending for pending in self._running.requests if pending.state is State.RUNNING]
        for pending in live:
            pending.state = State.QUEUED
        self._running = Batch((), 0, self._running.reason)
        return live

    def stop(self) -> None:
        """Ends the executor."""
        self._executor.stop()

    def _schedule(self) -> None:
        # One dispatch an iteration of the loop: requests read in the same iteration go into one batch.
        if not self._scheduled and self._running is None:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        if self._running is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        next_batch = self.queue.take(now, seconds=self.times.of(self.queue.max_rows), draining=self._draining)
        if isinstance(next_batch, Wait):
            self._timer = self._loop.call_later(max(0.0, next_batch.until - now), self._dispatch)
        elif next_batch is not None:
            if self._inline.allows(next_batch.rows, now):
                executed = execute(self.model, next_batch.requests, self.queue.max_rows, self._clock)
                self._answer(next_batch, executed, inline=True)
                if self.queue.rows:
                    self._schedule()
            else:
                self._running = next_batch
                self._executor.start(
                    partial(execute, self.model, next_batch.requests, self.queue.max_rows, self._clock), self._finished
                )

    def _finished(self, executed: Executed) -> None:
        batch = self._running
        self._running = None
        # The model gets its next batch before the answers of this one are written.
        self._dispatch()
        if batch is not None:
            self._answer(batch, executed, inline=False)

    def _answer(self, batch: Batch, executed: Executed, *, inline: bool) -> None:
        started, ended, rows = executed.started, executed.ended, batch.rows
        for pending, result in zip(batch.requests, executed.results, strict=False):
            if pending.state is State.RUNNING:
                pending.started, pending.ended, pending.batch_rows = started, ended, rows
                pending.state = State.DONE
                pending.finish(result)
        if batch.requests:
            self.times.observe(rows, ended - started)
            self._inline.observe(rows, ended - started, ended, inline=inline)
            if self._on_batch is not None:
                self._on_batch(batch, executed)

    def end_early(self, pending: Pending, error: ServingError) -> None:
        """Answers a request that is not done with `error`; queued rows never reach the model."""
        if pending.state is State.DONE:
            return
        if pending.state is State.QUEUED:
            self.queue.discard(pending)
        pending.state = State.DONE
        pending.finish(error)


def _expire(pending: Pending, clock: Callable[[], float]) -> None:
    if pending.state is not State.DONE:
        where = "in the queue" if pending.state is State.QUEUED else "with the model"
        pending.lane.end_early(pending, Expired(f"the deadline passed after {clock() - pending.arrived:.3f} s {where}"))
