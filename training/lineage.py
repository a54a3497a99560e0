"""Where a version comes from: the JSON object that is registered with it."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.evaluate import GateDecision, Scores
from training.train_config import TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """One run's account of itself: code, data, parent, settings, scores and gate."""

    run: str
    code_revision: str
    window: tuple[str, str]
    """First and last group (day) of the data."""
    rows: int
    source: str
    parent: int | None
    start: str
    """`warm` from the parent's weights, or `new`."""
    config: TrainConfig
    scores: Scores
    gate: GateDecision

    def to_json(self) -> Mapping[str, Any]:
        """The object as the registry keeps it."""
        return {
            "run": self.run,
            "code_revision": self.code_revision,
            "data": {"window": list(self.window), "rows": self.rows, "source": self.source},
            "parent": self.parent,
            "start": self.start,
            "config": asdict(self.config),
            "metrics": self.scores.to_json(),
            "gate": self.gate.to_json(),
        }


def code_revision(folder: Path | None = None) -> str:
    """The git commit of `folder` (this package's by default), `+changes` behind it if it has any; else the version."""
    folder = folder or Path(__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return f"trimtab {importlib.metadata.version('trimtab')}"
    return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or None where there is no git or no repository: a deployed package has neither."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
