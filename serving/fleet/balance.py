"""Which replica gets the next request, which is taken out of the traffic, when it comes back. Time is a parameter."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal

from serving.fleet.options import FleetOptions

Reason = Literal["silent", "outlier"]

# Answers are judged over this long.
WINDOW_SECONDS = 10
# Fewer answers than this in the window say nothing.
MIN_ANSWERS = 20
# A replica stands out when its share of faults is this much above the others' …
MIN_EXCESS = 0.1
# … and by this many standard errors: twice in a million looks at replicas that do not differ.
MIN_DEVIATIONS = 4.6
FIRST_BACK_OFF_SECONDS = 1.0
MAX_BACK_OFF_SECONDS = 60.0


class Backend:
    """One replica as one front sees it."""

    __slots__ = (
        "bytes_in_flight", "connected", "ejected", "ejections", "in_flight", "leaving", "number", "probe_at",
        "reported", "reported_at_flight", "returned_at", "window",
    )  # fmt: skip

    def __init__(self, number: int) -> None:
        self.number = number
        self.connected = False
        # It said that it will go: it answers what it has and gets nothing more.
        self.leaving = False
        self.in_flight = 0
        self.bytes_in_flight = 0
        # What it last said it held from all fronts, and what we had sent it then.
        self.reported = 0
        self.reported_at_flight = 0
        self.ejected: Reason | None = None
        self.ejections = 0
        self.probe_at = 0.0
        self.returned_at = -math.inf
        # [second, answers, faults]
        self.window: deque[list[int]] = deque()

    @property
    def routable(self) -> bool:
        """Whether it may get requests."""
        return self.connected and not self.leaving and self.ejected is None

    @property
    def load(self) -> int:
        """Requests that it holds, of all fronts, as far as this one can know."""
        return max(self.in_flight, self.reported + self.in_flight - self.reported_at_flight)

    def tally(self, now: float) -> tuple[int, int]:
        """Answers and faults in the window."""
        while self.window and self.window[0][0] <= now - WINDOW_SECONDS:
            self.window.popleft()
        return sum(entry[1] for entry in self.window), sum(entry[2] for entry in self.window)


class Balancer:
    """The replicas that a front knows. It alone decides who gets a request; it does no input or output."""

    def __init__(self, options: FleetOptions, *, alone: bool, choose: Callable[[int], int] = random.randrange) -> None:
        self._options = options
        self._alone = alone
        self._choose = choose
        self.backends: dict[int, Backend] = {}

    def add(self, number: int) -> Backend:
        """A replica that is there, not yet connected."""
        return self.backends.setdefault(number, Backend(number))

    # --- choosing --------------------------------------------------------------------------------------------------
    def pick(self, size: int, *, other_than: int | None = None) -> Backend | None:
        """The replica for a request of `size` bytes, or None: nobody is there, or all hold what they may.

        A front that is alone knows every load and takes the least; one of several takes the less loaded of two
        drawn at random, or all fronts would run to the same replica between two reports.
        """
        able = [
            backend
            for backend in self.backends.values()
            if backend.routable and backend.number != other_than and self._has_credit(backend, size)
        ]
        if len(able) > 2 and not self._alone:
            first = able.pop(self._choose(len(able)))
            able = [first, able[self._choose(len(able))]]
        if not able:
            return None
        least = min(backend.load for backend in able)
        able = [backend for backend in able if backend.load == least]
        return able[0] if len(able) == 1 else able[self._choose(len(able))]

    def _has_credit(self, backend: Backend, size: int) -> bool:
        options = self._options
        return backend.in_flight < options.credit_requests and (
            backend.in_flight == 0 or backend.bytes_in_flight + size <= options.credit_bytes
        )

    def full(self) -> bool:
        """Whether somebody could answer, but all of them hold what they may."""
        return any(backend.routable for backend in self.backends.values())

    # --- what happens ----------------------------------------------------------------------------------------------
    def sent(self, backend: Backend, size: int) -> None:
        """A request went to the replica: it costs credit until `settled`."""
        backend.in_flight += 1
        backend.bytes_in_flight += size

    def settled(self, backend: Backend, size: int) -> None:
        """The request is answered or given up: its credit is back."""
        backend.in_flight -= 1
        backend.bytes_in_flight -= size

    def answered(self, backend: Backend, fault: bool, now: float) -> None:
        """An answer counts for the judgement of the replica."""
        second = int(now)
        if not backend.window or backend.window[-1][0] != second:
            backend.window.append([second, 0, 0])
        entry = backend.window[-1]
        entry[1] += 1
        entry[2] += fault

    def reported(self, backend: Backend, requests: int) -> None:
        """The replica says how many requests it holds."""
        backend.reported = requests
        backend.reported_at_flight = backend.in_flight

    # --- out and in again ------------------------------------------------------------------------------------------
    def eject(self, backend: Backend, reason: Reason, now: float) -> None:
        """No request goes there before a probe is answered; each time in a row it is asked twice as late."""
        if now - backend.returned_at > 2 * self._back_off(backend):
            backend.ejections = 0
        backend.ejected = reason
        backend.ejections += 1
        backend.probe_at = now + self._back_off(backend)

    def _back_off(self, backend: Backend) -> float:
        return float(min(MAX_BACK_OFF_SECONDS, FIRST_BACK_OFF_SECONDS * 2.0 ** max(0, backend.ejections - 1)))

    def probed(self, backend: Backend, passed: bool, now: float) -> None:
        """The answer to a probe: back into the traffic with a clean sheet, or the next back-off."""
        if backend.ejected is None:
            return
        if passed:
            backend.ejected = None
            backend.returned_at = now
            backend.window.clear()
        else:
            backend.ejections += 1
            backend.probe_at = now + self._back_off(backend)

    def due(self, now: float) -> Iterator[Backend]:
        """The ejected replicas that should be probed now."""
        return (b for b in self.backends.values() if b.ejected is not None and b.connected and b.probe_at <= now)

    def outliers(self, now: float) -> list[Backend]:
        """The replicas to eject: those whose share of faults is far above that of all others together.

        A two-proportion z-test with the others' share, pulled half a fault towards both sides, as the null. No more
        are named than `max_ejected` of all replicas allows, the worst first, and never the last one.
        """
        tallies = {b: b.tally(now) for b in self.backends.values() if b.routable}
        answers, faults = (sum(tally[k] for tally in tallies.values()) for k in (0, 1))
        found: list[tuple[float, Backend]] = []
        for backend, (own, bad) in tallies.items():
            others = answers - own
            if own < MIN_ANSWERS or others < MIN_ANSWERS or not bad:
                continue
            usual = (faults - bad + 0.5) / (others + 1.0)
            excess = bad / own - usual
            if excess >= MIN_EXCESS and excess >= MIN_DEVIATIONS * math.sqrt(
                usual * (1 - usual) * (1 / own + 1 / others)
            ):
                found.append((excess, backend))
        out = sum(b.ejected == "outlier" for b in self.backends.values())
        room = min(int(self._options.max_ejected * len(self.backends)) - out, len(tallies) - 1)
        found.sort(key=lambda entry: entry[0], reverse=True)
        return [backend for _, backend in found[: max(0, room)]]
