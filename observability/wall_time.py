"""Where the wall time of a training went: parts by cause, which add up to the whole, and the share that was of use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from observability.names import PHASES
from observability.step_ring import DURATION, FIRST_PHASE, NUMBER, STARTED, Records

CAUSES = (
    "productive", "data_wait", "checkpoint", "between_steps", "repeated", "starting", "stalled", "ending", "down",
)  # fmt: skip
_WAIT = FIRST_PHASE + PHASES.index("data_wait")
_SAVING = (FIRST_PHASE + PHASES.index("checkpoint"), FIRST_PHASE + PHASES.index("evaluation"))
# Steps that a rewind can give up and that are still told apart.
_REMEMBERED = 8192


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of steps: all of them, and the parts that are waiting for data and saving or evaluating."""

    total: float = 0.0
    data_wait: float = 0.0
    checkpoint: float = 0.0

    @classmethod
    def of(cls, records: Records) -> Self:
        """What the steps of these records took."""
        saving = sum(int(records[:, column].sum()) for column in _SAVING)
        return cls(int(records[:, DURATION].sum()) / 1e9, int(records[:, _WAIT].sum()) / 1e9, saving / 1e9)

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.total + other.total, self.data_wait + other.data_wait, self.checkpoint + other.checkpoint)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.total - other.total, self.data_wait - other.data_wait, self.checkpoint - other.checkpoint)


def goodput(found: Mapping[str, float]) -> float:
    """The share of the wall time that was productive; NaN for no time."""
    wall = math.fsum(found.values())
    return found["productive"] / wall if wall > 0 else math.nan


class WallTime:
    """The wall time of one process that trains, from `began_ns` of its clock on.

    A step whose number comes again, since the run went back to a checkpoint, was for nothing: `repeated`.
    """

    def __init__(self, began_ns: int) -> None:
        self._began_ns, self._first_ns, self._last_ns = began_ns, -1, -1
        self._kept, self._repeated = Spent(), Spent()
        self._remembered: Records | None = None

    def add(self, records: Records) -> None:
        """Takes in the next records."""
        if not len(records):
            return
        if self._first_ns < 0:
            self._first_ns = int(records[0, STARTED])
        self._last_ns = int(records[-1, STARTED] + records[-1, DURATION])
        self._kept += Spent.of(records)
        known = records if self._remembered is None else np.concatenate([self._remembered, records])
        # The least number that comes after each step: where it is no greater, the run went back to it or before it.
        later = np.minimum.accumulate(known[::-1, NUMBER])[::-1]
        again = np.append(known[:-1, NUMBER] >= later[1:], False)
        if again.any():
            given_up = Spent.of(known[again])
            self._kept, self._repeated = self._kept - given_up, self._repeated + given_up
        self._remembered = known[~again][-_REMEMBERED:]

    def by_cause(self, now_ns: int) -> dict[str, float] | None:
        """Seconds by `CAUSES` up to now, whose sum is that time; None before the first step."""
        if self._first_ns < 0:
            return None
        kept, found = self._kept, dict.fromkeys(CAUSES, 0.0)
        found["starting"] = (self._first_ns - self._began_ns) / 1e9
        found["ending"] = (now_ns - self._last_ns) / 1e9
        found["repeated"] = self._repeated.total
        found["between_steps"] = (self._last_ns - self._first_ns) / 1e9 - kept.total - self._repeated.total
        found["data_wait"], found["checkpoint"] = kept.data_wait, kept.checkpoint
        found["productive"] = kept.total - kept.data_wait - kept.checkpoint
        return found
