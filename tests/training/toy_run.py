"""A small parallel training, run by the supervisor's tests: exactly resumable, with faults on demand."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from observability.training import TrainingMonitor
from training.checkpoint import CheckpointStore
from training.faults import Faults
from training.ranks import Rank


def fit(
    rank: Rank,
    steps: int,
    every: int,
    faults: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Fits a line by averaged gradients; the leading rank saves, all resume from what it saved."""
    torch.manual_seed(0)
    plan, network = Faults.from_json(faults), nn.Linear(4, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    store = CheckpointStore(rank.folder / "checkpoints")
    rank.folder.mkdir(parents=True, exist_ok=True)
    first = 0
    if newest := store.newest():
        network.load_state_dict(newest.state["network"])
        first = newest.step
    ring = rank.ring("toy")
    monitor = TrainingMonitor("toy", run=rank.run, ring=ring, drain_seconds=0)
    monitor.resumed(first)
    with rank.group("gloo", timeout=60, ring=ring):
        ring.state("running")
        for step in range(first, steps):
            monitor.start()
            plan.strike(rank.rank, rank.attempt, step)
            generator = torch.Generator().manual_seed(step * rank.world_size + rank.rank)
            inputs = torch.randn(16, 4, generator=generator)
            loss = (network(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            monitor.mark("backward")
            if rank.world_size > 1:
                for parameter in network.parameters():
                    assert parameter.grad is not None
                    dist.all_reduce(parameter.grad)
                    parameter.grad.div_(rank.world_size)
            monitor.mark("communication")
            optimizer.step()
            if (step + 1) % every == 0 or step + 1 == steps:
                monitor.entering("checkpoint")
                if rank.rank == 0:
                    store.save(step + 1, {"network": network.state_dict()})
                if rank.world_size > 1:
                    dist.barrier()
                ring.checkpointed(step + 1)
                monitor.mark("checkpoint")
            monitor.end(16, loss=loss)
        ring.state("completed")
    if rank.rank == 0:
        Path(rank.folder / "weights.txt").write_text(" ".join(map(repr, network.weight.flatten().tolist())))


def threaded(**_: Any) -> dict[str, Any]:
    """Starts what must not be started before a fork."""
    threading.Thread(target=threading.Event().wait, name="early", daemon=True).start()
    return {}
