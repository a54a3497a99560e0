"""Decides on arrival who may wait: refusing at once costs less than answering too late."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from serving.batcher import Batch, BatchQueue, Pending
from serving.batching.concurrency import AdaptiveLimit
from serving.batching.lane_policy import LanePolicy
from serving.batching.margin import Margin
from serving.batching.shedding import DelayGuard
from serving.batching.steptimes import StepTimes
from serving.errors import Overloaded, Refused, Unavailable

_LEARN = 0.1
_STRETCH = (0.5, 4.0)
# Of the time left, for the answer's own way: at most so many seconds, and such a share.
_ON_THE_WAY = (0.001, 0.02)


class Gate:
    """The admission of one lane. What a request will wait is known from what waits before it and what batches take."""

    def __init__(
        self,
        queue: BatchQueue,
        times: StepTimes,
        policy: LanePolicy,
        on_shed: Callable[[str], None] | None = None,
    ) -> None:
        self.guard = DelayGuard(policy.delay_target, policy.delay_interval)
        # Why the version is not ready although it is loaded; None while its batches move.
        self.stalled: str | None = None
        self._queue = queue
        self._times = times
        self._policy = policy
        self._on_shed = on_shed
        self._margin = Margin()
        tolerance = policy.adaptive_concurrency
        self.limit = AdaptiveLimit(tolerance, policy.max_rows, policy.limit_rows) if tolerance > 0 else None
        self._stretch = 1.0  # how much longer requests wait than the batches before them should take

    @property
    def strict(self) -> bool:
        """Whether requests are looked at that have no deadline and that there is room for."""
        limited = self._policy.limit_requests > 0 or self.limit is not None
        return self.guard.shedding or self.stalled is not None or limited

    def wait(self, priority: int, rows: int, remaining: float) -> float:
        """Seconds until a batch would start that holds a request of `rows` rows; the running one has `remaining`."""
        full = self._queue.max_rows
        batches = (self._queue.ahead(priority) + rows - 1) // full
        return (remaining + batches * self._times.of(full)) * self._stretch

    def drain_seconds(self) -> float:
        """Estimated time to work off what waits."""
        full = self._queue.max_rows
        return max(1e-3, self._queue.rows / full * self._times.of(full) * self._stretch)

    def admit(
        self, pending: Pending, lacking: str | None, now: float, remaining: float, running: Batch | None
    ) -> Iterator[tuple[Pending, Refused]]:
        """Gives the requests that must go so that this one may wait, each with its refusal.

        `lacking` is what the queue has no room of. Raises Refused or Unavailable; then none must go.
        """
        queue, policy = self._queue, self._policy
        if self.stalled is not None:
            raise Unavailable(f"the model does not answer: {self.stalled}")
        if policy.limit_requests and (
            queue.requests + (0 if running is None else len(running.requests)) >= policy.limit_requests
        ):
            most = f"the limit is {policy.limit_requests} requests at a time"
            raise self._refusal(pending, "concurrency", remaining, most)
        if (
            self.limit is not None
            and running is not None
            and (queue.rows + running.rows + pending.rows > self.limit.rows)
        ):
            most = f"{queue.rows + running.rows} rows wait or run, {self.limit.rows} may now"
            raise self._refusal(pending, "concurrency", remaining, most)
        victims = queue.room_for(pending) if lacking is not None else []
        if victims is None:
            has = f"the request has {pending.rows} rows and {pending.bytes} bytes"
            raise self._refusal(pending, lacking or "", remaining, has)
        # An idle lane always tries: else an estimate that is too high could never be corrected.
        if (pending.deadline is not None or self.guard.shedding) and not (running is None and queue.requests == 0):
            self._look(pending, now, remaining)
        why = f"a request of priority {pending.priority} took its place"
        return ((victim, self._refusal(victim, "evicted", remaining, why)) for victim in victims)

    def overflow(self, rows: int) -> Refused:
        """The refusal of a request behind so many that pass by the queue."""
        return self._refusal(Pending((), 1, 0.0, None), "queue_rows", 0.0, f"{rows} rows wait for this turn")

    def missed(self, pending: Pending, now: float) -> None:
        """A request's deadline passed before its batch began."""
        if pending.promised is not None:
            self._margin.missed(now - pending.promised)

    def learn(self, batch: Batch, started: float, ended: float) -> None:
        """A batch has run: compares what its requests waited and took with what was expected."""
        first = batch.requests[0]
        full = self._times.of(self._queue.max_rows)
        promised = [pending.promised for pending in batch.requests if pending.promised is not None]
        fill = batch.rows / self._queue.max_rows
        self._margin.observe(ended - min(promised) if promised else None, full, fill)
        if self.limit is not None and first.queued is not None:
            least = full + self._times.of(batch.rows)
            self.limit.observe(ended - first.queued, least, self._queue.rows + batch.rows)
        if first.expected is not None and first.expected > 1e-3 and first.queued is not None:
            seen = (started - first.queued) * self._stretch / first.expected
            self._stretch += _LEARN * (min(_STRETCH[1], seen) - self._stretch)
            self._stretch = max(_STRETCH[0], self._stretch)
        else:
            self._stretch += _LEARN / 5 * (1.0 - self._stretch)
        if self.guard.target > 0:
            queue = self._queue
            oldest = (queue.oldest() if queue.newest_first else None) or first.arrived
            self.guard.observe(started, started - oldest, self._floor())
            queue.newest_first = self._policy.newest_first and self.guard.shedding

    def _look(self, pending: Pending, now: float, remaining: float) -> None:
        queue = self._queue
        pending.expected = wait = self.wait(pending.priority, pending.rows, remaining)
        if self.guard.shedding and self.guard.refuses(wait, self._floor()):
            target = max(self.guard.target, self._floor())
            raise self._refusal(
                pending, "delay", remaining, f"it would wait {wait:.3f} s, the target is {target:.3f} s"
            )
        if pending.deadline is not None:
            work = self._times.upper(max(pending.rows, min(queue.max_rows, queue.rows + pending.rows)))
            left = pending.deadline - now
            spare = self._margin.seconds + min(_ON_THE_WAY[0], _ON_THE_WAY[1] * left)
            if wait + work + spare > left:
                why = f"it would wait {wait:.3f} s and run {work + spare:.3f} s, {left:.3f} s are left"
                raise self._refusal(pending, "deadline", remaining, why)
            pending.promised = now + wait + work

    def _refusal(self, pending: Pending, reason: str, remaining: float, why: str) -> Refused:
        if self._on_shed is not None:
            self._on_shed(reason)
        queue, seconds = self._queue, self.drain_seconds()
        wait = pending.expected
        if wait is None:
            wait = self.wait(pending.priority, pending.rows, remaining)
        kind = Overloaded if reason.startswith("total") else Refused
        return kind(
            f"refused ({reason}): {why}; {queue.rows} of {queue.limit_rows} rows wait; they take about {seconds:.3f} s",
            retry_after_seconds=seconds,
            reason=reason,
            details={
                "reason": reason, "queue_rows": queue.rows, "limit_rows": queue.limit_rows, "queue_bytes": queue.bytes,
                "limit_bytes": self._policy.limit_bytes, "limit_requests": self._policy.limit_requests,
                "expected_wait_seconds": round(wait, 6), "retry_after_seconds": round(seconds, 6),
            },
        )  # fmt: skip

    def _floor(self) -> float:
        """A queue delay under this is no overload: three batches, and what a batch may wait for company."""
        return 3.0 * self._times.of(self._queue.max_rows) + max(self._policy.max_delay, self._policy.latency_target)
