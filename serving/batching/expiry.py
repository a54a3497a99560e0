"""Ends requests at their deadline, wherever they are, with one timer a lane."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from serving.batching.executor import Loop
from serving.batching.pending import Pending, State
from serving.errors import Expired

_SHORTEST_SWEEP = 1e-3  # seconds between two looks


class DeadlineTimer:
    """Set to the earliest deadline; when it rings it ends what is due and is set to the next one.

    A timer a request would cost more than its decoding, and nearly all of them would be cancelled. `live` gives the
    requests that are not done, by the place where they are; `end` answers one.
    """

    def __init__(
        self,
        loop: Loop,
        clock: Callable[[], float],
        live: Callable[[], Iterable[tuple[str, Sequence[Pending]]]],
        end: Callable[[Pending, Expired], None],
    ) -> None:
        # When it rings; never later than the earliest deadline.
        self.at = math.inf
        self._loop = loop
        self._clock = clock
        self._live = live
        self._end = end
        self._handle: Any = None

    def watch(self, deadline: float, now: float) -> None:
        """Rings at `deadline`, which is before `at`."""
        self.stop()
        self.at = deadline
        self._handle = self._loop.call_later(deadline - now, self._ring)

    def stop(self) -> None:
        """Does not ring any more."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self.at = None, math.inf

    def close(self) -> None:
        """Stops for good, and lets go of the lane: the two would keep each other, and the model, until a collection."""
        self.stop()
        self._live, self._end = tuple, _nothing

    def _ring(self) -> None:
        self._handle, self.at = None, math.inf
        now, following = self._clock(), math.inf
        for where, requests in self._live():
            for pending in requests:
                deadline = pending.deadline
                if deadline is None or pending.state is State.DONE:
                    continue
                if deadline <= now:
                    self._end(pending, late(pending, now, where))
                else:
                    following = min(following, deadline)
        if following < self.at:
            self.watch(max(following, now + _SHORTEST_SWEEP), now)


def _nothing(_pending: Pending, _error: Expired) -> None:
    """What a timer ends that is closed."""


def late(pending: Pending, now: float, where: str) -> Expired:
    """The error of a request whose deadline has passed."""
    return Expired(f"the deadline passed after {now - pending.arrived:.3f} s {where}")
