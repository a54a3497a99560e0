"""Online learning from a lake: batch by batch, saved together with its position, candidates judged by the gate.

A checkpoint holds the learner and the position that it has learned up to: a kill loses what came after both, and it is
learned again. A candidate is judged on the rows that come after it, which it has never learned, and registered as any
version is; registering it twice gives the same version.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from observability import Metrics, TrainingMonitor, names
from training.artifact import read_manifest, read_weights
from training.candidate import Candidate
from training.checkpoint import CheckpointStore
from training.data import Encoding, Rows, TabularTask, encode_rows, predict
from training.evaluate import Gate, score
from training.lineage import Lineage, code_revision
from training.making import window
from training.online.learner import OnlineConfig, OnlineLearner, Tested
from training.online.stream import TIME, LabelledStream, Position
from training.outcome import ModelRegistry, TrainOutcome
from training.reference import Beside, HeldOut
from training.retrain import Champion, vocabularies_of
from training.run import conclude
from training.train_config import TrainConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineJob:
    """What an online learner learns from, and where it keeps itself."""

    stream: LabelledStream
    out: Path
    """Folder of the checkpoints and of candidates' artifacts; what is there is gone on with."""
    config: OnlineConfig = field(default_factory=OnlineConfig)
    gate: Gate = field(default_factory=Gate)
    save_every: int = 50
    """Batches between checkpoints; each also comes with a candidate's verdict, and at the end."""

    @property
    def task(self) -> TabularTask:
        """The task of the stream."""
        return self.stream.task


@dataclass(slots=True)
class _Pending:
    """A candidate that waits for the rows that judge it."""

    number: int
    weights: dict[str, Tensor]
    rows: list[pa.Table] = field(default_factory=list)


class OnlineSession:
    """One learner at work. `learn` takes what the lake has and returns; call it again for what comes later."""

    def __init__(
        self,
        job: OnlineJob,
        registry: ModelRegistry,
        champion: Champion,
        *,
        metrics: Metrics | None = None,
        run: str = "online",
        beside: Beside | None = None,
        joint: bool = False,
    ) -> None:
        self.job, self.run, self.metrics = job, run, Metrics() if metrics is None else metrics
        self._registry, self._champion, self._beside, self._joint = registry, champion, beside, joint
        self._vocabularies = vocabularies_of(job.task, champion)
        self.learner = self._from_champion()
        self.position = Position()
        self.learned = 0
        """Rows learned from, over all runs."""
        self.unsaved = ""
        """Why the latest of what was learned is in no checkpoint; empty where it is in one."""
        self._pending: _Pending | None = None
        self.outcomes: list[TrainOutcome] = []
        """Of the candidates judged since this session began."""
        self._store = CheckpointStore(job.out / "online")
        self._restore()
        task = job.task.model
        self._learned = self.metrics[names.ONLINE_EVENTS].labels(task, "learned")
        self._skipped = self.metrics[names.ONLINE_EVENTS].labels(task, "skipped")

    def learn(self, *, drain: bool = False, tested: Callable[[pa.Table, Tested], object] | None = None) -> int:
        """Learns what is there beyond the position, in full batches (`drain`: and the rest); gives the rows learned.

        `tested` is told of every batch. DataError where the events lack a column.
        """
        rows = self.job.stream.read(self.position)
        size, taken, saved = self.job.config.batch_rows, 0, self.learner.batches
        end = len(rows) if drain else len(rows) // size * size
        for start in range(0, end, size):
            batch = rows.slice(start, min(size, end - start))
            self._learn(batch, tested)
            taken += len(batch)
            if self.learner.batches - saved >= self.job.save_every:
                self._keep()
                saved = self.learner.batches
        if taken and self.learner.batches > saved:
            self._keep()
        return taken

    def _keep(self) -> None:
        """Saves; a disk that is full costs the checkpoint and not what is learned."""
        try:
            self.save()
        except OSError as error:
            self.unsaved = str(error)
            self.metrics[names.TRAINING_CHECKPOINTS].labels(self.job.task.model, "failed").inc()
            _log.warning("what %s learned was not saved: %s", self.job.task.model, error)

    def save(self) -> None:
        """Writes learner, position and pending candidate as one checkpoint. OSError where it cannot be written."""
        pending: dict[str, Any] | None = None
        if self._pending is not None:
            table = pa.concat_tables(self._pending.rows) if self._pending.rows else None
            pending = {
                "number": self._pending.number,
                "weights": self._pending.weights,
                "rows": None if table is None else _packed(table),
            }
        state = {
            "champion": self._champion.version,
            "config": dataclasses.asdict(self.job.config),
            "learner": self.learner.state(),
            "newest": self.position.newest,
            "taken": torch.from_numpy(self.position.taken.copy()),
            "times": torch.from_numpy(self.position.times.copy()),
            "learned": self.learned,
            "pending": pending,
        }
        self._store.save(self.learned, state)
        self.unsaved = ""

    # --- one batch ----------------------------------------------------------------------------------------------------
    def _learn(self, batch: pa.Table, tested: Callable[[pa.Table, Tested], object] | None) -> None:
        late = int((batch.column(TIME).to_numpy() < self.position.newest).sum())
        encoded = self._encoded(batch)
        done = self.learner.step(encoded.inputs, encoded.labels)
        self.position = self.job.stream.after(self.position, batch)
        self.learned += len(batch)
        self._show(len(batch), late, done)
        if tested is not None:
            tested(batch, done)
        self._consider(batch.filter(pa.array(done.usable)))

    def _consider(self, batch: pa.Table) -> None:
        """Hands the batch to the candidate that waits, or makes one of the learner as it is now."""
        config = self.job.config
        if self._pending is not None:
            self._pending.rows.append(batch)
            table = pa.concat_tables(self._pending.rows)
            groups = len(set(table.column(self.job.task.group).to_pylist()))
            enough = max(config.judge_rows, self.job.gate.min_rows)
            if len(table) >= enough and groups >= self.job.gate.min_groups:
                self.outcomes.append(self._judge(self._pending, table))
                self._pending = None
                self._keep()
        elif config.publish_every and self.learner.batches % config.publish_every == 0:
            self._pending = _Pending(self.learner.batches, self.learner.frozen())

    def _judge(self, pending: _Pending, table: pa.Table) -> TrainOutcome:
        """The gate's word on a candidate over rows that came after it; registered if it passes."""
        task, run = self.job.task, f"{self.run}-{pending.number}"
        network = self._network(pending.weights).eval()
        rows = self._encoded(table)
        labels = rows.labels.double().numpy()
        probabilities = predict(network, rows.inputs)
        before = predict(self._network(read_weights(self._champion.artifact)).eval(), rows.inputs)
        config = self.job.config
        lineage = Lineage(
            run=run,
            code_revision=code_revision(),
            window=window(table, task.group),
            rows=self.learned,
            source=f"lake:{task.model}",
            parent=self._champion.version,
            start="warm",
            config=TrainConfig(
                epochs=1, batch_size=config.batch_rows, learning_rate=config.learning_rate, seed=config.seed
            ),
            scores=score(labels, probabilities),
            gate=self.job.gate.against_champion(labels, probabilities, before, rows.groups),
        )
        held_out = HeldOut(table, labels, probabilities, rows.groups)
        candidate = Candidate(network, self._vocabularies, "warm")
        out = self.job.out / f"candidate-{pending.number:08d}"
        with TrainingMonitor(task.model, run=run, metrics=self.metrics, drain_seconds=0) as monitor:
            outcome = conclude(
                task, candidate, lineage, table, held_out, out, self._registry, monitor, self._beside, self._joint
            )
        self.metrics[names.ONLINE_CANDIDATES].labels(
            task.model, "registered" if outcome.passed else "rejected"
        ).inc()  # fmt: skip
        _log.info("candidate %d of %s: %s: %s", pending.number, task.model, outcome.outcome, outcome.reason)
        return outcome

    def _show(self, rows: int, late: int, done: Tested) -> None:
        model, metrics, learner = self.job.task.model, self.metrics, self.learner
        usable = int(done.usable.sum())
        (self._learned if done.outcome == "learned" else self._skipped).inc(usable)
        if usable < rows:
            self._skipped.inc(rows - usable)
            _log.warning(
                "%d of %d events of %s are left out: labels other than 0 and 1, or features that give no number",
                rows - usable, rows, model,
            )  # fmt: skip
        if late:
            metrics[names.ONLINE_LATE].labels(model).inc(late)
        for who, scores in (("online", learner.online), ("champion", learner.champion)):
            metrics[names.ONLINE_SCORE].labels(model, who, "log_loss").set(scores.log_loss.mean)
            metrics[names.ONLINE_SCORE].labels(model, who, "accuracy").set(scores.accuracy.mean)
        for bound, value in zip(("mean", "lower", "upper"), learner.bounds, strict=True):
            metrics[names.ONLINE_EXCESS].labels(model, bound).set(value)
        metrics[names.ONLINE_RATE].labels(model).set(learner.rate)
        metrics[names.ONLINE_POSITION].labels(model).set(self.position.newest / 1e9)
        if done.rolled_back:
            _log.warning("%s went back to its last good state: %s", model, done.rolled_back)
            metrics[names.ONLINE_ROLLBACKS].labels(model, done.rolled_back).inc()
        if done.drifted:
            metrics[names.ONLINE_DRIFTS].labels(model).inc()

    # --- making and restoring -----------------------------------------------------------------------------------------
    def _encoded(self, table: pa.Table) -> Rows:
        return encode_rows(self.job.task, self._vocabularies, table)

    def _network(self, weights: dict[str, Tensor]) -> Any:
        """A network with these parameters and buffers; what it was standardised by is among them."""
        task = self.job.task
        encoding = Encoding(self._vocabularies, dict.fromkeys(task.numeric, 0.0), dict.fromkeys(task.numeric, 1.0))
        state = torch.get_rng_state()
        torch.manual_seed(0)
        network = task.network(encoding)
        torch.set_rng_state(state)
        network.load_state_dict(weights)
        return network

    def _from_champion(self) -> OnlineLearner:
        read_manifest(self._champion.artifact)
        return OnlineLearner(self._network(read_weights(self._champion.artifact)), self.job.config)

    def _restore(self) -> None:
        newest = self._store.newest()
        if newest is None:
            return
        state = newest.state
        self.position = Position(state["newest"], state["taken"].numpy(), state["times"].numpy())
        self.learned = state["learned"]
        if (state["champion"], state["config"]) != (self._champion.version, dataclasses.asdict(self.job.config)):
            _log.warning(
                "another champion or configuration than before: learning begins anew, from where it had got to"
            )
            return
        self.learner.restore(state["learner"])
        if state["pending"] is not None:
            kept = state["pending"]
            rows = [] if kept["rows"] is None else [_unpacked(kept["rows"])]
            self._pending = _Pending(kept["number"], dict(kept["weights"]), rows)


def learn_online(
    session: OnlineSession,
    *,
    idle_seconds: float = 5.0,
    until_idle: bool = False,
    stop: Callable[[], bool] = lambda: False,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Learns as events come, until `stop` says so; with `until_idle` until the lake has no more, to its last row.

    Gives the rows learned. OSError where the last of them cannot be saved.
    """
    learned = 0
    while not stop():
        rows = session.learn(drain=until_idle)
        learned += rows
        if until_idle and not rows:
            break
        if not rows:
            sleep(idle_seconds)
    if session.unsaved:
        session.save()
    return learned


def _packed(table: pa.Table) -> Tensor:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return torch.from_numpy(np.frombuffer(sink.getvalue(), np.uint8).copy())


def _unpacked(packed: Tensor) -> pa.Table:
    return pa.ipc.open_stream(packed.numpy().tobytes()).read_all()
