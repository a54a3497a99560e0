"""Fits a tabular network on parameter servers: batches are those of one process, shared out over the workers."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from observability import Metrics, TrainingMonitor
from observability.rank_agent import RankAgent
from observability.step_ring import StepRing
from training.data import Rows, batches
from training.faults import Faults
from training.parallel import read_work, write_work
from training.parameter_server.client import Replica
from training.parameter_server.cluster import Cluster, ClusterResult, WorkerContext
from training.parameter_server.form import ServersForm
from training.parameter_server.layout import Layout
from training.parameter_server.rules import Rule
from training.parameter_server.shard import Terms
from training.replicas import Called, log_loss
from training.train_config import TrainConfig
from training.unchanged import check_same

_LOOK_SECONDS = 1.0
_RINGS, _SETTINGS = "rings", "settings.json"


def fit_on_servers(
    network: nn.Module,
    rows: Rows,
    config: TrainConfig,
    form: ServersForm,
    *,
    folder: Path,
    model: str,
    run: str,
    metrics: Metrics | None = None,
    push_url: str | None = None,
    faults: Faults | None = None,
) -> ClusterResult:
    """Trains `network` in place, in processes that are started anew when they die; what `folder` holds is gone on with.

    Servers step at the configuration's rate, which stays: there is no warm-up, and no weight decay. Each worker clips
    its own gradients. Buffers stay as they are. Workers' steps are in `metrics`; servers push theirs to `push_url`.
    Raises as `Cluster`, LayoutError where the network has other parameters than float32, and DataError where `folder`
    holds a run of other settings.
    """
    layout = Layout.of(network, form.servers)
    # How many workers there are, and how far apart, may change; what shapes the steps may not.
    shaping = {name: value for name, value in asdict(config).items() if name not in ("device", "threads")}
    begun = {**shaping, "servers": form.servers, "rule": form.rule, "parameters": layout.fingerprint}
    begun["data"] = rows.digest
    check_same(folder / _SETTINGS, begun, "settings")
    write_work(folder, network, rows)
    cluster = Cluster(
        f"{__name__}:work",
        dict(network.named_parameters()),
        layout,
        folder=folder,
        model=model,
        workers=form.workers,
        rule=Rule(method=form.rule, learning_rate=config.learning_rate),
        terms=Terms(staleness=form.staleness, checkpoint_every=form.checkpoint_every),
        arguments={"folder": str(folder), "model": model, "run": run, "config": asdict(config)},
        faults=faults,
        push_url=push_url,
    )
    with _followed(folder, model, run, Metrics() if metrics is None else metrics):
        result = cluster.run()
    network.load_state_dict(result.parameters, strict=False)
    return result


def work(context: WorkerContext, *, folder: str, model: str, run: str, config: Mapping[str, Any]) -> None:
    """What a worker does: its share of every batch from the step at which it enters."""
    torch.set_num_threads(1)
    network, rows = read_work(Path(folder))
    chosen, client = TrainConfig(**config), context.client
    # Whoever enters anew draws other numbers than before: they are a worker's own.
    torch.manual_seed(chosen.seed * 1_000_003 + context.number + context.workers * context.attempt)
    steps = min(math.ceil(len(rows) / chosen.batch_size) * chosen.epochs, chosen.max_steps or sys.maxsize)
    replica, called = Replica(network.train(), client), Called(network)
    path = Path(folder) / _RINGS / f"{context.number:04d}-{context.attempt:04d}.ring"
    ring = StepRing.create(
        path, model=model, run=run, rank=context.number, world_size=context.workers, attempt=context.attempt
    )
    following, source = -1, _from(rows, chosen, 0)
    with TrainingMonitor(model, run=run, ring=ring, machine_seconds=0) as monitor:
        ring.state("running")
        monitor.resumed(client.clock)
        while (step := client.clock) < steps:
            monitor.start()
            context.strike(step)
            if step != following:  # the first, or the servers are further than this worker
                source = _from(rows, chosen, step)
            following, (inputs, labels) = step + 1, next(source)
            own = slice(context.number, None, context.workers)
            monitor.mark("data_wait")
            # Servers take the mean over workers: shares of unequal length count by their rows.
            weight = context.workers / len(labels)
            mine = [column[own] for column in inputs]
            loss, norm = _learned(replica, called, mine, labels[own], weight, chosen.clip_norm, monitor)
            monitor.end(len(labels[own]), loss=loss, gradient_norm=norm, learning_rate=chosen.learning_rate)
        ring.state("completed")


def _learned(
    replica: Replica,
    called: nn.Module,
    inputs: Sequence[Tensor],
    labels: Tensor,
    weight: float,
    limit: float,
    monitor: TrainingMonitor,
) -> tuple[Tensor, Tensor]:
    """One step on this worker's rows; gives the loss of their sum times `weight`, and the norm of its gradients."""
    replica.refresh()
    monitor.mark("communication")
    loss = log_loss(called(*inputs), labels) * weight
    monitor.mark("forward")
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(called.parameters(), limit)
    monitor.mark("backward")
    if not replica.push():
        monitor.skipped()
    monitor.mark("communication")
    return loss.detach(), norm


def _from(rows: Rows, config: TrainConfig, step: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """The batches of one process from a step on, without an end."""
    epoch, start = divmod(step, math.ceil(len(rows) / config.batch_size))
    while True:
        yield from batches(rows, config.batch_size, config.seed, epoch, start)
        epoch, start = epoch + 1, 0


@contextmanager
def _followed(folder: Path, model: str, run: str, metrics: Metrics) -> Iterator[None]:
    """Folds the workers' steps into `metrics` while the block runs, and once more at its end."""
    agent, over = RankAgent(model, run, metrics), threading.Event()
    # Those of a run that is gone on with were told of before.
    known = set((folder / _RINGS).glob("*.ring"))

    def look() -> None:
        new = sorted(set((folder / _RINGS).glob("*.ring")) - known)
        known.update(new)
        agent.follow(new)
        agent.look()

    def follow() -> None:
        while not over.wait(_LOOK_SECONDS):
            look()

    thread = threading.Thread(target=follow, name="workers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        look()
        agent.forget()
