"""Retraining from the lake: a challenger learns from recent labelled events and must not be worse than the champion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from observability import Metrics, TrainingMonitor
from observability.events import FEATURE
from observability.lake import read_labelled
from training.artifact import load_program, read_manifest, read_vocabularies, read_weights
from training.data import DataError, TabularTask, encode, labelled, predict
from training.evaluate import Gate
from training.making import Approval, Making, Rival, make_version
from training.outcome import ModelRegistry, TrainOutcome
from training.parameter_server.form import Form
from training.reference import Beside
from training.run import supervised
from training.train_config import TrainConfig

if TYPE_CHECKING:
    from observability.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Champion:
    """The version that serves now, and the folder of its artifact."""

    version: int
    artifact: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainJob:
    """A challenger for a model in service."""

    task: TabularTask
    lake: Path
    out: Path
    """Folder for the artifact, and for checkpoints if the configuration asks for any."""
    since: float | None = None
    until: float | None = None
    """Event times, unix seconds: since <= time < until."""
    min_rows: int = 2000
    """Labelled events below which nothing is trained."""
    config: TrainConfig = field(default_factory=TrainConfig)
    held_out: float = 0.2
    """Share of the groups, the latest, that only the gate sees."""
    gate: Gate = field(default_factory=Gate)
    ranks: int = 1
    """Processes that share out each batch, and are started anew when they die or hang."""
    parallel: Form | None = None
    """How the network is spread over processes, whose number it gives, or on parameter servers; None: as replicas over
    `ranks`."""
    approval: Approval = field(default_factory=Approval)
    lineage_url: str = ""
    """Of a server that takes OpenLineage events; they are in `openlineage.jsonl` in `out` in any case."""
    warm_start: bool = True
    """Start from the champion's parameters and vocabularies instead of anew."""


def retrain(
    job: RetrainJob,
    registry: ModelRegistry,
    champion: Champion,
    *,
    metrics: Metrics | None = None,
    push_url: str | None = None,
    run: str | None = None,
    beside: Beside | None = None,
    joint: bool = False,
    tracing: Tracing | None = None,
) -> TrainOutcome:
    """Trains a challenger on labelled events and registers it if its log loss on the latest groups is no worse.

    Never raises: a failure is an outcome with its reason. Scores are the challenger's on the held-out groups.
    `beside` makes what is registered beside the reference profile, which with `joint` has a joint part; `tracing` as
    in `training.run.train`.
    """

    def learn(monitor: TrainingMonitor, run: str) -> TrainOutcome:
        rows = recent_rows(job)
        vocabularies = vocabularies_of(job.task, champion)
        making = Making(
            task=job.task,
            rows=rows,
            reference=rows,
            source=f"lake:{job.task.model}",
            out=job.out,
            config=job.config,
            held_out=job.held_out,
            gate=job.gate,
            ranks=job.ranks,
            parallel=job.parallel,
            push_url=push_url,
            rival=Rival(
                champion.version,
                lambda table: predict(load_program(champion.artifact), encode(job.task, vocabularies, table)),
                vocabularies,
                read_weights(champion.artifact) if job.warm_start else None,
            ),
            approval=job.approval,
            lineage_url=job.lineage_url,
        )
        return make_version(making, registry, monitor, run, beside, joint)

    return supervised(learn, job.task.model, metrics, push_url, run, job.config.device, job.out, tracing)


def recent_rows(job: RetrainJob) -> pa.Table:
    """The labelled events of the window as rows of the task. DataError where there are too few."""
    events = read_labelled(job.lake, job.task.model, since=job.since, until=job.until)
    missing = [name for name in job.task.features if FEATURE + name not in events.column_names]
    if missing and len(events):
        raise DataError(f"the events of {job.task.model} have no {FEATURE + missing[0]}: was another signature served?")
    if len(events) < job.min_rows:
        raise DataError(
            f"{len(events)} labelled events of {job.task.model} in {job.lake}, {job.min_rows} are needed: "
            "wait for labels, widen the window or lower min_rows"
        )
    columns = {name: events.column(FEATURE + name) for name in job.task.features}
    columns[job.task.label] = events.column("label")
    columns[job.task.group] = attribute(events.column("attributes"), job.task.group)
    if job.task.time is not None:
        columns.setdefault(job.task.time, events.column("time"))
    rows = pa.table(columns)
    return labelled(job.task, rows.filter(pc.is_valid(rows.column(job.task.group))))


def attribute(attributes: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """The value of `name` in each row's JSON object, null where it has none; every distinct text is parsed once."""
    encoded = attributes.combine_chunks().dictionary_encode()
    values = [json.loads(text).get(name) for text in encoded.dictionary.to_pylist()]
    known = pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.chunked_array([known.take(encoded.indices)])


def vocabularies_of(task: TabularTask, champion: Champion) -> Mapping[str, tuple[str, ...]]:
    """The champion's categories. DataError where its inputs are not the task's."""
    manifest = read_manifest(champion.artifact)
    inputs = tuple(item["name"] for item in manifest["inputs"])
    if inputs != task.features:
        raise DataError(f"version {champion.version} takes {inputs}, the task gives {task.features}: name its own task")
    return read_vocabularies(manifest)
