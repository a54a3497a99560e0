"""Gradients of replicas on one machine, averaged in memory that they share: no socket carries them.

A hook of `DistributedDataParallel` for ranks on a CPU. In the backward pass every rank lays its part of the mean where
the others can read it; at the end a collective of one number says that all have, and each adds up. No other thread than
the training's takes part: on gloo's threads the same takes longer, as they drive the ranks from their cores. The sum is
that of the ranks in their order, the same bits in all of them, and of two ranks the bits that gloo gives.

The memory has no name in any file system and goes with its processes, however they end.
"""

from __future__ import annotations

import mmap
import os
import secrets
import time
from collections.abc import Sequence
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket

_NAME = "trimtab-gradients"
# Buckets begin at whole cache lines; the first holds what tells a rank's memory from any other.
_LINE = 64


class SharedGradients:
    """What the ranks of a group share: two places a rank, taken in turns, of twice the gradients' bytes.

    A rank that lays down the gradients of a step has met all others at the step before, and by then they had read what
    lay in the same place.
    """

    def __init__(self, group: dist.ProcessGroup, regions: Sequence[mmap.mmap]) -> None:
        self._group, self._rank = group, group.rank()
        self._places = [
            torch.frombuffer(region, dtype=torch.uint8, offset=_LINE).view(2, -1) for region in regions
        ]  # [2, bytes] a rank
        self._turn = self._at = self._steps = 0
        self._seconds = 0.0
        self._laid: list[tuple[Tensor, list[Tensor]]] = []  # a bucket, and every rank's part of it

    @classmethod
    def meet(cls, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> Self | None:
        """What this group's ranks share; None, in all of them, where they are on GPUs or cannot reach each other's
        memory, as on several machines. A collective."""
        if any(one.device.type != "cpu" for one in parameters):
            return None
        size = _LINE + 2 * sum(_lines(one.nbytes) for one in parameters)
        token = secrets.randbits(62)
        try:
            descriptor = os.memfd_create(_NAME)
        except (AttributeError, OSError):  # a system without it
            descriptor = -1
        try:
            if descriptor >= 0:
                os.truncate(descriptor, size)
                os.pwrite(descriptor, token.to_bytes(8, "little"), 0)
            said = torch.tensor([os.getpid(), descriptor, token])
            found = [torch.empty_like(said) for _ in range(group.size())]
            dist.all_gather(found, said, group=group)
            regions = [_opened(*map(int, one), size=size) for one in found]
            met = torch.tensor(float(all(region is not None for region in regions)))
            dist.all_reduce(met, dist.ReduceOp.MIN, group=group)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return cls(group, [region for region in regions if region is not None]) if met else None

    def lay(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Lays a bucket of gradients down; it is averaged, in its own buffer, before the backward pass returns."""
        began, buffer = time.perf_counter(), bucket.buffer()
        if bucket.index() == 0:
            self._turn, self._at, self._laid = 1 - self._turn, 0, []
        taken = slice(self._at, self._at + buffer.nbytes)
        self._at += _lines(buffer.nbytes)
        parts = [places[self._turn, taken].view(buffer.dtype) for places in self._places]
        torch.mul(buffer, 1 / len(parts), out=parts[self._rank])
        self._laid.append((buffer, parts))
        if bucket.is_last():
            torch.autograd.Variable._execution_engine.queue_callback(self._add_up)
        # DDP waits for what it is given, and here there is nothing left to wait for.
        found: torch.futures.Future[Tensor] = torch.futures.Future()
        found.set_result(buffer)
        self._seconds += time.perf_counter() - began
        return found

    def seconds(self) -> float | None:
        """What this took a step, on average since the last look, the waiting for slower ranks included."""
        found = self._seconds / self._steps if self._steps else None
        self._seconds, self._steps = 0.0, 0
        return found

    def _add_up(self) -> None:
        began = time.perf_counter()
        self._meet()
        if len(self._places) == 2:
            for buffer, parts in self._laid:
                torch.add(*parts, out=buffer)
        else:
            # Each adds up one slice of every bucket in the place of its own part, which nobody else reads.
            sliced = [[part.tensor_split(len(parts)) for part in parts] for _, parts in self._laid]
            for slices in sliced:
                mine = [one[self._rank] for one in slices]
                total = torch.add(mine[0], mine[1])
                for one in mine[2:]:
                    total.add_(one)
                mine[self._rank].copy_(total)
            self._meet()
            for (buffer, _), slices in zip(self._laid, sliced, strict=True):
                torch.cat([one[rank] for rank, one in enumerate(slices)], out=buffer)
        self._laid = []
        self._seconds += time.perf_counter() - began
        self._steps += 1

    def _meet(self) -> None:
        """Returns when all ranks are here; raises as gloo does where one is gone."""
        dist.all_reduce(torch.zeros(1), group=self._group)


def lay(shared: SharedGradients, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """The hook: `replicas.register_comm_hook(shared, lay)`."""
    return shared.lay(bucket)


# DDP compares annotations with classes; ours are text.
lay.__annotations__.clear()


def _lines(size: int) -> int:
    """Bytes of whole cache lines."""
    return -(-size // _LINE) * _LINE


def _opened(pid: int, descriptor: int, token: int, *, size: int) -> mmap.mmap | None:
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
