"""A rank's step records in a ring of memory that other processes read, and that outlives the rank when it is killed.

One thread writes; anybody reads, at any time and without a lock: a record counts once the number of steps says so, and
a reader leaves out what may be overwritten under it. On a file the pages belong to the kernel, so that the last records
of a process that was killed are still there (`RingView`).
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from observability.names import PHASES

MAGIC = b"TRIMTAB-STEPS-1\n"
# `step_clock.c` writes by the same numbers.
_HEADER_BYTES = 1024
# capacity, record bytes, rank, world size, attempt, process id, unix time minus the clock (ns), UTF-8 model and run.
_WHO = struct.Struct("<16s7q128s128s")
_LIVE = 512
# Steps written, samples, state, number of the step under way, its start (clock, ns), phase under way.
_NOW = struct.Struct("<5qB")
_COUNTS = struct.Struct("<2q")
_STATE_AT, _STEP_AT, _PHASE_AT, _TOKENS_AT = _LIVE + 16, _LIVE + 24, _LIVE + 40, _LIVE + 48
NO_PHASE = 255
# Checkpointed step (-1: none), collectives enqueued and completed (-1: not known), steps skipped.
_MARKS_AT, _MARKS = _LIVE + 64, struct.Struct("<4q")
# Loss, gradient norm, learning rate (NaN: not known).
_READINGS_AT, _READINGS = _LIVE + 128, struct.Struct("<3d")
# Seconds that a step's gradients travel, and those of them that are behind the backward pass (NaN: not known).
_TRAVEL_AT, _TRAVEL = _LIVE + 192, struct.Struct("<2d")
# Nanoseconds that all steps so far waited for data, and took.
_SPENT_AT = _LIVE + 256
_Q = struct.Struct("<q")
# Number of the step, start (clock, ns), duration (ns), samples, then the nanoseconds of each phase.
RECORD = struct.Struct(f"<{4 + len(PHASES)}q")
NUMBER, STARTED, DURATION, SAMPLES, FIRST_PHASE = range(5)
_DATA_WAIT = PHASES.index("data_wait")
DATA_WAIT = FIRST_PHASE + _DATA_WAIT
_NAMES = dict(enumerate((*PHASES, *(f"after {phase}" for phase in PHASES))))
STATES = ("starting", "running", "completed", "failed")
Records = NDArray[np.int64]


class RingError(RuntimeError):
    """A file that is no ring of step records; the message names it and says what was found."""


@dataclass(frozen=True, slots=True)
class RingOwner:
    """Whose steps a ring holds. `clock_offset_ns` added to the ring's clock gives Unix time."""

    model: str = ""
    run: str = ""
    rank: int = 0
    world_size: int = 1
    attempt: int = 0
    process_id: int = 0
    clock_offset_ns: int = 0


@dataclass(frozen=True, slots=True)
class RingNow:
    """What a rank says of itself at one moment.

    Step `step` is under way since `since_ns` of the ring's clock. `phase` is "" at its start, "after forward" where
    forward ended and nobody said what follows. `checkpoint` is the number of steps that the last checkpoint
    holds, -1 without one; `enqueued` and `completed` count collectives, -1 where nobody told.
    """

    num_steps: int
    num_samples: int
    state: str
    phase: str
    since_ns: int
    step: int
    checkpoint: int
    enqueued: int
    completed: int
    skipped: int
    loss: float
    gradient_norm: float
    learning_rate: float
    num_tokens: int = 0
    communication: float = float("nan")
    overlapped: float = float("nan")


class StepRing:
    """The writing end. `capacity` records are kept; a step costs one packing."""

    def __init__(self, buffer: bytearray | mmap.mmap, owner: RingOwner, capacity: int) -> None:
        self.owner, self.capacity = owner, capacity
        self.buffer = buffer
        _WHO.pack_into(
            buffer, 0, MAGIC, capacity, RECORD.size, owner.rank, owner.world_size, owner.attempt, owner.process_id,
            owner.clock_offset_ns, _text(owner.model), _text(owner.run),
        )  # fmt: skip
        _NOW.pack_into(buffer, _LIVE, 0, 0, 0, 0, 0, NO_PHASE)
        _Q.pack_into(buffer, _TOKENS_AT, 0)
        _MARKS.pack_into(buffer, _MARKS_AT, -1, -1, -1, 0)
        _READINGS.pack_into(buffer, _READINGS_AT, *(float("nan"),) * 3)
        _TRAVEL.pack_into(buffer, _TRAVEL_AT, *(float("nan"),) * 2)
        _COUNTS.pack_into(buffer, _SPENT_AT, 0, 0)

    @classmethod
    def in_memory(cls, owner: RingOwner | None = None, capacity: int = 8192) -> Self:
        """A ring that only this process sees."""
        return cls(bytearray(_size(capacity)), owner or RingOwner(), capacity)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        model: str,
        run: str,
        rank: int = 0,
        world_size: int = 1,
        attempt: int = 0,
        capacity: int = 8192,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> Self:
        """A ring in a file, best on a file system in memory; it appears whole under its name. OSError as `open`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        owner = RingOwner(model, run, rank, world_size, attempt, os.getpid(), time.time_ns() - clock())
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        with partial.open("w+b") as file:
            file.truncate(_size(capacity))
            if hasattr(os, "posix_fallocate"):
                # On a disk that is full this is an error that says so; a page that cannot be had later is a SIGBUS.
                os.posix_fallocate(file.fileno(), 0, _size(capacity))
            ring = cls(mmap.mmap(file.fileno(), _size(capacity)), owner, capacity)
        partial.replace(path)
        return ring

    def write(self, step: int, started_ns: int, duration_ns: int, samples: int, phases: list[int]) -> None:
        """Adds a step's record. `phases` are nanoseconds in the order of `names.PHASES`."""
        steps, before = _COUNTS.unpack_from(self.buffer, _LIVE)
        position = _HEADER_BYTES + steps % self.capacity * RECORD.size
        RECORD.pack_into(self.buffer, position, step, started_ns, duration_ns, samples, *phases)
        waited, spent = _COUNTS.unpack_from(self.buffer, _SPENT_AT)
        _COUNTS.pack_into(self.buffer, _SPENT_AT, waited + phases[_DATA_WAIT], spent + duration_ns)
        # Last: a record counts once it is whole.
        _COUNTS.pack_into(self.buffer, _LIVE, steps + 1, before + samples)

    def begin(self, step: int, started_ns: int) -> None:
        """Says which step is under way, since when."""
        _COUNTS.pack_into(self.buffer, _STEP_AT, step, started_ns)
        self.buffer[_PHASE_AT] = NO_PHASE

    def doing(self, phase: int) -> None:
        """Says which phase is under way, by its index; the index plus the number of phases: that one has ended."""
        self.buffer[_PHASE_AT] = phase

    def tokens(self, tokens: int) -> None:
        """Adds to the tokens so far."""
        before: int = _Q.unpack_from(self.buffer, _TOKENS_AT)[0]
        _Q.pack_into(self.buffer, _TOKENS_AT, before + tokens)

    def state(self, state: str) -> None:
        """Says how the rank is: one of `STATES`."""
        _Q.pack_into(self.buffer, _STATE_AT, STATES.index(state))

    def checkpointed(self, step: int) -> None:
        """Says that the state after `step` steps is safe."""
        _Q.pack_into(self.buffer, _MARKS_AT, step)

    def collectives(self, enqueued: int, completed: int) -> None:
        """Says how many collectives the rank has begun and ended."""
        _COUNTS.pack_into(self.buffer, _MARKS_AT + 8, enqueued, completed)

    def skipped(self, steps: int) -> None:
        """Says how many steps were skipped so far."""
        _Q.pack_into(self.buffer, _MARKS_AT + 24, steps)

    def readings(self, loss: float, gradient_norm: float, learning_rate: float) -> None:
        """Shows the latest loss, gradient norm and learning rate; NaN for what is not known."""
        _READINGS.pack_into(self.buffer, _READINGS_AT, loss, gradient_norm, learning_rate)

    def communicated(self, seconds: float, overlapped: float) -> None:
        """Shows how long a step's gradients travel, and how much of that is behind the backward pass."""
        _TRAVEL.pack_into(self.buffer, _TRAVEL_AT, seconds, overlapped)

    def view(self) -> RingView:
        """The reading end of this ring."""
        return RingView(self.buffer)


class RingView:
    """The reading end of a ring, in this process or another's. Nothing here waits for the writer."""

    def __init__(self, buffer: bytearray | mmap.mmap) -> None:
        magic, self._capacity, record, rank, world, attempt, process, offset, model, run = _WHO.unpack_from(buffer, 0)
        if magic != MAGIC or record != RECORD.size:
            raise RingError(f"no ring of step records: it begins with {bytes(magic)!r}, records of {record} bytes")
        self._buffer = buffer
        self.owner = RingOwner(_said(model), _said(run), rank, world, attempt, process, offset)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The ring in a file. RingError where it holds none, OSError where it cannot be read."""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < _HEADER_BYTES:
                raise RingError(f"{path} is no ring of step records: it has {size} bytes")
            memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        try:
            view = cls(memory)
        except RingError as error:
            raise RingError(f"{path}: {error}") from error
        if size < _size(view._capacity):
            raise RingError(f"{path} was cut: {size} of {_size(view._capacity)} bytes")
        return view

    def now(self) -> RingNow:
        """What the rank says of itself."""
        steps, samples, state, step, since, phase = _NOW.unpack_from(self._buffer, _LIVE)
        checkpoint, enqueued, completed, skipped = _MARKS.unpack_from(self._buffer, _MARKS_AT)
        loss, norm, rate = _READINGS.unpack_from(self._buffer, _READINGS_AT)
        doing = _NAMES.get(phase, "")
        return RingNow(
            steps,
            samples,
            STATES[state],
            doing,
            since,
            step,
            checkpoint,
            enqueued,
            completed,
            skipped,
            loss,
            norm,
            rate,
            _Q.unpack_from(self._buffer, _TOKENS_AT)[0],
            *_TRAVEL.unpack_from(self._buffer, _TRAVEL_AT),
        )

    def records(self, first: int = 0, end: int | None = None) -> Records:
        """Records `first` to `end` that are still there, oldest first, int64 [steps, 4 + phases]; see `RECORD`.

        The oldest that the ring can hold is left out: it may be overwritten while it is read.
        """
        end = self._written() if end is None else end
        first = max(first, end - self._capacity + 1)
        if first >= end:
            return np.empty((0, RECORD.size // 8), np.int64)
        ring = np.frombuffer(self._buffer, np.int64, offset=_HEADER_BYTES, count=self._capacity * RECORD.size // 8)
        found: Records = ring.reshape(self._capacity, -1)[np.arange(first, end) % self._capacity]
        return found[max(0, self._written() - self._capacity + 1 - first) :]

    def spent(self) -> tuple[int, int]:
        """Nanoseconds that all steps so far waited for data, and those that they took."""
        waited, spent = _COUNTS.unpack_from(self._buffer, _SPENT_AT)
        return waited, spent

    def _written(self) -> int:
        steps: int = _Q.unpack_from(self._buffer, _LIVE)[0]
        return steps


def _size(capacity: int) -> int:
    return _HEADER_BYTES + capacity * RECORD.size


def _text(value: str) -> bytes:
    return value.encode()[:128]


def _said(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
