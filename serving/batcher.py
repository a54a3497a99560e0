"""The queue in front of one model version and its rule for closing a batch: pure state, time is a parameter."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.errors import ServingError
from serving.signature import Array, Values

Result = Sequence[Array] | ServingError


class State(enum.Enum):
    """Where a request is: it is answered exactly once, on the way to DONE."""

    QUEUED = enum.auto()
    RUNNING = enum.auto()
    DONE = enum.auto()


class Pending:
    """One request on its way through a lane; a subclass says what `finish` does. Times are seconds of its clock."""

    __slots__ = ("arrived", "batch_rows", "deadline", "ended", "lane", "rows", "started", "state", "values")

    def __init__(
        self,
        values: Sequence[Values],
        rows: int,
        arrived: float,
        deadline: float | None,
    ) -> None:
        self.values = values
        self.rows = rows
        self.arrived = arrived
        self.deadline = deadline
        self.state = State.QUEUED
        self.lane: Any = None  # the lane that has it now; a rollback moves it
        self.started: float | None = None
        self.ended: float | None = None
        self.batch_rows = 0

    def finish(self, result: Result) -> None:
        """Takes the outputs or the error; called exactly once, on the event loop. Must not raise."""
        raise AssertionError("a lane got a request that nobody waits for")


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that run together, in order of arrival. `reason`: full, delay, deadline, idle or drain."""

    requests: tuple[Pending, ...]
    rows: int
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is due before `until`."""

    until: float


class BatchQueue:
    """Waiting requests, bounded in rows. A request is never split; one larger than `max_rows` is a batch of its own."""

    def __init__(self, *, max_rows: int, max_delay: float, limit_rows: int) -> None:
        self.max_rows = max_rows
        self.max_delay = max_delay
        self.limit_rows = limit_rows
        self.rows = 0
        self._waiting: deque[Pending] = deque()

    def offer(self, pending: Pending, *, admitted: bool = False) -> bool:
        """Queues the request; False when its rows do not fit and it was not admitted before."""
        if not admitted and self.rows + pending.rows > self.limit_rows:
            return False
        self.rows += pending.rows
        self._waiting.append(pending)
        return True

    def discard(self, pending: Pending) -> None:
        """Forgets a queued request that was answered otherwise (expired or cancelled)."""
        self.rows -= pending.rows
        pending.state = State.DONE
        # The dead entry goes when it reaches the front; a queue full of dead entries is swept here.
        if len(self._waiting) > 64 and self.rows * 2 < len(self._waiting):
            self._waiting = deque(entry for entry in self._waiting if entry.state is State.QUEUED)

    def take(self, now: float, *, seconds: float = 0.0, draining: bool = False) -> Batch | Wait | None:
        """The next batch, or when one is due, or None when nobody waits. `seconds`: what a batch is expected to take.

        Without `max_delay` whatever waits goes at once. With it, a batch that is not full waits until its oldest
        request has waited that long, counted from its arrival, or the tightest deadline could be missed.
        """
        waiting = self._waiting
        while waiting and waiting[0].state is not State.QUEUED:
            waiting.popleft()
        if not waiting:
            return None
        reason = "full" if self.rows >= self.max_rows else "drain" if draining else "idle"
        if reason == "idle" and self.max_delay > 0:
            due, reason = waiting[0].arrived + self.max_delay, "delay"
            for pending in waiting:
                if pending.deadline is not None and pending.deadline - seconds < due:
                    due, reason = pending.deadline - seconds, "deadline"
            if now < due:
                return Wait(due)
        return self._close(reason)

    def _close(self, reason: str) -> Batch:
        taken: list[Pending] = []
        rows = 0
        while self._waiting:
            pending = self._waiting[0]
            if pending.state is State.QUEUED:
                if taken and rows + pending.rows > self.max_rows:
                    reason = "full"
                    break
                pending.state = State.RUNNING
                rows += pending.rows
                taken.append(pending)
            self._waiting.popleft()
        self.rows -= rows
        return Batch(tuple(taken), rows, reason)

    def remove_all(self) -> list[Pending]:
        """Takes every queued request out, to be queued elsewhere."""
        queued = [pending for pending in self._waiting if pending.state is State.QUEUED]
        self._waiting.clear()
        self.rows = 0
        return queued
