"""The latest steps of other nodes' ranks, and how far they are, so that a rank is judged beside all others.

Nodes show each other their ranks' steps some at a time, however long these take, and nearly one by one when a rank
begins to seem slower: what is judged over tens of steps is known few steps later, and equal ranks cost little.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from observability.rank_agent import Followed
from observability.step_ring import DURATION, NUMBER, RECORD, STARTED, Records
from training.nodes import Meeting
from training.watch import Far, slower

# Steps from one look to the next, the least and most seconds of that, and those before the first step.
_EVERY_STEPS, _LEAST_SECONDS, _MOST_SECONDS, _FIRST_SECONDS = 10, 0.05, 1.0, 0.25
# The same when a rank begins to seem slower: for how many steps, and what that is. Later it was named, or is not.
_SOON_STEPS, _SOONEST_SECONDS, _SOON_FOR_STEPS = 2, 0.01, 100
_SEEN_STEPS, _SEEN_RATIO = 16, 1.15
# Nodes look at different moments: what they show must reach further back than these are apart.
_KEPT_SECONDS, _MOST_STEPS = 1.5, 2048
# What a node has not said again for so long, it may not say because its supervisor stands still.
_FRESH_SECONDS = 3.0
# Attempt, node, number of the look, ranks whose place follows; then rank, collectives and step of each.
_HEAD, _PLACE = struct.Struct("<4q"), struct.Struct("<3q")
_COLUMNS = 1 + RECORD.size // 8


class Neighbours:
    """What the nodes of one attempt show each other. Nothing is sent where there is one node alone."""

    def __init__(self, attempt: int, least: int, clock: Callable[[], float] = time.monotonic, *, node: int = 0) -> None:
        """At least the latest `least` steps of every rank are compared, where its ring still holds them."""
        self._attempt, self._least, self._clock, self._node = attempt, least, clock, node
        self._next, self._looks = 0.0, 0
        # The latest step at which no rank seemed slower.
        self._equal = 0
        self._heard: dict[int, tuple[Shown, float]] = {}

    def records(
        self, ranks: Mapping[int, Followed], meeting: Meeting, far: Mapping[int, Far] | None = None
    ) -> dict[int, Records] | None:
        """The latest records of all ranks, here and elsewhere; None while that is not to be looked at again.

        `far` is how far the ranks here are, for the others to see.
        """
        if not meeting.others:
            alone = {rank: one.latest(self._least) for rank, one in ranks.items()}
            self._next = self._clock() + self._every(alone)
            return alone
        if self._clock() < self._next:
            return None
        self._looks += 1
        own = {rank: self._latest(one) for rank, one in ranks.items()}
        bodies = meeting.shared(packed(own, self._attempt, self._node, far, self._looks))
        theirs = [shown for body in bodies if (shown := unpacked(body, self._attempt)) is not None]
        for shown in theirs:
            self._hear(shown)
        found = {rank: records for one in (own, *(shown.records for shown in theirs)) for rank, records in one.items()}
        self._next = self._clock() + self._every(found)
        return found

    def pause(self) -> float:
        """Seconds until the next look."""
        return max(self._next - self._clock(), 0.0)

    def _every(self, records: Mapping[int, Records]) -> float:
        """Seconds from this look to the next: of some steps, of few when a rank begins to seem slower than others."""
        known = [one for one in records.values() if len(one)]
        if not known:
            return _FIRST_SECONDS
        step = float(np.median(np.concatenate([one[-_SEEN_STEPS:, DURATION] for one in known]))) / 1e9
        last = int(known[0][-1, NUMBER])
        if min(map(len, records.values())) < _SEEN_STEPS or slower(records, _SEEN_STEPS) < _SEEN_RATIO:
            self._equal = last
        if 0 < last - self._equal < _SOON_FOR_STEPS:
            return min(max(_SOON_STEPS * step, _SOONEST_SECONDS), _MOST_SECONDS)
        return min(max(_EVERY_STEPS * step, _LEAST_SECONDS), _MOST_SECONDS)

    def _hear(self, shown: Shown) -> None:
        before = self._heard.get(shown.node)
        if before is None or before[0].look != shown.look:
            self._heard[shown.node] = shown, self._clock()

    def far(self) -> dict[int, Far]:
        """How far the ranks of other nodes are, as these said a moment ago."""
        since = self._clock() - _FRESH_SECONDS
        fresh = [shown for shown, heard in self._heard.values() if heard >= since]
        return {rank: far for shown in fresh for rank, far in shown.far.items()}

    def _latest(self, one: Followed) -> Records:
        records = one.latest(_MOST_STEPS)
        if not len(records):
            return records
        recent = int((records[:, STARTED] > records[-1, STARTED] - _KEPT_SECONDS * 1e9).sum())
        return records[-max(recent, self._least) :]


@dataclass(frozen=True, slots=True)
class Shown:
    """What a node shows: how far its ranks are that still run, and their records. `look` grows from one to the next."""

    look: int
    far: dict[int, Far]
    records: dict[int, Records]
    node: int


def packed(
    records: Mapping[int, Records], attempt: int, node: int = 0, far: Mapping[int, Far] | None = None, look: int = 0
) -> bytes:
    """Records of an attempt's ranks, and how far these are, as bytes."""
    places = [_PLACE.pack(rank, *one) for rank, one in (far or {}).items()]
    rows = [np.insert(one, 0, rank, axis=1) for rank, one in records.items() if len(one)]
    head = _HEAD.pack(attempt, node, look, len(places)) + b"".join(places)
    return head + (np.concatenate(rows).tobytes() if rows else b"")


def unpacked(body: bytes, attempt: int) -> Shown | None:
    """What `packed` packed; None where it is of another attempt."""
    if len(body) < _HEAD.size:
        return None
    of, node, look, count = _HEAD.unpack_from(body)
    if of != attempt:
        return None
    places = [_PLACE.unpack_from(body, _HEAD.size + index * _PLACE.size) for index in range(count)]
    rows = np.frombuffer(body, np.int64, offset=_HEAD.size + count * _PLACE.size).reshape(-1, _COLUMNS)
    records = {int(rank): rows[rows[:, 0] == rank, 1:] for rank in np.unique(rows[:, 0])}
    return Shown(look, {rank: (begun, step) for rank, begun, step in places}, records, node)
