"""One training run from a table to a registered version: fit, evaluate on later days, gate, register with lineage."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from observability import Metrics, TrainingMonitor, push
from training.artifact import write_artifact
from training.checkpoint import CheckpointStore
from training.data import DataError, Rows, TabularTask, encode_rows, fit, labelled, predict, split_recent
from training.evaluate import Gate, GateDecision, Scores, score
from training.guards.record import RECORD, GuardRecord
from training.lineage import Lineage, code_revision
from training.loop import RestartRun, TrainConfig, Trainer, TrainResult
from training.parallel import ParallelError, fit_in_ranks
from training.parallel_config import FormError, ParallelConfig
from training.reference import Beside, HeldOut, reference_body

PUSH_JOB = "trimtab-train"
PUSH_SECONDS = 1.0
RANKS_CHECKPOINT_EVERY = 100
_log = logging.getLogger(__name__)


class RegisteredVersion(Protocol):
    """What a registry answers: the number of the version."""

    @property
    def version(self) -> int: ...


class ModelRegistry(Protocol):
    """Where a version that passed its gate goes; the front door hands one over."""

    def register(
        self,
        model: str,
        artifact_dir: Path,
        *,
        lineage: Mapping[str, Any],
        profile: bytes | None,
        metrics: Mapping[str, Any],
    ) -> RegisteredVersion: ...


class TrainingStopped(RuntimeError):
    """The guard ended the run; the message is its reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """A first version of a model: what to learn, from which rows, and where to work."""

    task: TabularTask
    table: pa.Table
    """Columns of the task; rows without a label count for the reference profile only."""
    source: str
    """Where the rows come from; for the lineage."""
    out: Path
    """Folder for the artifact, and for checkpoints if the configuration asks for any."""
    config: TrainConfig = field(default_factory=TrainConfig)
    held_out: float = 0.2
    """Share of the groups, the latest, that only the gate sees."""
    gate: Gate = field(default_factory=Gate)
    ranks: int = 1
    """Processes that share out each batch, and are started anew when they die or hang."""
    parallel: ParallelConfig | None = None
    """How the network is spread over processes, whose number it gives; None: as replicas over `ranks`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOutcome:
    """How a run ended: `completed` (registered), `rejected` by the gate, or `failed`; `reason` says why."""

    model: str
    run: str
    outcome: Literal["completed", "rejected", "failed"]
    reason: str
    version: int | None = None
    parent: int | None = None
    start: str = "new"
    rows: int = 0
    window: tuple[str, str] | None = None
    scores: Scores | None = None
    gate: GateDecision | None = None
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether there is a new version."""
        return self.outcome == "completed"

    @property
    def exit_code(self) -> int:
        """0 completed, 2 rejected, 1 failed."""
        return {"completed": 0, "rejected": 2, "failed": 1}[self.outcome]

    def to_json(self) -> dict[str, Any]:
        """The outcome as a JSON object."""
        return {
            "model": self.model,
            "run": self.run,
            "outcome": self.outcome,
            "passed": self.passed,
            "reason": self.reason,
            "version": self.version,
            "parent": self.parent,
            "start": self.start,
            "rows": self.rows,
            "window": list(self.window) if self.window else None,
            "metrics": self.scores.to_json() if self.scores else {},
            "gate": self.gate.to_json() if self.gate else None,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained network with the vocabularies that its codes stand for."""

    network: nn.Module
    vocabularies: Mapping[str, tuple[str, ...]]
    start: str


def train(
    job: TrainJob,
    registry: ModelRegistry,
    *,
    metrics: Metrics | None = None,
    push_url: str | None = None,
    run: str | None = None,
    beside: Beside | None = None,
    joint: bool = False,
) -> TrainOutcome:
    """Trains a first version; it is registered only if it beats the base rate of the held-out groups. Never raises.

    `push_url` takes the metrics of this short-lived job (a Pushgateway or the collector's intake). `beside` makes what
    is registered beside the reference profile, which with `joint` has a joint part.
    """

    def learn(monitor: TrainingMonitor, run: str) -> TrainOutcome:
        rows = labelled(job.task, job.table)
        split = split_recent(rows, job.task.group, job.held_out)
        candidate = fit_candidate(
            job.task, split.train, job.config, monitor, out=job.out, ranks=job.ranks, parallel=job.parallel
        )
        held_out = predicted(job.task, candidate, split.held_out)
        labels, probabilities = held_out.labels, held_out.probabilities
        lineage = Lineage(
            run=run,
            code_revision=code_revision(),
            window=window(rows, job.task.group),
            rows=len(rows),
            source=job.source,
            parent=None,
            start=candidate.start,
            config=job.config,
            scores=score(labels, probabilities),
            gate=job.gate.against_base_rate(labels, probabilities, held_out.groups),
        )
        return conclude(job.task, candidate, lineage, job.table, held_out, job.out, registry, monitor, beside, joint)

    return supervised(learn, job.task.model, metrics, push_url, run, job.config.device)


def supervised(
    learn: Callable[[TrainingMonitor, str], TrainOutcome],
    model: str,
    metrics: Metrics | None,
    push_url: str | None,
    run: str | None,
    device: str,
) -> TrainOutcome:
    """Runs `learn` under a monitor; an error becomes a failed outcome. Counts the outcome and pushes the metrics."""
    began = time.time()
    run = run or time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(began))
    metrics = metrics or Metrics()
    watched = TrainingMonitor(model, run=run, metrics=metrics, device=device)
    with _pushing(push_url, model, metrics), watched as monitor:
        try:
            outcome = learn(monitor, run)
        except (
            DataError,
            FormError,
            TrainingStopped,
            RestartRun,
        ) as error:  # the reader can mend these: the reason says how, a trace would hide it
            outcome = TrainOutcome(model=model, run=run, outcome="failed", reason=str(error))
        except Exception as error:  # a job ends with an outcome, whatever happens: alerts and callers wait for it
            _log.exception("training of %s failed", model)
            outcome = TrainOutcome(model=model, run=run, outcome="failed", reason=f"{type(error).__name__}: {error}")
        monitor.finished(outcome.outcome)
    return _timed(outcome, time.time() - began)


@contextmanager
def _pushing(url: str | None, model: str, metrics: Metrics) -> Iterator[None]:
    """Pushes the metrics while the job runs, so that its curves can be watched, and once more at its end."""
    if url is None:
        yield
        return
    ended = threading.Event()
    grouping = {"instance": model}

    def repeat() -> None:
        while not ended.wait(PUSH_SECONDS):
            if not push(url, PUSH_JOB, metrics, grouping=grouping):
                return  # said once; the last push tries again

    pusher = threading.Thread(target=repeat, name="push", daemon=True)
    pusher.start()
    try:
        yield
    finally:
        ended.set()
        pusher.join()
        push(url, PUSH_JOB, metrics, grouping=grouping)


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
    parallel: ParallelConfig | None = None,
) -> Candidate:
    """Trains a network on `rows`. With `weights` (and their vocabularies) it starts warm, if they fit.

    Means and deviations always come from `rows`: standardising follows the season, the parameters carry over.
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
    if ranks > 1 or parallel is not None:
        result = _in_ranks(network, encoded, config, monitor, out, ranks, parallel)
    else:
        store = CheckpointStore(out / "checkpoints") if config.checkpoint_every else None
        result = Trainer(network, encoded, config, monitor, store, record=GuardRecord(out / RECORD)).run()
    if result.outcome == "stopped":
        raise TrainingStopped(result.reason)
    return Candidate(network.cpu().eval(), encoding.vocabularies, "warm" if warm else "new")


def _in_ranks(
    network: nn.Module,
    rows: Rows,
    config: TrainConfig,
    monitor: TrainingMonitor,
    out: Path,
    ranks: int,
    parallel: ParallelConfig | None,
) -> TrainResult:
    saving = config if config.checkpoint_every else replace(config, checkpoint_every=RANKS_CHECKPOINT_EVERY)
    try:
        result, _ = fit_in_ranks(
            network,
            rows,
            saving,
            world_size=parallel.world_size if parallel is not None else ranks,
            parallel=parallel,
            folder=out / "ranks",
            model=monitor.model,
            run=monitor.run,
            metrics=monitor.metrics,
        )
    except ParallelError as error:
        raise TrainingStopped(str(error)) from error
    return result


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


def conclude(
    task: TabularTask,
    candidate: Candidate,
    lineage: Lineage,
    reference: pa.Table,
    held_out: HeldOut,
    out: Path,
    registry: ModelRegistry,
    monitor: TrainingMonitor,
    beside: Beside | None,
    joint: bool = False,
) -> TrainOutcome:
    """Reports the scores and, where the gate passed, registers the artifact with lineage and reference."""
    monitor.evaluated(**{name: float(value) for name, value in lineage.scores.to_json().items()})
    version = None
    if lineage.gate.passed:
        artifact = write_artifact(
            out / "artifact", task, candidate.network, candidate.vocabularies, example(task, held_out.table)
        )
        version = registry.register(
            task.model,
            artifact.folder,
            lineage={**lineage.to_json(), "sample": sample(task, held_out)},
            profile=reference_body(
                task, candidate.network, candidate.vocabularies, reference, held_out, beside, joint=joint
            ),
            metrics=lineage.scores.to_json(),
        ).version
    return TrainOutcome(
        model=task.model,
        run=lineage.run,
        outcome="completed" if lineage.gate.passed else "rejected",
        reason=lineage.gate.reason,
        version=version,
        parent=lineage.parent,
        start=lineage.start,
        rows=lineage.rows,
        window=lineage.window,
        scores=lineage.scores,
        gate=lineage.gate,
    )


def sample(task: TabularTask, held_out: HeldOut, rows: int = 16) -> dict[str, dict[str, list[Any]]]:
    """Some rows of the features, none of them missing, and what the network gave for them: what serving must give."""
    complete = np.ones(len(held_out.table), bool)
    for name in task.features:
        complete &= pc.is_valid(held_out.table.column(name)).to_numpy()
    chosen = np.flatnonzero(complete & np.isfinite(held_out.probabilities))[:rows]
    inputs = {name: held_out.table.column(name).take(chosen).to_pylist() for name in task.features}
    return {"inputs": inputs, "outputs": {task.output: held_out.probabilities[chosen].tolist()}}


def example(task: TabularTask, table: pa.Table) -> dict[str, list[Any]]:
    """One row of the features, the first in which none is missing (else the first)."""
    complete = np.ones(len(table), bool)
    for name in task.features:
        complete &= pc.is_valid(table.column(name)).to_numpy()
    row = int(np.argmax(complete))
    return {name: table.column(name).slice(row, 1).to_pylist() for name in task.features}


def window(table: pa.Table, group: str) -> tuple[str, str]:
    """First and last group of the rows."""
    bounds = pc.min_max(table.column(group)).as_py()
    return str(bounds["min"]), str(bounds["max"])


def _timed(outcome: TrainOutcome, seconds: float) -> TrainOutcome:
    return replace(outcome, seconds=seconds)
