"""Answers kept for equal requests to one model: least recently used, bounded in bytes and age, one inference at a time.

A key is the digest of the version's artifact and of the tensors as the model gets them, so JSON and binary requests of
the same values share an answer, and no version ever gives another's.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.batching.execution import not_finite
from serving.batching.pending import Result, State
from serving.calls import Call
from serving.errors import Cancelled, Expired, ServingError
from serving.protocol.signature import Signature, Values
from serving.protocol.tensors import Array
from serving.versions.deployment import Version

# What an entry takes beside its values: the key, the arrays' heads, the place in the table (measured, CPython 3.11).
ENTRY_BYTES = 512
# Requests by whose hits it is judged whether the cache pays.
WINDOW = 1000
_LONGEST_PAUSE = 64 * WINDOW


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """How a model's answers are kept. `seconds` is the age at which an answer is no longer given."""

    bytes: int = 64 * 1024 * 1024
    seconds: float = 60.0
    # With fewer hits than this the cache steps aside for a while: keys cost time, too. 0 never does.
    min_hit_ratio: float = 0.05

    def __post_init__(self) -> None:
        if self.bytes < ENTRY_BYTES or self.seconds <= 0 or not 0.0 <= self.min_hit_ratio < 1.0:
            raise ValueError(
                f"cache: bytes is {self.bytes}, seconds {self.seconds}, min_hit_ratio {self.min_hit_ratio}: at least "
                f"{ENTRY_BYTES}, above 0, from 0 to below 1"
            )


class Entries:
    """Answers by key, bounded in bytes: the least recently used go first, and no answer outlives `seconds`."""

    def __init__(self, limit_bytes: int, seconds: float) -> None:
        self.bytes = 0
        self.evicted: Counter[str] = Counter()
        self._limit = limit_bytes
        self._seconds = seconds
        self._entries: OrderedDict[bytes, tuple[list[Array], int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, now: float) -> list[Array] | None:
        """The answer, if it is there and not too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now >= entry[2]:
            self._drop(key, "expired")
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: bytes, outputs: Sequence[Array], now: float) -> None:
        """Keeps a copy of the outputs: as they are, they are a part of a batch's."""
        size = ENTRY_BYTES + sum(output.nbytes for output in outputs)
        if key in self._entries:
            self.bytes -= self._entries.pop(key)[1]
        if size > self._limit:
            return
        while self.bytes + size > self._limit:
            self._drop(next(iter(self._entries)), "full")
        self._entries[key] = ([np.array(output) for output in outputs], size, now + self._seconds)
        self.bytes += size

    def _drop(self, key: bytes, reason: str) -> None:
        self.bytes -= self._entries.pop(key)[1]
        self.evicted[reason] += 1


class Admission:
    """Lets requests past the cache while hits are too rare; tries again after pauses that grow to 64,000 requests."""

    def __init__(self, min_ratio: float) -> None:
        self._ratio: float | None = None
        self._min_ratio = min_ratio
        self._seen = 0
        self._hits = 0
        self._pause = 0
        self._next_pause = WINDOW

    @property
    def ratio(self) -> float:
        """The share of hits in the last window, before there is one in what has come of it; 0 without requests."""
        return self._hits / max(1, self._seen) if self._ratio is None else self._ratio

    def open(self) -> bool:
        """Whether this request is to be looked up."""
        if self._pause:
            self._pause -= 1
            return False
        return True

    def count(self, hit: bool) -> None:
        """What a look-up found."""
        self._seen += 1
        self._hits += hit
        if self._seen == WINDOW:
            self._ratio = self._hits / WINDOW
            self._seen = self._hits = 0
            if self._ratio >= self._min_ratio:
                self._next_pause = WINDOW
            else:
                self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause, _LONGEST_PAUSE)


class Flight:
    """An inference in progress (its leader is in the version's lane) and the equal requests that wait for its answer.

    To those it is the lane: `cancel` and `end_early` end one of them and leave the others alone.
    """

    __slots__ = ("followers", "key", "version")

    def __init__(self, key: bytes, version: Version) -> None:
        self.key = key
        self.version = version
        self.followers: dict[Call, asyncio.TimerHandle | None] = {}

    def join(self, call: Call, now: float) -> None:
        """The call waits for the answer, but not beyond its own deadline."""
        timer = None
        if call.deadline is not None:
            waited = call.deadline - call.arrived
            late = Expired(f"the deadline passed after {waited:.3f} s, waiting for the answer to an equal request")
            timer = asyncio.get_running_loop().call_later(call.deadline - now, self.end_early, call, late)
        call.lane = self
        self.followers[call] = timer

    def leave(self, call: Call) -> bool:
        """Takes a follower out; False when it is none."""
        if call not in self.followers:
            return False
        timer = self.followers.pop(call)
        if timer is not None:
            timer.cancel()
        return True

    def cancel(self, call: Call) -> None:
        """Ends a follower whose client went away."""
        self.end_early(call, Cancelled("the client closed the connection"))

    def end_early(self, call: Call, error: ServingError) -> None:
        """Answers a follower with `error`."""
        if self.leave(call):
            call.state = State.DONE
            call.finish(error)


class ResponseCache:
    """The cache of one model, on the event loop. `resubmit` finds another version for a call that lost its own."""

    def __init__(
        self,
        policy: CachePolicy,
        resubmit: Callable[[Call], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.policy = policy
        self.entries = Entries(policy.bytes, policy.seconds)
        self.admission = Admission(policy.min_hit_ratio)
        self.counts: Counter[tuple[int, str]] = Counter()
        self._resubmit = resubmit
        self._clock = clock
        self._flights: dict[bytes, Flight] = {}

    def submit(self, call: Call, version: Version) -> None:
        """Answers the call, or has it wait for an equal one, or queues it. Raises what `Lane.submit` raises."""
        if not self.admission.open():
            self.counts[call.choice.version, "bypassed"] += 1
            version.lane.submit(call)
            return
        now = self._clock()
        if call.deadline is not None and call.deadline <= now:
            version.lane.submit(call)  # which says that it is too late
            return
        key = key_of(version.loaded.model.digest, call.signature, call.values, call.rows)
        outputs = self.entries.get(key, now)
        if outputs is not None:
            self._found(call, "hit")
            _answer(call, outputs)
            return
        flight = self._flights.get(key)
        if flight is not None:
            self._found(call, "shared")
            flight.join(call, now)
            return
        self._found(call, "miss")
        self._lead(Flight(key, version), call)

    def settled(self, call: Call, result: Result) -> None:
        """A leader is answered: so are its followers, unless the answer is only the leader's own."""
        flight, call.flight = call.flight, None
        assert flight is not None
        ours = call.choice.version == flight.version.loaded.number
        if ours and isinstance(result, (Cancelled, Expired)):
            self._take_over(flight)
            return
        del self._flights[flight.key]
        followers = list(flight.followers)
        if ours and not isinstance(result, ServingError):
            # Answers are kept for whatever outputs others ask for.
            whole = not not_finite(result, None, call.signature)
            if whole:
                self.entries.put(flight.key, result, self._clock())
            for follower in followers:
                flight.leave(follower)
                if whole or not not_finite(result, follower.wanted, call.signature):
                    _answer(follower, result)
                else:
                    follower.cache = "miss"
                    self._alone(flight, follower)
            return
        # The leader failed, or a rollback took its version away: each follower now has its own chance.
        for follower in followers:
            flight.leave(follower)
            follower.cache = "miss"
            if ours:
                self._alone(flight, follower)
            else:
                self._resubmit(follower)

    def _found(self, call: Call, result: str) -> None:
        call.cache = result
        self.counts[call.choice.version, result] += 1
        self.admission.count(result != "miss")

    def _lead(self, flight: Flight, call: Call) -> None:
        self._flights[flight.key] = flight
        call.flight = flight
        try:
            flight.version.lane.submit(call)
        except ServingError:
            del self._flights[flight.key]
            call.flight = None
            raise

    def _take_over(self, flight: Flight) -> None:
        """The leader gave up: the follower that has waited longest leads from here on."""
        del self._flights[flight.key]
        for follower in list(flight.followers):
            flight.leave(follower)
            follower.cache = "miss"
            try:
                self._lead(flight, follower)
            except ServingError as error:
                follower.state = State.DONE
                follower.finish(error)
            else:
                return

    def _alone(self, flight: Flight, call: Call) -> None:
        try:
            flight.version.lane.submit(call)
        except ServingError as error:
            call.state = State.DONE
            call.finish(error)


def _answer(call: Call, outputs: Sequence[Array]) -> None:
    """Ends a call that no model worked for; its event says so."""
    label = '"trimtab.cache":"hit"}'
    given = (call.attributes or "{}").rstrip().removesuffix("}").rstrip()
    call.attributes = given + ("" if given == "{" else ",") + label
    call.state = State.DONE
    call.finish(outputs)


def key_of(digest: str, signature: Signature, values: Sequence[Values], rows: int) -> bytes:
    """The key of a request: 16 bytes of BLAKE2b over the artifact's digest, the rows, and each tensor's bytes."""
    parts: list[Any] = [digest.encode(), rows.to_bytes(8, "little")]
    for column, part in zip(signature.inputs, values, strict=True):
        if isinstance(part, (bytes, memoryview)):
            parts.append(part)
        else:
            tensor = np.ascontiguousarray(column.column([part]))
            if column.ragged:
                parts.append(repr(tensor.shape).encode())
            parts.append(tensor.tobytes())
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()
