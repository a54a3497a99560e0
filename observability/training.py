"""Monitors a training loop: step and phase times, throughput, loss and gradient norm, at about two microseconds a step.

    monitor = TrainingMonitor("delay", run="2013-03")
    for x, y in batches:
        with monitor.step(samples=len(x)) as step:
            with monitor.phase("forward"):
                loss = criterion(model(x), y)
            …
            step.loss = loss

The loop only writes a record into a ring; metrics are made from it once a second, in another thread. No tensor is read
in the loop: the loss is kept as a reference and read in that thread. A ring in a file (`ring`) shows a rank's steps to
other processes, even after the rank was killed.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from observability import names
from observability.device_timer import DeviceTimer
from observability.machine import Gpus, Machine
from observability.metrics import Metrics
from observability.step_clock import PlainClock, step_clock
from observability.step_ring import StepRing
from observability.step_traces import RankSteps, StepTraces, totals_of
from observability.training_report import TrainingReport
from observability.wall_time import WallTime

if TYPE_CHECKING:
    from observability.tracing import Tracing

_log = logging.getLogger(__name__)


_monitors: weakref.WeakSet[TrainingMonitor] = weakref.WeakSet()


def _after_fork() -> None:
    for monitor in list(_monitors):
        monitor._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass(slots=True)
class Step:
    """What a step reports of itself: tensors stay on their device until the drain reads them."""

    samples: int = 0
    tokens: int = 0
    loss: Any = None
    gradient_norm: Any = None
    learning_rate: float | None = None


class TrainingMonitor:
    """The metrics of one run of a model's training. One thread trains; any may drain.

    Mark phases (`names.PHASES`) with `with monitor.phase("forward")`, or straight with `start`, `mark`, `end`. With
    `device="cuda"` the device's phases are timed by CUDA events, without ever waiting for it. `drain_seconds=0` starts
    no thread: call `drain` yourself. Nothing here raises into the loop except for an unknown phase, and for samples
    that are no whole number. A process that was forked has no thread either: there, `drain` or `close` it.

    With `flops_per_sample` (`observability.flops.training_flops` of a step over its samples, or a number of yours) the
    model's operations a second are shown, and over `peak_flops`, the peak of all devices that share in the samples, the
    utilisation (MFU). The thread samples process, host and GPUs each `machine_seconds`; 0 leaves that out.

    With `tracing` (`observability.setup_tracing`) some steps become traces when they are over, with a span a phase: of
    all the share `tracing.sample_ratio`, and those that took three times the usual, were skipped, or of which a guard
    found something. What is still queued is sent when you close the tracing.
    """

    def __init__(
        self,
        model: str,
        *,
        run: str,
        metrics: Metrics | None = None,
        device: str = "cpu",
        capacity: int = 8192,
        ring: StepRing | None = None,
        drain_seconds: float = 1.0,
        device_timer: DeviceTimer | None = None,
        flops_per_sample: float = 0.0,
        peak_flops: float | None = None,
        machine_seconds: float = 5.0,
        tracing: Tracing | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.model, self.run = model, run
        self.metrics = Metrics() if metrics is None else metrics
        self._clock = clock
        self._timer = device_timer or (DeviceTimer.cuda() if str(device).startswith("cuda") else None)
        self.ring = StepRing.in_memory(capacity=capacity) if ring is None else ring
        self._view, self._steps = self.ring.view(), step_clock(self.ring, clock)
        if self._timer is None:
            # Straight there: a frame of Python less at each mark, and generators less where a step or phase is a block.
            self.start, self.mark = self._steps.start, self._steps.mark  # type: ignore[method-assign, assignment]
            self.entering, self.end = self._steps.entering, self._steps.end  # type: ignore[method-assign, assignment]
            if not isinstance(self._steps, PlainClock):
                self.step, self.phase = self._steps.block, self._steps.phase  # type: ignore[method-assign, assignment]
        self._draining = threading.Lock()
        began = clock()
        self._report = TrainingReport(self.metrics, model, run, began, flops_per_sample, peak_flops)
        self._wall = WallTime(began)
        self.tracing = tracing
        self._traces = None if tracing is None else StepTraces(tracing, model, run, by_device=self._timer is not None)
        self._offset_ns = self.ring.owner.clock_offset_ns or time.time_ns() - clock()
        self.machine: Machine | None = None
        self._machine_seconds = machine_seconds
        self._closed = threading.Event()
        self._thread = (
            threading.Thread(target=self._drain_each, args=(drain_seconds,), daemon=True) if drain_seconds else None
        )
        if self._thread is not None:
            self._thread.start()
        _monitors.add(self)

    @property
    def after_step(self) -> Callable[[], object] | None:
        """Called when a step has ended, such as by a profiler that counts steps."""
        return self._steps.after_step

    @after_step.setter
    def after_step(self, told: Callable[[], object] | None) -> None:
        self._steps.after_step = told

    def resumed(self, step: int) -> None:
        """Says that the next step is number `step`, counted from 0: a run that goes on from a checkpoint."""
        self._steps.step = step
        self.ring.checkpointed(step)

    def start(self) -> None:
        """Begins a step; one that was begun and not ended is forgotten."""
        self._steps.start()
        if self._timer is not None:
            self._timer.start(self._steps.step)

    def mark(self, phase: str) -> None:
        """Ends a phase: the time since `start` or the mark before was its. KeyError for an unknown phase."""
        self._steps.mark(phase)
        if self._timer is not None:
            self._timer.mark(phase)

    def entering(self, phase: str) -> None:
        """Says which phase comes, for those who watch; its time is counted by the `mark` that ends it."""
        self._steps.entering(phase)

    def end(
        self,
        samples: int = 0,
        *,
        loss: Any = None,
        gradient_norm: Any = None,
        learning_rate: float | None = None,
        tokens: int = 0,
    ) -> None:
        """Ends a step of `samples` samples. `loss` and `gradient_norm` may be tensors; they are not read here."""
        if self._timer is not None:
            self._timer.end()
        self._steps.end(samples, loss=loss, gradient_norm=gradient_norm, learning_rate=learning_rate, tokens=tokens)

    @contextmanager
    def step(self, samples: int = 0) -> Iterator[Step]:
        """A step as a block; set `loss` and the rest on what it gives. A step that raises is not recorded."""
        step = Step(samples)
        self.start()
        yield step
        self.end(
            step.samples,
            loss=step.loss,
            gradient_norm=step.gradient_norm,
            learning_rate=step.learning_rate,
            tokens=step.tokens,
        )

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """A phase as a block. What lies between two phases belongs to neither. KeyError for an unknown phase."""
        self._steps.resume()
        self._steps.entering(phase)
        if self._timer is not None:
            self._timer.mark("")
        yield
        self._steps.mark(phase)
        if self._timer is not None:
            self._timer.mark(phase)

    def skipped(self, step: int | None = None) -> None:
        """Counts a step whose loss or gradients were not finite and that changed no weights; without a number, this."""
        self.metrics[names.TRAINING_NONFINITE].labels(self.model).inc()
        self._odd(step, "skipped: loss, outputs or gradients were not finite")

    def found(self, guard: str, action: str, step: int | None = None) -> None:
        """Counts what a guard found, by what follows; `step` is the one that it is about, without a number this."""
        self.metrics[names.TRAINING_FINDINGS].labels(self.model, guard, action).inc()
        self._odd(step, f"{guard}: {action}")

    def activations(self, looks: Mapping[str, tuple[float, float]]) -> None:
        """Shows share of dead units and root mean square of layers."""
        for layer, (dead, rms) in looks.items():
            self.metrics[names.TRAINING_DEAD_UNITS].labels(self.model, self.run, layer).set(dead)
            self.metrics[names.TRAINING_ACTIVATION_RMS].labels(self.model, self.run, layer).set(rms)

    def spiked(self) -> None:
        """Counts a spike of the loss."""
        self.metrics[names.TRAINING_SPIKES].labels(self.model).inc()

    def checkpointed(self, outcome: str = "ok") -> None:
        """Counts a checkpoint by its outcome: ok or failed."""
        self.metrics[names.TRAINING_CHECKPOINTS].labels(self.model, outcome).inc()

    def evaluated(self, **scores: float) -> None:
        """Sets the run's scores on its held-out data, by name of the score."""
        for metric, score in scores.items():
            self.metrics[names.TRAINING_EVALUATION].labels(self.model, self.run, metric).set(score)

    def finished(self, outcome: str) -> None:
        """Counts the run by its outcome: completed, failed or rejected."""
        self.metrics[names.TRAINING_RUNS].labels(self.model, outcome).inc()

    def drain(self) -> None:
        """Folds what the loop recorded since the last time into the metrics. Cheap; any thread may call it."""
        with self._draining:
            now, latest = self._view.now(), self._steps.latest
            records = self._view.records(self._report.num_steps, now.num_steps)
            self._report.steps(records, self._timer is not None)
            timed = [] if self._timer is None else self._timer.resolved()
            self._report.device_phases([pair for _, phases in timed for pair in phases])
            if self._traces is not None:
                for step, phases in timed:
                    self._traces.timed(step, totals_of(phases))
                self._traces.look({self.ring.owner.rank: RankSteps(records, self._offset_ns)})
            self._wall.add(records)
            moment = self._clock()
            self._report.totals(now.num_steps, now.num_samples, moment, now.num_tokens)
            # A run over ranks has its own account, of all its attempts: here are no steps then.
            if (by_cause := self._wall.by_cause(moment)) is not None:
                self._report.wall_time(by_cause)
            self.ring.readings(*self._report.gauges(*latest))

    def close(self) -> None:
        """Ends the thread after a last drain. The metrics stay."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            self._thread = None
        self._drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _odd(self, step: int | None, reason: str) -> None:
        if self._traces is not None:
            self._traces.odd(self._steps.step if step is None else step, reason)

    def _forked(self) -> None:
        """In a process that was forked: the thread is not there, and the lock may be held by it for ever."""
        self._draining, self._thread = threading.Lock(), None

    def _drain_each(self, seconds: float) -> None:
        if self._machine_seconds:
            process = {self.ring.owner.rank: os.getpid()}
            self.machine = Machine(self.metrics, self.model, self.run, lambda: process, Gpus.found())
        sampled = -math.inf
        while not self._closed.wait(seconds):
            try:
                if self.machine is not None and time.monotonic() - sampled >= self._machine_seconds:
                    sampled = time.monotonic()
                    self.machine.sample()
            except Exception:  # as in `_drain`
                _log.exception("the machine of %s could not be looked at", self.model)
            self._drain()

    def _drain(self) -> None:
        try:
            self.drain()
        except Exception:  # a monitor that fails must not end the training, nor stop monitoring
            _log.exception("the training metrics of %s could not be drained", self.model)
