"""What a warm process is asked to prepare by tests: to be killed once, or always."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from training.ranks import Rank


def killed_once(folder: str) -> dict[str, Any]:
    """Is killed the first time, like a process that runs out of memory."""
    mark = Path(folder) / "killed"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


def killed_always(folder: str) -> dict[str, Any]:
    """Is killed each time."""
    with (Path(folder) / "times").open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def work(rank: Rank, folder: str) -> None:
    """A rank that is done."""
