"""Memory that the ranks of a group share, where all of them are on one machine: a region of each, open to all.

It has no name in any file system and goes with its processes, however they end.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from training.barrier import Barrier, CollectiveBarrier, MemoryBarrier, can_meet_in_memory

_NAME = "trimtab-gradients"
LINE = 64
"""Bytes of a cache line: what different ranks write to lies in different ones."""
# A region's first line tells it from any other memory; in the second is how often its rank came to the barrier.
_HEAD = 2 * LINE


class SharedMemory:
    """A region of bytes of each rank of a group, zeros at first, and where the ranks wait for each other."""

    def __init__(self, regions: Sequence[mmap.mmap], barrier: Barrier) -> None:
        self.barrier = barrier
        self.places: list[Tensor] = [torch.frombuffer(one, dtype=torch.uint8, offset=_HEAD) for one in regions]
        """[bytes] a rank, in their order."""

    @classmethod
    def meet(cls, size: int, group: dist.ProcessGroup) -> Self | None:
        """Regions of `size` bytes; None, in all ranks, where they cannot reach each other's memory, as on several
        machines. A collective."""
        token, size = secrets.randbits(62), _HEAD + size
        with ExitStack() as held:
            descriptor = _made(token, size)
            if descriptor >= 0:
                held.callback(os.close, descriptor)
            said = torch.tensor([os.getpid(), descriptor, token])
            found = [torch.empty_like(said) for _ in range(group.size())]
            dist.all_gather(found, said, group=group)
            # Whom a number means is made sure of by the memory that is found behind it afterwards.
            processes = [_followed(int(one[0])) for one in found]
            followed = held.enter_context(ExitStack())
            for process in processes:
                followed.callback(_close, process)
            regions = [opened(*map(int, one), size=size) for one in found]
            watches = min(processes) >= 0 and can_meet_in_memory()
            able = torch.tensor([all(one is not None for one in regions), watches], dtype=torch.int64)
            dist.all_reduce(able, dist.ReduceOp.MIN, group=group)
            shared, watched = able.tolist()
            if not shared:
                return None
            there = [one for one in regions if one is not None]
            if not watched:
                return cls(there, CollectiveBarrier(group))
            followed.pop_all()
            lines = [ctypes.addressof(ctypes.c_char.from_buffer(one, LINE)) for one in there]
            return cls(there, MemoryBarrier(lines, group.rank(), processes, timeout=_timeout(group)))


def opened(pid: int, descriptor: int, token: int, *, size: int) -> mmap.mmap | None:
    """A rank's memory; None where it cannot be reached from here."""
    path = f"/proc/{pid}/fd/{descriptor}"
    try:
        # On another machine the same number is anybody's, and may be what must not even be opened.
        if descriptor < 0 or _NAME not in os.readlink(path):
            return None
        own = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.pread(own, 8, 0) != token.to_bytes(8, "little"):
                return None
            return mmap.mmap(own, size)
        finally:
            os.close(own)
    except OSError:
        return None


def _made(token: int, size: int) -> int:
    """A descriptor of new memory that begins with the token; -1 on a system without it."""
    try:
        descriptor = os.memfd_create(_NAME)
    except (AttributeError, OSError):
        return -1
    os.truncate(descriptor, size)
    os.pwrite(descriptor, token.to_bytes(8, "little"), 0)
    return descriptor


def _followed(pid: int) -> int:
    """A descriptor of a process, which is readable once that has ended; -1 where there is none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)


def _timeout(group: dist.ProcessGroup) -> float:
    """Seconds after which the group's collectives on a CPU give up."""
    backend: Any = group._get_backend(torch.device("cpu"))
    return float(backend.options._timeout.total_seconds())
