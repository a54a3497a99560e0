"""One training run from a table to a registered version: fit, evaluate on later days, gate, register with lineage."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from observability import Metrics, TrainingMonitor, names, push
from training.artifact import write_artifact
from training.candidate import Candidate
from training.data import DataError, TabularTask, labelled, plain
from training.disk import fullness
from training.evaluate import Gate
from training.lineage import Lineage
from training.loop import RestartRun
from training.making import Approval, Making, example, make_version, outcome_of, register
from training.nodes import Nodes
from training.outcome import ModelRegistry, TrainingStopped, TrainOutcome
from training.parallel_config import FormError
from training.parameter_server.form import Form
from training.reference import Beside, HeldOut
from training.steps import run_of
from training.train_config import TrainConfig

if TYPE_CHECKING:
    from observability.tracing import Tracing

PUSH_JOB = "trimtab-train"
PUSH_SECONDS = 1.0
_log = logging.getLogger(__name__)


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
    parallel: Form | None = None
    """How the network is spread over processes, whose number it gives, or on parameter servers; None: as replicas over
    `ranks`."""
    nodes: Nodes | None = None
    """This machine as node 0 of several, with `ranks` processes on each; the others run `follow_in_ranks`."""
    approval: Approval = field(default_factory=Approval)
    lineage_url: str = ""
    """Of a server that takes OpenLineage events; they are in `openlineage.jsonl` in `out` in any case."""
    profile: Path | None = None
    """Where some steps are written as torch's profiler saw them; of ranks a file each (`profiling.of_rank`)."""


def train(
    job: TrainJob,
    registry: ModelRegistry,
    *,
    metrics: Metrics | None = None,
    push_url: str | None = None,
    run: str | None = None,
    beside: Beside | None = None,
    joint: bool = False,
    tracing: Tracing | None = None,
) -> TrainOutcome:
    """Trains a first version; it is registered only if it beats the base rate of the held-out groups. Never raises.

    `push_url` takes the metrics of this short-lived job (a Pushgateway or the collector's intake). `beside` makes what
    is registered beside the reference profile, which with `joint` has a joint part. With `tracing` the run is a span,
    and some of its steps are traces; what is queued is sent when you close it.
    """

    def learn(monitor: TrainingMonitor, run: str) -> TrainOutcome:
        making = Making(
            task=job.task,
            rows=labelled(job.task, job.table),
            reference=plain(job.task, job.table),
            source=job.source,
            out=job.out,
            config=job.config,
            held_out=job.held_out,
            gate=job.gate,
            ranks=job.ranks,
            parallel=job.parallel,
            nodes=job.nodes,
            push_url=push_url,
            approval=job.approval,
            lineage_url=job.lineage_url,
            profile=job.profile,
        )
        return make_version(making, registry, monitor, run, beside, joint)

    return supervised(learn, job.task.model, metrics, push_url, run, job.config.device, job.out, tracing)


def supervised(
    learn: Callable[[TrainingMonitor, str], TrainOutcome],
    model: str,
    metrics: Metrics | None,
    push_url: str | None,
    run: str | None,
    device: str,
    out: Path,
    tracing: Tracing | None = None,
) -> TrainOutcome:
    """Runs `learn` under a monitor; an error becomes a failed outcome. Counts the outcome and pushes the metrics."""
    began = time.time()
    # Two runs that begin in one second must not be one to those who watch or keep lineage.
    run = run_of(out, run or f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(began))}-{uuid.uuid4().hex[:6]}")
    metrics = metrics or Metrics()
    watched = TrainingMonitor(model, run=run, metrics=metrics, device=device, tracing=tracing)
    with pushing(push_url, metrics, {"instance": model}), watched as monitor:
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
        if outcome.outcome == "failed" and (full := fullness(out)) and "; the disk of " not in outcome.reason:
            outcome = replace(outcome, reason=outcome.reason + full)
        monitor.finished(outcome.outcome)
    ended = time.time()
    if tracing is not None:
        said = {"training.model": model, "training.run": run, "training.outcome": outcome.outcome}
        failure = None if outcome.outcome != "failed" else outcome.reason
        bounds = round(began * 1e9), round(ended * 1e9)
        tracing.record(names.SPAN_TRAINING_RUN, *bounds, attributes=said, context=tracing.root(), error=failure)
    return _timed(outcome, ended - began)


@contextmanager
def pushing(url: str | None, metrics: Metrics, grouping: Mapping[str, str]) -> Iterator[None]:
    """Pushes the metrics while the block runs, so that its curves can be watched, and once more at its end."""
    if url is None:
        yield
        return
    ended = threading.Event()

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
        version = register(task, candidate, lineage, artifact.folder, reference, held_out, registry, beside, joint)
    return outcome_of(task, lineage, version, lineage.gate.reason)


def _timed(outcome: TrainOutcome, seconds: float) -> TrainOutcome:
    return replace(outcome, seconds=seconds)
