"""Copies of answered requests for the shadows: run when the callers leave the machine free, compared, recorded.

A copy is made when its answer is written, so the caller never waits for it. Copies gather into batches and run on a
thread of low priority. While callers' requests wait, only a small share of the time goes to shadows; what then does
not fit into the bounded queue is dropped and counted.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from serving.calls import Call
from serving.deployment import Deployment, Version
from serving.disagreement import Disagreement, Pair, compare
from serving.errors import ServingError
from serving.execution import Executed, execute
from serving.router import Choice
from serving.signals import Signals
from serving.tensors import Array
from serving.traffic import Shadow

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowLimits:
    """What shadows may cost; times are seconds."""

    # Rows of a shadow's batch at most, and for how long a batch gathers.
    batch_rows: int = 64
    gather: float = 0.02
    # Rows and bytes that may wait, by shadow.
    queue_rows: int = 1024
    queue_bytes: int = 16 * 1024 * 1024
    # Share of the time that shadows may take while callers' requests wait.
    busy_share: float = 0.02
    # Added to the thread's nice value.
    nice: int = 10


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


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy and the answer that its outputs are compared with."""

    call: Call
    answered_by: int
    names: Sequence[str]
    answer: Sequence[Array] | None


class _Copies:
    """The copies that wait for one shadow version, in the order of their answers."""

    __slots__ = ("bytes", "rows", "since", "version", "waiting")

    def __init__(self, version: Version) -> None:
        self.version = version
        self.waiting: deque[_Copy] = deque()
        self.rows = 0
        self.bytes = 0
        self.since = 0.0

    def add(self, copy: _Copy, now: float) -> None:
        """Queues a copy."""
        if not self.waiting:
            self.since = now
        self.waiting.append(copy)
        self.rows += copy.call.rows
        self.bytes += _size(copy.call)

    def take(self, max_rows: int, now: float) -> list[_Copy]:
        """At most `max_rows` rows, but one request at least."""
        taken: list[_Copy] = []
        rows = 0
        while self.waiting and (not taken or rows + self.waiting[0].call.rows <= max_rows):
            copy = self.waiting.popleft()
            rows += copy.call.rows
            self.bytes -= _size(copy.call)
            taken.append(copy)
        self.rows -= rows
        self.since = now
        return taken


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
        self._lanes: dict[tuple[str, int], _Copies] = {}
        self._thread: _Thread | None = None
        self._running = False
        self._timer: asyncio.TimerHandle | None = None
        # Seconds that shadows may still take although callers wait, and when that was last reckoned.
        self._allowance = 0.0
        self._reckoned = 0.0
        self._closed = False

    @property
    def idle(self) -> bool:
        """Whether no copy waits or runs."""
        return not self._running and not any(lane.waiting for lane in self._lanes.values())

    def offer(self, call: Call, deployment: Deployment) -> None:
        """Copies a request that was just answered to the shadows whose draw it wins."""
        for shadow in deployment.router.policy.shadows:
            if (shadow.fraction >= 1.0 or self._draw() < shadow.fraction) and not self._closed:
                self._copy(call, deployment, shadow)

    def close(self) -> None:
        """Drops what waits; the thread ends after its batch."""
        self._closed = True
        for (model, number), lane in self._lanes.items():
            self._signals.shadowed(model, number, "dropped", len(lane.waiting))
        self._lanes.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            self._thread.stop()

    def _copy(self, call: Call, deployment: Deployment, shadow: Shadow) -> None:
        version = deployment.versions.get(shadow.version)
        if version is None:
            return
        key = (deployment.model, shadow.version)
        lane = self._lanes.get(key)
        if lane is None or lane.version is not version:
            lane = self._lanes[key] = _Copies(version)
        limits = self._limits
        if lane.rows + call.rows > limits.queue_rows or lane.bytes + _size(call) > limits.queue_bytes:
            self._signals.shadowed(*key, "dropped", 1)
            return
        try:
            copy = call.copied(Choice(shadow.version, "shadow", shadow.fraction), version.loaded.model.signature)
        except ServingError as error:
            # The shadow may take other inputs than the answering version: no matter to the client.
            _log.debug("a request cannot be copied to version %d: %s", shadow.version, error)
            self._signals.shadowed(*key, "incomparable", 1)
            return
        names = [output.name for output in call.signature.outputs]
        lane.add(_Copy(copy, call.choice.version, names, call.outputs), self._clock())
        if self._timer is None and not self._running:
            self._wait(limits.gather)

    def _wait(self, seconds: float) -> None:
        if not self._closed:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        """Starts the batch that has waited longest, unless it can grow or callers need the machine."""
        self._timer = None
        waiting = [(lane.since, key) for key, lane in self._lanes.items() if lane.waiting]
        if not waiting or self._running:
            return
        since, key = min(waiting)
        lane, limits, now = self._lanes[key], self._limits, self._clock()
        if lane.rows < limits.batch_rows and now - since < limits.gather:
            self._wait(limits.gather - (now - since))
        elif self._may_run(lane, now):
            self._run(key, lane.version, lane.take(limits.batch_rows, now))
        else:
            self._wait(limits.gather)

    def _may_run(self, lane: _Copies, now: float) -> bool:
        share = self._limits.busy_share
        self._allowance = min(self._allowance + share * (now - self._reckoned), share)
        self._reckoned = now
        if not self._busy():
            return True
        if self._allowance <= 0.0:
            return False
        self._allowance -= lane.version.loaded.warm_up.of(min(lane.rows, self._limits.batch_rows))
        return True

    def _run(self, key: tuple[str, int], version: Version, copies: list[_Copy]) -> None:
        self._running = True
        if self._thread is None:
            self._thread = _Thread(self._limits.nice, asyncio.get_running_loop().call_soon_threadsafe)
        model, clock, max_rows = version.loaded.model, self._clock, self._limits.batch_rows
        names = [output.name for output in model.signature.outputs]

        def job() -> Callable[[], None]:
            run = execute(model, [copy.call for copy in copies], max_rows, clock)
            pairs: dict[int, list[Pair]] = defaultdict(list)
            for copy, result in zip(copies, run.results, strict=True):
                if copy.answer is not None and not isinstance(result, ServingError):
                    pairs[copy.answered_by].append(Pair(copy.names, copy.answer, names, result))
            found = {number: compare(group) for number, group in pairs.items()}
            return lambda: self._done(key, [copy.call for copy in copies], run, found)

        self._thread.start(job)

    def _done(self, key: tuple[str, int], calls: list[Call], run: Executed, found: Mapping[int, Disagreement]) -> None:
        self._running = False
        for call, result in zip(calls, run.results, strict=True):
            # Its waiting is by design: what a shadow takes is what its model takes.
            call.arrived = call.started = run.started
            call.ended = run.ended
            call.settle(result, run.ended)
        failed = sum(isinstance(result, ServingError) for result in run.results)
        compared = sum(len(group.absolute) for group in found.values())
        self._signals.shadowed(*key, "failed", failed)
        self._signals.shadowed(*key, "compared", compared)
        self._signals.shadowed(*key, "incomparable", len(calls) - failed - compared)
        model, shadow = key
        for version, group in found.items():
            self._signals.disagreement(model, version, shadow, group)
        if not self._closed:
            for _, alike in groupby(calls, key=lambda call: call.choice.propensity):
                self._record(list(alike))
            if any(lane.waiting for lane in self._lanes.values()):
                self._wait(self._limits.gather)


def _size(call: Call) -> int:
    """Bytes of a request's body, of which its values are a part."""
    return getattr(call, "bytes", 0)
