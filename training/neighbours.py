"""The latest steps of other nodes' ranks, so that ranks are compared with all others, not with their node's alone."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping

import numpy as np

from observability.rank_agent import Followed
from observability.step_ring import RECORD, STARTED, Records
from training.nodes import Meeting

_EVERY_SECONDS = 0.5
# Nodes look at different moments: what they show must reach further back than these are apart.
_KEPT_SECONDS, _MOST_STEPS = 3.0, 2048
_ATTEMPT = struct.Struct("<q")
_COLUMNS = 1 + RECORD.size // 8


class Neighbours:
    """What the nodes of one attempt show each other. Nothing is sent where there is one node alone."""

    def __init__(self, attempt: int, least: int, clock: Callable[[], float] = time.monotonic) -> None:
        """At least the latest `least` steps of every rank are compared, where its ring still holds them."""
        self._attempt, self._least, self._clock = attempt, least, clock
        self._next = 0.0

    def records(self, ranks: Mapping[int, Followed], meeting: Meeting) -> dict[int, Records] | None:
        """The latest records of all ranks, here and elsewhere; None while that is not to be looked at again."""
        if not meeting.others:
            return {rank: one.latest(self._least) for rank, one in ranks.items()}
        if self._clock() < self._next:
            return None
        self._next = self._clock() + _EVERY_SECONDS
        own = {rank: self._latest(one) for rank, one in ranks.items()}
        theirs = [unpacked(body, self._attempt) for body in meeting.shared(packed(own, self._attempt))]
        return {rank: records for one in (own, *theirs) for rank, records in one.items()}

    def _latest(self, one: Followed) -> Records:
        records = one.latest(_MOST_STEPS)
        if not len(records):
            return records
        recent = int((records[:, STARTED] > records[-1, STARTED] - _KEPT_SECONDS * 1e9).sum())
        return records[-max(recent, self._least) :]


def packed(records: Mapping[int, Records], attempt: int) -> bytes:
    """Records of an attempt's ranks as bytes."""
    rows = [np.insert(one, 0, rank, axis=1) for rank, one in records.items() if len(one)]
    return _ATTEMPT.pack(attempt) + (np.concatenate(rows).tobytes() if rows else b"")


def unpacked(body: bytes, attempt: int) -> dict[int, Records]:
    """What `packed` packed, by rank; nothing where it is of another attempt."""
    if len(body) <= _ATTEMPT.size or _ATTEMPT.unpack_from(body)[0] != attempt:
        return {}
    rows = np.frombuffer(body, np.int64, offset=_ATTEMPT.size).reshape(-1, _COLUMNS)
    return {int(rank): rows[rows[:, 0] == rank, 1:] for rank in np.unique(rows[:, 0])}
