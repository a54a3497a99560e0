"""The queue and the batches of one version: on the event loop where they are short, else one hand-off to a thread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from serving.batcher import Batch, BatchQueue, Budget, Pending, QueueState, State
from serving.batching.device import Device
from serving.batching.execution import Executed, Runnable, execute
from serving.batching.executor import Executor, InferenceThread, Loop
from serving.batching.expiry import DeadlineTimer, late
from serving.batching.gate import Gate
from serving.batching.lane_policy import LanePolicy
from serving.batching.latency_target import LatencyTarget
from serving.batching.steptimes import InlineRule, StepTimes
from serving.errors import Cancelled, Expired, ServingError
from serving.models import WarmUp

__all__ = ["Executed", "Executor", "InferenceThread", "Lane", "Loop", "Runnable", "execute"]

_STALL_FACTOR = 20.0
_MEMORY_SECONDS = 30.0  # after a batch that did not fit into memory, until larger ones are tried again
# Requests in a queue that is about to be empty.
_FEW_REQUESTS = 4


class Lane:
    """The queue and the executor of one version. All methods run on the event loop; every request ends exactly once.

    `device` is shared with other lanes, `total` with other queues. `on_batch` and `on_shed` (with the reason) count.
    """

    def __init__(
        self,
        model: Runnable,
        executor: Executor,
        loop: Loop,
        policy: LanePolicy,
        *,
        warm_up: WarmUp | None = None,
        device: Device | None = None,
        total: Budget | None = None,
        clock: Callable[[], float] = time.perf_counter,
        on_batch: Callable[[Batch, Executed], None] | None = None,
        on_shed: Callable[[str], None] | None = None,
        on_late: Callable[[int], None] | None = None,
    ) -> None:
        self.policy = policy
        self.queue = BatchQueue(
            max_rows=policy.max_rows, max_delay=policy.max_delay, limit_rows=policy.limit_rows,
            limit_bytes=policy.limit_bytes, preferred_rows=policy.preferred_rows, ageing=policy.ageing, total=total,
        )  # fmt: skip
        self.model = model
        measured = warm_up.seconds if warm_up else None
        self.times = StepTimes(measured, policy.max_rows)
        self.served = 0.0
        self.used = 0.0  # when a batch of it ended last
        self._gate = Gate(self.queue, self.times, policy, on_shed)
        self._inline = InlineRule(measured, policy.max_rows, policy.inline_seconds)
        self._target = LatencyTarget(policy.latency_target) if policy.latency_target > 0 else None
        self._executor = executor
        self._loop = loop
        self._device = device
        self._clock = clock
        self._on_batch = on_batch
        self._on_late = on_late
        self._running: Batch | None = None
        self._running_since = 0.0
        self._scheduled = False
        self._timer: Any = None
        self._deadlines = DeadlineTimer(loop, clock, self._live, self.end_early)
        self._draining = False
        self._grow_at = math.inf
        self._cap = policy.max_rows  # of the last batch

    # --- the shortcut past the queue ---------------------------------------------------------------------------------
    @property
    def simple(self) -> bool:
        """Whether what waits goes at once and as it is: then requests may pass by an empty queue."""
        policy = self.policy
        waits = policy.max_delay > 0 or policy.latency_target > 0 or bool(policy.preferred_rows)
        return not (waits or policy.limit_requests) and policy.inline_seconds > 0

    def free(self, rows: int, now: float) -> bool:
        """Whether a batch of so many rows may run on the event loop now, as nothing is before it."""
        alone = self._running is None and self.queue.requests == 0 and self.stalled is None
        return alone and rows <= self.policy.limit_rows and self._inline.allows(rows, now)

    def clears(self, rows: int, now: float) -> bool:
        """Whether the queue is short and run on the event loop, so that batches of so many rows may soon be, too."""
        short = self._running is None and 0 < self.queue.requests <= _FEW_REQUESTS and self.stalled is None
        return short and self._inline.allows(min(rows, self.queue.max_rows), now)

    def ran(self, rows: int, started: float, ended: float, worked: float | None) -> None:
        """Notes a batch that passed by the queue; `worked`: this thread's own seconds of it, where they are known."""
        seconds, self.used = ended - started, ended
        self.times.observe(rows, seconds)
        self._inline.observe(rows, seconds if worked is None else worked, ended, inline=True)
        if self._on_batch is not None:
            reason = "full" if rows >= self.queue.max_rows else "idle"
            self._on_batch(Batch((), rows, reason), Executed((), started, ended))

    @property
    def in_flight(self) -> int:
        """Requests that are queued or with the model."""
        return self.queue.requests + (0 if self._running is None else len(self._running.requests))

    @property
    def busy(self) -> bool:
        """Whether a batch is with the model."""
        return self._running is not None

    @property
    def stalled(self) -> str | None:
        """Why the version is not ready although it is loaded; None while its batches move."""
        return self._gate.stalled

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return self._running is None and self.queue.requests == 0

    # --- requests ----------------------------------------------------------------------------------------------------
    def submit(self, pending: Pending, *, admitted: bool = False) -> None:
        """Queues a request. Raises Expired when its deadline has passed, Refused when it is turned away, Unavailable
        when the version is stuck. One that another lane `admitted` before is taken whatever the queue holds.
        """
        if self._running is not None:
            # Reading a flood of requests takes long: the model must not wait for the end of it to get its next batch.
            self._executor.poll()
        now = self._clock()
        deadline = pending.deadline
        if deadline is not None and deadline <= now:
            raise Expired(f"the deadline passed {now - deadline:.6f} s before the request could be queued")
        if not admitted:
            lacking = self.queue.lacks(pending)
            if deadline is not None or lacking is not None or self._gate.strict:
                running = self._running
                for victim, error in self._gate.admit(pending, lacking, now, self._remaining(now), running):
                    self.end_early(victim, error)
        self.queue.offer(pending, admitted=True)
        pending.lane = self
        pending.queued = now
        if deadline is not None and deadline < self._deadlines.at:
            self._deadlines.watch(deadline, now)
        if self._target is not None:
            self._target.arrived(pending, now)
        if not self._scheduled and self._running is None:
            self._schedule()

    def pressed(self, deadline: float | None) -> bool:
        """Whether requests are refused now, or those with such a deadline might be."""
        queue = self.queue
        if self._running is None and queue.requests == 0:
            return False
        return deadline is not None or self._gate.strict or queue.rows >= queue.limit_rows

    def refuse_early(self, arrived: float, deadline: float | None) -> None:
        """Raises Refused where any request of the default class would be refused, before its body is read."""
        queue, gate = self.queue, self._gate
        # The least that can be asked: what is refused of it is refused of all.
        least, now = Pending((), 1, arrived, deadline), self._clock()
        gate.admit(least, queue.lacks(least), now, self._remaining(now), self._running)

    def refuse_overflow(self, rows: int) -> None:
        """Raises Refused: so many rows wait for the shortcut that no more may."""
        raise self._gate.overflow(rows)

    def cancel(self, pending: Pending) -> None:
        """Ends a request whose client went away; queued rows never reach the model."""
        self.end_early(pending, Cancelled("the client closed the connection"))

    def end_early(self, pending: Pending, error: ServingError) -> None:
        """Answers a request that is not done with `error`; queued rows never reach the model."""
        if pending.state is State.DONE:
            return
        if pending.state is State.QUEUED:
            self.queue.discard(pending)
        if isinstance(error, Expired):
            self._gate.missed(pending, self._clock())
        pending.state = State.DONE
        pending.finish(error)

    def drain_seconds(self) -> float:
        """Estimated time to work off what waits."""
        return self._gate.drain_seconds()

    def state(self) -> QueueState:
        """What waits, for the gauges."""
        queue, now = self.queue, self._clock()
        oldest = queue.oldest()
        return QueueState(
            queue.rows, queue.bytes, 0.0 if oldest is None else now - oldest,
            self.drain_seconds() if queue.requests else 0.0, self._cap,
            0 if self._gate.limit is None else self._gate.limit.rows,
        )  # fmt: skip

    # --- the lane as a whole -----------------------------------------------------------------------------------------
    def drain(self) -> None:
        """From now on no batch waits for company."""
        self._draining = True
        if not self._scheduled and self._running is None:
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
        if self._device is not None:
            self._device.finish(self, self._clock() - self._running_since)
            self._device.pick()
        return live

    def stop(self) -> None:
        """Ends the executor."""
        self._deadlines.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._device is not None:
            self._device.leave(self)
        self._executor.stop()

    def check(self) -> str | None:
        """Looks whether batches move, for a watchdog; gives the reason when they have just stopped to."""
        now = self._clock()
        if self._running is None:
            if self.queue.requests and self._timer is None and not self._scheduled:
                self._schedule()
            return None
        limit = max(self.policy.stall_seconds, _STALL_FACTOR * self.times.upper(max(1, self._running.rows)))
        since = now - self._running_since
        if self.policy.stall_seconds <= 0 or since <= limit or self._gate.stalled is not None:
            return None
        self._gate.stalled = (
            f"a batch of {self._running.rows} rows has been with the model for {since:.1f} s (the limit is "
            f"{limit:.1f} s) and {self.queue.rows} rows wait"
        )
        return self._gate.stalled

    # --- batches -----------------------------------------------------------------------------------------------------
    def urgency(self) -> int:
        """The class of priority of the most urgent request that waits."""
        return self.queue.urgency()

    def granted(self) -> None:
        """The device is this lane's: starts a batch, or gives the device back."""
        self._dispatch(granted=True)

    def _schedule(self) -> None:
        # One dispatch an iteration of the loop: requests read in the same iteration go into one batch.
        self._scheduled = True
        self._loop.call_soon(self._wake)

    def _wake(self) -> None:
        self._scheduled = False
        if self._running is None:
            self._dispatch()

    def _due(self) -> None:
        self._timer = None
        if self._running is None:
            self._dispatch()

    def _dispatch(self, *, granted: bool = False) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        device, queue = self._device, self.queue
        now = self._clock()
        if now >= self._grow_at:
            queue.max_rows = min(2 * queue.max_rows, self.policy.max_rows)
            self._grow_at = math.inf if queue.max_rows == self.policy.max_rows else now + _MEMORY_SECONDS
        cap, hold = self._plan(now)
        due = queue.due(
            now, seconds=self.times.of(min(queue.rows, cap)), draining=self._draining, cap=cap, hold=hold
        )  # fmt: skip
        if isinstance(due, str):
            # A request over the largest batch goes alone, in pieces: that is no short batch.
            rows = queue.rows if queue.rows <= cap else max(cap, queue.next_rows(now))
            if self._inline.allows(rows, now):
                self._run_here(due, now, cap)
            elif granted or device is None or device.acquire(self):
                if self._run_there(due, now, cap):
                    return
            else:
                return
        elif due is not None:
            self._timer = self._loop.call_later(max(0.0, due.until - now), self._due)
        if device is not None:
            device.leave(self)
            if granted:
                device.finish(self, 0.0)

    def _plan(self, now: float) -> tuple[int, float | None]:
        """The largest batch, and until when it waits for company, under a latency target."""
        queue, target = self.queue, self._target
        if target is None or queue.requests == 0:
            self._cap = queue.max_rows
            return queue.max_rows, None
        self._cap = cap = target.cap(self.times, queue.max_rows, now, queue.rows)
        return cap, target.hold(self.times, queue.rows, queue.oldest() or now, now, queue.max_delay)

    def _closed(self, reason: str, now: float, cap: int) -> Batch | None:
        batch = self.queue.close(reason, now, cap)
        if self.queue.expired:
            expired, self.queue.expired = self.queue.expired, []
            for pending in expired:
                pending.state = State.DONE
                pending.finish(late(pending, now, "in the queue"))
        if batch is not None and self._target is not None:
            self._target.closed(batch.rows)
        return batch

    def _run_here(self, reason: str, now: float, cap: int) -> None:
        batch = self._closed(reason, now, cap)
        if batch is not None:
            executed = execute(self.model, batch.requests, self.queue.max_rows, self._clock)
            self._answer(batch, executed, inline=True)
        if self.queue.requests and not self._scheduled:
            self._schedule()

    def _run_there(self, reason: str, now: float, cap: int) -> bool:
        batch = self._closed(reason, now, cap)
        if batch is None:
            if self._device is not None:
                self._device.finish(self, 0.0)
            return False
        self._running, self._running_since = batch, now
        if self._device is not None:
            self._device.expect(self, self.times.upper(batch.rows))
        job = partial(execute, self.model, batch.requests, self.queue.max_rows, self._clock)
        self._executor.start(job, self._finished)
        return True

    def _finished(self, executed: Executed) -> None:
        batch = self._running
        self._running = None
        self._gate.stalled = None
        # The model gets its next batch before the answers of this one are written.
        if self._device is not None:
            self._device.finish(self, executed.ended - executed.started)
        if self.queue.requests:
            self._dispatch()
        if self._device is not None:
            self._device.pick()
        if batch is not None:
            self._answer(batch, executed, inline=False)

    def _answer(self, batch: Batch, executed: Executed, *, inline: bool) -> None:
        started, ended, rows = executed.started, executed.ended, batch.rows
        if not batch.requests:
            return
        self._learn(batch, executed, inline)
        late_rows = 0
        company = [pending.span for pending in batch.requests if pending.span is not None]
        for pending, result in zip(batch.requests, executed.results, strict=True):
            if pending.deadline is not None and pending.deadline <= started and not isinstance(result, Expired):
                late_rows += pending.rows
            if pending.state is State.RUNNING:
                if isinstance(result, Expired):
                    self.end_early(pending, result)
                    continue
                pending.started, pending.ended, pending.batch_rows = started, ended, rows
                if company:
                    pending.company = company
                pending.state = State.DONE
                pending.finish(result)
        if late_rows and self._on_late is not None:
            self._on_late(late_rows)
        if self._on_batch is not None:
            self._on_batch(batch, executed)

    def _learn(self, batch: Batch, executed: Executed, inline: bool) -> None:
        seconds, self.used = executed.ended - executed.started, executed.ended
        self.times.observe(batch.rows, seconds)
        self._inline.observe(batch.rows, seconds, executed.ended, inline=inline)
        self._gate.learn(batch, executed.started, executed.ended)
        if executed.fits:
            self.queue.max_rows = min(self.queue.max_rows, executed.fits)
            self._grow_at = executed.ended + _MEMORY_SECONDS

    def _remaining(self, now: float) -> float:
        if self._running is None:
            return 0.0
        return max(0.0, self._running_since + self.times.of(self._running.rows) - now)

    def _live(self) -> tuple[tuple[str, Sequence[Pending]], ...]:
        running = () if self._running is None else self._running.requests
        return ("in the queue", self.queue.waiting()), ("with the model", running)
