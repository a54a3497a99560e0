"""From rows to a registered version in steps that are recorded: validate, train, evaluate, bless, push."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from observability import TrainingMonitor
from training.artifact import MANIFEST, write_artifact
from training.begun import ALONE, RANKS, SERVERS
from training.blessing import bless
from training.candidate import Candidate, fit_candidate, predicted, read_candidate, write_candidate
from training.data import TabularTask, split_recent
from training.evaluate import Gate, GateDecision, Scores, Vector, score
from training.lineage import Lineage, code_revision
from training.nodes import Nodes
from training.openlineage import LineageEvents, LineageSink, rows_dataset
from training.outcome import ModelRegistry, TrainOutcome
from training.parameter_server.form import Form
from training.reference import Beside, HeldOut, reference_body
from training.slices import slice_scores, surely_worse
from training.steps import FOLDER as STEPS
from training.steps import Done, Steps
from training.train_config import TrainConfig
from training.unchanged import check_same
from training.validation import digest, validated

EVENTS, ROWS = "openlineage.jsonl", "rows.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """What a candidate must pass besides the gate."""

    latency_budget: float = 0.0
    """Seconds that one row may take at the 99th percentile, on the machine that trains; 0: it is only measured."""
    slices: tuple[str, ...] | None = None
    """Columns by whose values held-out rows are scored apart; None: the categorical ones."""
    slice_tolerance: float | None = None
    """Log loss by which no slice may surely be worse than the rival; None: slices are only reported."""


@dataclass(frozen=True, slots=True, eq=False)
class Rival:
    """The champion of a model: its version, what to start from, and what it says of rows."""

    version: int
    predict: Callable[[pa.Table], Vector]
    vocabularies: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, Tensor] | None = None
    """None: the candidate starts anew."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Making:
    """A version to be made. `rows` have labels; `reference` are those of the profile that is registered."""

    task: TabularTask
    rows: pa.Table
    reference: pa.Table
    source: str
    out: Path
    config: TrainConfig
    held_out: float
    gate: Gate
    ranks: int = 1
    parallel: Form | None = None
    nodes: Nodes | None = None
    push_url: str | None = None
    rival: Rival | None = None
    approval: Approval = field(default_factory=Approval)
    lineage_url: str = ""
    profile: Path | None = None


def make_version(
    making: Making,
    registry: ModelRegistry,
    monitor: TrainingMonitor,
    run: str,
    beside: Beside | None,
    joint: bool,
) -> TrainOutcome:
    """Goes through the steps, but for those that an earlier process of the run has ended."""
    task, rival = making.task, making.rival
    known = digest(making.rows.select([*task.features, task.label, task.group]))
    bounds = window(making.rows, task.group)
    columns = {name: str(making.rows.schema.field(name).type) for name in (*task.features, task.label, task.group)}
    events = LineageEvents(
        LineageSink(making.out / EVENTS, making.lineage_url),
        task.model,
        run,
        code=code_revision(),
        config=asdict(making.config),
        source=rows_dataset(making.source, columns, len(making.rows), bounds, known),
        parent=None if rival is None else rival.version,
    )
    events.started(time.time())
    try:
        outcome = _made(making, registry, monitor, run, beside, joint, Steps(making.out, [events]), known)
    except BaseException as error:
        ended = "failed" if isinstance(error, Exception) else "aborted"
        events.finished(time.time(), ended, f"{type(error).__name__}: {error}", None)
        raise
    events.finished(time.time(), outcome.outcome, outcome.reason, outcome.version)
    return outcome


def _made(
    making: Making,
    registry: ModelRegistry,
    monitor: TrainingMonitor,
    run: str,
    beside: Beside | None,
    joint: bool,
    steps: Steps,
    known: str,
) -> TrainOutcome:
    task, rival, out = making.task, making.rival, making.out
    if not any((out / name).exists() for name in (ALONE, RANKS, SERVERS)):
        (out / STEPS / ROWS).unlink(missing_ok=True)
    # What was begun on some rows is not gone on with on others.
    check_same(out / STEPS / ROWS, {"rows": known, "held_out": making.held_out}, "rows")
    split = split_recent(making.rows, task.group, making.held_out)
    steps.run(
        "validate",
        {"rows": known, "held_out": making.held_out, "features": task.features},
        lambda: Done(validated(task, making.rows, split).to_json()),
    )
    candidate, started = _trained(making, split.train, monitor, steps)
    held_out = predicted(task, candidate, split.held_out)
    judged = steps.run(
        "evaluate",
        {"gate": asdict(making.gate), "approval": asdict(making.approval), "rival": rival and rival.version},
        lambda: Done(_evaluated(making, held_out)),
    )
    scores, gate = Scores.from_json(judged["scores"]), GateDecision.from_json(judged["gate"])
    monitor.evaluated(**{name: float(value) for name, value in scores.to_json().items()})
    lineage = Lineage(
        run=run,
        code_revision=code_revision(),
        window=window(making.rows, task.group),
        rows=len(making.rows),
        source=making.source,
        parent=None if rival is None else rival.version,
        start=started,
        config=making.config,
        scores=scores,
        gate=gate,
    )
    blessing, version, reason = None, None, gate.reason
    if gate.passed:
        blessing = steps.run(
            "bless", {"example": example(task, split.held_out)}, lambda: _blessed(making, candidate, held_out)
        )
        reason = gate.reason if blessing["passed"] else str(blessing["reason"])
    if blessing is not None and blessing["passed"]:

        def push() -> Done:
            # The registry gives what it has already the version that it has.
            number = register(
                task, candidate, lineage, out / "artifact", making.reference, held_out, registry, beside, joint
            )
            return Done({"version": number})

        version = int(steps.run("push", {}, push)["version"])
    return dataclasses.replace(
        outcome_of(task, lineage, version, reason),
        slices=tuple(judged["slices"]),
        blessing=blessing,
        resumed=tuple(steps.resumed),
    )


def register(
    task: TabularTask,
    candidate: Candidate,
    lineage: Lineage,
    artifact: Path,
    reference: pa.Table,
    held_out: HeldOut,
    registry: ModelRegistry,
    beside: Beside | None,
    joint: bool,
) -> int:
    """Registers the artifact with its lineage, a sample of answers, and its reference; gives the version."""
    return registry.register(
        task.model,
        artifact,
        lineage={**lineage.to_json(), "sample": sample(task, held_out)},
        profile=reference_body(
            task, candidate.network, candidate.vocabularies, reference, held_out, beside, joint=joint
        ),
        metrics=lineage.scores.to_json(),
    ).version


def outcome_of(task: TabularTask, lineage: Lineage, version: int | None, reason: str) -> TrainOutcome:
    """How a run ended whose candidate became `version`, or none."""
    return TrainOutcome(
        model=task.model,
        run=lineage.run,
        outcome="rejected" if version is None else "completed",
        reason=reason,
        version=version,
        parent=lineage.parent,
        start=lineage.start,
        rows=lineage.rows,
        window=lineage.window,
        scores=lineage.scores,
        gate=lineage.gate,
    )


def _trained(making: Making, rows: pa.Table, monitor: TrainingMonitor, steps: Steps) -> tuple[Candidate, str]:
    rival, fresh = making.rival, list[Candidate]()
    warm = rival is not None and rival.weights is not None
    config = {name: value for name, value in asdict(making.config).items() if name not in ("device", "threads")}

    def fitted() -> Done:
        candidate = fit_candidate(
            making.task,
            rows,
            making.config,
            monitor,
            out=making.out,
            vocabularies=rival.vocabularies if rival is not None and warm else None,
            weights=rival.weights if rival is not None and warm else None,
            ranks=making.ranks,
            parallel=making.parallel,
            nodes=making.nodes,
            push_url=making.push_url,
            profile=making.profile,
        )
        fresh.append(candidate)
        count = sum(parameter.numel() for parameter in candidate.network.parameters())
        files = write_candidate(making.out / "candidate", candidate)
        return Done({"start": candidate.start, "parameters": count}, files)

    parent = rival.version if rival is not None and warm else None
    result = steps.run("train", {"config": config, "parent": parent}, fitted)
    candidate = fresh[0] if fresh else read_candidate(making.out / "candidate", making.task, rows)
    return candidate, str(result["start"])


def _evaluated(making: Making, held_out: HeldOut) -> dict[str, Any]:
    rival, labels, own = making.rival, held_out.labels, held_out.probabilities
    if rival is None:
        before = np.full(len(labels), labels.mean())
        gate = making.gate.against_base_rate(labels, own, held_out.groups)
    else:
        before = rival.predict(held_out.table)
        gate = making.gate.against_champion(labels, own, before, held_out.groups)
    columns = making.task.categorical if making.approval.slices is None else making.approval.slices
    slices = slice_scores(
        held_out.table, columns, labels, own, before, held_out.groups, confidence=making.gate.confidence
    )
    limit = making.approval.slice_tolerance
    if gate.passed and limit is not None and (worse := surely_worse(slices, limit)):
        first = worse[0]
        gate = dataclasses.replace(
            gate,
            passed=False,
            reason=f"where {first.column} is {first.value}, log loss differs from the {gate.rival}'s by "
            f"{first.difference:+.4f}, at least {first.lower_bound:+.4f}: surely above the tolerance of {limit:g}",
        )
    return {
        "scores": score(labels, own).to_json(),
        "gate": gate.to_json(),
        "slices": [one.to_json() for one in slices],
    }


def _blessed(making: Making, candidate: Candidate, held_out: HeldOut) -> Done:
    artifact = write_artifact(
        making.out / "artifact",
        making.task,
        candidate.network,
        candidate.vocabularies,
        example(making.task, held_out.table),
    )
    named = json.loads((artifact.folder / MANIFEST).read_bytes())["files"]
    found = bless(artifact.folder, making.task, candidate.vocabularies, held_out, budget=making.approval.latency_budget)
    return Done(found.to_json(), [artifact.folder / MANIFEST, *(artifact.folder / name for name in named)])


def sample(task: TabularTask, held_out: HeldOut, rows: int = 16) -> dict[str, dict[str, list[Any]]]:
    """Some rows of the features, none of them missing, and what the network gave for them: what serving must give.

    Empty where there is no such row.
    """
    complete = np.isfinite(held_out.probabilities)
    for name in task.features:
        column = held_out.table.column(name)
        there = pc.is_finite(column) if pa.types.is_floating(column.type) else pc.is_valid(column)
        complete &= pc.fill_null(there, False).to_numpy()
    chosen = np.flatnonzero(complete)[:rows]
    if not len(chosen):
        return {}
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
