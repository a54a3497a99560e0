"""What TrainingMonitor costs in anybody's loop: ten lines with its defaults, and the same loop without them.

    OMP_NUM_THREADS=1 python benchmarks/training_monitor.py

Of each loop a round takes one step with the monitor (`with monitor.step(…)`, three phases as blocks, the loss) and one
without, in a drawn order, on one network; nothing else differs. The processor time of the thread that trains is
compared within the round. Beside it stands what the thread that drains and samples the machine took a second.

A step in which somebody else had the processor tells of him: the mean leaves out the tenth of hundreds of rounds at
either end, and the median of all differences is printed besides.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.training import extra
from observability import TrainingMonitor

BATCHES = 64


@dataclass(frozen=True)
class Loop:
    """Somebody's loop: a network of `depth` layers of `width`, and how it is trained."""

    name: str
    width: int = 256
    depth: int = 4
    rows: int = 64
    clips: bool = True
    accumulated: int = 1
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW


LOOPS = (
    Loop("AdamW, clips"),
    Loop("AdamW, no clipping", clips=False),
    Loop("SGD with momentum", optimizer=lambda weights: torch.optim.SGD(weights, lr=1e-3, momentum=0.9)),
    Loop("gradients of 4 batches", rows=16, accumulated=4),
    Loop("200 small tensors", width=24, depth=100, clips=False),
    Loop("a short step", width=128, rows=32),
    Loop("a long step", width=512, rows=128),
)


class Training:
    """A loop's two ways on one network."""

    def __init__(self, loop: Loop) -> None:
        torch.manual_seed(0)
        layers = [part for _ in range(loop.depth) for part in (nn.Linear(loop.width, loop.width), nn.ReLU())]
        self.loop, self.network = loop, nn.Sequential(*layers)
        self.optimizer = loop.optimizer(self.network.parameters())
        self.batches = torch.randn(BATCHES, 2, loop.rows, loop.width)
        self.number = 0
        self.monitor = TrainingMonitor("bench", run="r")

    def batch(self) -> tuple[Tensor, Tensor]:
        """The next rows, and what is wanted of them."""
        self.number += 1
        x, y = self.batches[self.number % BATCHES]
        return x, y

    def plain(self) -> None:
        """A step as it was."""
        self.optimizer.zero_grad()
        for _ in range(self.loop.accumulated):
            x, y = self.batch()
            loss = nn.functional.mse_loss(self.network(x), y) / self.loop.accumulated
            loss.backward()
        if self.loop.clips:
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()

    def monitored(self) -> None:
        """The same with the monitor's lines in it."""
        with self.monitor.step(samples=self.loop.rows * self.loop.accumulated) as step:
            self.optimizer.zero_grad()
            for _ in range(self.loop.accumulated):
                x, y = self.batch()
                with self.monitor.phase("forward"):
                    loss = nn.functional.mse_loss(self.network(x), y) / self.loop.accumulated
                with self.monitor.phase("backward"):
                    loss.backward()
            with self.monitor.phase("optimizer"):
                if self.loop.clips:
                    nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
                self.optimizer.step()
            step.loss = loss


def measured(training: Training, rounds: int, draw: random.Random) -> str:
    """A line of the table."""
    ways, taken = (training.plain, training.monitored), np.zeros((rounds, 2))
    for _ in range(30):
        for way in ways:
            way()
    whole, own, began = time.process_time_ns(), time.thread_time_ns(), time.perf_counter_ns()
    for row in range(rounds):
        for place in draw.sample((0, 1), 2):
            start = time.thread_time_ns()
            ways[place]()
            taken[row, place] = time.thread_time_ns() - start
    beside = (time.process_time_ns() - whole) - (time.thread_time_ns() - own)
    bare, between = np.median(taken[:, 0]), taken[:, 1] - taken[:, 0]
    more, low, high = extra(between, draw)
    return (
        f"{training.loop.name:24} {bare / 1e6:8.2f} ms {more / 1e3:7.1f} us {more / bare:7.2%}"
        f"  [{low / bare:.2%}, {high / bare:.2%}]  {np.median(between) / bare:7.2%}"
        f"  {beside / (time.perf_counter_ns() - began):7.2%}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{'loop':24} {'bare step':>11} {'more (mean)':>18}  [95 % interval]    (median)  other threads, of a second")
    with ExitStack() as stack:
        for loop in LOOPS:
            training = Training(loop)
            stack.callback(training.monitor.close)
            print(measured(training, chosen.rounds, random.Random(chosen.seed)), flush=True)
            training.monitor.close()


if __name__ == "__main__":
    main()
