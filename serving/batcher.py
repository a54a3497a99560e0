"""The queue in front of one model version and its rule for closing a batch: pure state, time is a parameter."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from operator import attrgetter

from serving.batching.pending import DEFAULT_PRIORITY, LOWEST_PRIORITY, Batch, Pending, QueueState, Result, State, Wait

__all__ = ["Batch", "BatchQueue", "Budget", "Pending", "QueueState", "Result", "State", "Wait"]

_KEY = attrgetter("key")


class Budget:
    """Rows and bytes that wait in all queues together, and how many may."""

    __slots__ = ("bytes", "limit_bytes", "limit_rows", "rows")

    def __init__(self, limit_rows: int = 0, limit_bytes: int = 0) -> None:
        self.limit_rows = limit_rows or 1 << 62
        self.limit_bytes = limit_bytes or 1 << 62
        self.rows = 0
        self.bytes = 0


class _Waiting(deque[Pending]):
    """The requests of one class, the most urgent first, and their rows; the answered ones among them do not count."""

    rows = 0


class BatchQueue:
    """Waiting requests, bounded in rows and bytes. A request is never split; one over `max_rows` is a batch of its own.

    Requests go by class of priority; inside a class the earliest deadline first, where one without a deadline counts as
    due `patience` seconds after its arrival, so that none waits for ever. A request that has waited `ageing` seconds
    counts as one class higher, and so on.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        max_delay: float,
        limit_rows: int,
        limit_bytes: int = 0,
        preferred_rows: Sequence[int] = (),
        ageing: float = 1.0,
        patience: float = 1.0,
        total: Budget | None = None,
    ) -> None:
        self.max_rows = max_rows
        self.max_delay = max_delay
        self.limit_rows = limit_rows
        self.limit_bytes = limit_bytes or 1 << 62
        self.preferred_rows = tuple(sorted(preferred_rows, reverse=True))
        self.total = total or Budget()
        # The newest request first: what overload does when it is told to.
        self.newest_first = False
        self.rows = 0
        self.bytes = 0
        self.requests = 0
        # Requests found past their deadline while a batch was closed; whoever closed it answers them.
        self.expired: list[Pending] = []
        self._ageing = ageing
        self._patience = patience
        self._classes: dict[int, _Waiting] = {DEFAULT_PRIORITY: _Waiting()}

    def lacks(self, pending: Pending) -> str | None:
        """What there is no room of: queue_rows, queue_bytes, total_rows or total_bytes; None when it fits."""
        if self.rows + pending.rows > self.limit_rows:
            return "queue_rows"
        if self.bytes + pending.bytes > self.limit_bytes:
            return "queue_bytes"
        if self.total.rows + pending.rows > self.total.limit_rows:
            return "total_rows"
        if self.total.bytes + pending.bytes > self.total.limit_bytes:
            return "total_bytes"
        return None

    def offer(self, pending: Pending, *, admitted: bool = False) -> bool:
        """Queues the request; False when there is no room for it and it was not admitted before."""
        if not admitted and self.lacks(pending) is not None:
            return False
        pending.key = key = pending.arrived + self._patience if pending.deadline is None else pending.deadline
        waiting = self._classes.get(pending.priority)
        if waiting is None:
            waiting = self._classes[pending.priority] = _Waiting()
            self._classes = dict(sorted(self._classes.items()))
        if not waiting or waiting[-1].key <= key:
            waiting.append(pending)
        else:
            waiting.insert(bisect_right(waiting, key, key=_KEY), pending)
        # `_count`, without the price of a call: this is the way of every request.
        rows, size, total = pending.rows, pending.bytes, self.total
        self.requests += 1
        waiting.rows += rows
        self.rows += rows
        self.bytes += size
        total.rows += rows
        total.bytes += size
        return True

    def discard(self, pending: Pending) -> None:
        """Forgets a queued request that was answered otherwise (expired or cancelled)."""
        waiting = self._classes[pending.priority]
        self._count(waiting, -1, -pending.rows, -pending.bytes)
        pending.state = State.DONE
        # The dead entry goes when it reaches the front; a queue full of dead entries is swept here.
        if len(waiting) > 64 and self.requests * 2 < len(waiting):
            alive = [entry for entry in waiting if entry.state is State.QUEUED]
            waiting.clear()
            waiting.extend(alive)

    def room_for(self, pending: Pending) -> list[Pending] | None:
        """The least urgent requests of lower classes that must go so that this one fits; None when that is not enough.

        Nothing is removed. They are the last in line: the ones that would have waited longest.
        """
        rows = max(self.rows - self.limit_rows, self.total.rows - self.total.limit_rows) + pending.rows
        size = max(self.bytes - self.limit_bytes, self.total.bytes - self.total.limit_bytes) + pending.bytes
        victims: list[Pending] = []
        for priority in sorted(self._classes, reverse=True):
            if priority <= pending.priority:
                break
            for entry in reversed(self._classes[priority]):
                if rows <= 0 and size <= 0:
                    return victims
                if entry.state is State.QUEUED:
                    victims.append(entry)
                    rows, size = rows - entry.rows, size - entry.bytes
        return victims if rows <= 0 and size <= 0 else None

    def waiting(self) -> list[Pending]:
        """The queued requests, class by class."""
        return [p for waiting in self._classes.values() for p in waiting if p.state is State.QUEUED]

    def ahead(self, priority: int) -> int:
        """Rows that wait in this class and in higher ones."""
        if len(self._classes) == 1:
            return self.rows
        return sum(waiting.rows for level, waiting in self._classes.items() if level <= priority)

    def oldest(self) -> float | None:
        """Arrival of the request that has waited longest."""
        return min((pending.arrived for pending in self.waiting()), default=None)

    def next_rows(self, now: float) -> int:
        """Rows of the request that goes next."""
        head = self._head(now)
        return 0 if head is None else head[0].rows

    def urgency(self) -> int:
        """The highest class that has requests; what its age is worth counts inside the queue only."""
        return next((priority for priority, waiting in self._classes.items() if waiting), LOWEST_PRIORITY)

    def take(
        self, now: float, *, seconds: float = 0.0, draining: bool = False, cap: int = 0, hold: float | None = None
    ) -> Batch | Wait | None:
        """The next batch, or when one is due, or None when nobody waits: `due` and `close` in one."""
        reason = self.due(now, seconds=seconds, draining=draining, cap=cap, hold=hold)
        return self.close(reason, now, cap) if isinstance(reason, str) else reason

    def due(
        self, now: float, *, seconds: float = 0.0, draining: bool = False, cap: int = 0, hold: float | None = None
    ) -> str | Wait | None:
        """Why a batch should be closed now, or when one is due, or None when nobody waits.

        `cap` lowers `max_rows`. `seconds`: what a batch is expected to take. Without `max_delay` whatever waits goes at
        once. With it, a batch that is not full waits until its oldest request has waited that long, counted from its
        arrival, or the tightest deadline could be missed. `hold`: wait until then, instead (a latency target does).
        """
        if self.requests == 0:
            return None
        cap = min(cap or self.max_rows, self.max_rows)
        if self.rows >= cap:
            # With several buckets, the one that goes next may still be small; it has waited its turn.
            return "full" if cap == self.max_rows else "latency"
        if draining:
            return "drain"
        if hold is None and self.max_delay <= 0:
            return "preferred" if self.preferred_rows and self.rows in self.preferred_rows else "idle"
        if self.preferred_rows and self._preferred():
            return "preferred"
        queued = self.waiting()
        if hold is None:
            due, reason = min(pending.arrived for pending in queued) + self.max_delay, "delay"
        else:
            due, reason = hold, "latency"
        for pending in queued:
            if pending.deadline is not None and pending.deadline - seconds < due:
                due, reason = pending.deadline - seconds, "deadline"
        return Wait(due) if now < due else reason

    def close(self, reason: str, now: float, cap: int = 0) -> Batch | None:
        """Takes a batch out; None when all that waited had expired (they are in `expired`)."""
        cap = min(cap or self.max_rows, self.max_rows)
        if reason == "preferred":
            cap = self._preferred() or cap
        taken: list[Pending] = []
        size = rows = 0
        aside: list[tuple[_Waiting, Pending]] = []
        single = self._classes[DEFAULT_PRIORITY] if len(self._classes) == 1 and not self.newest_first else None
        if single is not None:
            # The way of nearly all batches: first come, first served, as far as they are alike and in time.
            while single and rows < cap:
                pending = single[0]
                deadline = pending.deadline
                if pending.state is State.QUEUED:
                    if (deadline is not None and deadline <= now) or (
                        taken and (rows + pending.rows > cap or pending.bucket != taken[0].bucket)
                    ):
                        break
                    pending.state = State.RUNNING
                    rows += pending.rows
                    size += pending.bytes
                    taken.append(pending)
                single.popleft()
            self._count(single, -len(taken), -rows, -size)
        while rows < cap:
            head = self._head(now)
            if head is None:
                break
            pending, waiting = head
            fits = not taken or rows + pending.rows <= cap
            expired = pending.deadline is not None and pending.deadline <= now
            mixed = taken and pending.bucket != taken[0].bucket
            if not (fits or expired or mixed):
                reason = reason if reason in ("preferred", "latency") else "full"
                break
            if self.newest_first:
                waiting.pop()
            else:
                waiting.popleft()
            if expired:
                self._count(waiting, -1, -pending.rows, -pending.bytes)
                self.expired.append(pending)
            elif mixed:
                aside.append((waiting, pending))
            else:
                self._count(waiting, -1, -pending.rows, -pending.bytes)
                pending.state = State.RUNNING
                rows += pending.rows
                taken.append(pending)
        for waiting, pending in reversed(aside):
            if self.newest_first:
                waiting.append(pending)
            else:
                waiting.appendleft(pending)
        if single is None:
            self._classes = {p: w for p, w in self._classes.items() if w or p == DEFAULT_PRIORITY}
        if aside and rows < cap and reason == "full":
            reason = "bucket"
        return Batch(tuple(taken), rows, reason) if taken else None

    def remove_all(self) -> list[Pending]:
        """Takes every queued request out, to be queued elsewhere."""
        queued = self.waiting()
        for pending in queued:
            self._count(self._classes[pending.priority], -1, -pending.rows, -pending.bytes)
        for waiting in self._classes.values():
            waiting.clear()
        return queued

    def _count(self, waiting: _Waiting, requests: int, rows: int, size: int) -> None:
        waiting.rows += rows
        self.requests += requests
        self.rows += rows
        self.bytes += size
        self.total.rows += rows
        self.total.bytes += size

    def _level(self, head: Pending, now: float) -> int:
        return head.priority - int(max(0.0, now - head.arrived) / self._ageing)

    def _head(self, now: float) -> tuple[Pending, _Waiting] | None:
        """The request that goes next, and the class that it is first (or last, newest first) in."""
        best: tuple[Pending, _Waiting] | None = None
        place = -1 if self.newest_first else 0
        for waiting in self._classes.values():
            while waiting and waiting[place].state is not State.QUEUED:
                if place:
                    waiting.pop()
                else:
                    waiting.popleft()
            if not waiting:
                continue
            head = waiting[place]
            if best is None or (self._level(head, now), head.key) < (self._level(best[0], now), best[0].key):
                best = (head, waiting)
        return best

    def _preferred(self) -> int:
        """The largest preferred number of rows that the requests next in line add up to exactly; 0 for none."""
        if len(self._classes) > 1 or self.newest_first:
            return self.rows if self.rows in self.preferred_rows else 0
        rows, found = 0, 0
        (waiting,) = self._classes.values()
        for pending in waiting:
            if pending.state is State.QUEUED:
                rows += pending.rows
                if rows in self.preferred_rows:
                    found = rows
                if rows >= self.max_rows:
                    break
        return found
