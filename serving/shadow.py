"""Copies of answered requests for the shadows: run when the callers leave the machine free, compared, recorded.

A request is queued for a shadow when its answer is written, so its caller never waits; what the shortcut answers comes
batch by batch, as rows of a block. What gathers runs as one batch, when no caller's request waits, step by step: the
event loop reads its sockets before each step. A process of its own runs the steps where it can (`serving.shadows`):
callers then wait at most while a step is handed over. Until it has the version, and for models that it does not take, a
thread of low priority does, with which callers share the interpreter: they wait for one step at most. While callers
wait all the time, shadows get a small share of it; what does not fit into the bounded queue is dropped and counted.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serving.calls import Call
from serving.router import Choice
from serving.routing.backlog import probe
from serving.routing.traffic import Shadow
from serving.shadows.blocks import Answered
from serving.shadows.process import ShadowProcess
from serving.shadows.recording import Recording
from serving.shadows.runs import Shadowed
from serving.shadows.steps import Step, Steps
from serving.shadows.waiting import Waiting
from serving.telemetry.signals import Signals
from serving.versions.deployment import Deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowLimits:
    """What shadows may cost; times are seconds."""

    # Requests gather until there are so many rows, or for so long. Large batches disturb few callers.
    batch_rows: int = 256
    gather: float = 0.5
    # Between the beginnings of two batches of a shadow, at least: handing one over keeps callers waiting for a moment.
    pause: float = 0.1
    # The model gets so many rows at a time, and gives way to callers after each; a block goes to the process whole.
    step_rows: int = 64
    # Rows and bytes that may wait, by shadow.
    queue_rows: int = 512
    queue_bytes: int = 16 * 1024 * 1024
    # Share of the time that shadows may take while callers' requests wait, and how soon to look again.
    busy_share: float = 0.02
    retry: float = 0.005
    # Added to the thread's nice value.
    nice: int = 10
    # Weights that the shadows' own process holds at most; 0: a thread of the server runs all. A process is torch's
    # memory once more.
    process_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be."""
        if min(self.batch_rows, self.step_rows, self.queue_rows, self.queue_bytes) < 1:
            raise ValueError(
                f"shadow: batch_rows is {self.batch_rows}, step_rows {self.step_rows}, queue_rows {self.queue_rows}, "
                f"queue_bytes {self.queue_bytes}: at least 1 each"
            )
        if min(self.gather, self.pause, self.process_bytes) < 0 or not 0 <= self.busy_share <= 1:
            raise ValueError(
                f"shadow: gather is {self.gather:g} s, pause {self.pause:g} s, process_bytes {self.process_bytes}, "
                f"busy_share {self.busy_share:g}: not negative, and a share from 0 to 1"
            )
        if not 0 <= self.nice <= 19:
            raise ValueError(f"shadow: nice is {self.nice}: 0 to 19")


class Mirror:
    """The shadows of all models of a server. All methods run on the event loop; `busy` says whether callers wait.

    `record` gets the copies that ran, None where nobody wants them. Without a `process` a thread runs all shadows.
    """

    def __init__(
        self,
        signals: Signals,
        record: Callable[[Sequence[Call]], None] | None,
        busy: Callable[[], bool],
        limits: ShadowLimits | None = None,
        *,
        process: ShadowProcess | None = None,
        clock: Callable[[], float] = time.perf_counter,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._signals = signals
        self._record = record
        self._busy = busy
        self._limits = limits or ShadowLimits()
        self._clock = clock
        self._draw = draw
        self._lanes: dict[tuple[str, int], Waiting] = {}
        self._blocks = None if record is None else Recording(record)
        self._steps = Steps(
            process if self._limits.process_bytes else None, self._done, outputs=record is not None,
            step_rows=self._limits.step_rows, nice=self._limits.nice, retry=self._limits.retry, clock=clock,
        )  # fmt: skip
        self._running = False
        self._backlog: Callable[[], bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._gathering = False
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
                lane = self._lane(deployment, shadow)
                if lane is not None:
                    lane.keep(call, self._clock())
                    self._came(lane)

    def offer_batch(self, batch: Answered, deployment: Deployment) -> None:
        """The same of all requests of a batch of the shortcut; each is drawn by itself."""
        for shadow in deployment.router.policy.shadows:
            chosen = None
            if shadow.fraction < 1.0:
                draw, fraction = self._draw, shadow.fraction
                chosen = [place for place in range(len(batch.counts) // 8) if draw() < fraction]
                if not chosen:
                    continue
            lane = None if self._closed else self._lane(deployment, shadow)
            if lane is not None:
                lane.keep_of(batch, chosen, self._clock())
                self._came(lane)

    def settled(self) -> None:
        """The shortcut's requests that were answered have their ids."""
        if self._blocks is not None:
            self._blocks.settled()

    def close(self) -> None:
        """Drops what waits; the process ends now, the thread after its batch."""
        self._closed = True
        for key, lane in self._lanes.items():
            self._signals.shadowed(*key, "dropped", lane.requests + lane.dropped)
        self._lanes.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._blocks is not None:
            self._blocks.close()
        self._steps.close()

    def _lane(self, deployment: Deployment, shadow: Shadow) -> Waiting | None:
        key = (deployment.model, shadow.version)
        lane = self._lanes.get(key)
        if lane is None or lane.choice.propensity != shadow.fraction or key[1] not in deployment.versions:
            return self._opened(key, deployment, shadow)
        return lane

    def _came(self, lane: Waiting) -> None:
        """Sees to it that what waits is looked at: as soon as it is a batch."""
        if self._running or not lane.requests:
            return
        limits, full = self._limits, lane.rows >= self._limits.batch_rows
        if self._timer is not None and full and self._gathering:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            seconds = max(0.0, lane.begun + limits.pause - self._clock()) if full else limits.gather
            self._wait(seconds, gathering=not full)

    def _opened(self, key: tuple[str, int], deployment: Deployment, shadow: Shadow) -> Waiting | None:
        """A queue for the shadow as the policy now has it; what waited under another fraction is dropped."""
        before = self._lanes.pop(key, None)
        if before is not None:
            self._signals.shadowed(*key, "dropped", before.requests + before.dropped)
        version = deployment.versions.get(shadow.version)
        if version is None:
            return None
        limits = self._limits
        lane = self._lanes[key] = Waiting(
            version, Choice(shadow.version, "shadow", shadow.fraction), limits.queue_rows, limits.queue_bytes,
            min(limits.batch_rows, limits.queue_rows),
        )  # fmt: skip
        return lane

    def _wait(self, seconds: float, *, gathering: bool = False) -> None:
        """Looks in so many seconds; `gathering` says that it may be sooner, once there are more rows."""
        self._gathering = gathering
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
                self._wait(limits.gather - (now - since), gathering=True)
                return
            if now - lane.begun < limits.pause:
                self._wait(limits.pause - (now - lane.begun))
                return
            lane.begun = now
            self._signals.shadowed(*key, "dropped", lane.dropped)
            lane.dropped = 0
            lane.granted = min(lane.rows, limits.batch_rows)
        self._allowance = min(self._allowance + limits.busy_share * (now - self._reckoned), limits.busy_share)
        self._reckoned = now
        free = self._free()
        if free or self._allowance > 0.0:
            # The process gives way by itself, and what a step costs here hardly grows with a block.
            rows = limits.batch_rows if self._steps.given_away(key, lane.version) else limits.step_rows
            self._running = True
            self._steps.run(Step(key, lane.version, lane.choice, lane.take(limits.step_rows, rows, now), free))
        else:
            self._wait(limits.retry)

    def _free(self) -> bool:
        """Whether no caller's request waits, in a queue or in a socket."""
        if self._backlog is None:
            self._backlog = probe(asyncio.get_running_loop())
        return not self._busy() and not self._backlog()

    def _done(self, step: Step, done: Shadowed, begun: float) -> None:
        self._running = False
        model, shadow = step.key
        compared = sum(len(group.absolute) for group in done.found.values())
        self._signals.shadowed(model, shadow, "compared", compared)
        self._signals.shadowed(model, shadow, "failed", done.failed)
        self._signals.shadowed(model, shadow, "incomparable", done.ran - compared + done.unfit)
        for version, group in done.found.items():
            self._signals.disagreement(model, version, shadow, group)
        if not self._closed:
            if done.block is not None and self._blocks is not None:
                self._blocks.keep(done.block)
            elif len(done.copies) and self._record is not None:
                self._record(done.copies)
            if any(lane.requests for lane in self._lanes.values()):
                # The rest of a batch goes on, after the loop has read its sockets.
                self._wait(0.0 if any(lane.granted for lane in self._lanes.values()) else self._limits.retry)
        if not step.free:
            self._allowance -= done.seconds + time.thread_time() - begun
