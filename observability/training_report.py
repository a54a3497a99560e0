"""Folds step records into a run's training metrics: many records at once, and no device is waited for."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from observability import names
from observability.metrics import Metrics, observe_many
from observability.step_ring import DATA_WAIT, DURATION, FIRST_PHASE, Records
from observability.wall_time import goodput

_log = logging.getLogger(__name__)
# On a device these are asynchronous launches for the host's clock, so that they are timed by events instead.
_DEVICE_PHASES = ("host_to_device", "forward", "backward", "optimizer")


class TrainingReport:
    """The training metrics of one run, and how far they have come. One thread at a time."""

    def __init__(
        self,
        metrics: Metrics,
        model: str,
        run: str,
        now_ns: int,
        flops_per_sample: float = 0.0,
        peak_flops: float | None = None,
        rate_seconds: float = 0.0,
    ) -> None:
        """Throughput is of at least `rate_seconds`, where `totals` is called more often than that."""
        self.num_steps = self._num_samples = self._num_tokens = 0
        self._metrics, self._labels = metrics, (model, run)
        self._flops_per_sample, self._peak_flops = flops_per_sample, peak_flops
        self._rate_seconds, self._since_ns, self._since_samples, self._since_tokens = rate_seconds, now_ns, 0, 0
        self._steps = metrics[names.TRAINING_STEPS].labels(model)
        self._samples = metrics[names.TRAINING_SAMPLES].labels(model)
        metrics[names.TRAINING_SPIKES].labels(model)
        metrics[names.TRAINING_NONFINITE].labels(model)  # from 0 on: no rate sees a counter's first value
        self._duration = metrics[names.TRAINING_STEP_DURATION].labels(model)
        self._phases = {phase: metrics[names.TRAINING_PHASE_DURATION].labels(model, phase) for phase in names.PHASES}
        self._data_wait = metrics[names.TRAINING_DATA_WAIT].labels(model, run)
        self._throughput = metrics[names.TRAINING_THROUGHPUT].labels(model, run)
        self._loss = _Reading(metrics[names.TRAINING_LOSS], model, run)
        self._gradient_norm = _Reading(metrics[names.TRAINING_GRADIENT_NORM], model, run)
        self._learning_rate = metrics[names.TRAINING_LEARNING_RATE]

    def steps(self, records: Records, has_device: bool = False) -> None:
        """Times of steps and phases; those that run on a device are left to `device_phases`."""
        observe_many(self._duration, records[:, DURATION] / 1e9)
        if total := int(records[:, DURATION].sum()):
            self._data_wait.set(int(records[:, DATA_WAIT].sum()) / total)
        for index, phase in enumerate(names.PHASES):
            if has_device and phase in _DEVICE_PHASES:
                continue
            nanoseconds = records[:, FIRST_PHASE + index]
            observe_many(self._phases[phase], nanoseconds[nanoseconds > 0] / 1e9)

    def device_phases(self, found: list[tuple[str, float]]) -> None:
        """(phase, seconds) by the device's own clock."""
        for phase in _DEVICE_PHASES:
            observe_many(self._phases[phase], np.array([seconds for name, seconds in found if name == phase]))

    def totals(self, num_steps: int, num_samples: int, now_ns: int, num_tokens: int = 0) -> None:
        """Steps, samples and tokens so far, and the throughput since it was last told."""
        self._samples.inc(max(0, num_samples - self._num_samples))
        if num_tokens:
            self._metrics[names.TRAINING_TOKENS].labels(self._labels[0]).inc(num_tokens - self._num_tokens)
        seconds = (now_ns - self._since_ns) / 1e9
        if num_steps > self.num_steps and seconds > 0 and seconds >= self._rate_seconds:
            self._rates((num_samples - self._since_samples) / seconds)
            if num_tokens:
                tokens = (num_tokens - self._since_tokens) / seconds
                self._metrics[names.TRAINING_TOKEN_RATE].labels(*self._labels).set(tokens)
            self._since_ns, self._since_samples, self._since_tokens = now_ns, num_samples, num_tokens
        elif not self._rate_seconds:
            self._since_ns, self._since_samples, self._since_tokens = now_ns, num_samples, num_tokens
        self._steps.inc(num_steps - self.num_steps)
        self.num_steps, self._num_samples, self._num_tokens = num_steps, num_samples, num_tokens

    def _rates(self, samples: float) -> None:
        """Shows samples a second, and what the model asks for at that rate."""
        self._throughput.set(samples)
        if self._flops_per_sample:
            self._metrics[names.TRAINING_FLOPS].labels(*self._labels).set(samples * self._flops_per_sample)
            if self._peak_flops:
                used = samples * self._flops_per_sample / self._peak_flops
                self._metrics[names.TRAINING_MFU].labels(*self._labels).set(used)

    def wall_time(self, by_cause: Mapping[str, float]) -> None:
        """Shows where the wall time went."""
        for cause, seconds in by_cause.items():
            self._metrics[names.TRAINING_WALL_TIME].labels(*self._labels, cause).set(seconds)
        self._metrics[names.TRAINING_GOODPUT].labels(*self._labels).set(goodput(by_cause))

    def gauges(self, loss: Any, gradient_norm: Any, learning_rate: float | None) -> tuple[float, float, float]:
        """Shows numbers or tensors, and gives what is shown now; NaN for what is not known."""
        if learning_rate is not None:
            self._learning_rate.labels(*self._labels).set(learning_rate)
        rate = math.nan if learning_rate is None else learning_rate
        return self._loss.show(loss), self._gradient_norm.show(gradient_norm), rate


class _Reading:
    """Shows a number or a tensor in a gauge. A device's tensor is copied without waiting, and shown at a later call."""

    def __init__(self, gauge: Any, *labels: str) -> None:
        self._gauge, self._labels = gauge, labels
        self._copy: tuple[Any, Any] | None = None
        self._shown, self._odd = math.nan, False

    def show(self, value: Any) -> float:
        try:
            self._show(value)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            if not self._odd:
                kind = type(value).__name__
                _log.warning("a %s is not shown (%s): give a number, or a tensor of one element", kind, error)
            self._odd = True
        return self._shown

    def _show(self, value: Any) -> None:
        if self._copy is not None and self._copy[1].query():
            self._set(float(self._copy[0]))
            self._copy = None
        if value is not None and not getattr(value, "is_cuda", False):
            self._set(float(value))
        elif value is not None and self._copy is None:
            self._copy = _copied_to_host(value)

    def _set(self, value: float) -> None:
        self._shown = value
        # Not before: what is not known is absent, not 0.
        self._gauge.labels(*self._labels).set(value)


def _copied_to_host(tensor: Any) -> tuple[Any, Any]:
    import torch

    copy = torch.empty((), dtype=torch.float32, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()
    return copy, done
