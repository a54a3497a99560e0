"""Where a run stands, and what of that is kept with a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from training.guards.course import Course


@dataclass(slots=True)
class Progress:
    """Where a run stands. `losses` are (step, mean loss since the reading before)."""

    step: int = 0
    samples: int = 0
    course: Course = field(default_factory=Course)
    losses: list[tuple[int, float]] = field(default_factory=list)
    ceiling: float = math.inf
    """The gradient norm from which on a step is odd."""
    rewinds: int = 0
    passed_over: int = 0
    """Batches that no step was taken on."""

    @property
    def position(self) -> int:
        """Batches of the data that lie behind."""
        return self.step + self.passed_over

    def to_state(self) -> dict[str, Any]:
        """What belongs into a checkpoint, as plain values."""
        return {
            "step": self.step,
            "samples": self.samples,
            "guards": self.course.to_state(),
            "losses": self.losses,
            "rewinds": (self.rewinds, self.passed_over),
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Self:
        """What `to_state` gave. KeyError or TypeError for what is none."""
        losses = [(int(step), float(loss)) for step, loss in state["losses"]]
        rewinds, passed_over = state["rewinds"]
        return cls(
            state["step"], state["samples"], Course.of_state(state["guards"]), losses,
            rewinds=rewinds, passed_over=passed_over,
        )  # fmt: skip
