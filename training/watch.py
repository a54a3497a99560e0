"""Which rank hangs, judged from what the ranks' rings show: pure, so that any history can be replayed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from observability.step_ring import DURATION, Records, RingNow

_PAUSES = ("checkpoint", "evaluation")
_FEW_STEPS = 20
_NOTHING = RingNow(0, 0, "starting", "", 0, -1, -1, -2, -2, 0, math.nan, math.nan, math.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class HangLimits:
    """Seconds without a sign of life after which a rank hangs."""

    step: float = 3.0
    """At least, while steps go on."""
    factor: float = 5.0
    """Times the 99th percentile of the latest steps' durations, where that is more."""
    first: float = 120.0
    """Until enough steps are known: start-up, compilation, the first batches."""
    pause: float = 600.0
    """In a checkpoint or an evaluation."""

    def __post_init__(self) -> None:
        for name in ("step", "factor", "first", "pause"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be positive")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a rank showed last, since when it shows it (s), and the 99th percentile of its steps (s; 0: too few)."""

    now: RingNow
    since: float
    slow_step: float = 0.0


@dataclass(frozen=True, slots=True)
class Hang:
    """Why an attempt hangs: `rank` is the one that the others wait for, so far as can be told."""

    rank: int
    idle: float
    reason: str


@dataclass(slots=True)
class Watch:
    """Follows the ranks of one attempt, which began at `began`. Times are seconds of one clock of the caller."""

    world_size: int
    began: float
    limits: HangLimits = field(default_factory=HangLimits)
    seen: dict[int, Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A rank of which nothing was seen yet is the least far of all.
        self.seen = {rank: Seen(_NOTHING, self.began) for rank in range(self.world_size)}

    def look(self, rank: int, now: RingNow, latest: Records, time: float) -> None:
        """Takes in what a rank shows at `time`; `latest` are its latest records."""
        before = self.seen[rank]
        if _life(before.now) != _life(now):
            slow = float(np.quantile(latest[:, DURATION], 0.99)) / 1e9 if len(latest) >= _FEW_STEPS else 0.0
            self.seen[rank] = Seen(now, time, slow)

    def hang(self, time: float) -> Hang | None:
        """The rank that hangs at `time`, or None. Those that wait for one that is at work do not hang."""
        working = {rank: seen for rank, seen in self.seen.items() if seen.now.state not in ("completed", "failed")}
        if not working:
            return None
        # Those who wait for each other are all idle; the one to blame is the one that is least far.
        rank = min(working, key=lambda one: (*_far(working[one].now), working[one].since, one))
        seen = working[rank]
        if time - seen.since <= self._limit(seen):
            return None
        return Hang(rank, time - seen.since, _reason(rank, seen, working, time))

    def _limit(self, seen: Seen) -> float:
        if seen.now.phase in _PAUSES:
            return self.limits.pause
        if not seen.slow_step:
            return self.limits.first
        return max(self.limits.step, self.limits.factor * seen.slow_step)


@dataclass(frozen=True, slots=True)
class Straggler:
    """A rank whose own work takes `ratio` times the others' median, and the phase that is longest beyond theirs."""

    rank: int
    phase: str
    ratio: float


def straggler(
    phases: Mapping[int, Sequence[float]],
    names: Sequence[str],
    *,
    waits: Sequence[str] = ("communication",),
    ratio: float = 1.15,
) -> Straggler | None:
    """The rank that the others wait for, from each rank's typical seconds a phase; None where no rank stands out.

    Phases in which ranks wait for each other (`waits`) do not count: there the fast ones look slow.
    """
    if len(phases) < 2:
        return None
    own = [index for index, name in enumerate(names) if name not in waits]
    totals = {rank: math.fsum(seconds[index] for index in own) for rank, seconds in phases.items()}
    rank = max(totals, key=lambda one: (totals[one], -one))
    others = [one for one in phases if one != rank]
    usual = float(np.median([totals[one] for one in others]))
    if not usual or totals[rank] < ratio * usual:
        return None
    beyond = {index: phases[rank][index] - float(np.median([phases[one][index] for one in others])) for index in own}
    return Straggler(rank, names[max(beyond, key=lambda index: beyond[index])], totals[rank] / usual)


def _life(now: RingNow) -> tuple[object, ...]:
    """What changes while a rank lives."""
    return now.num_steps, now.state, now.step, now.since_ns, now.phase, now.checkpoint, now.enqueued, now.completed


def _far(now: RingNow) -> tuple[int, int]:
    return now.enqueued, now.step


def _reason(rank: int, seen: Seen, working: Mapping[int, Seen], time: float) -> str:
    now = seen.now
    if now is _NOTHING:
        return f"rank {rank} has shown nothing for {time - seen.since:.1f} s since it was started"
    where = f"in {now.phase}" if now.phase and not now.phase.startswith("after") else now.phase or "at the start"
    text = f"rank {rank} shows no life for {time - seen.since:.1f} s: {where} of step {now.step}"
    waiting = [one for one, other in working.items() if _far(other.now) > _far(now)]
    if waiting and now.enqueued >= 0:
        most = max(working[one].now.enqueued for one in waiting)
        text += f"; it has begun {now.enqueued} collectives, rank {waiting[0]} waits in number {most}"
    return text
