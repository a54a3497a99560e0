"""What a run began with, kept in a file beside it: one that goes on with something else is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.checkpoint import write_whole
from training.data import DataError


def check_same(path: Path, said: Mapping[str, Any], what: str) -> None:
    """Keeps what a run begins with in a file; DataError where it began with something else."""
    known = json.loads(json.dumps(said))
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        write_whole(path, json.dumps(known).encode())
        return
    other = sorted(name for name in before.keys() | known.keys() if before.get(name) != known.get(name))
    if other:
        seen = "; ".join(f"{name} {_short(before.get(name))} is now {_short(known.get(name))}" for name in other[:3])
        raise DataError(f"the run began with other {what} ({seen}): begin a new run, without --resume")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
