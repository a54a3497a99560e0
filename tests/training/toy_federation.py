"""A logistic regression whose rows are spread over clients, and a server of it in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from training.federated import Federation, Learned, LocalPlan, Plan, parameters, serve, train_locally

ROWS, WIDTH = 60, 5
SECRETS = {f"client-{number}": f"secret-{number}" for number in range(10)}


def data(number: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """A client's rows: numbers `[rows, 5]` about a centre of its own, and labels of one truth for all."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(rows, WIDTH, generator=generator) + 0.3 * torch.randn(WIDTH, generator=generator)
    odds = x @ torch.tensor([1.5, -2.0, 1.0, 0.0, 0.5]) + 0.5
    return x, (torch.rand(rows, generator=generator) < torch.sigmoid(odds)).float()


def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(network(x).squeeze(1), y)


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, 1)


def learner(number: int, rows: int = ROWS):
    """What a client does with its rows."""
    x, y = data(number, rows)

    def learn(start: Mapping[str, Tensor], plan: LocalPlan, seed: int) -> Learned:
        return train_locally(network(), lambda own, at: loss(own, x[at], y[at]), rows, start, plan, seed)

    return learn


def run_server(folder: str, port: str) -> None:
    plan = Plan(rounds=6, min_clients=3, min_updates=3, deadline_seconds=120, local=LocalPlan(epochs=2, batch_size=16))
    federation = Federation("toy", parameters(network()), plan, Path(folder))
    asyncio.run(serve(federation, SECRETS, "127.0.0.1", int(port), linger=60.0))


if __name__ == "__main__":
    run_server(*sys.argv[1:])
