"""Data parallelism: every rank has the whole network and a share of each batch, and the gradients are averaged.

The global batch, and with it the loss and every step, is the same whatever the number of ranks; only the order in which
sums are taken differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.data import TabularNetwork

Logits = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Replicas:
    """One process: the whole batch is its own, and there is nobody to agree with."""

    rank: int = 0
    world_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this rank writes the checkpoints."""
        return self.rank == 0

    def logits(self, network: nn.Module) -> Logits:
        """What gives the logits of a batch, in the way that gradients are averaged in the backward pass."""
        return cast(TabularNetwork, network).logits

    def share(self, columns: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """This rank's rows of a global batch; possibly none."""
        return tuple(columns)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the ranks, equal in all of them."""
        return values

    def agreed(self, step: int) -> int:
        """The leading rank's number."""
        return step

    def random_states(self) -> list[Tensor]:
        """The state of torch's generator in every rank, by rank."""
        return [torch.get_rng_state()]

    def restore_random_state(self, states: Sequence[Tensor], step: int) -> None:
        """Takes up this rank's state; where there were fewer ranks, one that follows from the step and the rank."""
        if self.rank < len(states):
            torch.set_rng_state(states[self.rank])
        else:
            torch.manual_seed(step * 1_000_003 + self.rank)


@dataclass(frozen=True, slots=True)
class DataParallel(Replicas):
    """The ranks of the default process group, which must be open."""

    rank: int = field(default_factory=dist.get_rank)
    world_size: int = field(default_factory=dist.get_world_size)

    def logits(self, network: nn.Module) -> Logits:
        """See `Replicas.logits`."""
        device = next(network.parameters()).device
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(_Logits(network), device_ids=devices)

    def share(self, columns: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Every `world_size`-th row, from the rank's number on."""
        return tuple(column[self.rank :: self.world_size] for column in columns)

    def mean(self, values: Tensor) -> Tensor:
        """See `Replicas.mean`."""
        total = values.clone()
        dist.all_reduce(total)
        return total / self.world_size

    def agreed(self, step: int) -> int:
        """See `Replicas.agreed`."""
        said = torch.tensor([step])
        dist.broadcast(said, 0)
        return int(said)

    def random_states(self) -> list[Tensor]:
        """See `Replicas.random_states`."""
        own = torch.get_rng_state()
        found = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(found, own)
        return found


class _Logits(nn.Module):
    """Called, it gives the logits: data parallelism hooks into calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Tensor:
        """Logits `[batch]`."""
        return cast(TabularNetwork, self.network).logits(*inputs)
