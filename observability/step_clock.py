"""The clock of a training's steps: times their phases, and writes a record of each into a ring.

It is compiled where there is a compiler (`step_clock.c`): after a step that swept the processor's caches, what Python
needs for a few calls is cold, and takes ten times as long as its operations do in a tight loop.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from observability.names import PHASES
from observability.native import extension
from observability.step_ring import StepRing

_NUM_PHASES = len(PHASES)
_INDEX = {phase: index for index, phase in enumerate(PHASES)}


class StepClock(Protocol):
    """Times one step after the other; for the thread that trains alone."""

    step: int
    """Number of the step under way or to come, counted from 0."""
    after_step: Callable[[], object] | None
    """Called when a step has ended, such as by a profiler that counts steps."""

    @property
    def latest(self) -> tuple[Any, Any, float | None]:
        """Loss, gradient norm and learning rate of the latest step; tensors without their graph."""

    def start(self) -> None:
        """Begins a step; one that was begun and not ended is forgotten."""

    def resume(self) -> None:
        """Begins a phase: the time since the mark before belongs to none."""

    def mark(self, phase: str, /) -> None:
        """Ends a phase: the time since `start`, `resume` or the mark before was its. KeyError for an unknown phase."""

    def entering(self, phase: str, /) -> None:
        """Says which phase comes, for those who watch."""

    def end(
        self,
        samples: int = 0,
        *,
        loss: Any = None,
        gradient_norm: Any = None,
        learning_rate: float | None = None,
        tokens: int = 0,
    ) -> None:
        """Ends a step: its record is in the ring."""


class BlockClock(StepClock, Protocol):
    """The compiled clock, which has steps and phases as blocks, too; see `TrainingMonitor.step` and its `phase`."""

    def block(self, samples: int = 0) -> AbstractContextManager[Any]:
        """A step as a block; it gives an object with the attributes of `observability.training.Step`."""

    def phase(self, phase: str, /) -> AbstractContextManager[None]:
        """A phase as a block. KeyError for an unknown phase."""


class PlainClock:
    """See `StepClock`; in Python."""

    def __init__(self, ring: StepRing, clock: Callable[[], int]) -> None:
        self.step = 0
        self.after_step: Callable[[], object] | None = None
        self.latest: tuple[Any, Any, float | None] = (None, None, None)
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
        index = _index_of(phase)
        self._phases[index] += now - self._marked
        self._marked = now
        self._ring.doing(_NUM_PHASES + index)

    def entering(self, phase: str, /) -> None:
        """See `StepClock.entering`."""
        self._ring.doing(_index_of(phase))

    def end(
        self,
        samples: int = 0,
        *,
        loss: Any = None,
        gradient_norm: Any = None,
        learning_rate: float | None = None,
        tokens: int = 0,
    ) -> None:
        """See `StepClock.end`."""
        duration = self._clock() - self._started
        if tokens:
            self._ring.tokens(tokens)
        self._ring.write(self.step, self._started, duration, samples, self._phases)
        self.step += 1
        self.latest = _detached(loss), _detached(gradient_norm), learning_rate
        if self.after_step is not None:
            self.after_step()


def step_clock(ring: StepRing, clock: Callable[[], int] = time.perf_counter_ns) -> BlockClock | PlainClock:
    """The compiled clock of a ring, where it can be had and `clock` is the usual one; else the one in Python."""
    if clock is time.perf_counter_ns and sys.byteorder == "little":
        made = extension(Path(__file__).with_suffix(".c"))
        if made is not None:
            compiled: BlockClock = made.Clock(ring.buffer, ring.capacity, PHASES)
            return compiled
    return PlainClock(ring, clock)


def _index_of(phase: str) -> int:
    try:
        return _INDEX[phase]
    except KeyError:
        raise KeyError(f"there is no phase {phase!r}; there are {PHASES!r}") from None


def _detached(value: Any) -> Any:
    """A tensor without its graph: the reference must not keep the step's activations alive."""
    return value.detach() if getattr(value, "requires_grad", False) else value
