"""How a training run ends, and where a version that passed goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from training.evaluate import GateDecision, Scores


class RegisteredVersion(Protocol):
    """What a registry answers: the number of the version."""

    @property
    def version(self) -> int: ...


class ModelRegistry(Protocol):
    """Where a version that passed its gate goes; the front door hands one over."""

    def register(
        self,
        model: str,
        artifact_dir: Path,
        *,
        lineage: Mapping[str, Any],
        profile: bytes | None,
        metrics: Mapping[str, Any],
    ) -> RegisteredVersion: ...


class TrainingStopped(RuntimeError):
    """The guard ended the run; the message is its reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOutcome:
    """How a run ended: `completed` (registered), `rejected` by the gate, or `failed`; `reason` says why."""

    model: str
    run: str
    outcome: Literal["completed", "rejected", "failed"]
    reason: str
    version: int | None = None
    parent: int | None = None
    start: str = "new"
    rows: int = 0
    window: tuple[str, str] | None = None
    scores: Scores | None = None
    gate: GateDecision | None = None
    seconds: float = 0.0
    slices: tuple[Mapping[str, Any], ...] = ()
    """Scores of parts of the held-out rows, worst first: see `training.slices`."""
    blessing: Mapping[str, Any] | None = None
    """Whether the artifact loads and answers, and how fast; None where it did not come to that."""
    resumed: tuple[str, ...] = ()
    """Steps that an earlier process had ended."""

    @property
    def passed(self) -> bool:
        """Whether there is a new version."""
        return self.outcome == "completed"

    @property
    def exit_code(self) -> int:
        """0 completed, 2 rejected, 1 failed."""
        return {"completed": 0, "rejected": 2, "failed": 1}[self.outcome]

    def to_json(self) -> dict[str, Any]:
        """The outcome as a JSON object."""
        return {
            "model": self.model,
            "run": self.run,
            "outcome": self.outcome,
            "passed": self.passed,
            "reason": self.reason,
            "version": self.version,
            "parent": self.parent,
            "start": self.start,
            "rows": self.rows,
            "window": list(self.window) if self.window else None,
            "metrics": self.scores.to_json() if self.scores else {},
            "gate": self.gate.to_json() if self.gate else None,
            "slices": [dict(one) for one in self.slices],
            "blessing": dict(self.blessing) if self.blessing else None,
            "resumed": list(self.resumed),
            "seconds": round(self.seconds, 3),
        }
