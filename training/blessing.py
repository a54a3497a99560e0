"""Whether an artifact may serve: it loads, answers as the network that was judged, and within its budget of time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.artifact import ArtifactError, load_program
from training.data import TabularTask, encode, predict
from training.reference import HeldOut

_ROWS = 512
_CLOSE = 1e-4
_WARM, _TIMED = 20, 200


@dataclass(frozen=True, slots=True)
class Blessing:
    """What came of it. Latencies are seconds of one row, on this machine; NaN where the artifact did not load."""

    passed: bool
    reason: str
    latency_p50: float
    latency_p99: float
    budget: float
    difference: float

    def to_json(self) -> dict[str, Any]:
        """A JSON object; numbers that are not defined are null."""
        return {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def bless(
    folder: Path,
    task: TabularTask,
    vocabularies: Mapping[str, tuple[str, ...]],
    held_out: HeldOut,
    *,
    budget: float = 0.0,
) -> Blessing:
    """Loads the artifact and asks it: up to 512 held-out rows at once, then single rows against the clock.

    `budget` is the 99th percentile in seconds that one row may take; 0 only measures it.
    """
    nothing = float("nan")
    try:
        program = load_program(folder)
    except (ArtifactError, RuntimeError, OSError) as error:
        return Blessing(False, f"the artifact does not load: {error}", nothing, nothing, budget, nothing)
    rows = held_out.table.slice(0, _ROWS)
    inputs = encode(task, vocabularies, rows)
    found = predict(program, inputs)
    difference = float(np.abs(found - held_out.probabilities[: len(found)]).max()) if len(found) else nothing
    if not difference <= _CLOSE:
        reason = f"the artifact answers otherwise than the network: by {difference:g}, {_CLOSE:g} is allowed"
        return Blessing(False, reason, nothing, nothing, budget, difference)
    taken = []
    with torch.inference_mode():
        for number in range(_WARM + _TIMED):
            row = tuple(column[number % len(found)][None] for column in inputs)
            began = time.perf_counter()
            program(*row)
            taken.append(time.perf_counter() - began)
    p50, p99 = (float(np.quantile(taken[_WARM:], level)) for level in (0.5, 0.99))
    passed = not budget or p99 <= budget
    reason = f"it loads and answers as the network; one row takes {p50 * 1e3:.2f} ms, {p99 * 1e3:.2f} ms at the 99th"
    if not passed:
        reason = f"one row takes {p99 * 1e3:.2f} ms at the 99th percentile, {budget * 1e3:.2f} ms is the budget"
    return Blessing(passed, reason, p50, p99, budget, difference)
