"""A training spread over ranks that a supervisor keeps running: the same result as in one process, in less time."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from observability.metrics import Metrics
from observability.training import TrainingMonitor
from training import sharding
from training.checkpoint import CheckpointError, CheckpointStore
from training.data import Rows
from training.disk import fullness
from training.faults import Faults
from training.guards.record import RECORD, GuardRecord
from training.loop import Trainer, TrainResult
from training.nodes import Follower, Nodes, NodesError, meeting_of
from training.parallel_config import ParallelConfig
from training.pipeline import stages_of
from training.profiling import of_rank, profiled
from training.ranks import Rank
from training.replicas import Replicas, take_whole
from training.retention import Retention
from training.supervisor import Limits, RunResult, Supervisor
from training.train_config import TrainConfig

if TYPE_CHECKING:
    from observability.tracing import Tracing

_TARGET, _PREPARE = "training.parallel:fit_rank", "training.parallel:prepare"
# Of ranks that write what they recorded when Ctrl-C ends the run; and their exit status.
_PARTING_SECONDS, _INTERRUPTED = 10.0, 130
_WORK, _RESULT, _CHECKPOINTS = "work.pt", "result.json", "checkpoints"


class ParallelError(RuntimeError):
    """The ranks did not train to the end; the message says what ended the last attempt, and `run` holds them all."""

    def __init__(self, message: str, run: RunResult) -> None:
        super().__init__(message)
        self.run = run


def fit_in_ranks(
    network: nn.Module,
    rows: Rows,
    config: TrainConfig,
    *,
    world_size: int,
    folder: Path,
    model: str,
    run: str,
    metrics: Metrics | None = None,
    limits: Limits | None = None,
    faults: Faults | None = None,
    echo: int | None = 0,
    parallel: ParallelConfig | None = None,
    nodes: Nodes | None = None,
    profile: Path | None = None,
    tracing: Tracing | None = None,
) -> tuple[TrainResult, RunResult]:
    """Trains `network` in place, in `world_size` processes that survive kills and hangs.

    `parallel` says how it is spread over them, by default as replicas; with it, every rank writes its own parts of the
    checkpoints, while it trains on, and a run goes on in any other form. What was begun in `folder` is gone on with.
    Raises ParallelError when the run is given up (with ResumeError as the reason when the folder holds another run),
    WarmError when the ranks cannot be started, FormError where the form fits neither ranks nor network.

    With `nodes` this is node 0 of several, on each of which as many of the `world_size` ranks run; the others call
    `follow_in_ranks`. NodesError where one of them does not come.
    """
    if parallel is not None:
        check_form(network, parallel, world_size)
    if not config.checkpoint_every:
        raise ValueError("checkpoint_every is 0: ranks that are started anew need a checkpoint to go on from")
    folder.mkdir(parents=True, exist_ok=True)
    write_work(folder, network, rows)
    arguments = {
        "config": asdict(config),
        "model": model,
        "faults": (faults or Faults()).to_json(),
        "folder": str(folder),
        "parallel": None if parallel is None else parallel.to_json(),
        "profile": None if profile is None else str(profile.absolute()),
    }
    said = {"world_size": world_size, "model": model, "run": run, "arguments": arguments}
    supervisor = Supervisor(
        _TARGET,
        world_size=world_size,
        folder=folder,
        model=model,
        run=run,
        arguments=arguments,
        prepare=_PREPARE,
        metrics=metrics,
        limits=limits,
        echo=echo,
        nodes=nodes,
        meeting=None if nodes is None else meeting_of(nodes, folder, said),
        parting_seconds=_PARTING_SECONDS if profile else 0.0,
        tracing=tracing,
    )
    ended = supervisor.run()
    if ended.outcome != "completed":
        raise ParallelError(ended.reason, ended)
    newest = _store(folder, parallel).newest()
    if newest is None:
        raise CheckpointError(
            f"{folder / _CHECKPOINTS} holds no checkpoint that verifies, though the run completed{fullness(folder)}"
        )
    take_whole(network, newest.tensors("network"))
    result = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
    result["losses"] = tuple((int(step), float(loss)) for step, loss in result["losses"])
    return TrainResult(**result), ended


def follow_in_ranks(
    nodes: Nodes, within: Path, *, metrics: Metrics | None = None, limits: Limits | None = None
) -> RunResult:
    """Runs this node's ranks of the training that node 0 leads; its run's folder is seen here in `within`.

    NodesError where node 0 cannot be reached, or works in a folder that is not there; WarmError as `fit_in_ranks`.
    """
    follower = Follower(nodes)
    said = follower.told()
    theirs = Path(said["arguments"]["folder"])
    follower.folder = folder = within / theirs.parent.name / theirs.name
    if ".." in folder.parts or not folder.is_dir():
        raise NodesError(
            f"node 0 works in {theirs}, and {folder} is not there: the nodes of a run share one folder; mount the same "
            "place on all"
        )
    supervisor = Supervisor(
        _TARGET,
        world_size=said["world_size"],
        folder=folder,
        model=said["model"],
        run=said["run"],
        arguments={**said["arguments"], "folder": str(folder)},
        prepare=_PREPARE,
        metrics=metrics,
        limits=limits,
        echo=None,
        nodes=nodes,
        meeting=follower,
        parting_seconds=_PARTING_SECONDS if said["arguments"].get("profile") else 0.0,
    )
    return supervisor.run()


def prepare(folder: str, **_: Any) -> dict[str, Any]:
    """Loads and reads what all ranks share, once, before they are forked."""
    sharding.load()
    network, rows = read_work(Path(folder))
    rows.digest  # noqa: B018 - taken here, once for all ranks of all attempts
    return {"network": network, "rows": rows}


def fit_rank(
    rank: Rank,
    network: nn.Module,
    rows: Rows,
    config: Mapping[str, Any],
    model: str,
    faults: Sequence[Mapping[str, Any]],
    folder: str,
    parallel: Mapping[str, Any] | None = None,
    profile: str | None = None,
) -> None:
    """What a rank does: see `fit_in_ranks`. A script that `torchrun` started calls it with `Rank.of(os.environ, …)`."""
    form = None if parallel is None else ParallelConfig.from_json(parallel)
    if form is not None:
        check_form(network, form, rank.world_size)
    ring = rank.ring(model)
    chosen = TrainConfig(**config)
    monitor = TrainingMonitor(model, run=rank.run, ring=ring, device=chosen.device, machine_seconds=0)
    with monitor, rank.group(ring=ring):
        if dist.is_initialized():
            replicas: Replicas = sharding.Spread(form or ParallelConfig(data=rank.world_size), chosen.device)
        else:
            replicas = Replicas()
        store = _store(Path(folder), form)
        record = GuardRecord(Path(folder) / RECORD)
        planned = Faults.from_json(faults)
        trainer = Trainer(network, rows, chosen, monitor, store, replicas, planned, rank.attempt, record)
        ring.state("running")
        with _profiled(monitor, profile, rank):
            result = trainer.run()
        ring.state("completed")
    if rank.rank == 0:
        partial = Path(folder) / f"{_RESULT}.partial"
        partial.write_text(json.dumps(asdict(result)), encoding="utf-8")
        partial.replace(Path(folder) / _RESULT)


def _profiled(monitor: TrainingMonitor, profile: str | None, rank: Rank) -> AbstractContextManager[None]:
    if profile is None:
        return nullcontext()

    def part(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise SystemExit(_INTERRUPTED)

    # Ctrl-C would end the rank at once, with what it has recorded.
    signal.signal(signal.SIGINT, part)
    return profiled(monitor, of_rank(Path(profile), rank.rank), f"rank {rank.rank} of {rank.world_size}")


def check_form(network: nn.Module, parallel: ParallelConfig, world_size: int) -> None:
    """FormError where the form fits neither the number of ranks nor the network; no group needs to be open."""
    parallel.check(world_size)
    if parallel.tensor > 1:
        sharding.styles(network, sharding.plan_of(network, parallel.plan))
    if parallel.pipeline > 1:
        stages_of(network, parallel)


def _store(folder: Path, parallel: ParallelConfig | None) -> CheckpointStore | sharding.ShardedCheckpointStore:
    place = folder / _CHECKPOINTS
    return CheckpointStore(place, retention=Retention()) if parallel is None else sharding.ShardedCheckpointStore(place)


def write_work(folder: Path, network: nn.Module, rows: Rows) -> None:
    """Writes what the processes of a run are to train, for our eyes alone."""
    path = folder / _WORK
    partial = path.with_suffix(".partial")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        torch.save({"network": network, "rows": rows}, file)
    partial.replace(path)


def read_work(folder: Path) -> tuple[nn.Module, Rows]:
    """What `write_work` wrote."""
    # Our own file of a moment ago, in a folder of the run's owner; a module is nothing without its class.
    work = torch.load(folder / _WORK, weights_only=False)
    return work["network"], work["rows"]
