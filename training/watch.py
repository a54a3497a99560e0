"""Which rank hangs, judged from what the ranks' rings show: pure, so that any history can be replayed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from observability.names import PHASES
from observability.step_ring import DURATION, FIRST_PHASE, NUMBER, Records, RingNow

_PAUSES = ("checkpoint", "evaluation")
_FEW_STEPS = 20
# In these the ranks wait for each other, or one does what the others need not.
_TOGETHER = ("communication", "checkpoint", "evaluation")
_OWN = [FIRST_PHASE + index for index, name in enumerate(PHASES) if name not in _TOGETHER]
Far = tuple[int, int]
"""How far a rank is: collectives that it has begun, and its step."""
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
    first: int = 0
    """The lowest rank that is followed, where others are on other nodes; `world_size` of them are."""

    def __post_init__(self) -> None:
        # A rank of which nothing was seen yet is the least far of all.
        ranks = range(self.first, self.first + self.world_size)
        self.seen = {rank: Seen(_NOTHING, self.began) for rank in ranks}

    def look(self, rank: int, now: RingNow, latest: Records, time: float) -> None:
        """Takes in what a rank shows at `time`; `latest` are its latest records."""
        before = self.seen[rank]
        if _life(before.now) != _life(now):
            slow = float(np.quantile(latest[:, DURATION], 0.99)) / 1e9 if len(latest) >= _FEW_STEPS else 0.0
            self.seen[rank] = Seen(now, time, slow)

    def far(self) -> dict[int, Far]:
        """How far the ranks are that are not at their end."""
        return {rank: _far(seen.now) for rank, seen in self._working().items()}

    def _working(self) -> dict[int, Seen]:
        return {rank: seen for rank, seen in self.seen.items() if seen.now.state not in ("completed", "failed")}

    def hang(self, time: float, elsewhere: Mapping[int, Far] | None = None) -> Hang | None:
        """The rank that hangs at `time`, or None. Those that wait for one that is at work do not hang.

        Where a rank of another node is less far (`elsewhere`), these wait for it, and who watches it is to tell.
        """
        working, others = self._working(), elsewhere or {}
        if not working:
            return None
        # Those who wait for each other are all idle; the one to blame is the one that is least far.
        rank = min(working, key=lambda one: (*_far(working[one].now), working[one].since, one))
        seen = working[rank]
        if time - seen.since <= self._limit(seen) or any(far < _far(seen.now) for far in others.values()):
            return None
        far = {**others, **{one: _far(other.now) for one, other in working.items()}}
        return Hang(rank, time - seen.since, _reason(rank, seen, far, time))

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
    waits: Sequence[str] = _TOGETHER,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StragglerRule:
    """A rank straggles when its own work over the latest `window` steps takes longest, by `ratio` at least over the
    others' median, at `looks` looks in a row, `every` steps apart.

    A rank's time is the one that a `share` of its steps stay below: what somebody else's job on the machine takes away
    from a rank now and then is in the other steps.
    """

    ratio: float = 1.2
    window: int = 46
    every: int = 2
    looks: int = 1
    share: float = 0.1

    def __post_init__(self) -> None:
        if not (self.ratio > 1 and 1 <= self.every <= self.window and self.looks >= 1 and 0 < self.share <= 0.5):
            raise ValueError(
                f"ratio {self.ratio}, window {self.window}, every {self.every}, looks {self.looks}, share {self.share}"
                ": ratio above 1, 1 <= every <= window, looks at least 1, share in (0, 0.5]"
            )


@dataclass(slots=True)
class StragglerWatch:
    """Compares the ranks' own work over the same steps, from what their rings show; asks nothing of them."""

    rule: StragglerRule = field(default_factory=StragglerRule)
    slowdown: dict[int, float] = field(default_factory=dict)
    """Own work over the others' median at the last look, by rank."""
    _next: int = -1
    _rank: int = -1
    _in_a_row: int = 0

    def look(self, records: Mapping[int, Records]) -> Straggler | None:
        """Judges the ranks' latest `records`, some windows of them; gives a rank that straggles, when it begins to."""
        rule = self.rule
        if len(records) < 2 or not all(len(one) for one in records.values()):
            return None
        if self._next < 0:
            # The first steps warm up: libraries load, memory is taken.
            self._next = int(max(one[0, NUMBER] for one in records.values())) + rule.every + rule.window
        found = None
        while all(one[-1, NUMBER] >= self._next - 1 for one in records.values()):
            window = {
                rank: one[(one[:, NUMBER] >= self._next - rule.window) & (one[:, NUMBER] < self._next)]
                for rank, one in records.items()
            }
            self._next += rule.every
            # A window that a ring no longer holds is passed over.
            if all(2 * len(one) > rule.window for one in window.values()):
                found = self._judge(window) or found
        return found

    def _judge(self, window: Mapping[int, Records]) -> Straggler | None:
        typical = {rank: (_usual(one[:, FIRST_PHASE:], self.rule.share) / 1e9).tolist() for rank, one in window.items()}
        own = {
            rank: float(_usual(one[:, _OWN].sum(1, keepdims=True), self.rule.share)[0]) for rank, one in window.items()
        }
        for rank in own:
            usual = float(np.median([seconds for other, seconds in own.items() if other != rank]))
            self.slowdown[rank] = own[rank] / usual if usual else math.nan
        found = straggler(typical, PHASES, ratio=1.0)
        slowest = max(own, key=lambda one: own[one])
        if found is not None:
            found = replace(found, rank=slowest, ratio=self.slowdown[slowest])
        rank = slowest if self.slowdown[slowest] >= self.rule.ratio else -1
        self._in_a_row = self._in_a_row + 1 if rank == self._rank else 1
        self._rank = rank
        return found if rank >= 0 and self._in_a_row == self.rule.looks else None


def slower(records: Mapping[int, Records], steps: int) -> float:
    """The own work of the rank that seems slowest over the latest steps, over the others' median; 0 of one alone."""
    own = sorted(float(_usual(one[-steps:, _OWN].sum(1, keepdims=True), 0.25)[0]) for one in records.values())
    usual = float(np.median(own[:-1])) if len(own) > 1 else 0.0
    return own[-1] / usual if usual else 0.0


def _usual(times: Records, share: float) -> NDArray[np.float64]:
    """What a `share` of the rows stay below, by column."""
    place = int(share * (len(times) - 1))
    found: NDArray[np.float64] = np.partition(times, place, axis=0)[place].astype(np.float64)
    return found


def _life(now: RingNow) -> tuple[object, ...]:
    """What changes while a rank lives."""
    return now.num_steps, now.state, now.step, now.since_ns, now.phase, now.checkpoint, now.enqueued, now.completed


def _far(now: RingNow) -> Far:
    return now.enqueued, now.step


def _reason(rank: int, seen: Seen, ranks: Mapping[int, Far], time: float) -> str:
    now = seen.now
    if now is _NOTHING:
        return f"rank {rank} has shown nothing for {time - seen.since:.1f} s since it was started"
    where = f"in {now.phase}" if now.phase and not now.phase.startswith("after") else now.phase or "at the start"
    text = f"rank {rank} shows no life for {time - seen.since:.1f} s: {where} of step {now.step}"
    waiting = sorted(one for one, far in ranks.items() if far > _far(now))
    if waiting and now.enqueued >= 0:
        most = max(ranks[one][0] for one in waiting)
        text += f"; it has begun {now.enqueued} collectives, rank {waiting[0]} waits in number {most}"
    return text
