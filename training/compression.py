"""How gradients travel between replicas: by memory where all are on one machine, as 16-bit numbers, or as products of
two thin matrices.

All are hooks of `DistributedDataParallel`. torch's own hook for bfloat16 asks for NCCL; this one works on gloo, too.

Numbers of 16 bits keep 11 bits of a gradient as float16 and 8 as bfloat16. AdamW's steps follow each one's sign and
size, so what is rounded shows: of a curve of 100 losses float16 stays within 4e-6, bfloat16 within 4e-5. What the
rounding left out, kept and sent with the next step's gradient (Seide et al. 2014, "1-Bit Stochastic Gradient Descent"),
does not bring bfloat16 below 1e-5 for every first weight even where sums are taken in float32, nor does rounding at
random, or sending the difference to what the last means foretell; only a beginning of twenty whole steps does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from training.parallel_config import ParallelConfig
from training.power_sgd import PowerSGD, power_hook

# PowerSGD needs all gradients at once: its collectives are few and wait for each other.
_ONE_BUCKET_MB = 1 << 20
_BROUGHT_TO, _FALL, _FACTORS = 64.0, 10, (2.0**-60, 2.0**60)


def bucket_mb(config: ParallelConfig) -> int | None:
    """Size of DDP's buckets in MiB; None leaves it to torch."""
    return _ONE_BUCKET_MB if config.compress == "powersgd" else None


def compress(replicas: DistributedDataParallel, config: ParallelConfig, carrier: Scaled | PowerSGD | None) -> None:
    """Has gradients travel as the form says, by what `carrier_of` gave."""
    if config.compress == "bf16":
        replicas.register_comm_hook(replicas.process_group, bf16_hook)
    elif isinstance(carrier, Scaled):
        replicas.register_comm_hook(carrier, scaled_hook)
    elif carrier is not None:
        replicas.register_comm_hook(carrier, power_hook)


def carrier_of(
    parameters: Sequence[nn.Parameter], config: ParallelConfig, group: dist.ProcessGroup
) -> Scaled | PowerSGD | None:
    """What carries the gradients of these parameters and knows of earlier steps', where the form needs such a one."""
    if config.compress == "powersgd":
        return PowerSGD(parameters, group, config.powersgd_rank)
    return Scaled(group) if config.compress == "fp16" else None


def bf16_hook(group: dist.ProcessGroup, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Averages a bucket of gradients that travels as bfloat16."""
    buffer = bucket.buffer()
    travelling = buffer.to(torch.bfloat16).div_(group.size())
    work: Any = dist.all_reduce(travelling, group=group, async_op=True)

    def widened(done: torch.futures.Future[list[Tensor]]) -> Tensor:
        return buffer.copy_(done.value()[0])

    found: torch.futures.Future[Tensor] = work.get_future().then(widened)
    return found


class Scaled:
    """Gradients that travel as float16, multiplied by a power of two so that they fill its range.

    The first step's travel whole. From then on the largest gradient of the mean so far is brought to between 32 and 64:
    one a thousand times larger still fits, and one of a millionth keeps its bits. The factor falls at once and rises by
    two a step. What does not fit becomes infinite in all ranks, so that the step is skipped as any other that is not
    finite, and the next is multiplied by a thousandth of that. All ranks know the factor without a word.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._whole, self._factor = True, torch.ones(())
        # The largest gradient (0: none yet), and how often in a row they were not finite (-1: no step yet).
        self._known = torch.tensor([0.0, -1.0])
        self._peaks: list[Tensor] = []

    def carry(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """The hook's work on one bucket."""
        if bucket.index() == 0:
            self._begin()
        return self._sent(bucket.buffer())

    def average(self, flat: Tensor) -> None:
        """Averages all of a step's gradients, in place."""
        self._begin()
        self._sent(flat).wait()

    def state(self) -> Tensor:
        """What the next factor follows from, [2]; between steps."""
        self._look()
        return self._known.cpu()

    def restore(self, state: Tensor) -> None:
        """Goes on from a `state`."""
        self._known, self._peaks, self._whole = state.clone(), [], bool(state[1] < 0)

    def _begin(self) -> None:
        self._look()
        largest, failed = self._known.unbind()
        known = torch.where(largest > 0, largest, _BROUGHT_TO)
        raised = torch.floor(torch.log2(_BROUGHT_TO / known)) - _FALL * failed.clamp(0)
        self._factor = torch.exp2(raised).clamp(*_FACTORS)

    def _look(self) -> None:
        """Takes up what the last step's gradients were, without asking a device for a number."""
        if not self._peaks:
            return
        peak = torch.stack(self._peaks).amax().float()
        largest, failed = self._known.to(peak.device).unbind()
        finite = torch.isfinite(peak)
        self._known = torch.stack(
            [torch.where(finite, torch.maximum(peak, largest / 2), largest), torch.where(finite, 0.0, failed + 1)]
        )
        self._peaks, self._whole = [], False

    def _sent(self, buffer: Tensor) -> torch.futures.Future[Tensor]:
        size, factor = self._group.size(), self._factor
        travelling = buffer.div_(size) if self._whole else (buffer * (factor / size)).to(torch.float16)
        work: Any = dist.all_reduce(travelling, group=self._group, async_op=True)

        def widened(done: torch.futures.Future[list[Tensor]]) -> Tensor:
            if (came := done.value()[0]).dtype != buffer.dtype:
                buffer.copy_(came).div_(factor)
            self._peaks.append(buffer.abs().amax())
            return buffer

        found: torch.futures.Future[Tensor] = work.get_future().then(widened)
        return found


def scaled_hook(scaled: Scaled, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """The hook: `replicas.register_comm_hook(scaled, scaled_hook)`."""
    return scaled.carry(bucket)


def average(
    parameters: Sequence[nn.Parameter],
    group: dist.ProcessGroup,
    *,
    config: ParallelConfig,
    carrier: Scaled | PowerSGD | None,
) -> None:
    """Averages all gradients at once, as the form says."""
    for one in parameters:
        if one.grad is None:
            one.grad = torch.zeros_like(one)
    gradients = [cast(Tensor, one.grad) for one in parameters]
    if isinstance(carrier, PowerSGD):
        carrier.average(gradients)
        return
    flat = torch.cat([one.flatten() for one in gradients])
    if carrier is not None:
        carrier.average(flat)
    else:
        travelling = (flat.to(torch.bfloat16) if config.compress == "bf16" else flat).div_(group.size())
        dist.all_reduce(travelling, group=group)
        flat = travelling.to(flat.dtype)
    for parameter, part in zip(parameters, torch.split(flat, [one.numel() for one in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


# DDP compares annotations with classes; ours are text.
bf16_hook.__annotations__.clear()
scaled_hook.__annotations__.clear()
