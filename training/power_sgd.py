"""Gradients that travel as products of two thin matrices; what those leave out is sent along with the next step's.

PowerSGD (Vogels et al. 2019, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization"): one
step of the power method on the mean of all ranks' gradients, from where the last step's ended. torch has a hook for it,
whose state hangs on the order of DDP's buckets, which a run that goes on begins with another of; and which keeps what
is no number for good. Here everything belongs to a parameter, so that it can be saved and goes on to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket

# Steps at the beginning of a run whose gradients travel whole: moments that begin wrong stay so for long.
WHOLE_STEPS = 2
# No parameter is named so.
_STEPS = "steps of PowerSGD"
_log = logging.getLogger(__name__)


class Saved(Protocol):
    """A checkpoint: what tensors it has under a name, and how they are read."""

    def fill(self, name: str, tensors: Mapping[str, Tensor]) -> None: ...

    def names(self, name: str) -> set[str]: ...


class PowerSGD:
    """Averages the gradients of parameters, in the same order in every step; those that thin matrices would not halve,
    and the first steps', whole.

    Of a step that is not finite nothing is kept: it is not finite in all ranks, and skipped.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup, columns: int) -> None:
        self._parameters, self._group, self._width = list(parameters), group, columns
        self._kind = f"powersgd_{columns}"
        self._begin()

    def _begin(self) -> None:
        self._steps = 0
        self._left: dict[int, Tensor] = {}
        self._columns: dict[int, Tensor] = {}
        for index, one in enumerate(self._parameters):
            rows = len(one) if one.dim() else 1
            wide = one.numel() // max(1, rows)
            width = min(rows, wide, self._width)
            if 2 * (rows + wide) * width < rows * wide:
                self._left[index] = torch.zeros(rows, wide, device=one.device)
                drawn = torch.randn(wide, width, generator=torch.Generator().manual_seed(index))
                self._columns[index] = torch.linalg.qr(drawn).Q.to(one.device)

    def carry(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """The hook's work on the one bucket that there is."""
        buffer = bucket.buffer()
        places = {id(one): gradient for one, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True)}
        self.average([places[id(one)] for one in self._parameters])
        done: torch.futures.Future[Tensor] = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else None)
        done.set_result(buffer)
        return done

    def average(self, gradients: Sequence[Tensor]) -> None:
        """Averages one gradient for each parameter, in place."""
        thin = list(self._left) if self._steps >= WHOLE_STEPS else []
        self._steps += 1
        whole = [gradient for index, gradient in enumerate(gradients) if index not in thin]
        matrices = [gradients[index].reshape(self._left[index].shape) + self._left[index] for index in thin]
        products = [matrix @ self._columns[index] for index, matrix in zip(thin, matrices, strict=True)]
        first = self._summed([*whole, *products])
        for gradient, total in zip(whole, first, strict=False):
            gradient.copy_(total / self._group.size())
        if not thin:
            return
        bases = [torch.linalg.qr(one).Q for one in first[len(whole) :]]
        second = self._summed([matrix.T @ base for matrix, base in zip(matrices, bases, strict=True)])
        finite = torch.stack([torch.isfinite(one).all() for one in (*first, *second)]).all()
        for index, matrix, base, total in zip(thin, matrices, bases, second, strict=True):
            mean = base @ (total / self._group.size()).T
            gradients[index].copy_(mean.view_as(gradients[index]))
            self._left[index] = torch.where(finite, matrix - mean, self._left[index])
            self._columns[index] = torch.where(finite, torch.linalg.qr(total).Q, self._columns[index])

    def state(self, names: Mapping[int, str], share: int) -> dict[str, dict[str, Tensor]]:
        """What the next step follows from: what this rank left out, of this share of the batches, and what all know.

        For a checkpoint to which every rank adds its own. `names` are those of the parameters by their `id`.
        """
        return {
            self._left_out(share): self._named(names, self._left),
            f"{self._kind}.columns": self._named(names, self._columns),
        }

    def restore(self, saved: Saved, names: Mapping[int, str], share: int, shares: int) -> None:
        """Goes on from a checkpoint, to the bit where as many replicas wrote it. All ranks must call it.

        Where another number of replicas did, each begins with the mean of what theirs left out, so that all of it is
        sent still. Where gradients travelled in another way, or with other numbers of columns, it begins anew.
        """
        theirs = [self._left_out(number) for number in takewhile(lambda one: saved.names(self._left_out(one)), count())]
        if not theirs:
            _log.warning("PowerSGD begins anew: the checkpoint is of a run without it, or with other columns")
            self._begin()
            return
        left, columns = self.state(names, share).values()
        saved.fill(f"{self._kind}.columns", columns)
        self._steps = int(columns[_STEPS])
        if len(theirs) == shares:
            saved.fill(theirs[share], left)
            return
        total = {name: torch.zeros_like(one) for name, one in left.items()}
        for name in theirs:
            saved.fill(name, left)
            for one, part in zip(total.values(), left.values(), strict=True):
                one.add_(part / len(theirs))
        for one, part in zip(left.values(), total.values(), strict=True):
            one.copy_(part)

    def _left_out(self, share: int) -> str:
        return f"{self._kind}.left_out_{share}"

    def _named(self, names: Mapping[int, str], held: Mapping[int, Tensor]) -> dict[str, Tensor]:
        # The number of steps also lets a rank say something that has no thin matrices.
        found = {names[id(self._parameters[index])]: one for index, one in held.items()}
        return found | {_STEPS: torch.tensor(float(self._steps), dtype=torch.float64)}

    def _summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums over all ranks, in one collective."""
        flat = torch.cat([one.flatten() for one in tensors])
        dist.all_reduce(flat, group=self._group)
        parts = torch.split(flat, [one.numel() for one in tensors])
        return [part.view(one.shape) for part, one in zip(parts, tensors, strict=True)]


def power_hook(power: PowerSGD, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """The hook: `replicas.register_comm_hook(power, power_hook)`."""
    return power.carry(bucket)


# DDP compares annotations with classes; ours are text.
power_hook.__annotations__.clear()
