"""Parallel forms of a training on gloo: their loss curves, replicas' throughput, the pipeline's bubble, saving's stall.

    python benchmarks/parallel.py [curves] [speed] [bubble] [stall] [servers]
    torchrun --nproc-per-node 2 benchmarks/parallel.py torchrun fsdp=2

- curves: 100 steps in each form, on 2 and 4 processes; the largest distance to one process's losses.
- speed: samples a second of one process, of two replicas by our loop and by torch's own, and of two processes that
  never speak, which is the limit of these cores; one thread each, in turns; what of a step the gradients take.
- bubble: stages that sleep, so that the machine's cores do not matter, against (p - 1) / (v m + p - 1).
- servers: samples a second of two workers on two parameter servers, by staleness, against one process and against two
  replicas of the same network by DDP, and by processor time of a worker; how far ahead workers were, at most.
- stall: how long `put` and `settle` keep a training from going on, as a share of what the writing takes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn

from tests.training.toy_forms import curve
from training.parallel_config import ParallelConfig
from training.parameter_server import Cluster, Layout, Replica, Rule, Terms, WorkerContext
from training.ranks import Rank
from training.replicas import Replicas, log_loss
from training.sharded_checkpoint import ShardedCheckpointStore
from training.spread import Spread
from training.supervisor import Limits, Supervisor
from training.train_config import TrainConfig
from training.watch import HangLimits

CONFIG = TrainConfig(epochs=10, batch_size=101, learning_rate=0.01, report_every=1, seed=5, threads=1)
FORMS = {
    2: (
        "data=2", "fsdp=2", "tensor=2", "pipeline=2,schedule=gpipe", "pipeline=2,schedule=1f1b",
        "pipeline=2,schedule=interleaved", "data=2,compress=fp16", "data=2,compress=bf16", "data=2,compress=powersgd",
    ),
    4: (
        "data=4", "fsdp=4", "tensor=4", "data=2,fsdp=2", "data=2,tensor=2", "fsdp=2,tensor=2", "pipeline=2,data=2",
        "pipeline=2,data=2,schedule=gpipe", "pipeline=2,data=2,schedule=interleaved", "pipeline=2,fsdp=2",
        "pipeline=2,tensor=2", "pipeline=4,microbatches=8", "data=4,compress=fp16", "data=4,compress=bf16",
        "data=4,compress=powersgd", "pipeline=2,data=2,compress=fp16", "pipeline=2,data=2,compress=powersgd",
    ),
}  # fmt: skip
ROWS, WIDTH, ROUNDS, STEPS, GOAL = 1024, 512, 10, 3, 1.7
WARM_STEPS, SERVED_STEPS = 3, 30


def ranks(target: str, world_size: int, **arguments: Any) -> list[Any]:
    """What the target's ranks wrote, by rank."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        supervisor = Supervisor(
            f"benchmarks.parallel:{target}", world_size=world_size, folder=folder, model="parallel",
            arguments=arguments, limits=Limits(restarts=0, hang=HangLimits(step=500.0, first=500.0)), echo=None,
        )  # fmt: skip
        result = supervisor.run()
        if result.outcome != "completed":
            raise SystemExit(f"{target}: {result.reason}")
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]


def say(rank: Rank, found: Any) -> None:
    """Hands a rank's findings to the process that started it."""
    (rank.folder / f"{rank.rank}.json").write_text(json.dumps(found))


def fit_curves(rank: Rank, forms: list[str]) -> None:
    """A rank of `curves`."""
    with rank.group(timeout=600):
        say(rank, {form: curve(form, Spread(ParallelConfig.parse(form)), None, CONFIG) for form in forms})


def curves() -> dict[str, Any]:
    """The largest distance of each form's losses to one process's."""
    alone = curve("one process", Replicas(), None, CONFIG)
    found: dict[str, Any] = {"steps": len(alone)}
    for world_size, forms in FORMS.items():
        for form, losses in ranks("fit_curves", world_size, forms=list(forms))[0].items():
            found[form] = max(abs(one - other) for one, other in zip(losses, alone, strict=True))
    return found


def wide() -> nn.Sequential:
    """A network that computes more than it says."""
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 1), nn.Flatten(0))


def batch_of(share: int) -> tuple[Tensor, Tensor]:
    """`ROWS` rows and their labels, others for each share."""
    inputs = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(share))
    return inputs, (inputs[:, 0] > 0).float()


def ours(replicas: Replicas) -> Callable[[], None]:
    """A step of our loop's parallel part."""
    replicas.take(wide(), batch_size=ROWS * replicas.shares)
    optimizer = torch.optim.SGD(replicas.parameters, lr=1e-3)
    inputs, labels = batch_of(replicas.share_index)

    def step() -> None:
        replicas.learn([inputs], labels, ROWS * replicas.shares)
        optimizer.step()

    return step


def bare(rank: int) -> Callable[[], None]:
    """A step of torch's own replicas, as its documentation has it."""
    replicas = nn.parallel.DistributedDataParallel(wide(), gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(replicas.parameters(), lr=1e-3)
    inputs, labels = batch_of(rank)

    def step() -> None:
        optimizer.zero_grad()
        log_loss(replicas(inputs), labels).div(ROWS).backward()
        optimizer.step()

    return step


def fit_speed(rank: Rank) -> None:
    """A rank of `speed`: rounds of each way in turns, in another order each round; of one process rank 1 waits."""
    torch.set_num_threads(1)
    with rank.group(timeout=600):
        together = Spread(ParallelConfig(data=2))
        alone = ours(Replicas())
        ways = {"alone": alone, "apart": alone, "torch": bare(rank.rank), "ours": ours(together)}
        for step in ways.values():
            torch.distributed.barrier()
            for _ in range(3):
                step()
        together.communication()
        taken: dict[str, list[float]] = {name: [] for name in ways}
        # Processor seconds: those of other programs do not count.
        spent: dict[str, list[float]] = {name: [] for name in ways}
        order, chance = list(ways), random.Random(1)
        for _ in range(ROUNDS):
            chance.shuffle(order)
            for name in order:
                torch.distributed.barrier()
                began, cpu = time.perf_counter(), time.process_time()
                if name != "alone" or rank.rank == 0:
                    for _ in range(STEPS):
                        ways[name]()
                    spent[name].append(time.process_time() - cpu)
                    if name != "alone":
                        torch.distributed.barrier()
                    taken[name].append(time.perf_counter() - began)
                if name == "alone":
                    torch.distributed.barrier()
        say(rank, {"taken": taken, "spent": spent, "communication": together.communication()})


def speed() -> dict[str, Any]:
    """Throughput of two replicas against one process, round by round, beside what two processes reach that never speak:
    no form of training can be faster on these cores."""
    found = ranks("fit_speed", 2)
    taken, spent = (found[0][name] for name in ("taken", "spent"))

    def times(name: str) -> list[float]:
        """Times one process's throughput, by round."""
        return [2 * one / both for one, both in zip(taken["alone"], taken[name], strict=True)]

    def by_processor(name: str) -> float:
        """Times one process's throughput that cores of their own would give at most."""
        return 2 * statistics.median(spent["alone"]) / statistics.median(spent[name])

    said: dict[str, Any] = {
        "alone_samples_s": round(statistics.median(ROWS * STEPS / one for one in taken["alone"]), 1),
        "together_samples_s": round(statistics.median(2 * ROWS * STEPS / one for one in taken["ours"]), 1),
        "goal": GOAL,
    }
    for name in ("ours", "torch", "apart"):
        said[name] = {
            "ratio_median": round(statistics.median(times(name)), 3),
            # Of the rounds that other programs disturbed least.
            "ratio_of_best_rounds": round(2 * min(taken["alone"]) / min(taken[name]), 3),
            "ratio_by_processor_time": round(by_processor(name), 3),
            "of_limit": round(statistics.median(times(name)) / statistics.median(times("apart")), 3),
            "of_limit_by_processor_time": round(by_processor(name) / by_processor("apart"), 3),
        }
    said["communication_ms"] = [round(1e3 * one["communication"][0], 3) for one in found]
    return said


def on_servers(context: WorkerContext, folder: str) -> None:
    """A worker of `servers`."""
    torch.set_num_threads(1)
    network, client = wide(), context.client
    replica, ahead = Replica(network, client), [0]
    inputs = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(context.number))
    labels, cpu, began = (inputs[:, 0] > 0).float(), 0.0, 0.0
    while (step := client.clock) < WARM_STEPS + SERVED_STEPS:
        if step == WARM_STEPS:
            cpu, began = time.process_time(), time.time()
        replica.refresh()
        ahead.append(client.ahead)
        log_loss(network(inputs), labels).div(ROWS).backward()  # type: ignore[no-untyped-call]
        replica.push()
    said = {"cpu": time.process_time() - cpu, "began": began, "ended": time.time(), "waited": client.waited}
    (Path(folder) / f"{context.number}.json").write_text(json.dumps({**said, "ahead": max(ahead)}))


def served(staleness: int) -> dict[str, Any]:
    """Two workers and two servers."""
    with tempfile.TemporaryDirectory() as place:
        network, workers = wide(), 2
        Cluster(
            "benchmarks.parallel:on_servers", dict(network.named_parameters()), Layout.of(network, 2),
            folder=Path(place), model="parallel", workers=workers, rule=Rule(learning_rate=1e-3),
            terms=Terms(staleness=staleness, checkpoint_every=1000), arguments={"folder": place}, restarts=0,
        ).run()  # fmt: skip
        said = [json.loads((Path(place) / f"{number}.json").read_text()) for number in range(workers)]
    seconds = max(one["ended"] for one in said) - min(one["began"] for one in said)
    return {
        "samples_s": round(workers * ROWS * SERVED_STEPS / seconds, 1),
        "samples_cpu_s": round(ROWS * SERVED_STEPS / statistics.mean(one["cpu"] for one in said), 1),
        "waited_share": round(statistics.mean(one["waited"] for one in said) / seconds, 3),
        "ahead_at_most": max(one["ahead"] for one in said),
        "bound": staleness,
    }


def servers() -> dict[str, Any]:
    """Parameter servers against one process and against DDP."""
    compared = speed()
    found: dict[str, Any] = {name: compared[name] for name in ("alone_samples_s", "together_samples_s")}
    for staleness in (0, 1, 4):
        one = served(staleness)
        one["to_one_process"] = round(one["samples_s"] / compared["alone_samples_s"], 3)
        one["to_ddp"] = round(one["samples_s"] / compared["together_samples_s"], 3)
        found[f"staleness {staleness}"] = one
    return found


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor, seconds: float) -> Tensor:
        context.seconds = seconds
        time.sleep(seconds)
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        time.sleep(2 * context.seconds)
        return gradient, None


class Sleeper(nn.Module):
    """A stage that takes `seconds` forward and twice that backward, and no core."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.weight, self.seconds = nn.Parameter(torch.ones(1)), seconds

    def forward(self, value: Tensor) -> Tensor:
        found: Tensor = _Sleep.apply(value * self.weight, self.seconds)  # type: ignore[no-untyped-call]
        return found


def fit_bubble(rank: Rank, forms: list[str], seconds: float) -> None:
    """A rank of `bubble`."""
    with rank.group(timeout=600):
        found = {}
        for form in forms:
            config = ParallelConfig.parse(form)
            replicas = Spread(config)
            parts = config.pipeline * config.num_chunks
            batch = config.num_microbatches
            # The same work in all, in as many parts as the form has.
            replicas.take(
                nn.Sequential(*(Sleeper(seconds / config.num_chunks) for _ in range(parts))), batch_size=batch
            )
            for _ in range(4):
                replicas.learn([torch.ones(batch)], torch.ones(batch), batch)
            assert replicas.pipeline is not None
            found[form] = [replicas.pipeline.bubble, config.bubble]
        say(rank, found)


def bubble() -> dict[str, Any]:
    """Measured bubbles, averaged over the ranks, and those of the formula."""
    found = {}
    for world_size, forms in (
        (
            2,
            [
                f"pipeline=2,schedule={kind},microbatches={m}"
                for kind in ("gpipe", "1f1b", "interleaved")
                for m in (4, 8)
            ],
        ),
        (4, ["pipeline=4,schedule=gpipe,microbatches=8", "pipeline=4,schedule=1f1b,microbatches=8"]),
    ):
        said = ranks("fit_bubble", world_size, forms=forms, seconds=0.1)
        for form in forms:
            measured = statistics.mean(one[form][0] for one in said)
            found[form] = {"measured": round(measured, 4), "formula": round(said[0][form][1], 4)}
    return found


def fit_stall(rank: Rank, megabytes: int) -> None:
    """A rank of `stall`: saves while it trains."""
    torch.set_num_threads(1)
    with rank.group(timeout=600):
        replicas = Spread(ParallelConfig(fsdp=2))
        torch.manual_seed(0)
        width = int((megabytes * 2**20 / 4 / 3 / 8) ** 0.5)
        replicas.take(nn.Sequential(*(nn.Linear(width, width) for _ in range(8)), nn.Linear(width, 1), nn.Flatten(0)))
        optimizer = torch.optim.AdamW(replicas.parameters, fused=True)
        store = ShardedCheckpointStore(rank.folder / "checkpoints")
        inputs, labels = torch.randn(8, width), torch.ones(8)

        def trained() -> None:
            replicas.learn([inputs], labels, 16)
            store.settle()
            optimizer.step()

        trained()
        for step in range(1, 11):
            # As the loop does it: what only the optimizer changes is copied behind the next forward and backward pass.
            state = dict(replicas.state(optimizer))
            store.put(step, state, lambda *_: None, still=("network", "optimizer"))
            # Training goes on; the next save must not have to wait for this one.
            while True:
                trained()
                busy = torch.tensor(float(store.busy))
                torch.distributed.all_reduce(busy)
                if not busy:
                    break
            store.wait()
        size = sum(path.stat().st_size for path in store.paths()[-1].iterdir())
        # The first saves set memory aside.
        say(rank, {"megabytes": size / 2**20, "stalls": store.times.stalls[2:], "writes": store.times.writes[2:]})


def stall() -> dict[str, Any]:
    """Medians over saves of the slower rank."""
    found = ranks("fit_stall", 2, megabytes=72)
    by_rank = [[one / other for one, other in zip(rank["stalls"], rank["writes"], strict=True)] for rank in found]
    shares = [max(one) for one in zip(*by_rank, strict=True)]
    return {
        "megabytes": round(found[0]["megabytes"], 1),
        "stall_ms": round(1e3 * statistics.median(found[0]["stalls"]), 2),
        "write_ms": round(1e3 * statistics.median(found[0]["writes"]), 1),
        "share_median": round(statistics.median(shares), 4),
        "share_worst": round(max(shares), 4),
    }


def under_torchrun(form: str) -> None:
    """The losses of a form whose ranks `torchrun` started."""
    with tempfile.TemporaryDirectory() as place:
        rank = Rank.of(os.environ, run="torchrun", folder=Path(place))
        with rank.group(timeout=600):
            losses = curve(form, Spread(ParallelConfig.parse(form)), None, CONFIG)
            if rank.rank == 0:
                alone = curve("one process", Replicas(), None, CONFIG)
                distance = max(abs(one - other) for one, other in zip(losses, alone, strict=True))
                print(json.dumps({"torchrun": form, "distance": distance, "steps": len(losses)}))


def main() -> None:
    """Prints one JSON object."""
    known = {"curves": curves, "speed": speed, "bubble": bubble, "stall": stall, "servers": servers}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(known)}; all of them if none is named")
    wanted = parser.parse_args().parts or list(known)
    if wanted[0] == "torchrun" and len(wanted) == 2:
        under_torchrun(wanted[1])
        return
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"there is no part {unknown[0]!r}; there are: {', '.join(known)}")
    print(json.dumps({name: known[name]() for name in wanted}, indent=2))


if __name__ == "__main__":
    main()
