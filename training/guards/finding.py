"""What a guard found, and the names of guards and of what may follow."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Action = Literal["report", "skip", "lower_rate", "rewind", "restart", "stop"]
Guard = Literal[
    "nonfinite", "loss_spike", "gradient_explosion", "activations", "plateau", "starvation", "leak", "divergence",
    "straggler", "device",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a guard speaks up. Up to step `sound` nothing was wrong; `rank` is -1 where it is no rank in particular."""

    guard: Guard
    reason: str
    sound: int
    score: float = math.nan
    rank: int = -1

    def to_json(self) -> dict[str, Any]:
        """A JSON object; a score that is no finite number becomes null."""
        return asdict(self) | {"score": self.score if math.isfinite(self.score) else None}
