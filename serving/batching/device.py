"""Shares a device between the versions that run on it: the one that has had the least of it goes next."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from serving.batching.executor import Loop

_LEASE_FACTOR = 8.0
_SHORTEST_LEASE = 0.1


class Tenant(Protocol):
    """What a device needs of a lane."""

    served: float  # seconds of the device that it has had, on the device's count

    def urgency(self) -> int:
        """The class of priority of its most urgent request; 1 goes first."""

    def granted(self) -> None:
        """The device is the lane's now: it starts a batch and calls `finish` later, or calls `finish` at once."""


class Device:
    """Lets `slots` batches run at a time. All methods run on the event loop.

    Among the lanes that have a batch due, the most urgent class goes first; inside a class, the lane with the least
    time of the device behind it. A lane that comes back from idleness starts level with the others: what it did not use
    is not owed to it. One that has been kept waiting for `ageing` seconds counts as one class higher, and so on. A
    batch that runs for far longer than it should no longer keeps the others out.
    """

    def __init__(
        self, loop: Loop, *, slots: int = 1, ageing: float = 1.0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._loop = loop
        self._slots = slots
        self._ageing = ageing
        self._clock = clock
        self._waiting: dict[Tenant, float] = {}  # since when
        self._running: dict[Tenant, float] = {}  # until when each lane's batch should be done
        self._level = 0.0
        self._timer: Any = None

    @property
    def waiting(self) -> int:
        """Lanes that wait for the device."""
        return len(self._waiting)

    def acquire(self, lane: Tenant) -> bool:
        """Whether the lane may start a batch now; if not, it will be `granted`."""
        if lane in self._waiting:
            return False
        lane.served = max(lane.served, self._level)
        if not self._waiting and self._free(self._clock()):
            self._level = lane.served
            self._running[lane] = self._clock() + _SHORTEST_LEASE
            return True
        self._waiting[lane] = self._clock()
        self._watch()
        return False

    def expect(self, lane: Tenant, seconds: float) -> None:
        """The lane's batch should take so long."""
        if lane in self._running:
            self._running[lane] = self._clock() + max(_SHORTEST_LEASE, _LEASE_FACTOR * seconds)

    def finish(self, lane: Tenant, seconds: float) -> None:
        """The lane's batch is done and took so long; nothing if it was not running. Call `pick` after it."""
        if self._running.pop(lane, None) is not None:
            lane.served += seconds

    def leave(self, lane: Tenant) -> None:
        """The lane has no batch due any more."""
        self._waiting.pop(lane, None)

    def pick(self) -> None:
        """Grants the device while it is free and lanes wait for it."""
        while self._waiting and self._free(self._clock()):
            lane = min(self._waiting, key=self._order)
            del self._waiting[lane]
            self._level = max(self._level, lane.served)
            self._running[lane] = self._clock() + _SHORTEST_LEASE
            lane.granted()
        self._watch()

    def _order(self, lane: Tenant) -> tuple[int, float]:
        waited = self._clock() - self._waiting[lane]
        return lane.urgency() - int(waited / self._ageing), lane.served

    def _free(self, now: float) -> bool:
        if len(self._running) < self._slots:
            return True
        return sum(until > now for until in self._running.values()) < self._slots

    def _watch(self) -> None:
        """Looks again when the next batch has run for too long, if anybody waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        ends = [until for until in self._running.values() if until > now]
        if self._waiting and ends:
            self._timer = self._loop.call_later(min(ends) - now + 1e-3, self._overrun)

    def _overrun(self) -> None:
        self._timer = None
        self.pick()
