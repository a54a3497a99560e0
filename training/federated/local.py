"""What a client does with its rows: some steps of SGD from the global parameters, near to them where that is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, Tensor], Tensor]
"""The mean loss of a network on the rows with these numbers (int64 `[batch]`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPlan:
    """How clients train in a round; the server says it, all do the same."""

    epochs: int = 1
    steps: int = 0
    """Steps in all; 0: as many as the epochs have."""
    batch_size: int = 64
    """Rows a step; 0: all of them."""
    learning_rate: float = 0.1
    proximal: float = 0.0
    """FedProx's mu: half of it times the squared distance to the global parameters is added to the loss."""
    clip_norm: float = 0.0
    """Bound of a gradient's norm; 0: none."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or min(self.steps, self.batch_size, self.proximal, self.clip_norm) < 0:
            raise ValueError("epochs must be at least 1; steps, batch_size, proximal and clip_norm not below 0")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}: it must be positive")


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """A client's contribution: by how much each parameter moved, over how many rows, and the loss of the first step."""

    delta: dict[str, Tensor]
    rows: int
    loss: float


def parameters(network: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name, copied: what clients and server exchange. Buffers stay where they are."""
    return {name: value.detach().clone() for name, value in network.named_parameters() if value.requires_grad}


def take(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copies parameters into a network. KeyError or RuntimeError where they do not fit."""
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.requires_grad:
                value.copy_(values[name])


def train_locally(
    network: nn.Module, loss_of: Loss, rows: int, start: Mapping[str, Tensor], plan: LocalPlan, seed: int
) -> Learned:
    """Trains `network` in place from `start`; the order of the rows follows from the seed. ValueError without rows."""
    if rows < 1:
        raise ValueError("there are no rows to train on")
    take(network, start)
    network.train()
    trained = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
    anchors = [start[name].to(value.device) for name, value in trained]
    optimizer = torch.optim.SGD([value for _, value in trained], lr=plan.learning_rate)
    size = plan.batch_size or rows
    steps = plan.steps or plan.epochs * -(-rows // size)
    generator = torch.Generator().manual_seed(seed)
    order, at, first = torch.randperm(rows, generator=generator), 0, 0.0
    for step in range(steps):
        if at >= rows:
            order, at = torch.randperm(rows, generator=generator), 0
        loss = loss_of(network, order[at : at + size])
        at += size
        if not step:
            first = float(loss.detach())
        if plan.proximal:
            pairs = zip(trained, anchors, strict=True)
            loss = loss + plan.proximal / 2 * sum((value - anchor).square().sum() for (_, value), anchor in pairs)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if plan.clip_norm:
            nn.utils.clip_grad_norm_([value for _, value in trained], plan.clip_norm)
        optimizer.step()
    delta = {name: (value.detach() - anchor).cpu() for (name, value), anchor in zip(trained, anchors, strict=True)}
    return Learned(delta, rows, first)
