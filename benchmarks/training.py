"""What recording a training costs: ours with everything on beside loops that nobody watches, and others' ways.

    OMP_NUM_THREADS=1 python benchmarks/training.py

One small network learns on the CPU, some milliseconds a step. Every round takes one step of each way, in a drawn order,
all on the same network, since where its memory lies alone makes some percent; the processor time of the thread that
trains is compared with the other steps' of the same round, so that other work on the machine hits all alike. What other
threads take is printed besides.

`ours` is TrainingMonitor in a file that other processes read, five phases, and all guards: losses, outputs and
gradients that are not finite, activations every 100 steps, a reading every 20 that all judge, the drain, the machine's
samples. It needs the gradients' norm, by which it clips as well. Four bare loops are what it can be held against:

- one that clips by torch's `clip_grad_norm_` and looks at loss and norm every 20 steps, as people write it;
- one that clips as cheaply as torch's own operators can: the norm tensor by tensor, the optimizer divides;
- one that clips by our own norm, too, which leaves the price of watching alone;
- one that neither takes a norm nor clips nor logs, where the whole norm is counted as ours.

Lightning's is the update of its own `Throughput` with the loss read each step, torchtitan's its own structured logger
with a span a phase: both from their packages where these are installed. Composer's SpeedMonitor and NaNMonitor are
re-enacted: wall times in a window, and the loss asked each step whether it is a number. All of these clip as the first.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from observability import TrainingMonitor
from observability.step_ring import StepRing
from training.guards import Course, Rules, begin, clipped_step, gradient_norm, judge_reading
from training.guards.activations import judged_layers
from training.replicas import Replicas
from training.signals import Signals

WIDTH, ROWS, READ_EVERY, LOOK_EVERY, BATCHES, LIMIT = 256, 64, 20, 100, 64, 1.0
Mark = Callable[[str], None]


class Work:
    """What all ways train."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(*[part for _ in range(4) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())])
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=True)
        self.parameters = list(self.network.parameters())
        # Not one batch alone: once that is learned by heart, gradients are so small that processors take longer.
        self.batches = torch.randn(BATCHES, 2, ROWS, WIDTH)


class Bare:
    """The loop itself: forward, backward, clipping, fused AdamW, and now and then a look at loss and norm."""

    name = "bare: clips, logs"

    def __init__(self, work: Work) -> None:
        self.network, self.optimizer, self.parameters, self.batches = (
            work.network, work.optimizer, work.parameters, work.batches,
        )  # fmt: skip
        self.number = 0
        self.logged: Any = None

    def step(self) -> None:
        """One step."""
        loss, norm = self.learn(lambda phase: None)
        if self.number % READ_EVERY == 0:
            self.logged = loss.item(), float(norm)

    def learn(self, mark: Mark) -> tuple[Tensor, Tensor | float]:
        """The work of a step, which all ways have in common; gives loss and gradient norm."""
        x, y = self.batch()
        mark("data_wait")
        loss = nn.functional.mse_loss(self.network(x), y)
        mark("forward")
        self.optimizer.zero_grad()
        loss.backward()
        mark("backward")
        norm = self.updated()
        mark("optimizer")
        self.number += 1
        return loss, norm

    def batch(self) -> tuple[Tensor, Tensor]:
        """The step's rows and what is wanted of them."""
        x, y = self.batches[self.number % BATCHES]
        return x, y

    def updated(self) -> Tensor | float:
        """Clips the gradients and changes the weights; gives the gradients' norm."""
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        norm = nn.utils.clip_grad_norm_(self.parameters, LIMIT)
        self.optimizer.step()
        return norm

    def close(self) -> None:
        """Ends what runs beside."""


class Frugal(Bare):
    """The bare loop where the optimizer divides, if the norm is above the limit."""

    name = "bare: clips as cheaply as torch can, logs"

    def norm(self) -> float:
        """The gradients' norm."""
        norms = torch._foreach_norm([weight.grad for weight in self.parameters if weight.grad is not None])
        return math.hypot(*[norm.item() for norm in norms])

    def updated(self) -> Tensor | float:
        """See `Bare.updated`."""
        norm = self.norm()
        self.optimizer.grad_scale = torch.tensor(norm) if norm > LIMIT else None  # type: ignore[attr-defined]
        self.optimizer.step()
        return norm


class OurNorm(Frugal):
    """The same by our own norm."""

    name = "bare: clips by our norm, logs"

    def norm(self) -> float:
        """The gradients' norm as ours takes it."""
        return float(gradient_norm(self.parameters))


class Nothing(Bare):
    """Forward, backward, fused AdamW."""

    name = "bare: neither clips nor logs"

    def step(self) -> None:
        """One step."""
        self.learn(lambda phase: None)

    def updated(self) -> Tensor | float:
        """Changes the weights; there is no norm."""
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        return math.nan


class Ours(Bare):
    """Everything on."""

    name = "ours, everything on"

    def __init__(self, work: Work, folder: Path) -> None:
        super().__init__(work)
        ring = StepRing.create(folder / "ours.ring", model="bench", run="r")
        self.monitor = TrainingMonitor("bench", run="r", ring=ring)
        self.signals = Signals(self.monitor, Replicas(), judged_layers(self.network), LOOK_EVERY)
        self.course, self.rules = Course(), Rules()

    def step(self) -> None:
        """As the project's own loop does it."""
        monitor = self.monitor
        monitor.start()
        x, y = self.batch()
        monitor.mark("data_wait")
        monitor.mark("host_to_device")
        if self.signals.due(self.number):
            with self.signals.looking():
                outputs = self.network(x)
        else:
            outputs = self.network(x)
        loss = nn.functional.mse_loss(outputs, y)
        monitor.mark("forward")
        self.optimizer.zero_grad()
        told, begun = begin(outputs, loss)
        loss.backward(begun)
        monitor.mark("backward")
        norm, flag = clipped_step(self.optimizer, gradient_norm(self.parameters), LIMIT)
        monitor.mark("optimizer")
        self.signals.add(told, norm, flag)
        self.number += 1
        if self.number % READ_EVERY == 0:
            self.course, found = judge_reading(self.rules, self.course, self.signals.read(self.number))
            assert not found, found
        monitor.end(ROWS, loss=told, gradient_norm=norm, learning_rate=1e-4)

    def close(self) -> None:
        """Ends the thread."""
        self.monitor.close()


class RecordOnly(Bare):
    """The monitor alone: marks and records, without the guards' flags and readings."""

    name = "ours, records only, clips as the bare one"

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.monitor = TrainingMonitor("bench", run="r", drain_seconds=0)

    def step(self) -> None:
        """Marks, and the record."""
        self.monitor.start()
        loss, norm = self.learn(self.monitor.mark)
        self.monitor.end(ROWS, loss=loss, gradient_norm=norm, learning_rate=1e-4)


class Lightning(Bare):
    """`Throughput.update` and `compute` of Lightning, with the loss read as its loggers do."""

    name = "Lightning's Throughput"

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        from lightning_fabric.utilities.throughput import Throughput

        self.throughput, self.began = Throughput(), time.perf_counter()

    def step(self) -> None:
        """A step and its update."""
        loss, norm = self.learn(lambda phase: None)
        self.throughput.update(
            time=time.perf_counter() - self.began, batches=self.number, samples=self.number * ROWS, lengths=None
        )
        self.logged = {"loss": loss.item(), "norm": float(norm), **self.throughput.compute()}


class Composer(Bare):
    """SpeedMonitor and NaNMonitor, re-enacted."""

    name = "Composer's SpeedMonitor and NaNMonitor (re-enacted)"

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.walls: deque[float] = deque(maxlen=101)
        self.counts: deque[int] = deque(maxlen=101)

    def step(self) -> None:
        """A step, its window and its question."""
        loss, norm = self.learn(lambda phase: None)
        if torch.isnan(loss).any():
            raise RuntimeError("Train loss contains a NaN.")
        self.walls.append(time.time())
        self.counts.append(self.number * ROWS)
        if len(self.walls) == self.walls.maxlen:
            elapsed = self.walls[-1] - self.walls[0]
            rate = (self.counts[-1] - self.counts[0]) / elapsed
            self.logged = {"throughput/batches_per_sec": 100 / elapsed, "throughput/samples_per_sec": rate}
        self.losses = {"loss/train/total": loss.item(), "norm": float(norm)}


class Torchtitan(Bare):
    """torchtitan's structured logger: a span a phase, and its scalars."""

    name = "torchtitan's structured logger"

    def __init__(self, work: Work, folder: Path) -> None:
        super().__init__(work)
        from torchtitan.observability import structured_logger

        self.logger = structured_logger
        structured_logger.init_structured_logger(source="trainer", output_dir=str(folder), rank=0)

    def step(self) -> None:
        """A step in spans."""
        self.logger.set_step(self.number + 1)
        x, y = self.batch()
        with self.logger.log_trace_span("forward_backward"):
            loss = nn.functional.mse_loss(self.network(x), y)
            self.optimizer.zero_grad()
            loss.backward()
        with self.logger.log_trace_span("optimizer"):
            norm = self.updated()
        self.number += 1
        self.logger.log_trace_scalar({"loss": loss.item(), "norm": float(norm)})


def ways(folder: Path, peers: bool) -> list[Bare]:
    """The bare loops, ours, and with `peers` all else; a peer whose package is missing is told of and left out."""
    work = Work()
    found: list[Bare] = [Bare(work), Frugal(work), OurNorm(work), Nothing(work), Ours(work, folder), Bare(work)]
    found[5].name = "the first once more (what the method cannot tell apart)"
    if not peers:
        return found
    found += [RecordOnly(work), Composer(work)]
    for make in (lambda: Lightning(work), lambda: Torchtitan(work, folder)):
        try:
            found.append(make())
        except Exception as error:
            print(f"left out: {type(error).__name__}: {error}")
    return found


def main() -> None:
    """Parses, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help="only ours and the bare loops")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        compared = ways(Path(name), not chosen.alone)
        for way in compared:
            stack.callback(way.close)
        draw, taken = random.Random(chosen.seed), np.zeros((chosen.rounds, len(compared)))
        for _ in range(50):
            for way in compared:
                way.step()
        whole, own = time.process_time_ns(), time.thread_time_ns()
        for index in range(chosen.rounds):
            for place in draw.sample(range(len(compared)), len(compared)):
                began = time.thread_time_ns()
                compared[place].step()
                taken[index, place] = time.thread_time_ns() - began
        beside = (time.process_time_ns() - whole) - (time.thread_time_ns() - own)
    table(compared, taken, draw)
    print("\nours, everything on, against")
    for place in range(4):
        print(line(compared[place].name, taken, 4, place, draw))
    print(f"other threads (drain, machine): {beside / chosen.rounds / 1e3:.1f} us a round of {len(compared)} steps")


def table(compared: Sequence[Bare], taken: np.ndarray, draw: random.Random) -> None:
    """Every way against the first."""
    print(f"{len(taken)} rounds, bare step {np.median(taken[:, 0]) / 1e6:.3f} ms of processor time (median)")
    for place, way in enumerate(compared):
        print(line(way.name, taken, place, 0, draw))


def line(name: str, taken: np.ndarray, place: int, base: int, draw: random.Random) -> str:
    """What one way's steps take beyond another's, in microseconds, and as a share of theirs with its 95 % interval."""
    bare = np.median(taken[:, base])
    more, low, high = extra(taken[:, place] - taken[:, base], draw)
    return f"{name:56} {more / 1e3:8.1f} us  {more / bare:7.2%}  [{low / bare:.2%}, {high / bare:.2%}]"


def extra(differences: np.ndarray, draw: random.Random) -> tuple[float, float, float]:
    """The mean of the differences without the tenth at either end, which others' work makes, and its 95 % interval.

    A mean and not a median: what is done every 20 or 100 steps must count.
    """
    generator = np.random.default_rng(draw.randrange(1 << 30))
    blocks = differences[: len(differences) // 100 * 100].reshape(-1, 100)
    means = np.sort(blocks.mean(1))
    cut = len(means) // 10
    kept = means[cut : len(means) - cut] if cut else means
    drawn = [generator.choice(kept, len(kept)).mean() for _ in range(1000)]
    return float(kept.mean()), float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


if __name__ == "__main__":
    main()
