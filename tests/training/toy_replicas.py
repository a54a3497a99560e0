"""Replicas that average the same gradients by gloo's sockets and by memory they share, and tell of both."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.parallel_config import ParallelConfig
from training.ranks import Rank
from training.shared_gradients import SharedGradients, lay
from training.spread import Spread

STEPS = 4


class Mixed(nn.Module):
    """Layers of three kinds of numbers, each in buckets of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(67, 67, dtype=kind) for kind in (torch.float32, torch.float64, torch.bfloat16)
        )
        self.last = nn.Linear(67, 1)

    def forward(self, values: Tensor) -> Tensor:
        for layer in self.layers:
            values = torch.tanh(layer(values.to(layer.weight.dtype)))
        found: Tensor = self.last(values.float())
        return found


def averaged(rank: int, *, shared: bool) -> list[Tensor]:
    """The gradients of some steps, one tensor a parameter and step."""
    torch.manual_seed(1)
    network, group = Mixed(), dist.group.WORLD
    assert group is not None
    replicas = DistributedDataParallel(network, bucket_cap_mb=0.02, gradient_as_bucket_view=True)
    if shared:
        memory = SharedGradients.meet(list(network.parameters()), group)
        assert memory is not None
        replicas.register_comm_hook(memory, lay)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    drawn, found = torch.Generator().manual_seed(rank), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        replicas(torch.randn(9, 67, generator=drawn)).square().sum().backward()
        found += [one.grad.clone() for one in network.parameters() if one.grad is not None]
        optimizer.step()
    return found


def compare(rank: Rank) -> None:
    """Writes what became of this rank's gradients, by both ways, and of a group that cannot share memory."""
    with rank.group(timeout=120):
        plain, shared = averaged(rank.rank, shared=False), averaged(rank.rank, shared=True)
        every: list[Any] = [None] * rank.world_size
        dist.all_gather_object(every, [one.double().sum().item() for one in shared])
        replicas = Spread(ParallelConfig(data=rank.world_size))
        replicas.take(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)))
        replicas.learn([torch.ones(2, 3)], torch.ones(2), 2 * rank.world_size)
        before, after = replicas.communication(), replicas.communication()
        group = dist.group.WORLD
        assert group is not None
        if rank.rank == 1:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        apart = SharedGradients.meet([nn.Parameter(torch.ones(3))], group)
        if rank.rank == 1:
            resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        said = {
            "same bits": all(torch.equal(one, other) for one, other in zip(plain, shared, strict=True)),
            "distance": max(float((one - other).abs().max()) for one, other in zip(plain, shared, strict=True)),
            "equal in all ranks": all(one == every[0] for one in every),
            "communication": [before, after],
            "apart": apart is None,
            "left": [path.name for path in Path("/dev/shm").glob("*trimtab*")],
        }
        (rank.folder / f"{rank.rank}.json").write_text(json.dumps(said))
