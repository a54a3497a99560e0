"""Stages that take no time and count it: values that go between them carry the moment at which they were ready.

A stage begins when its rank is free and its input is there, and says when it ends: the schedule that ran is timed
exactly, however loaded the machine is. What sending takes is not counted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from training.parallel_config import ParallelConfig
from training.spread import Spread

FORWARD, BACKWARD = 1.0, 2.0


class Clock:
    """A rank's time, in units of one stage's forward pass, and how much of it was work."""

    def __init__(self) -> None:
        self.now = self.busy = 0.0

    def work(self, ready: float, length: float) -> float:
        """Works for `length` as soon as the input is ready; gives the moment of its end."""
        self.now = max(self.now, ready) + length
        self.busy += length
        return self.now


class _Timed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor, clock: Clock) -> Tensor:
        context.clock = clock
        return torch.full_like(value, clock.work(float(value.max()), FORWARD))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.full_like(gradient, context.clock.work(float(gradient.max()), BACKWARD)), None


class TimedStage(nn.Module):
    """A stage of a rank with this clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.weight, self.clock = nn.Parameter(torch.zeros(1)), clock

    def forward(self, value: Tensor) -> Tensor:
        found: Tensor = _Timed.apply(value + self.weight, self.clock)  # type: ignore[no-untyped-call]
        return found


def idle_share(form: str) -> float:
    """The share of a step in which the pipeline's ranks have nothing to do, by the clocks of all of them."""
    config = ParallelConfig.parse(form)
    clock, replicas = Clock(), Spread(config)
    batch = config.num_microbatches
    stages = nn.Sequential(*(TimedStage(clock) for _ in range(config.pipeline * config.num_chunks)))
    # The loss's own gradient is no moment: it comes at once.
    replicas.take(stages, loss=lambda outputs, targets: (outputs * 0.0).sum(), batch_size=batch)
    for _ in range(2):  # the first asks for shapes
        torch.distributed.barrier()
        clock.now = clock.busy = 0.0
        replicas.learn([torch.zeros(batch)], torch.zeros(batch), batch)
    length = torch.tensor(clock.now)
    torch.distributed.all_reduce(length, torch.distributed.ReduceOp.MAX)
    return 1.0 - clock.busy / float(length)
