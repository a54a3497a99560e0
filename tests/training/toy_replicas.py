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

from training import shared_memory
from training.barrier import waits
from training.parallel_config import ParallelConfig
from training.ranks import Rank
from training.shared_gradients import SharedGradients, SharedReplica
from training.spread import Spread

STEPS = 4


class Mixed(nn.Module):
    """Layers of three kinds of numbers, weights in an order of their own, one that is used twice, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Conv2d(3, 4, 3, padding=1)
        self.seen.weight.data = self.seen.weight.data.contiguous(memory_format=torch.channels_last)
        self.usual = nn.BatchNorm1d(67)
        self.layers = [nn.Linear(67, 67, dtype=kind) for kind in (torch.float32, torch.float64, torch.bfloat16)]
        self.held = nn.ModuleList(self.layers)
        self.turned = nn.Parameter(torch.randn(67, 67).t())
        self.last = nn.Linear(67, 1)

    def forward(self, values: Tensor) -> Tensor:
        values = self.usual(values)
        values = values + self.seen(values[:, :48].reshape(-1, 3, 4, 4)).mean((1, 2, 3))[:, None]
        for layer in self.layers:
            values = torch.tanh(layer(values.to(layer.weight.dtype)))
        values = values.float() @ self.turned + values.float() @ self.layers[0].weight
        found: Tensor = self.last(values)
        return found


def replica(network: nn.Module, *, shared: bool) -> nn.Module:
    """A network's replica in this rank, by memory or by sockets."""
    group = dist.group.WORLD
    assert group is not None
    if not shared:
        return DistributedDataParallel(network, bucket_cap_mb=0.02, gradient_as_bucket_view=True)
    found = SharedReplica.of(network, group)
    assert found is not None
    return found


def averaged(rank: int, *, shared: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of some steps, one tensor a parameter and step, and what the network is at the end."""
    torch.manual_seed(rank)
    network = Mixed()
    replicas = replica(network, shared=shared)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    drawn, found = torch.Generator().manual_seed(rank), []
    for step in range(STEPS):
        # Every other step adds to the gradients that are there.
        if step % 2 == 0:
            optimizer.zero_grad()
        replicas(torch.randn(9, 67, generator=drawn)).square().sum().backward()
        found += [one.grad.clone() for one in network.parameters() if one.grad is not None]
        optimizer.step()
    return found, [one.detach().clone() for one in (*network.parameters(), *network.buffers())]


def partly(rank: int, *, shared: bool) -> list[Tensor]:
    """Gradients of steps whose backward pass goes through the network part by part."""
    torch.manual_seed(1)
    parts = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
    whole, found = nn.Sequential(*parts), []
    if shared:
        replica(whole, shared=True)
    for step in range(STEPS):
        whole.zero_grad()
        first = parts[0](torch.randn(4, 5, generator=torch.Generator().manual_seed(rank + 10 * step)))
        second = first.detach().requires_grad_()
        parts[2](parts[1](second)).square().sum().backward()
        assert second.grad is not None
        first.backward(second.grad)
        for one in whole.parameters():
            assert one.grad is not None
            mean = one.grad.clone()
            if not shared:
                dist.all_reduce(mean.div_(dist.get_world_size()))
            found.append(mean)
    return found


def compare(rank: Rank) -> None:
    """Writes what became of this rank's gradients, by both ways, and of a group that cannot share memory."""
    with rank.group(timeout=120):
        (plain, whole), (shared, same) = averaged(rank.rank, shared=False), averaged(rank.rank, shared=True)
        in_parts, wanted = partly(rank.rank, shared=True), partly(rank.rank, shared=False)
        waited = waits()
        # All but one could meet in memory.
        shared_memory.can_meet_in_memory = lambda: rank.rank != 1  # type: ignore[attr-defined]
        by_collectives, _ = averaged(rank.rank, shared=True)
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
            "same bits": same_bits(plain, shared) and same_bits(whole, same),
            "distance": distance(plain, shared),
            "bits by collectives": same_bits(shared, by_collectives),
            "distance in parts": distance(in_parts, wanted),
            "waits": [waited, waits()],
            "finite": all(bool(one.isfinite().all()) for one in shared),
            "equal in all ranks": all(one == every[0] for one in every),
            "communication": [before, after],
            "apart": apart is None,
            "few rows": SharedReplica.of(nn.EmbeddingBag(3, 2, sparse=True), group) is None,
            "left": [path.name for path in Path("/dev/shm").glob("*trimtab*")],
        }
        (rank.folder / f"{rank.rank}.json").write_text(json.dumps(said))


def same_bits(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def distance(some: list[Tensor], others: list[Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(some, others, strict=True))
