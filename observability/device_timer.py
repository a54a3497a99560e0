"""Times phases on the device's own clock with pooled CUDA events, read back later and never waited for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, Self


class DeviceEvent(Protocol):
    """What is used of `torch.cuda.Event(enable_timing=True)`."""

    def record(self) -> Any: ...

    def query(self) -> bool: ...

    def elapsed_time(self, end_event: Any) -> float: ...


@dataclass(slots=True)
class _Step:
    number: int
    events: list[DeviceEvent]
    phases: list[str] = field(default_factory=list)


class DeviceTimer:
    """Marks on a device's stream, resolved into seconds once the device has passed them.

    The training thread calls `start` and `mark`, one drain thread `resolved`. At most `max_events` exist: when the
    device lags so far behind, steps go untimed (`num_untimed`) rather than memory growing.
    """

    def __init__(self, make_event: Callable[[], DeviceEvent], max_events: int = 2048) -> None:
        self._make_event, self._max_events = make_event, max_events
        self._free: deque[DeviceEvent] = deque()
        self._num_made = 0
        self._step: _Step | None = None
        self._finished: deque[_Step] = deque()
        self.num_untimed = 0

    @classmethod
    def cuda(cls, max_events: int = 2048) -> Self:
        """A timer of the current CUDA device's current stream."""
        import torch

        return cls(lambda: torch.cuda.Event(enable_timing=True), max_events)  # type: ignore[no-untyped-call]

    def start(self, number: int = 0) -> None:
        """Begins step `number`: the first mark on the stream."""
        event = self._event()
        self._step = None if event is None else _Step(number, [event])

    def mark(self, phase: str) -> None:
        """Ends `phase`: what the stream did since the mark before."""
        if self._step is None:
            return
        event = self._event()
        if event is None:
            self._free.extend(self._step.events)
            self._step = None
            return
        self._step.events.append(event)
        self._step.phases.append(phase)

    def end(self) -> None:
        """Ends the step; it is resolved when the device has reached its last mark."""
        if self._step is not None:
            self._finished.append(self._step)
            self._step = None

    def resolved(self) -> list[tuple[int, list[tuple[str, float]]]]:
        """Number and (phase, seconds) of each step that the device has finished since the last call; waits for none.

        What lies between phases has the name "".
        """
        found: list[tuple[int, list[tuple[str, float]]]] = []
        while self._finished and self._finished[0].events[-1].query():
            step = self._finished.popleft()
            pairs = zip(step.phases, step.events, step.events[1:], strict=False)
            times = [(phase, first.elapsed_time(second) / 1e3) for phase, first, second in pairs]
            found.append((step.number, times))
            self._free.extend(step.events)
        return found

    def _event(self) -> DeviceEvent | None:
        if self._free:
            event = self._free.popleft()
        elif self._num_made < self._max_events:
            event = self._make_event()
            self._num_made += 1
        else:
            self.num_untimed += 1
            return None
        event.record()
        return event
