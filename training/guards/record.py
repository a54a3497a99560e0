"""The run's record of what its guards found and what was done about it: a line of JSON each, kept beside the run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.guards.finding import Finding

RECORD = "guards.jsonl"


@dataclass(frozen=True, slots=True)
class GuardRecord:
    """A file that is only ever added to; one process writes it."""

    path: Path

    def add(self, finding: Finding, action: str, reason: str, step: int, attempt: int = 0) -> None:
        """Adds what was found at `step` and what follows. OSError as `open`."""
        line = finding.to_json() | {
            "time": time.time(), "step": step, "attempt": attempt, "action": action, "reason": reason
        }  # fmt: skip
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_record(path: Path, offset: int = 0) -> tuple[list[Mapping[str, Any]], int]:
    """The whole lines from `offset` bytes on, and the offset behind them; nothing where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            text = file.read()
    except FileNotFoundError:
        return [], offset
    whole = text[: text.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole)
