"""Where the wall time of a run went, over all its attempts: the parts add up to the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np

from observability.step_ring import DURATION, NUMBER, STARTED, Records
from observability.wall_time import CAUSES, Spent


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt in Unix seconds. Steps up to `safe` are in a checkpoint; `unsafe` holds the ones after it."""

    attempt: int
    began: float
    ended: float = math.nan
    first_step: float = math.nan
    """When its first step began; NaN without one."""
    last_step: float = math.nan
    """When its last step ended; NaN without one."""
    resumed: int = 0
    steps: int = 0
    """Number of the step after its last one."""
    safe: int = 0
    kept: Spent = field(default_factory=Spent)
    unsafe: Spent = field(default_factory=Spent)
    cause: str = ""
    """Why it ended: completed, killed, error, hang, node, straggler, device, warm, told, or supervisor (killed itself,
    and the attempt is told of as it was a second before); empty while it runs."""
    rank: int = -1
    """Which rank ended it; -1 for none in particular."""
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON object; NaN becomes null."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Self:
        """The attempt that `to_json` gave. KeyError or TypeError for what is none."""
        known: dict[str, Any] = {name: math.nan if value is None else value for name, value in said.items()}
        known["kept"], known["unsafe"] = Spent(**said["kept"]), Spent(**said["unsafe"])
        return cls(**known)


@dataclass(frozen=True, slots=True)
class End:
    """Why an attempt ended, and which rank ended it (-1: none in particular)."""

    cause: str
    rank: int = -1
    reason: str = ""


@dataclass(slots=True)
class AttemptTimes:
    """Follows the steps of one attempt: what lies before the last checkpoint is folded, what lies after it is held."""

    offset_ns: int
    attempt: Attempt
    _held: list[Records] = field(default_factory=list)

    def add(self, records: Records, checkpoint: int) -> None:
        """Takes in the next records of the leading rank; `checkpoint` steps are safe."""
        if len(records):
            if math.isnan(self.attempt.first_step):
                self.attempt = replace(
                    self.attempt, first_step=self._unix(records[0, STARTED]), resumed=int(records[0, NUMBER])
                )
            end = self._unix(records[-1, STARTED] + records[-1, DURATION])
            self.attempt = replace(self.attempt, last_step=end, steps=int(records[-1, NUMBER]) + 1)
            self._held.append(records)
        if self._held and checkpoint > self._held[0][0, NUMBER]:
            held = np.concatenate(self._held)
            safe = held[:, NUMBER] < checkpoint
            self.attempt = replace(self.attempt, kept=self.attempt.kept + Spent.of(held[safe]), safe=checkpoint)
            held = held[~safe]
            self._held = [held] if len(held) else []

    def ended(self, time: float, cause: str, rank: int = -1, reason: str = "") -> Attempt:
        """The whole attempt. What a completed one did after its last checkpoint counts as kept."""
        unsafe = Spent.of(np.concatenate(self._held)) if self._held else Spent()
        whole = replace(self.attempt, ended=time, cause=cause, rank=rank, reason=reason, unsafe=unsafe)
        return replace(whole, kept=whole.kept + unsafe, unsafe=Spent()) if cause == "completed" else whole

    def _unix(self, clock_ns: int) -> float:
        return (int(clock_ns) + self.offset_ns) / 1e9


def ledger(attempts: Sequence[Attempt]) -> dict[str, float]:
    """Seconds by `CAUSES`, from the beginning of the first attempt to the end of the last; their sum is that time.

    `productive` is the time of steps that are part of the result, less the parts in which they waited for data, saved
    or evaluated. `repeated` steps came after the last checkpoint of an attempt that failed. `stalled` is the time from
    an attempt's last whole step until it was given up, `down` what lies between attempts.
    """
    found = dict.fromkeys(CAUSES, 0.0)
    for number, one in enumerate(attempts):
        if number:
            found["down"] += one.began - attempts[number - 1].ended
        if math.isnan(one.first_step):
            found["starting"] += one.ended - one.began
            continue
        found["starting"] += one.first_step - one.began
        found["ending" if one.cause == "completed" else "stalled"] += one.ended - one.last_step
        found["between_steps"] += one.last_step - one.first_step - one.kept.total - one.unsafe.total
        found["repeated"] += one.unsafe.total
        found["data_wait"] += one.kept.data_wait
        found["checkpoint"] += one.kept.checkpoint
        found["productive"] += one.kept.total - one.kept.data_wait - one.kept.checkpoint
    return found
