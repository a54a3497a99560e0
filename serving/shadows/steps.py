"""A step of a shadow's batch, run where it can be: in the shadows' process, else on the thread of low priority.

What the process does not take or did not end, and a batch that made the model fail, the thread runs: at last request by
request, each with its own failure.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from serving.calls import Call
from serving.router import Choice
from serving.shadows.batches import batch_of, text_of
from serving.shadows.blocks import Block
from serving.shadows.messages import Batch, Ran
from serving.shadows.process import ShadowProcess
from serving.shadows.runs import Shadowed, run_batch, run_copies, shadowed
from serving.shadows.thread import ShadowThread
from serving.versions.deployment import Version

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """Calls that a shadow runs at once; `key` is its model and version. `free`: no caller waited when it began."""

    key: tuple[str, int]
    version: Version
    choice: Choice
    calls: Sequence[Call] | Block
    free: bool


class Steps:
    """Runs one step at a time; all methods run on the event loop.

    `done` gets the step, what ran, and this thread's processor time from which on the loop was at it. `outputs` says
    whether anybody wants the answers themselves, `retry` how many seconds to wait for a block's ids. Without a
    `process` a thread runs all; it is started with the first step that needs it.
    """

    def __init__(
        self,
        process: ShadowProcess | None,
        done: Callable[[Step, Shadowed, float], None],
        *,
        outputs: bool,
        step_rows: int,
        nice: int,
        retry: float,
        clock: Callable[[], float],
    ) -> None:
        self.process = process
        self._done = done
        self._outputs = outputs
        self._step_rows = step_rows
        self._nice = nice
        self._retry = retry
        self._clock = clock
        self._thread: ShadowThread | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def given_away(self, key: tuple[str, int], version: Version) -> bool:
        """Whether the process runs the version; if it is to and cannot yet, that is seen to."""
        return self.process is not None and self.process.takes(key, version.loaded.model)

    def run(self, step: Step) -> None:
        """Runs the step; `done` is called when it ended, also where every request failed."""
        if not self._hand_over(step):
            self._run_here(step)

    def close(self) -> None:
        """The process ends now, the thread after its step; a step that the process had is not run again."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            self._thread.stop()
        if self.process is not None:
            self.process.close()

    def _hand_over(self, step: Step) -> bool:
        """Gives the calls to the process, if it takes them."""
        process, signature = self.process, step.version.loaded.model.signature
        if process is None or not self.given_away(step.key, step.version):
            return False
        begun = time.thread_time()
        made = self._message(step)
        if made is None:
            return False
        batch, ordered = made
        spent = 0.0

        def done(ran: Ran | None) -> None:
            began = time.thread_time()
            if ran is None or ran.odd:
                # It ended, or a request made the model fail: which one is found here.
                _log.debug(
                    "shadow version %d of %s: %s", step.key[1], step.key[0], "no process" if ran is None else ran.odd
                )
                if not self._closed:
                    self._run_here(step, whole=ran is None, spent=spent)
                return
            self._done(step, shadowed(ordered, step.choice, signature, ran, self._clock()), began - spent)

        process.run(step.key, batch, done)
        spent = time.thread_time() - begun
        return True

    def _message(self, step: Step) -> tuple[Batch, Sequence[Call] | Block] | None:
        """A step as the process gets it, and its calls in that order; None where it does not take them."""
        signature = step.version.loaded.model.signature
        if not isinstance(step.calls, Block):
            return batch_of(step.key, step.calls, signature, outputs=self._outputs)
        batch = step.calls.message(text_of(step.key), signature, outputs=self._outputs)
        return None if batch is None else (batch, step.calls)

    def _run_here(self, step: Step, *, whole: bool = True, spent: float = 0.0) -> None:
        """Runs a step on the thread: a block as a whole, or its requests one by one, each with its own failure."""
        self._timer = None
        if self._thread is None:
            self._thread = ShadowThread(self._nice, asyncio.get_running_loop().call_soon_threadsafe)
        model, calls = step.version.loaded.model, step.calls
        if isinstance(calls, Block):
            message = calls.message("", model.signature, outputs=self._outputs) if whole else None
            if message is not None:
                self._thread.start(partial(self._block_job, step, calls, message, spent))
                return
            if self._outputs and not calls.numbered:
                # One by one they need their ids, which they get a few times a second.
                again = partial(self._run_here, step, whole=False, spent=spent)
                self._timer = asyncio.get_running_loop().call_later(self._retry, again)
                return
        self._thread.start(partial(self._calls_job, step, spent))

    def _calls_job(self, step: Step, spent: float) -> Callable[[], None]:
        """What the thread does with requests one by one, and what the loop does then."""
        calls = step.calls
        try:
            answered = calls.calls() if isinstance(calls, Block) else calls
            done = run_copies(step.version.loaded.model, step.choice, answered, self._step_rows, self._clock)
        except Exception:
            _log.exception("shadow version %d of %s", step.key[1], step.key[0])
            failed = calls.requests if isinstance(calls, Block) else len(calls)
            done = Shadowed([], 0, {}, failed, 0, 0.0)
        return lambda: self._done(step, done, time.thread_time() - spent)

    def _block_job(self, step: Step, block: Block, message: Batch, spent: float) -> Callable[[], None]:
        """What the thread does with a block, and what the loop does then."""
        begun, model = time.thread_time(), step.version.loaded.model
        ran = run_batch(model, self._step_rows, message)
        if ran.odd:
            return lambda: None if self._closed else self._run_here(step, whole=False, spent=spent)
        done = shadowed(block, step.choice, model.signature, ran, self._clock())
        done = replace(done, seconds=time.thread_time() - begun)
        return lambda: self._done(step, done, time.thread_time() - spent)
