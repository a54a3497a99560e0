"""A training spread over ranks that a supervisor keeps running: the same result as in one process, in less time."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from observability.metrics import Metrics
from observability.training import TrainingMonitor
from training.checkpoint import CheckpointError, CheckpointStore
from training.data import Rows
from training.faults import Faults
from training.loop import TrainConfig, Trainer, TrainResult
from training.parallel_config import ParallelConfig
from training.ranks import Rank
from training.replicas import Replicas
from training.spread import Spread
from training.supervisor import Limits, RunResult, Supervisor

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
) -> tuple[TrainResult, RunResult]:
    """Trains `network` in place, in `world_size` processes that survive kills and hangs.

    What was begun in `folder` is gone on with. Raises ParallelError when the run is given up (with ResumeError as the
    reason when the folder holds another run), WarmError when the ranks cannot be started.
    """
    if not config.checkpoint_every:
        raise ValueError("checkpoint_every is 0: ranks that are started anew need a checkpoint to go on from")
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / _WORK, network, rows)
    supervisor = Supervisor(
        "training.parallel:fit_rank",
        world_size=world_size,
        folder=folder,
        model=model,
        run=run,
        arguments={
            "config": asdict(config),
            "model": model,
            "faults": (faults or Faults()).to_json(),
            "folder": str(folder),
        },
        prepare="training.parallel:prepare",
        metrics=metrics,
        limits=limits,
        echo=echo,
    )
    ended = supervisor.run()
    if ended.outcome != "completed":
        raise ParallelError(ended.reason, ended)
    newest = CheckpointStore(folder / _CHECKPOINTS).newest()
    if newest is None:
        raise CheckpointError(f"{folder / _CHECKPOINTS} holds no checkpoint that verifies, though the run completed")
    network.load_state_dict(newest.state["network"])
    said = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
    said["losses"] = tuple((int(step), float(loss)) for step, loss in said["losses"])
    return TrainResult(**said), ended


def prepare(folder: str, **_: Any) -> dict[str, Any]:
    """Reads what all ranks share, once, before they are forked."""
    # Our own file of a moment ago, in a folder of the run's owner; a module is nothing without its class.
    work = torch.load(Path(folder) / _WORK, weights_only=False)
    return {"network": work["network"], "rows": work["rows"]}


def fit_rank(
    rank: Rank,
    network: nn.Module,
    rows: Rows,
    config: Mapping[str, Any],
    model: str,
    faults: Sequence[Mapping[str, Any]],
    folder: str,
) -> None:
    """What a rank does: see `fit_in_ranks`."""
    ring = rank.ring(model)
    chosen = TrainConfig(**config)
    monitor = TrainingMonitor(model, run=rank.run, ring=ring, device=chosen.device)
    with monitor, rank.group(ring=ring):
        replicas = Spread(ParallelConfig(data=rank.world_size)) if rank.world_size > 1 else Replicas()
        store = CheckpointStore(Path(folder) / _CHECKPOINTS)
        trainer = Trainer(network, rows, chosen, monitor, store, replicas, Faults.from_json(faults), rank.attempt)
        ring.state("running")
        result = trainer.run()
        ring.state("completed")
    if rank.rank == 0:
        partial = Path(folder) / f"{_RESULT}.partial"
        partial.write_text(json.dumps(asdict(result)), encoding="utf-8")
        partial.replace(Path(folder) / _RESULT)


def _write(path: Path, network: nn.Module, rows: Rows) -> None:
    """Writes what only we read, for our eyes alone."""
    partial = path.with_suffix(".partial")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        torch.save({"network": network, "rows": rows}, file)
    partial.replace(path)
