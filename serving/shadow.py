"""Copies of answered requests for the shadows: run when the callers leave the machine free, compared, recorded.

A request is queued for a shadow when its answer is written, so its caller never waits. What gathers runs as one batch
on a thread of low priority, when no caller's request waits: a request that comes meanwhile shares the processor with
it, so batches are large and few. A batch runs step by step, and the event loop reads its sockets before each: callers
who come meanwhile wait for one step at most, and the rest of the batch for them. While callers wait all the time,
shadows get a small share of it; what does not fit into the bounded queue is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import random
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from serving.batching.execution import execute
from serving.calls import Call
from serving.errors import ServingError
from serving.models import LoadedModel
from serving.protocol.signature import Signature
from serving.router import Choice
from serving.routing.backlog import probe
from serving.routing.disagreement import Disagreement, Pair, compare
from serving.routing.traffic import Shadow
from serving.telemetry.signals import Signals
from serving.versions.deployment import Deployment, Version

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowLimits:
    """What shadows may cost; times are seconds."""

    # Requests gather until there are so many rows, or for so long. Large batches disturb few callers.
    batch_rows: int = 256
    gather: float = 0.5
    # The model gets so many rows at a time, and gives way to callers after each.
    step_rows: int = 64
    # Rows and bytes that may wait, by shadow.
    queue_rows: int = 512
    queue_bytes: int = 16 * 1024 * 1024
    # Share of the time that shadows may take while callers' requests wait, and how soon to look again.
    busy_share: float = 0.02
    retry: float = 0.005
    # Added to the thread's nice value.
    nice: int = 10

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be."""
        if min(self.batch_rows, self.step_rows, self.queue_rows, self.queue_bytes) < 1:
            raise ValueError(
                f"shadow: batch_rows is {self.batch_rows}, step_rows {self.step_rows}, queue_rows {self.queue_rows}, "
                f"queue_bytes {self.queue_bytes}: at least 1 each"
            )
        if self.gather < 0 or not 0 <= self.busy_share <= 1 or not 0 <= self.nice <= 19:
            raise ValueError(
                f"shadow: gather is {self.gather:g} s, busy_share {self.busy_share:g}, nice {self.nice}: not negative, "
                "a share from 0 to 1, and 0 to 19"
            )


class _Thread:
    """Runs shadow batches one after another at a lower priority than the rest of the process (Linux)."""

    def __init__(self, nice: int, call_soon_threadsafe: Callable[..., object]) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], Callable[[], None]] | None] = queue.SimpleQueue()
        self._hand_back = call_soon_threadsafe
        self._nice = nice
        threading.Thread(target=self._work, name="trimtab-shadow", daemon=True).start()

    def start(self, job: Callable[[], Callable[[], None]]) -> None:
        """Queues the job; what it returns is called on the event loop."""
        self._jobs.put(job)

    def stop(self) -> None:
        """Ends the thread after its last job; does not wait for it."""
        self._jobs.put(None)

    def _work(self) -> None:
        if self._nice and hasattr(os, "setpriority"):
            thread = threading.get_native_id()
            try:
                os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + self._nice)
            except OSError as error:  # a sandbox may forbid it: shadows then run at the usual priority
                _log.debug("the shadows' thread keeps its priority: %s", error)
        while (job := self._jobs.get()) is not None:
            try:
                self._hand_back(job())
            except RuntimeError:  # the loop is closed: the process is going down
                return


class _Waiting:
    """Answered requests that wait for one shadow version, in the order of their answers."""

    __slots__ = ("bytes", "choice", "dropped", "granted", "requests", "rows", "since", "version")

    def __init__(self, version: Version, choice: Choice) -> None:
        self.version = version
        self.choice = choice
        self.requests: deque[Call] = deque()
        self.rows = 0
        self.bytes = 0
        self.dropped = 0
        self.since = 0.0
        # Rows of the batch under way that have not run yet.
        self.granted = 0

    def take(self, max_rows: int, now: float) -> list[Call]:
        """At most `max_rows` rows, but one request at least."""
        taken: list[Call] = []
        rows = 0
        while self.requests and (not taken or rows + self.requests[0].rows <= max_rows):
            call = self.requests.popleft()
            rows += call.rows
            self.bytes -= call.bytes
            taken.append(call)
        self.rows -= rows
        self.granted = max(0, self.granted - rows)
        self.since = now
        return taken


@dataclass(frozen=True, slots=True)
class _Shadowed:
    """What a batch came to: the copies that ran, differences by answering version, requests that fitted nobody."""

    copies: list[Call]
    found: Mapping[int, Disagreement]
    failed: int
    unfit: int
    seconds: float


class Mirror:
    """The shadows of all models of a server. All methods run on the event loop; `busy` says whether callers wait."""

    def __init__(
        self,
        signals: Signals,
        record: Callable[[Sequence[Call]], None],
        busy: Callable[[], bool],
        limits: ShadowLimits | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._signals = signals
        self._record = record
        self._busy = busy
        self._limits = limits or ShadowLimits()
        self._clock = clock
        self._draw = draw
        self._lanes: dict[tuple[str, int], _Waiting] = {}
        self._thread: _Thread | None = None
        self._running = False
        self._backlog: Callable[[], bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # Seconds that shadows may still take although callers wait, and when that was last reckoned.
        self._allowance = 0.0
        self._reckoned = 0.0
        self._closed = False

    @property
    def idle(self) -> bool:
        """Whether no request waits for a shadow and none is with one."""
        return not self._running and not any(lane.requests for lane in self._lanes.values())

    def offer(self, call: Call, deployment: Deployment) -> None:
        """Queues a request that was just answered for the shadows whose draw it wins. Takes a few microseconds."""
        for shadow in deployment.router.policy.shadows:
            if (shadow.fraction >= 1.0 or self._draw() < shadow.fraction) and not self._closed:
                self._queue(call, deployment, shadow)

    def close(self) -> None:
        """Drops what waits; the thread ends after its batch."""
        self._closed = True
        for key, lane in self._lanes.items():
            self._signals.shadowed(*key, "dropped", len(lane.requests) + lane.dropped)
        self._lanes.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            self._thread.stop()

    def _queue(self, call: Call, deployment: Deployment, shadow: Shadow) -> None:
        key = (deployment.model, shadow.version)
        lane = self._lanes.get(key)
        if lane is None or lane.choice.propensity != shadow.fraction or key[1] not in deployment.versions:
            lane = self._opened(key, deployment, shadow)
            if lane is None:
                return
        limits = self._limits
        if lane.rows + call.rows > limits.queue_rows or lane.bytes + call.bytes > limits.queue_bytes:
            lane.dropped += 1
            return
        if not lane.requests:
            lane.since = self._clock()
        lane.requests.append(call)
        lane.rows += call.rows
        lane.bytes += call.bytes
        if self._timer is None and not self._running:
            self._wait(limits.gather)

    def _opened(self, key: tuple[str, int], deployment: Deployment, shadow: Shadow) -> _Waiting | None:
        """A queue for the shadow as the policy now has it; what waited under another fraction is dropped."""
        before = self._lanes.pop(key, None)
        if before is not None:
            self._signals.shadowed(*key, "dropped", len(before.requests) + before.dropped)
        version = deployment.versions.get(shadow.version)
        if version is None:
            return None
        lane = self._lanes[key] = _Waiting(version, Choice(shadow.version, "shadow", shadow.fraction))
        return lane

    def _wait(self, seconds: float) -> None:
        if not self._closed:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        """Runs a step of the batch under way, or of what has waited longest, unless callers need the machine."""
        self._timer = None
        waiting = [(not lane.granted, lane.since, key) for key, lane in self._lanes.items() if lane.requests]
        if not waiting or self._running:
            return
        new, since, key = min(waiting)
        lane, limits, now = self._lanes[key], self._limits, self._clock()
        if new:
            if lane.rows < limits.batch_rows and now - since < limits.gather:
                self._wait(limits.gather - (now - since))
                return
            self._signals.shadowed(*key, "dropped", lane.dropped)
            lane.dropped = 0
            lane.granted = min(lane.rows, limits.batch_rows)
        self._allowance = min(self._allowance + limits.busy_share * (now - self._reckoned), limits.busy_share)
        self._reckoned = now
        free = self._free()
        if free or self._allowance > 0.0:
            self._run(key, lane.version, lane.choice, lane.take(limits.step_rows, now), free=free)
        else:
            self._wait(limits.retry)

    def _free(self) -> bool:
        """Whether no caller's request waits, in a queue or in a socket."""
        if self._backlog is None:
            self._backlog = probe(asyncio.get_running_loop())
        return not self._busy() and not self._backlog()

    def _run(self, key: tuple[str, int], version: Version, choice: Choice, calls: list[Call], *, free: bool) -> None:
        self._running = True
        if self._thread is None:
            self._thread = _Thread(self._limits.nice, asyncio.get_running_loop().call_soon_threadsafe)
        model, step, clock = version.loaded.model, self._limits.step_rows, self._clock

        def job() -> Callable[[], None]:
            try:
                done = _shadow(model, choice, calls, step, clock)
            except Exception:
                _log.exception("shadow version %d of %s", choice.version, key[0])
                done = _Shadowed([], {}, len(calls), 0, 0.0)
            return lambda: self._done(key, done, free=free)

        self._thread.start(job)

    def _done(self, key: tuple[str, int], done: _Shadowed, *, free: bool) -> None:
        self._running = False
        if not free:
            self._allowance -= done.seconds
        model, shadow = key
        compared = sum(len(group.absolute) for group in done.found.values())
        ran = len(done.copies) - sum(copy.outputs is None for copy in done.copies)
        self._signals.shadowed(model, shadow, "compared", compared)
        self._signals.shadowed(model, shadow, "failed", done.failed)
        self._signals.shadowed(model, shadow, "incomparable", ran - compared + done.unfit)
        for version, group in done.found.items():
            self._signals.disagreement(model, version, shadow, group)
        if not self._closed:
            if done.copies:
                self._record(done.copies)
            if any(lane.requests for lane in self._lanes.values()):
                # The rest of a batch goes on, after the loop has read its sockets.
                self._wait(0.0 if any(lane.granted for lane in self._lanes.values()) else self._limits.retry)


def _shadow(
    model: LoadedModel, choice: Choice, calls: Sequence[Call], step_rows: int, clock: Callable[[], float]
) -> _Shadowed:
    """Runs copies of answered calls on a shadow, and compares its outputs with the answers."""
    begun = time.thread_time()
    copies: list[Call] = []
    answered: list[Call] = []
    # By identity, as calls of one version share theirs: its outputs' names, and whether the shadow takes the same.
    known: dict[int, tuple[tuple[str, ...], bool]] = {}
    for call in calls:
        if id(call.signature) not in known:
            known[id(call.signature)] = _names(call.signature), call.signature == model.signature
        try:
            copies.append(call.copied(choice, model.signature, alike=known[id(call.signature)][1]))
            answered.append(call)
        except ServingError as error:
            # The shadow may take other inputs than the answering version: no matter to the client.
            _log.debug("a request does not fit shadow version %d: %s", choice.version, error)
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for place, copy in enumerate(copies):
        groups[copy.bucket].append(place)
    names = _names(model.signature)
    pairs: dict[int, list[Pair]] = defaultdict(list)
    failed = 0
    for places in groups.values():
        run = execute(model, [copies[place] for place in places], step_rows, clock)
        for place, result in zip(places, run.results, strict=True):
            copy, call = copies[place], answered[place]
            # Its waiting is by design: what a shadow takes is what its model takes.
            copy.arrived = copy.queued = copy.started = run.started
            copy.ended = run.ended
            copy.settle(result, run.ended)
            if isinstance(result, ServingError):
                failed += 1
            elif call.outputs is not None:
                told = known[id(call.signature)][0]
                pairs[call.choice.version].append(Pair(told, call.outputs, names, result))
    found = {number: compare(group) for number, group in pairs.items()}
    return _Shadowed(copies, found, failed, len(calls) - len(copies), time.thread_time() - begun)


def _names(signature: Signature) -> tuple[str, ...]:
    return tuple(output.name for output in signature.outputs)
