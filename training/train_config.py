"""How a run learns: its settings, checked, and the learning rate that follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from training.guards.policy import GuardPolicy, from_json


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
    on_spike: Literal["report", "lower_rate", "rewind", "restart", "stop"] = "report"
    """What follows when the loss leaves its history upwards: only a count and a warning; a lower rate; back to the
    checkpoint before it, and past the batches that led to it; a new process; or the end of the run."""
    spike_score: float = 6.0
    """Robust deviations above its history that make a loss a spike."""
    max_steps: int = 0
    """Batches after which the run is over, if its epochs have more; the rate follows this length. 0: no limit."""
    max_rewinds: int = 3
    """Rewinds after which a finding that asks for another ends the run."""
    guards: GuardPolicy = field(default_factory=GuardPolicy)
    """What follows what the other guards find. A mapping of its fields will do."""

    def __post_init__(self) -> None:
        if isinstance(self.guards, Mapping):
            object.__setattr__(self, "guards", from_json(dict(self.guards)))
        for name in ("epochs", "batch_size", "report_every", "max_nonfinite"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.on_spike not in ("report", "lower_rate", "rewind", "restart", "stop"):
            raise ValueError(f"on_spike is {self.on_spike!r}: report, lower_rate, rewind, restart or stop")
        if self.on_spike == "rewind" and not self.checkpoint_every:
            raise ValueError("on_spike is rewind and checkpoint_every is 0: there would be nothing to rewind to")
        for name in ("nonfinite", "gradient_explosion", "activations"):
            if getattr(self.guards, name) == "rewind" and not self.checkpoint_every:
                raise ValueError(
                    f"guards.{name} is rewind and checkpoint_every is 0: there would be nothing to rewind to"
                )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}: it must be positive and finite")
        # An infinite one never clips, or never calls a loss a spike.
        for name in ("clip_norm", "spike_score"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be positive")
        if self.max_steps < 0:
            raise ValueError(f"max_steps is {self.max_steps}: it must be at least 1, or 0 for no limit")
        if self.checkpoint_every < 0 or not 0 <= self.warmup < 1:
            raise ValueError(f"checkpoint_every {self.checkpoint_every} and warmup {self.warmup}: >= 0 and in [0, 1)")


def learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """The rate of a step (from 0): linear up over the warm-up, then a half cosine down to zero at the end."""
    warmup = int(num_steps * config.warmup)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))
