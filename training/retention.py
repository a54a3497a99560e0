"""Which checkpoints stay: the newest, the best, and the last from before which nothing was found wrong."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

MARKS = "marks.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How many stay of each kind; one may be of several."""

    recent: int = 2
    best: int = 1
    """Those of the lowest score."""
    good: int = 1
    """The newest of at most the steps that guards have found sound."""

    def __post_init__(self) -> None:
        if self.recent < 1:
            raise ValueError(f"recent is {self.recent}: at least one checkpoint must stay")
        if self.best < 0 or self.good < 0:
            raise ValueError(f"best {self.best} and good {self.good}: at least 0")


@dataclass(frozen=True, slots=True)
class Marks:
    """What is known of the checkpoints of a folder: the score of each step (lower is better), and up to where the run
    was sound. A file that is not whole counts as none: the newest stay anyway."""

    scores: Mapping[int, float] = field(default_factory=dict)
    sound: int = -1

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The marks of a folder."""
        try:
            said = json.loads((folder / MARKS).read_text(encoding="utf-8"))
            return cls({int(step): float(score) for step, score in said["scores"].items()}, int(said["sound"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def write(self, folder: Path) -> None:
        """Replaces the marks of a folder at once. OSError as `open`."""
        partial = folder / f".{MARKS}.{os.getpid()}.partial"
        said: dict[str, Any] = {"scores": {str(step): score for step, score in self.scores.items()}}
        partial.write_text(json.dumps({**said, "sound": self.sound}), encoding="utf-8")
        partial.replace(folder / MARKS)

    def with_one(self, step: int, score: float | None, sound: int | None) -> Marks:
        """The marks after a checkpoint was added."""
        scores = {known: value for known, value in self.scores.items() if known != step}
        if score is not None and math.isfinite(score):
            scores[step] = score
        return Marks(scores, self.sound if sound is None else sound)

    def only(self, steps: Collection[int]) -> Marks:
        """The marks of these checkpoints."""
        return replace(self, scores={step: score for step, score in self.scores.items() if step in steps})


def kept(steps: Collection[int], marks: Marks, retention: Retention) -> frozenset[int]:
    """The steps whose checkpoints stay; of equal scores the newer is better."""
    newest = sorted(steps)
    best = sorted((step for step in newest if step in marks.scores), key=lambda step: (marks.scores[step], -step))
    good = [step for step in newest if step <= marks.sound]
    return frozenset(
        (*newest[-retention.recent :], *best[: retention.best], *(good[-retention.good :] if retention.good else ()))
    )
