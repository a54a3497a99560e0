"""Where ranks of one machine wait for each other: in memory that they share, or by a collective of one number.

In memory a rank that waits sees the last one come within a microsecond; gloo's threads, which need a core to run on,
take a hundred times as long. It is compiled (barrier.c); without a compiler, and on systems where no descriptor follows
a process, the collective does it.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from observability.native import compiled

_SOURCE = Path(__file__).with_name("barrier.c")
# A rank on a core of its own comes this late at most, as a rule; it costs a core that others may want.
_BUSY_SECONDS = 2e-4
# How soon a rank that sleeps here sees that another one is gone.
_LOOK_SECONDS = 0.05


class LostRankError(RuntimeError):
    """A rank that others wait for is gone, or did not come for longer than the group's timeout."""


class Barrier(Protocol):
    """`wait` returns when all ranks have called it as often; it raises RuntimeError where one is gone."""

    def wait(self) -> None: ...


class CollectiveBarrier:
    """By a collective of the group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def wait(self) -> None:
        """See `Barrier`."""
        dist.all_reduce(torch.zeros(1), group=self._group)


class MemoryBarrier:
    """By numbers in memory that all ranks share: a line of 64 bytes, zeros at first, at the address of each."""

    def __init__(
        self, lines: Sequence[int], rank: int, processes: Sequence[int], *, timeout: float, busy: float = _BUSY_SECONDS
    ) -> None:
        """`processes` are the ranks' descriptors of processes, which are closed with this. RuntimeError without a
        compiler (`can_meet_in_memory`). `timeout` and `busy` in seconds; those who wait are busy for so long, then
        asleep."""
        library = _library()
        if library is None:
            raise RuntimeError("barrier.c could not be compiled")
        self._meet: Any = library.trimtab_meet
        self._rank, self._processes, self._timeout = rank, list(processes), timeout
        self._busy = int(1e9 * busy)
        self._lines = (ctypes.c_void_p * len(lines))(*lines)
        self._missing = ctypes.c_int64()
        self._turn = 0

    def __del__(self) -> None:
        for process in getattr(self, "_processes", ()):
            os.close(process)

    def wait(self) -> None:
        """See `Barrier`."""
        _COUNTED[0] += 1
        self._turn += 1
        began = time.monotonic()
        # In slices, so that signals are heard and the dead are found.
        while (missing := self._came(self._busy, int(1e9 * _LOOK_SECONDS))) >= 0:
            if self._is_gone(missing):
                # It may have come before it went.
                if (missing := self._came(0, 0)) < 0:
                    break
                raise LostRankError(f"rank {missing} of this group is gone, and its gradients with it")
            if time.monotonic() - began > self._timeout:
                raise LostRankError(
                    f"rank {missing} of this group did not come with its gradients for {self._timeout:g} s"
                )
        _COUNTED[1] += 1

    def _came(self, busy: int, patience: int) -> int:
        self._meet(
            self._lines, len(self._lines), self._rank, self._turn, busy, patience, ctypes.byref(self._missing)
        )  # fmt: skip
        return self._missing.value

    def _is_gone(self, rank: int) -> bool:
        looked = select.poll()
        looked.register(self._processes[rank], select.POLLIN)
        return bool(looked.poll(0))


def can_meet_in_memory() -> bool:
    """Whether this process can wait in memory: the code is compiled, and processes have descriptors."""
    return hasattr(os, "pidfd_open") and _library() is not None


def waits() -> tuple[int, int]:
    """How often this process began and ended to wait in memory: what a flight recorder of collectives does not know."""
    return _COUNTED[0], _COUNTED[1]


_COUNTED = [0, 0]


def _library() -> ctypes.CDLL | None:
    return compiled(_SOURCE, ("trimtab_meet", "pnnnnnp"))
