"""The clock of a training's steps: times their phases, and writes a record of each into a ring.

It is compiled where there is a compiler (`step_clock.c`): after a step that swept the processor's caches, what Python
needs for a few calls is cold, and takes ten times as long as its operations do in a tight loop.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from observability.names import PHASES
from observability.native import extension
from observability.step_ring import StepRing

_NUM_PHASES = len(PHASES)
_INDEX = {phase: index for index, phase in enumerate(PHASES)}


class StepClock(Protocol):
    """Times one step after the other; for the thread that trains alone."""

    step: int
    """Number of the step under way or to come, counted from 0."""

    def start(self) -> None:
        """Begins a step; one that was begun and not ended is forgotten."""

    def resume(self) -> None:
        """Begins a phase: the time since the mark before belongs to none."""

    def mark(self, phase: str, /) -> None:
        """Ends a phase: the time since `start`, `resume` or the mark before was its. KeyError for an unknown phase."""

    def entering(self, phase: str, /) -> None:
        """Says which phase comes, for those who watch."""

    def end(self, samples: int, tokens: int, /) -> None:
        """Ends a step: its record is in the ring."""


class PlainClock:
    """See `StepClock`; in Python."""

    def __init__(self, ring: StepRing, clock: Callable[[], int]) -> None:
        self.step = 0
        self._ring, self._clock = ring, clock
        self._phases = [0] * _NUM_PHASES
        self._started = self._marked = clock()

    def start(self) -> None:
        """See `StepClock.start`."""
        self._phases = [0] * _NUM_PHASES
        self._started = self._marked = self._clock()
        self._ring.begin(self.step, self._started)

    def resume(self) -> None:
        """See `StepClock.resume`."""
        self._marked = self._clock()

    def mark(self, phase: str, /) -> None:
        """See `StepClock.mark`."""
        now = self._clock()
        index = _INDEX[phase]
        self._phases[index] += now - self._marked
        self._marked = now
        self._ring.doing(_NUM_PHASES + index)

    def entering(self, phase: str, /) -> None:
        """See `StepClock.entering`."""
        self._ring.doing(_INDEX[phase])

    def end(self, samples: int, tokens: int, /) -> None:
        """See `StepClock.end`."""
        duration = self._clock() - self._started
        if tokens:
            self._ring.tokens(tokens)
        self._ring.write(self.step, self._started, duration, samples, self._phases)
        self.step += 1


def step_clock(ring: StepRing, clock: Callable[[], int] = time.perf_counter_ns) -> StepClock:
    """The compiled clock of a ring, where it can be had and `clock` is the usual one; else the one in Python."""
    if clock is time.perf_counter_ns and sys.byteorder == "little":
        made = extension(Path(__file__).with_suffix(".c"))
        if made is not None:
            compiled: StepClock = made.Clock(ring.buffer, ring.capacity, PHASES)
            return compiled
    return PlainClock(ring, clock)
