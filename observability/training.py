"""Monitors a training loop: step and phase times, throughput, loss and gradient norm, at about two microseconds a step.

    monitor = TrainingMonitor("delay", run="2013-03")
    for x, y in batches:
        with monitor.step(samples=len(x)) as step:
            with monitor.phase("forward"):
                loss = criterion(model(x), y)
            …
            step.loss = loss

The loop only writes a record into a ring; metrics are made from it once a second, in another thread. No tensor is read
in the loop: the loss is kept as a reference and read in that thread.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from observability import names
from observability.device_timer import DeviceTimer
from observability.metrics import Metrics, observe_many

_log = logging.getLogger(__name__)
_PHASE_INDEX = {phase: index for index, phase in enumerate(names.PHASES)}
# A record: nanoseconds of the step, then of each phase.
_RECORD = struct.Struct(f"<{1 + len(names.PHASES)}q")
# On a device these are asynchronous launches for the host's clock, so that they are timed by events instead.
_DEVICE_PHASES = ("host_to_device", "forward", "backward", "optimizer")


@dataclass(slots=True)
class Step:
    """What a step reports of itself: tensors stay on their device until the drain reads them."""

    samples: int = 0
    loss: Any = None
    gradient_norm: Any = None
    learning_rate: float | None = None


class TrainingMonitor:
    """The metrics of one run of a model's training. One thread trains; any may drain.

    Mark phases (`names.PHASES`) with `with monitor.phase("forward")`, or straight with `start`, `mark`, `end`. With
    `device="cuda"` the device's phases are timed by CUDA events, without ever waiting for it. `drain_seconds=0` starts
    no thread: call `drain` yourself. Nothing here raises into the loop except for an unknown phase.
    """

    def __init__(
        self,
        model: str,
        *,
        run: str,
        metrics: Metrics | None = None,
        device: str = "cpu",
        capacity: int = 8192,
        drain_seconds: float = 1.0,
        device_timer: DeviceTimer | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.model, self.run = model, run
        self.metrics = Metrics() if metrics is None else metrics
        self._clock, self._capacity = clock, capacity
        self._timer = device_timer or (DeviceTimer.cuda() if str(device).startswith("cuda") else None)
        self._ring = bytearray(_RECORD.size * capacity)
        self._phases = [0] * len(names.PHASES)
        self._num_steps = self._num_samples = 0
        self._started = self._marked = clock()
        self._latest = Step()
        self._draining = threading.Lock()
        self._report = _Report(self.metrics, model, run, self._started)
        self._closed = threading.Event()
        self._thread = (
            threading.Thread(target=self._drain_each, args=(drain_seconds,), daemon=True) if drain_seconds else None
        )
        if self._thread is not None:
            self._thread.start()

    def start(self) -> None:
        """Begins a step; one that was begun and not ended is forgotten."""
        self._phases = [0] * len(names.PHASES)
        self._started = self._marked = self._clock()
        if self._timer is not None:
            self._timer.start()

    def mark(self, phase: str) -> None:
        """Ends a phase: the time since `start` or the mark before was its. KeyError for an unknown phase."""
        now = self._clock()
        self._phases[_PHASE_INDEX[phase]] += now - self._marked
        self._marked = now
        if self._timer is not None:
            self._timer.mark(phase)

    def end(
        self,
        samples: int = 0,
        *,
        loss: Any = None,
        gradient_norm: Any = None,
        learning_rate: float | None = None,
    ) -> None:
        """Ends a step of `samples` samples. `loss` and `gradient_norm` may be tensors; they are not read here."""
        duration = self._clock() - self._started
        _RECORD.pack_into(self._ring, self._num_steps % self._capacity * _RECORD.size, duration, *self._phases)
        if self._timer is not None:
            self._timer.end()
        self._latest = Step(samples, _detached(loss), _detached(gradient_norm), learning_rate)
        self._num_samples += samples
        # Last: a record counts once it is whole.
        self._num_steps += 1

    @contextmanager
    def step(self, samples: int = 0) -> Iterator[Step]:
        """A step as a block; set `loss` and the rest on what it gives. A step that raises is not recorded."""
        step = Step(samples)
        self.start()
        yield step
        self.end(step.samples, loss=step.loss, gradient_norm=step.gradient_norm, learning_rate=step.learning_rate)

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """A phase as a block. What lies between two phases belongs to neither. KeyError for an unknown phase."""
        index = _PHASE_INDEX[phase]
        self._marked = self._clock()
        if self._timer is not None:
            self._timer.mark("")
        yield
        self._phases[index] += self._clock() - self._marked
        if self._timer is not None:
            self._timer.mark(phase)

    def skipped(self) -> None:
        """Counts a step whose loss or gradients were not finite and that changed no weights."""
        self.metrics[names.TRAINING_NONFINITE].labels(self.model).inc()

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
            num_steps, latest = self._num_steps, self._latest
            # The oldest record may be overwritten as we read: leave it out.
            first = max(self._report.num_steps, num_steps - self._capacity + 1)
            self._report.steps(self._records(first, num_steps), self._timer is not None)
            if self._timer is not None:
                self._report.device_phases(self._timer.resolved())
            self._report.totals(num_steps, self._num_samples, self._clock())
            self._report.gauges(latest)

    def close(self) -> None:
        """Ends the thread after a last drain. The metrics stay."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            self._thread = None
        self.drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _records(self, first: int, end: int) -> NDArray[np.int64]:
        if first >= end:
            return np.empty((0, 1 + len(names.PHASES)), np.int64)
        ring = np.frombuffer(bytes(self._ring), np.int64).reshape(self._capacity, -1)
        return ring[np.arange(first, end) % self._capacity]

    def _drain_each(self, seconds: float) -> None:
        while not self._closed.wait(seconds):
            try:
                self.drain()
            except Exception:  # a monitor that fails must not end the training, nor stop monitoring
                _log.exception("the training metrics of %s could not be drained", self.model)


class _Report:
    """The training metrics of one run, and how far they have come."""

    def __init__(self, metrics: Metrics, model: str, run: str, now_ns: int) -> None:
        self.num_steps = self._num_samples = 0
        self._since_ns = now_ns
        self._steps = metrics[names.TRAINING_STEPS].labels(model)
        self._samples = metrics[names.TRAINING_SAMPLES].labels(model)
        metrics[names.TRAINING_NONFINITE].labels(model)  # from 0 on: no rate sees a counter's first value
        self._duration = metrics[names.TRAINING_STEP_DURATION].labels(model)
        self._phases = {phase: metrics[names.TRAINING_PHASE_DURATION].labels(model, phase) for phase in names.PHASES}
        self._throughput = metrics[names.TRAINING_THROUGHPUT].labels(model, run)
        self._loss = _Reading(metrics[names.TRAINING_LOSS].labels(model, run))
        self._gradient_norm = _Reading(metrics[names.TRAINING_GRADIENT_NORM].labels(model, run))
        self._learning_rate = metrics[names.TRAINING_LEARNING_RATE].labels(model, run)

    def steps(self, records: NDArray[np.int64], has_device: bool) -> None:
        observe_many(self._duration, records[:, 0] / 1e9)
        for index, phase in enumerate(names.PHASES):
            if has_device and phase in _DEVICE_PHASES:
                continue
            nanoseconds = records[:, 1 + index]
            observe_many(self._phases[phase], nanoseconds[nanoseconds > 0] / 1e9)

    def device_phases(self, found: list[tuple[str, float]]) -> None:
        for phase in _DEVICE_PHASES:
            observe_many(self._phases[phase], np.array([seconds for name, seconds in found if name == phase]))

    def totals(self, num_steps: int, num_samples: int, now_ns: int) -> None:
        self._steps.inc(num_steps - self.num_steps)
        self._samples.inc(num_samples - self._num_samples)
        if num_steps > self.num_steps and now_ns > self._since_ns:
            self._throughput.set((num_samples - self._num_samples) / ((now_ns - self._since_ns) / 1e9))
        self.num_steps, self._num_samples, self._since_ns = num_steps, num_samples, now_ns

    def gauges(self, latest: Step) -> None:
        self._loss.show(latest.loss)
        self._gradient_norm.show(latest.gradient_norm)
        if latest.learning_rate is not None:
            self._learning_rate.set(latest.learning_rate)


class _Reading:
    """Shows a number or a tensor in a gauge. A device's tensor is copied without waiting, and shown at a later call."""

    def __init__(self, gauge: Any) -> None:
        self._gauge = gauge
        self._copy: tuple[Any, Any] | None = None

    def show(self, value: Any) -> None:
        if self._copy is not None and self._copy[1].query():
            self._gauge.set(float(self._copy[0]))
            self._copy = None
        if value is None:
            return
        if not getattr(value, "is_cuda", False):
            self._gauge.set(float(value))
        elif self._copy is None:
            self._copy = _copied_to_host(value)


def _copied_to_host(tensor: Any) -> tuple[Any, Any]:
    import torch

    copy = torch.empty((), dtype=torch.float32, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()
    return copy, done


def _detached(value: Any) -> Any:
    """A tensor without its graph: the reference must not keep the step's activations alive."""
    return value.detach() if hasattr(value, "detach") else value
