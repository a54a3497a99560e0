"""A trained network that nobody has judged yet: fitted in one process or many, kept in a folder, read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from observability import TrainingMonitor
from training.artifact import unshared
from training.begun import ALONE, RANKS, SERVERS, way
from training.checkpoint import CheckpointStore
from training.data import DataError, Encoding, Rows, TabularTask, encode_rows, fit, predict
from training.guards.policy import GuardPolicy
from training.guards.record import RECORD, GuardRecord
from training.loop import Trainer, TrainResult
from training.network_check import check_for_servers, check_network
from training.nodes import Nodes
from training.outcome import TrainingStopped
from training.parallel import ParallelError, fit_in_ranks
from training.parallel_config import ParallelConfig
from training.parameter_server.cluster import ClusterError
from training.parameter_server.fitting import fit_on_servers
from training.parameter_server.form import Form, ServersForm
from training.parameter_server.layout import LayoutError
from training.profiling import profiled
from training.reference import HeldOut
from training.supervisor import Limits
from training.train_config import TrainConfig

RANKS_CHECKPOINT_EVERY = 100
WEIGHTS, VOCABULARIES = "weights.safetensors", "vocabularies.json"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained network with the vocabularies that its codes stand for."""

    network: nn.Module
    vocabularies: Mapping[str, tuple[str, ...]]
    start: str


def fit_candidate(
    task: TabularTask,
    rows: pa.Table,
    config: TrainConfig,
    monitor: TrainingMonitor,
    *,
    out: Path,
    vocabularies: Mapping[str, tuple[str, ...]] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    ranks: int = 1,
    parallel: Form | None = None,
    nodes: Nodes | None = None,
    push_url: str | None = None,
    profile: Path | None = None,
) -> Candidate:
    """Trains a network on `rows`. With `weights` (and their vocabularies) it starts warm, if they fit.

    Means and deviations always come from `rows`: standardising follows the season, the parameters carry over.
    Some steps are written to `profile`, but those of workers of parameter servers.
    """
    encoding = fit(task, rows)
    warm = weights is not None and vocabularies is not None
    if vocabularies is not None:
        encoding = type(encoding)(vocabularies, encoding.means, encoding.deviations)
    torch.manual_seed(config.seed)
    network = task.network(encoding)
    if weights is not None and warm:
        start_from(network, weights)
    encoded = encode_rows(task, encoding.vocabularies, rows)
    check_network(network, len(encoded), config.batch_size, _shares(ranks, parallel, nodes))
    world = ranks * (nodes.count if nodes else 1)
    in_ranks, parallel = way(out, world if not isinstance(parallel, ParallelConfig) else parallel.world_size, parallel)
    if isinstance(parallel, ServersForm):
        check_for_servers(network)
        _on_servers(network, encoded, config, monitor, out, parallel, push_url)
        return Candidate(network.eval(), encoding.vocabularies, "warm" if warm else "new")
    if in_ranks or nodes is not None:
        result = _in_ranks(network, encoded, config, monitor, out, ranks, parallel, nodes, profile)
    else:
        store = CheckpointStore(out / ALONE) if config.checkpoint_every else None
        trainer = Trainer(network, encoded, config, monitor, store, record=GuardRecord(out / RECORD))
        with nullcontext() if profile is None else profiled(monitor, profile):
            result = trainer.run()
    if result.outcome == "stopped":
        raise TrainingStopped(result.reason)
    return Candidate(network.cpu().eval(), encoding.vocabularies, "warm" if warm else "new")


def _shares(ranks: int, parallel: Form | None, nodes: Nodes | None) -> int:
    """Processes that share out a batch."""
    if isinstance(parallel, ServersForm):
        return parallel.workers
    return parallel.shares if parallel is not None else ranks * (nodes.count if nodes else 1)


def _in_ranks(
    network: nn.Module,
    rows: Rows,
    config: TrainConfig,
    monitor: TrainingMonitor,
    out: Path,
    ranks: int,
    parallel: ParallelConfig | None,
    nodes: Nodes | None,
    profile: Path | None,
) -> TrainResult:
    saving = config if config.checkpoint_every else replace(config, checkpoint_every=RANKS_CHECKPOINT_EVERY)
    monitor.machine = None  # the supervisor samples the processes that train
    try:
        result, _ = fit_in_ranks(
            network,
            rows,
            saving,
            world_size=parallel.world_size if parallel is not None else ranks * (nodes.count if nodes else 1),
            parallel=parallel,
            nodes=nodes,
            folder=out / RANKS,
            model=monitor.model,
            run=monitor.run,
            metrics=monitor.metrics,
            limits=limits_of(config.guards),
            profile=profile,
            tracing=monitor.tracing,
        )
    except ParallelError as error:
        raise TrainingStopped(str(error)) from error
    return result


def _on_servers(
    network: nn.Module,
    rows: Rows,
    config: TrainConfig,
    monitor: TrainingMonitor,
    out: Path,
    form: ServersForm,
    push_url: str | None,
) -> None:
    try:
        fit_on_servers(
            network,
            rows,
            config,
            form,
            folder=out / SERVERS,
            model=monitor.model,
            run=monitor.run,
            metrics=monitor.metrics,
            push_url=push_url,
        )
    except (ClusterError, LayoutError) as error:
        raise TrainingStopped(str(error)) from error


def limits_of(policy: GuardPolicy) -> Limits:
    """What a supervisor of ranks is to do about those of a policy's guards that it judges itself."""
    chosen: dict[str, Any] = {"on_straggler": policy.straggler, "on_device": policy.device}
    return Limits(**chosen)


def start_from(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies the parameters (not the buffers) from `weights`. DataError where a name or shape does not fit."""
    for name, parameter in network.named_parameters():
        found = weights.get(name)
        if found is None or found.shape != parameter.shape:
            seen = "missing" if found is None else f"of shape {list(found.shape)}"
            raise DataError(f"the champion's {name} is {seen}, {list(parameter.shape)} is needed: start anew")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(weights[name])


def predicted(task: TabularTask, candidate: Candidate, table: pa.Table) -> HeldOut:
    """The candidate's probabilities of rows whose labels are known."""
    rows = encode_rows(task, candidate.vocabularies, table)
    return HeldOut(table, rows.labels.double().numpy(), predict(candidate.network, rows.inputs), rows.groups)


def write_candidate(folder: Path, candidate: Candidate) -> list[Path]:
    """Keeps a candidate; gives the files."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(unshared(candidate.network.state_dict()), folder / WEIGHTS)
    said = {"start": candidate.start, "vocabularies": {name: list(one) for name, one in candidate.vocabularies.items()}}
    (folder / VOCABULARIES).write_text(json.dumps(said), encoding="utf-8")
    return [folder / WEIGHTS, folder / VOCABULARIES]


def read_candidate(folder: Path, task: TabularTask, rows: pa.Table) -> Candidate:
    """The candidate that was trained on these rows and kept in a folder."""
    said = json.loads((folder / VOCABULARIES).read_text(encoding="utf-8"))
    vocabularies = {name: tuple(one) for name, one in said["vocabularies"].items()}
    fitted = fit(task, rows)
    network = task.network(Encoding(vocabularies, fitted.means, fitted.deviations))
    network.load_state_dict(load_file(folder / WEIGHTS))
    return Candidate(network.eval(), vocabularies, said["start"])
