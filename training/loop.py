"""The instrumented training loop: phases timed, bad steps skipped on the device, exactly resumable on a CPU."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from observability.training import TrainingMonitor
from training.checkpoint import Checkpoint, CheckpointStore
from training.data import Rows, batches
from training.faults import Faults
from training.guards import GuardState, judge, nonfinite, skip_if
from training.replicas import Replicas
from training.spikes import Spike, SpikeRule, SpikeState, judge_losses

_log = logging.getLogger(__name__)
# The fault `spike` takes one step at so many times the rate.
_SPIKED_RATE = 100.0


class ResumeError(RuntimeError):
    """Checkpoints of another run lie where this one wants to resume; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a run learns. Two runs of equal configuration and data on a CPU give the same weights, to the bit."""

    epochs: int = 4
    batch_size: int = 512
    learning_rate: float = 2e-3
    """Peak; reached after `warmup` of the steps, then down to zero along a cosine."""
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    seed: int = 0
    device: str = "cpu"
    threads: int = 0
    """Threads of torch on the CPU; 0 leaves them as they are."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 takes only the last, and none without a store."""
    report_every: int = 20
    """Steps between looks at losses and guard flags: the only times that the host waits for the device."""
    max_nonfinite: int = 10
    """Skipped steps in a row that end the run."""
    on_spike: Literal["report", "rewind", "stop"] = "report"
    """What follows when the loss leaves its history upwards: only a count and a warning; back to the checkpoint before
    it, and past the batches that led to it; or the end of the run."""
    spike_score: float = 6.0
    """Robust deviations above its history that make a loss a spike."""
    max_rewinds: int = 3
    """Rewinds after which a spike ends the run."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "report_every", "max_nonfinite"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.on_spike not in ("report", "rewind", "stop"):
            raise ValueError(f"on_spike is {self.on_spike!r}: report, rewind or stop")
        if self.on_spike == "rewind" and not self.checkpoint_every:
            raise ValueError("on_spike is rewind and checkpoint_every is 0: there would be nothing to rewind to")
        for name in ("learning_rate", "clip_norm", "spike_score"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be positive")
        if self.checkpoint_every < 0 or not 0 <= self.warmup < 1:
            raise ValueError(f"checkpoint_every {self.checkpoint_every} and warmup {self.warmup}: >= 0 and in [0, 1)")


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


@dataclass(slots=True)
class _Progress:
    """Where a run stands. `waiting` holds the losses and flags of steps that the host has not looked at yet."""

    step: int = 0
    samples: int = 0
    guard: GuardState = field(default_factory=GuardState)
    losses: list[tuple[int, float]] = field(default_factory=list)
    waiting: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    spikes: SpikeState = field(default_factory=SpikeState)
    is_spiking: bool = False
    rewinds: int = 0
    passed_over: int = 0
    """Batches that no step was taken on."""

    @property
    def position(self) -> int:
        """Batches of the data that lie behind."""
        return self.step + self.passed_over


class Trainer:
    """Fits `network` to `rows` by fused AdamW on the log loss; with a store it goes on from the newest checkpoint.

    With `replicas` over several ranks, each of them runs one of these on the same rows: they share out every batch, and
    the first writes the checkpoints, from which any number of ranks can go on. `faults` strike on purpose.
    """

    def __init__(
        self,
        network: nn.Module,
        rows: Rows,
        config: TrainConfig,
        monitor: TrainingMonitor,
        checkpoints: CheckpointStore | None = None,
        replicas: Replicas | None = None,
        faults: Faults | None = None,
        attempt: int = 0,
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
        self._num_steps = self._steps_an_epoch * config.epochs
        self._progress = _Progress()

    def run(self) -> TrainResult:
        """Trains to the end, or until the guard stops it. Seeds torch first, or takes its state from the checkpoint."""
        began = time.monotonic()
        stream = self._replicas.stream
        torch.manual_seed(self._config.seed * 1_000_003 + stream if stream else self._config.seed)
        newest = self._newest()
        self._progress = _Progress() if newest is None else self._restored(newest)
        first = self._progress.step
        self._monitor.resumed(first)
        self._network.train()
        stopped = None
        while self._progress.position < self._num_steps and stopped is None:
            stopped = self._epoch()
        progress = self._progress
        return TrainResult(
            outcome="completed" if stopped is None else "stopped",
            reason=stopped or f"{progress.step} steps, {progress.guard.skipped} of them skipped",
            steps=progress.step,
            samples=progress.samples,
            skipped=progress.guard.skipped,
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
        for _ in range(start, self._steps_an_epoch):
            monitor.start()
            struck = self._faults.strike(self._replicas.rank, self._attempt, progress.position) if self._faults else ()
            inputs, labels = next(source)
            monitor.mark("data_wait")
            rate = learning_rate(config, progress.position, self._num_steps)
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
    ) -> tuple[Tensor, Tensor]:
        """One step on one batch; gives loss and gradient norm, both still on the device."""
        device, monitor = self._config.device, self._monitor
        *mine, own_labels = self._replicas.share((*inputs, labels))
        on_device = [column.to(device, non_blocking=True) for column in mine]
        wanted = own_labels.to(device, non_blocking=True)
        monitor.mark("host_to_device")
        spoil = math.nan if "nan" in struck else 1.0
        loss = self._replicas.learn(on_device, wanted, len(labels), spoil=spoil, mark=monitor.mark)
        norm = self._replicas.clip(self._config.clip_norm)
        # The averaged gradients, and with them this flag, are the same in all ranks; a loss is not.
        flag = nonfinite(loss if self._replicas.world_size == 1 else norm, norm)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * (_SPIKED_RATE if "spike" in struck else 1.0)
        skip_if(self._optimizer, flag)
        self._optimizer.step()
        monitor.mark("optimizer")
        self._progress.waiting.append((loss, flag))
        return loss, norm

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
        """Fetches losses and flags of the steps since the last look, in one copy, and lets the guards judge them."""
        progress = self._progress
        read = torch.stack([torch.stack(pair) for pair in progress.waiting]).double().cpu()
        losses, flags = self._replicas.mean(read).unbind(1)
        progress.waiting.clear()
        progress.losses.append((progress.step, losses.mean().item()))
        decision = judge(progress.guard, [flag > 0 for flag in flags.tolist()], self._config.max_nonfinite)
        progress.guard = decision.state
        for _ in range(decision.newly_skipped):
            self._monitor.skipped()
        if decision.action == "stop":
            return decision.reason
        rule = SpikeRule(score=self._config.spike_score)
        progress.spikes, spike = judge_losses(rule, progress.spikes, losses.tolist())
        if spike is None:
            progress.is_spiking = False
            return None
        return self._spiked(spike, progress.step - len(losses) + spike.first)

    def _spiked(self, spike: Spike, sound: int) -> str | None:
        """Does what is to follow a spike, before which `sound` steps were taken; gives the reason of a stop."""
        config, progress = self._config, self._progress
        if not progress.is_spiking:
            self._monitor.spiked()
            _log.warning("%s at step %d", spike.reason, sound)
        progress.is_spiking = True
        if config.on_spike == "report":
            return None
        if config.on_spike == "stop" or progress.rewinds >= config.max_rewinds:
            return f"{spike.reason} at step {sound}" + (
                f", after {progress.rewinds} rewinds" if progress.rewinds else ""
            )
        good = self._newest(at_most=sound)
        if good is None:
            return f"{spike.reason} at step {sound}, and there is no checkpoint from before it"
        restored = self._restored(good)
        restored.rewinds = progress.rewinds + 1
        restored.passed_over = progress.position - restored.step
        # The checkpoints that followed hold what is given up; a restart must not go on from them.
        if self._checkpoints is not None and self._replicas.leads:
            self._checkpoints.drop_after(restored.step)
        self._progress = restored
        self._monitor.resumed(restored.step)
        return None

    def _save(self, store: CheckpointStore) -> None:
        progress = self._progress
        self._monitor.entering("checkpoint")
        state = {
            "run": self._fingerprint(),
            **self._replicas.state(self._optimizer),
            "step": progress.step,
            "samples": progress.samples,
            "guard": (progress.guard.skipped, progress.guard.in_a_row),
            "losses": progress.losses,
            "spikes": (progress.spikes.losses, progress.spikes.count),
            "rewinds": (progress.rewinds, progress.passed_over),
            "random": self._replicas.random_states(),
            "device_random": torch.cuda.get_rng_state_all() if self._config.device.startswith("cuda") else [],
        }
        if not self._replicas.leads:
            self._monitor.ring.checkpointed(progress.step)
            self._monitor.mark("checkpoint")
            return
        try:
            store.save(progress.step, state)
        except OSError as error:
            # A full disk costs a checkpoint, not the run; the metric and its alert tell.
            _log.warning("the checkpoint of step %d was not written: %s", progress.step, error)
            self._monitor.checkpointed("failed")
        else:
            self._monitor.checkpointed("ok")
            self._monitor.ring.checkpointed(progress.step)
        self._monitor.mark("checkpoint")

    def _restored(self, checkpoint: Checkpoint) -> _Progress:
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
        losses = [(int(step), float(loss)) for step, loss in state["losses"]]
        progress = _Progress(state["step"], state["samples"], GuardState(*state["guard"]), losses)
        progress.spikes = SpikeState(tuple(state["spikes"][0]), state["spikes"][1])
        progress.rewinds, progress.passed_over = state["rewinds"]
        return progress

    def _fingerprint(self) -> str:
        """What must be equal for a checkpoint to fit: settings that shape the weights, data, network's shapes."""
        config = {name: value for name, value in asdict(self._config).items() if name not in ("device", "threads")}
        known = [config, len(self._rows), float(self._rows.labels.sum()), self._shapes]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """The rate of a step (from 0): linear up over the warm-up, then a half cosine down to zero at the end."""
    warmup = int(num_steps * config.warmup)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))
