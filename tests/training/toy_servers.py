"""A small regression with an embedding for parameter servers, its synchronous training, and a worker's loop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from training.parameter_server import Client, Replica, Rule, WorkerContext

STEPS, ROWS = 20, 16


class Scored(nn.Module):
    """Scores of 40 items in 4 dimensions under a small perceptron; the truth is another such network."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(40, 4)
        self.layers = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, items: Tensor, numbers: Tensor) -> Tensor:
        return self.layers(torch.cat([self.items(items), numbers], dim=1)).squeeze(1)

    def loss_of(self, rows: Iterable[int]) -> Tensor:
        items, numbers, truth = data(rows)
        return nn.functional.mse_loss(self(items, numbers), truth)


def data(rows: Iterable[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The rows with these numbers: items, three numbers, and the truth."""
    at = torch.tensor(list(rows))
    numbers = torch.sin(at[:, None] * torch.tensor([0.37, 1.1, 2.3]))
    items = (at * 7919) % 40
    return items, numbers, numbers[:, 0] - 0.5 * numbers[:, 1] + torch.cos(items.float())


def batch(number: int, step: int) -> range:
    """The rows of a worker's step."""
    return range((step * 64 + number) * ROWS, (step * 64 + number + 1) * ROWS)


def work(
    client: Client, number: int, workers: int, steps: int = STEPS, before: Callable[[int], object] = lambda step: None
) -> None:
    """A worker's loop, from the step at which it entered."""
    torch.manual_seed(3)
    network = Scored()
    replica = Replica(network, client)
    while client.clock < steps:
        rows = batch(number, client.clock)
        before(client.clock)
        replica.refresh({"items.weight": data(rows)[0]})
        network.loss_of(rows).backward()
        replica.push()


def work_in_process(context: WorkerContext) -> None:
    """The same in a process of its own, where faults may strike."""
    work(context.client, context.number, context.workers, before=context.strike)


def work_until_the_warm_process_is_killed(context: WorkerContext) -> None:
    """The same; in the first attempt worker 0 kills the process that all were forked from."""

    def before(step: int) -> None:
        if (context.number, context.attempt, step) == (0, 0, 10):
            os.kill(os.getppid(), signal.SIGKILL)

    work(context.client, context.number, context.workers, before=before)


def trained_synchronously(network: Scored, rule: Rule, workers: int, steps: int = STEPS) -> dict[str, Tensor]:
    """The parameters after data-parallel training in one process: gradients summed in order, over their number."""
    own = Scored()
    own.load_state_dict(network.state_dict())
    tables = [own.items.weight]
    optimizers = [rule.dense(list(own.layers.parameters())), rule.rows(tables)]
    for step in range(steps):
        summed: list[Tensor] = []
        for number in range(workers):
            own.zero_grad()
            own.loss_of(batch(number, step)).backward()
            grads = [value.grad.clone() for value in own.parameters() if value.grad is not None]
            summed = [a + b for a, b in zip(summed, grads, strict=True)] if summed else grads
        touched = torch.unique(torch.cat([data(batch(number, step))[0] for number in range(workers)]))
        for value, grad in zip(own.parameters(), summed, strict=True):
            value.grad = grad / workers
        rows = own.items.weight.grad
        own.items.weight.grad = torch.sparse_coo_tensor(
            touched[None], rows[touched], rows.shape, check_invariants=False
        ).coalesce()
        for optimizer in optimizers:
            optimizer.step()
    return {name: value.detach().clone() for name, value in own.named_parameters()}
