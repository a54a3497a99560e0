"""The instrumented training loop: phases timed, bad steps skipped on the device, exactly resumable on a CPU."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from observability.machine import GpuSample
from observability.training import TrainingMonitor
from training.checkpoint import Checkpoint, Checkpoints
from training.data import Rows, batches
from training.faults import Faults
from training.guards import (
    Action,
    DeviceRule,
    DeviceState,
    Finding,
    GuardRecord,
    Rules,
    checksums,
    clipped_step,
    judge_checksums,
    judge_gpu,
    judge_reading,
    respond,
)
from training.guards.activations import judged_layers
from training.progress import Progress
from training.replicas import Replicas
from training.signals import Signals
from training.spikes import SpikeRule
from training.train_config import TrainConfig, learning_rate

_log = logging.getLogger(__name__)
# The fault `spike` takes one step at so many times the rate.
_SPIKED_RATE = 100.0
# The fault `explode` multiplies one loss, and so its gradients, by so much; `diverge` moves a weight by so much.
_EXPLODED, _MOVED = 1e4, 1e-3


class RestartRun(RuntimeError):
    """A guard's policy says that the process is to begin anew; the message is the reason. A supervisor does so."""


class ResumeError(RuntimeError):
    """Checkpoints of another run lie where this one wants to resume; the message says what to do."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a run ended. `losses` are (step, mean loss since the report before); `skipped` steps changed no weights."""

    outcome: Literal["completed", "stopped"]
    reason: str
    steps: int
    samples: int
    skipped: int
    losses: tuple[tuple[int, float], ...]
    seconds: float
    resumed_from: int
    rewinds: int = 0


class Trainer:
    """Fits `network` to `rows` by fused AdamW on the log loss; with a store it goes on from the newest checkpoint.

    With `replicas` over several ranks, each of them runs one of these on the same rows: they share out every batch, and
    the first writes the checkpoints, from which any number of ranks can go on. `faults` strike on purpose. What guards
    find, and what follows, is kept in `record`.
    """

    def __init__(
        self,
        network: nn.Module,
        rows: Rows,
        config: TrainConfig,
        monitor: TrainingMonitor,
        checkpoints: Checkpoints | None = None,
        replicas: Replicas | None = None,
        faults: Faults | None = None,
        attempt: int = 0,
        record: GuardRecord | None = None,
    ) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self._network = network.to(config.device)
        self._rows, self._config, self._monitor, self._checkpoints = rows, config, monitor, checkpoints
        self._replicas, self._faults, self._attempt = replicas or Replicas(), faults, attempt
        self._shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
        self._replicas.take(self._network, batch_size=min(config.batch_size, len(rows)))
        self._parameters = self._replicas.parameters
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._steps_an_epoch = math.ceil(len(rows) / config.batch_size)
        self._num_steps = min(self._steps_an_epoch * config.epochs, config.max_steps or sys.maxsize)
        self._progress = Progress()
        self._record, self._names = record, [name for name, _ in network.named_parameters()]
        self._rules = Rules(max_nonfinite=config.max_nonfinite, spike=SpikeRule(score=config.spike_score))
        layers = judged_layers(network) if self._replicas.is_whole else {}
        self._signals = Signals(monitor, self._replicas, layers, config.guards.activations_every)
        self._gpus: dict[int, DeviceState] = {}
        self._judged: tuple[GpuSample, ...] = ()
        # The replicas were equal after so many steps, and after so many a guard last found something.
        self._equal = self._troubled = 0

    def run(self) -> TrainResult:
        """Trains to the end, or until the guard stops it. Seeds torch first, or takes its state from the checkpoint."""
        began = time.monotonic()
        stream = self._replicas.stream
        torch.manual_seed(self._config.seed * 1_000_003 + stream if stream else self._config.seed)
        newest = self._newest()
        self._progress = Progress() if newest is None else self._restored(newest)
        first = self._equal = self._progress.step
        self._monitor.resumed(first)
        self._network.train()
        stopped = None
        while self._progress.position < self._num_steps and stopped is None:
            stopped = self._epoch()
        if self._checkpoints is not None:
            self._checkpoints.wait()
        progress = self._progress
        return TrainResult(
            outcome="completed" if stopped is None else "stopped",
            reason=stopped or f"{progress.step} steps, {progress.course.nonfinite.skipped} of them skipped",
            steps=progress.step,
            samples=progress.samples,
            skipped=progress.course.nonfinite.skipped,
            losses=tuple(progress.losses),
            seconds=time.monotonic() - began,
            resumed_from=first,
            rewinds=progress.rewinds,
        )

    def _newest(self, at_most: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that verifies, of at most so many steps; the same in all ranks."""
        if self._checkpoints is None:
            return None
        newest = self._checkpoints.newest(at_most) if self._replicas.leads else None
        step = self._replicas.agreed(-1 if newest is None else newest.step)
        return newest if self._replicas.leads or step < 0 else self._checkpoints.at(step)

    def _epoch(self) -> str | None:
        """Goes on to the end of the epoch, or to a rewind; gives the reason where a guard stops the run."""
        config, monitor, progress = self._config, self._monitor, self._progress
        epoch, start = divmod(progress.position, self._steps_an_epoch)
        source = batches(self._rows, config.batch_size, config.seed, epoch, start)
        for _ in range(start, min(self._steps_an_epoch, start + self._num_steps - progress.position)):
            monitor.start()
            struck = self._faults.strike(self._replicas.rank, self._attempt, progress.position) if self._faults else ()
            inputs, labels = next(source)
            monitor.mark("data_wait")
            lowered = config.guards.lowered**progress.course.standing.lowered
            rate = learning_rate(config, progress.position, self._num_steps) * lowered
            loss, norm = self._step(inputs, labels, rate, struck)
            progress.step += 1
            progress.samples += len(labels)
            stopped = self._after_step()
            monitor.end(len(labels), loss=loss, gradient_norm=norm, learning_rate=rate)
            if stopped is not None or progress is not self._progress:
                return stopped
        return None

    def _step(
        self, inputs: Iterable[Tensor], labels: Tensor, rate: float, struck: Collection[str]
    ) -> tuple[Tensor | float, Tensor | float]:
        """One step on one batch; gives loss and gradient norm, both still on the device where there is one."""
        device, monitor, signals = self._config.device, self._monitor, self._signals
        *mine, own_labels = self._replicas.share((*inputs, labels))
        on_device = [column.to(device, non_blocking=True) for column in mine]
        wanted = own_labels.to(device, non_blocking=True)
        monitor.mark("host_to_device")
        spoil = math.nan if "nan" in struck else _EXPLODED if "explode" in struck else 1.0
        learn = partial(self._replicas.learn, on_device, wanted, len(labels), spoil=spoil, mark=monitor.mark)
        if signals.due(self._progress.step):
            with signals.looking():
                loss = learn()
        else:
            loss = learn()
        norm = self._replicas.norm()
        for group in self._optimizer.param_groups:
            group["lr"] = rate * (_SPIKED_RATE if "spike" in struck else 1.0)
        if self._checkpoints is not None:
            # Until here nothing of what a checkpoint that is being taken copies has changed.
            self._checkpoints.settle()
        # The averaged gradients tell of every rank's loss and outputs, too, and so all ranks skip the same steps.
        told, flag = clipped_step(self._optimizer, norm, self._config.clip_norm, self._progress.ceiling)
        if "diverge" in struck:
            self._parameters[0].data.view(-1)[0] += _MOVED
        monitor.mark("optimizer")
        signals.add(loss, told, flag)
        return loss, told

    def _after_step(self) -> str | None:
        """Reads flags and takes a checkpoint where they are due; gives the reason where the guard stops the run."""
        step, config = self._progress.step, self._config
        at_end = self._progress.position == self._num_steps
        due = at_end or (config.checkpoint_every > 0 and step % config.checkpoint_every == 0)
        if not (due or step % config.report_every == 0):
            return None
        progress = self._progress
        stopped = self._read()
        # A run that is stopped keeps the checkpoint from before: what led to the stop is not worth resuming.
        if due and stopped is None and progress is self._progress and self._checkpoints is not None:
            self._save(self._checkpoints)
        return stopped

    def _read(self) -> str | None:
        """Fetches what the steps since the last look left on the device, in one copy, and lets the guards judge it."""
        progress, policy = self._progress, self._config.guards
        reading = self._signals.read(progress.step)
        if travelled := self._replicas.communication():
            self._monitor.ring.communicated(*travelled)
        progress.losses.append((progress.step, math.fsum(reading.losses) / len(reading.losses)))
        progress.course, found = judge_reading(self._rules, progress.course, reading)
        if policy.gradient_explosion == "skip":
            progress.ceiling = progress.course.ceiling(self._rules.gradient)
        for step, flag in enumerate(reading.flags, start=progress.step - len(reading.flags)):
            if flag > 0:
                self._monitor.skipped(step)
        self._monitor.ring.skipped(progress.course.nonfinite.skipped)
        for finding in (*found, *self._compared(), *self._device_trouble()):
            stopped = self._follow(finding)
            if stopped is not None or progress is not self._progress:
                return stopped
        return None

    def _compared(self) -> tuple[Finding, ...]:
        """Compares the replicas' parameters where that is due."""
        step, every = self._progress.step, self._config.guards.checksums_every
        if not every or step // every == self._equal // every:
            return ()
        gathered = self._replicas.gathered(checksums(self._network))
        if gathered is None:
            return ()
        divergence = judge_checksums(self._names, gathered.tolist())
        if divergence is not None:
            return (Finding("divergence", divergence.reason, self._equal, rank=divergence.rank),)
        self._equal = step
        return ()

    def _device_trouble(self) -> tuple[Finding, ...]:
        """What the latest sample of the GPUs tells, where this process takes any."""
        machine = self._monitor.machine
        if machine is None or machine.gpus is self._judged or self._replicas.world_size > 1:
            return ()
        self._judged, found = machine.gpus, []
        for sample in self._judged:
            state, trouble = judge_gpu(DeviceRule(), self._gpus.get(sample.gpu, DeviceState()), sample)
            self._gpus[sample.gpu] = state
            found += [Finding("device", one.reason, self._progress.step) for one in trouble]
        return tuple(found)

    def _follow(self, finding: Finding) -> str | None:
        """Does what is to follow a finding; gives the reason where the run stops. RestartRun where it begins anew."""
        config, progress = self._config, self._progress
        self._troubled = progress.step
        wanted: Action = config.on_spike if finding.guard == "loss_spike" else config.guards.action(finding.guard)
        response = respond(config.guards, progress.course.standing, finding, progress.step, wanted)
        where = "" if finding.guard == "nonfinite" else f" at step {finding.sound}"
        action, reason = response.action, response.reason + where
        good = (
            self._newest(at_most=finding.sound)
            if action == "rewind" and progress.rewinds < config.max_rewinds
            else None
        )
        if action == "rewind" and good is None:
            action, reason = (
                "stop",
                reason
                + (
                    f", after {progress.rewinds} rewinds"
                    if progress.rewinds
                    else ", and there is no checkpoint from before it"
                ),
            )
        progress.course = replace(progress.course, standing=response.standing)
        if finding.guard == "loss_spike":
            self._monitor.spiked()
        self._monitor.found(finding.guard, action, finding.sound)
        _log.warning("%s: %s", action, reason)
        if self._record is not None and self._replicas.leads:
            try:
                self._record.add(finding, action, reason, progress.step, self._attempt)
            except OSError as error:
                _log.warning("what a guard found could not be recorded: %s", error)
        if action == "restart":
            raise RestartRun(reason)
        if good is not None:
            self._rewind(good)
        return reason if action == "stop" else None

    def _rewind(self, good: Checkpoint) -> None:
        """Goes back to a checkpoint and past the batches that came after it."""
        progress = self._progress
        restored = self._restored(good)
        restored.rewinds = progress.rewinds + 1
        restored.passed_over = progress.position - restored.step
        restored.course = replace(restored.course, standing=progress.course.standing)
        # The checkpoints that followed hold what is given up; a restart must not go on from them.
        if self._checkpoints is not None and self._replicas.leads:
            self._checkpoints.drop_after(restored.step)
        self._progress, self._equal = restored, restored.step
        self._monitor.resumed(restored.step)

    def _save(self, store: Checkpoints) -> None:
        progress = self._progress
        self._monitor.entering("checkpoint")
        state = {
            "run": self._fingerprint(),
            **self._replicas.state(self._optimizer),
            **progress.to_state(),
            "random": self._replicas.random_states(),
            "device_random": torch.cuda.get_rng_state_all() if self._config.device.startswith("cuda") else [],
        }
        if self._replicas.leads or store.collective:
            # A spike that begins now would be found to begin at most so many steps ago.
            delay = 2 * self._rules.spike.span
            sound = progress.step - delay if progress.step - self._troubled > delay else None
            # Weights and moments change when the optimizer steps, buffers already in the forward pass.
            still = ("optimizer",) if any(True for _ in self._network.buffers()) else ("network", "optimizer")
            store.put(progress.step, state, self._saved, score=progress.losses[-1][1], sound=sound, still=still)
        else:
            self._monitor.ring.checkpointed(progress.step)
        self._monitor.mark("checkpoint")

    def _saved(self, step: int, problem: str) -> None:
        """Hears how the checkpoint of a step ended, maybe from another thread."""
        self._monitor.checkpointed("failed" if problem else "ok")
        if problem:
            # A full disk costs a checkpoint, not the run; the metric and its alert tell.
            _log.warning("the checkpoint of step %d was not written: %s", step, problem)
        else:
            self._monitor.ring.checkpointed(step)

    def _restored(self, checkpoint: Checkpoint) -> Progress:
        state = checkpoint.state
        if state.get("run") != self._fingerprint():
            raise ResumeError(
                f"{checkpoint.path} belongs to a run with other settings, data or network; "
                "give this run a folder of its own, or remove that one"
            )
        self._replicas.restore(checkpoint, self._optimizer)
        self._replicas.restore_random_state(state["random"], state["step"])
        if state["device_random"]:
            torch.cuda.set_rng_state_all(state["device_random"])
        progress = Progress.of_state(state)
        if self._config.guards.gradient_explosion == "skip":
            progress.ceiling = progress.course.ceiling(self._rules.gradient)
        return progress

    def _fingerprint(self) -> str:
        """What must be equal for a checkpoint to fit: settings that shape the weights, data, network's shapes."""
        config = {name: value for name, value in asdict(self._config).items() if name not in ("device", "threads")}
        known = [config, self._rows.digest, self._shapes]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
