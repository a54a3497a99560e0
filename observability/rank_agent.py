"""Reads the rings of all ranks on a node and makes one page of metrics of them; the ranks are never asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from observability import names
from observability.metrics import Metrics
from observability.step_ring import FIRST_PHASE, Records, RingError, RingNow, RingView
from observability.step_traces import RankSteps, StepTraces
from observability.training_report import TrainingReport

if TYPE_CHECKING:
    from observability.tracing import Tracing

_log = logging.getLogger(__name__)
_LATEST_STEPS = 50
# Whoever supervises looks up to a hundred times a second: that few steps say nothing of a rate.
_RATE_SECONDS = 1.0


@dataclass(slots=True)
class Followed:
    """A rank's ring, and how far it was read."""

    path: Path
    view: RingView
    now: RingNow
    read: int = 0
    fresh: Records = field(default_factory=lambda: np.empty((0, 0), np.int64))
    """Records that came with the last look."""
    changed: float = 0.0
    """When the rank last showed something new, by the agent's clock."""
    up: bool = True
    skipped: int = 0
    """Steps that it had skipped at the last look."""

    def latest(self, steps: int = _LATEST_STEPS) -> Records:
        """The latest records that are still there."""
        return self.view.records(max(0, self.now.num_steps - steps))

    def phases(self) -> list[float]:
        """Median seconds of each phase over the latest steps; zeros before the first."""
        records = self.latest()
        if not len(records):
            return [0.0] * len(names.PHASES)
        medians: list[float] = (np.median(records[:, FIRST_PHASE:], axis=0) / 1e9).tolist()
        return medians


class RankAgent:
    """Follows the rings of one attempt after another. `look` costs some tens of microseconds a rank.

    With `tracing`, some steps become traces in which every rank has its spans: see `StepTraces`.
    """

    def __init__(
        self,
        model: str,
        run: str,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing | None = None,
        since_ns: int | None = None,
    ) -> None:
        """`since_ns` of this process's clock is when the ranks began, if that was before."""
        self.model, self.run, self.metrics = model, run, metrics
        self._tracing: Tracing | None = tracing
        self._traces: StepTraces | None = None
        self.ranks: dict[int, Followed] = {}
        self._clock = clock
        self._report = TrainingReport(
            metrics, model, run, since_ns or time.perf_counter_ns(), rate_seconds=_RATE_SECONDS
        )
        self._num_steps = self._num_samples = self._num_tokens = 0

    def follow(self, paths: Iterable[Path]) -> None:
        """Opens rings that have appeared; a file that is none is logged and left alone."""
        for path in paths:
            try:
                view = RingView.open(path)
            except FileNotFoundError:
                continue
            except (RingError, OSError) as error:
                _log.warning("a rank's ring is not read: %s", error)
                continue
            now = view.now()
            self.ranks[view.owner.rank] = Followed(path, view, now, changed=self._clock())

    def forget(self) -> None:
        """Ends the attempt whose rings were followed: its ranks are down."""
        for rank in self.ranks:
            self._gauge(names.TRAINING_RANK_UP, rank).set(0)
        self.ranks, self._traces = {}, None

    def odd(self, step: int, reason: str) -> None:
        """Says that a step is to be traced, and why."""
        if self._traces is not None:
            self._traces.odd(step, reason)

    def down(self, rank: int) -> None:
        """Says that a rank has died; its last records are still read."""
        if rank in self.ranks:
            self.ranks[rank].up = False

    def look(self) -> None:
        """Folds what the ranks did since the last look into the metrics: steps by the leading rank, samples by all."""
        moment = self._clock()
        for rank, one in sorted(self.ranks.items()):
            now = one.view.now()
            if (now.num_steps, now.phase, now.step) != (one.now.num_steps, one.now.phase, one.now.step):
                one.changed = moment
            one.fresh = one.view.records(one.read, now.num_steps)
            self._num_samples += now.num_samples - one.now.num_samples if one.read else now.num_samples
            self._num_tokens += now.num_tokens - one.now.num_tokens if one.read else now.num_tokens
            if rank == 0:  # a run's steps are counted once, on whichever node
                self._num_steps += now.num_steps - one.read
                if now.skipped > one.skipped:
                    self.metrics[names.TRAINING_NONFINITE].labels(self.model).inc(now.skipped - one.skipped)
                    self.odd(now.step, "one of the steps up to this was skipped: it was not finite")
                one.skipped = now.skipped
                self._report.gauges(
                    None if now.loss != now.loss else now.loss,
                    None if now.gradient_norm != now.gradient_norm else now.gradient_norm,
                    None if now.learning_rate != now.learning_rate else now.learning_rate,
                )
            self._report.steps(one.fresh)
            one.read, one.now = now.num_steps, now
            self._gauge(names.TRAINING_RANK_STEP, rank).set(now.step)
            self._gauge(names.TRAINING_RANK_UP, rank).set(one.up)
            self._gauge(names.TRAINING_RANK_IDLE, rank).set(moment - one.changed)
            if now.communication > 0:
                self._gauge(names.TRAINING_RANK_COMMUNICATION, rank).set(now.communication)
                self._gauge(names.TRAINING_RANK_OVERLAP, rank).set(now.overlapped / now.communication)
            for phase, seconds in zip(names.PHASES, one.phases(), strict=True):
                if seconds:
                    self.metrics[names.TRAINING_RANK_PHASE].labels(self.model, self.run, str(rank), phase).set(seconds)
        self._report.totals(self._num_steps, self._num_samples, time.perf_counter_ns(), self._num_tokens)
        if self._tracing is not None:
            self._trace(self._tracing)

    def _trace(self, tracing: Tracing) -> None:
        if self._traces is None and self.ranks:
            owner = next(iter(self.ranks.values())).view.owner
            self._traces = StepTraces(
                tracing,
                self.model,
                self.run,
                attempt=owner.attempt,
                world_size=owner.world_size,
                leads=0 in self.ranks,
            )
        if self._traces is not None:
            offsets = {rank: one.view.owner.clock_offset_ns for rank, one in self.ranks.items()}
            self._traces.look({rank: RankSteps(one.fresh, offsets[rank]) for rank, one in self.ranks.items()})

    def _gauge(self, name: names.Metric, rank: int):  # type: ignore[no-untyped-def]  # a child of prometheus_client
        return self.metrics[name].labels(self.model, self.run, str(rank))
