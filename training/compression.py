"""How gradients travel between replicas where they are not averaged in memory: whole, as 16-bit numbers, or as products
of two thin matrices.

All are hooks of `DistributedDataParallel`. torch's own hook for bfloat16 asks for NCCL; this one works on gloo, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from training.parallel_config import ParallelConfig

# PowerSGD reduces a bucket in several collectives: on gloo those of two buckets meet each other, and the process ends.
_ONE_BUCKET_MB = 1 << 20
_PLAIN_STEPS = 2


def bucket_mb(config: ParallelConfig) -> int | None:
    """Size of DDP's buckets in MiB; None leaves it to torch."""
    return _ONE_BUCKET_MB if config.compress == "powersgd" else None


def compress(replicas: DistributedDataParallel, config: ParallelConfig, group: dist.ProcessGroup) -> None:
    """Has gradients travel as the form says."""
    if config.compress == "bf16":
        replicas.register_comm_hook(group, bf16_hook)
    elif config.compress == "powersgd":
        state = PowerSGDState(
            group, matrix_approximation_rank=config.powersgd_rank, start_powerSGD_iter=_PLAIN_STEPS, warm_start=True
        )
        replicas.register_comm_hook(state, powerSGD_hook)


def bf16_hook(group: dist.ProcessGroup, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Averages a bucket of gradients that travels as bfloat16."""
    buffer = bucket.buffer()
    travelling = buffer.to(torch.bfloat16).div_(group.size())
    work: Any = dist.all_reduce(travelling, group=group, async_op=True)

    def widened(done: torch.futures.Future[list[Tensor]]) -> Tensor:
        return buffer.copy_(done.value()[0])

    found: torch.futures.Future[Tensor] = work.get_future().then(widened)
    return found


def average(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup, *, config: ParallelConfig) -> None:
    """Averages all gradients in one collective; as bfloat16 where the form says so."""
    flat = torch.cat(
        [torch.zeros_like(one).flatten() if one.grad is None else one.grad.flatten() for one in parameters]
    )
    travelling = (flat.to(torch.bfloat16) if config.compress == "bf16" else flat).div_(group.size())
    dist.all_reduce(travelling, group=group)
    parts = torch.split(travelling.to(flat.dtype), [one.numel() for one in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)


# DDP compares annotations with classes; ours are text.
bf16_hook.__annotations__.clear()
