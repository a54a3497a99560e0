"""Runs the ranks of a training and keeps them running: what dies or hangs is started anew within a second.

    result = Supervisor("my.training:fit", world_size=2, folder=Path("runs/1"), model="delay").run()

The ranks are forked from a warm process. When one of them dies or hangs, all are killed and an attempt begins with a
store of its own, so that no rank meets the ghost of an earlier one; the function that trains goes on from its newest
checkpoint. Attempts end when they get nowhere: `Limits`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from observability import names
from observability.machine import Gpus, Machine
from observability.metrics import Metrics
from observability.rank_agent import RankAgent
from training.guards.device import DeviceRule, DeviceState, judge_gpu
from training.guards.finding import Finding
from training.guards.record import RECORD, GuardRecord, read_record
from training.ledger import Attempt, AttemptTimes, goodput, ledger
from training.ranks import Rank
from training.warm import Ended, WarmError, WarmProcess
from training.watch import Hang, HangLimits, Straggler, StragglerRule, StragglerWatch, Watch

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.1
_AFTERMATH_SECONDS = 0.02
_STACKS_SECONDS = 1.0
_END_SECONDS = 30.0
_KEPT_RINGS = 3
_MACHINE_SECONDS = 5.0
LEDGER = "ledger.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a run is given up, and when a rank hangs."""

    restarts: int = 1000
    without_progress: int = 3
    """Attempts in a row that saved nothing new."""
    same_error: int = 2
    """Times in a row that the same exception may end an attempt that saved nothing new."""
    hang: HangLimits = field(default_factory=HangLimits)
    straggler: StragglerRule = field(default_factory=StragglerRule)
    on_straggler: Literal["report", "restart", "stop"] = "report"
    """What follows when a rank is slower than the others, beside a count, a warning and a line in the run's record:
    nothing; all ranks begin anew, where the slow one may get another processor; or the run ends."""
    straggler_restarts: int = 1
    """Times that a straggler begins the ranks anew; from then on it is only told of."""

    on_device: Literal["report", "restart", "stop"] = "report"
    """What follows when heat slows a GPU down, or it tells of memory errors or an Xid."""

    def __post_init__(self) -> None:
        if self.on_device not in ("report", "restart", "stop"):
            raise ValueError(f"on_device is {self.on_device!r}: report, restart or stop")
        if self.on_straggler not in ("report", "restart", "stop"):
            raise ValueError(f"on_straggler is {self.on_straggler!r}: report, restart or stop")


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended. `wall` are the seconds of its time by cause (`training.ledger.CAUSES`)."""

    outcome: Literal["completed", "failed", "stopped"]
    reason: str
    attempts: tuple[Attempt, ...]
    wall: Mapping[str, float]
    goodput: float


@dataclass(frozen=True, slots=True)
class _End:
    cause: str
    rank: int = -1
    reason: str = ""


class Supervisor:
    """Trains `target`, a `module:function` called as `function(rank, **arguments)` in every rank.

    `arguments` must be JSON. `prepare`, another such name, is called once with them before the first fork and gives
    more arguments, as a dict of anything: what it loads is shared by all ranks of all attempts.
    """

    def __init__(
        self,
        target: str,
        *,
        world_size: int,
        folder: Path,
        model: str,
        run: str = "run",
        arguments: Mapping[str, Any] | None = None,
        prepare: str | None = None,
        limits: Limits | None = None,
        metrics: Metrics | None = None,
        environment: Mapping[str, str] | None = None,
        echo: int | None = 0,
    ) -> None:
        if world_size < 1:
            raise ValueError(f"world_size is {world_size}: a run has at least one rank")
        self._target, self._arguments, self._prepare = target, dict(arguments or {}), prepare
        self._world_size, self._folder, self._model, self._run = world_size, folder.absolute(), model, run
        self._limits, self._environment, self._echo = limits or Limits(), dict(environment or {}), echo
        self.metrics = metrics or Metrics()
        self._agent = RankAgent(model, run, self.metrics)
        self._machine = Machine(self.metrics, model, run, self._processes, Gpus.found())
        self._sampled, self._gpus = -math.inf, dict[int, DeviceState]()
        self._told = False
        self._record, self._recorded = GuardRecord(self._folder / RECORD), 0
        self.attempts = _earlier(self._folder / LEDGER)

    def run(self) -> RunResult:
        """Trains to the end, or until the limits say that it gets nowhere. WarmError where the target cannot start."""
        self._folder.mkdir(parents=True, exist_ok=True)
        warm = self._warm()
        try:
            while True:
                attempt = self._attempt(warm)
                self.attempts.append(attempt)
                self._write(attempt)
                self._show()
                if attempt.cause == "completed":
                    return self._result("completed", f"{attempt.steps} steps in {len(self.attempts)} attempts")
                if attempt.cause == "told" or _asks_to_stop(attempt.cause, self._limits):
                    return self._result("stopped", attempt.reason)
                if reason := given_up(self.attempts, self._limits):
                    return self._result("failed", reason)
                self.metrics[names.TRAINING_RESTARTS].labels(self._model, attempt.cause).inc()
                _log.warning("attempt %d ended (%s); the next begins", attempt.attempt, attempt.reason)
                if attempt.cause == "warm":
                    warm.close()
                    warm = self._warm()
        finally:
            warm.close()

    def stop(self) -> None:
        """Ends the run from another thread or a signal's handler; it can be resumed later."""
        self._told = True

    def _warm(self) -> WarmProcess:
        return WarmProcess(
            self._target,
            self._arguments,
            prepare=self._prepare,
            environment={"TORCH_FR_BUFFER_SIZE": "200", **self._environment},
        )

    def _attempt(self, warm: WarmProcess) -> Attempt:
        number = self._next_number()
        began = time.time()
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        ranks = [
            Rank(
                rank=rank, world_size=self._world_size, local_rank=rank, attempt=number, run=self._run,
                port=store.port, folder=self._folder,
            )
            for rank in range(self._world_size)
        ]  # fmt: skip
        times = AttemptTimes(0, Attempt(attempt=number, began=began))
        watch = Watch(self._world_size, time.monotonic(), self._limits.hang)
        stragglers = StragglerWatch(self._limits.straggler)
        try:
            warm.fork(ranks, [_environment(rank) for rank in ranks], echo=self._echo)
            end = self._follow(warm, ranks, watch, stragglers, times)
        except WarmError as error:
            end = _End("warm", reason=str(error))
        # With the rings of ranks that died before the first look.
        self._take(times, ranks)
        self._agent.forget()
        return times.ended(time.time(), end.cause, end.rank, end.reason)

    def _next_number(self) -> int:
        """A number that no attempt had: not even one that this process, when it was killed, could not write down."""
        known = [int(path.name.rpartition("-")[2]) for path in self._folder.glob("attempt-[0-9]*")]
        for old in sorted(known)[:-_KEPT_RINGS]:
            for ring in (self._folder / f"attempt-{old:04d}").glob("*.ring"):
                ring.unlink()
        return max([*known, *(one.attempt for one in self.attempts)], default=-1) + 1

    def _follow(
        self, warm: WarmProcess, ranks: list[Rank], watch: Watch, stragglers: StragglerWatch, times: AttemptTimes
    ) -> _End:
        """Watches the ranks to the end of the attempt; none of them runs afterwards."""
        done: set[int] = set()
        while True:
            ended = list(warm.ends(_POLL_SECONDS))
            if any(one.status for one in ended):
                # A rank that dies takes others with it, by errors of theirs: the one that was killed is the cause.
                ended += warm.ends(_AFTERMATH_SECONDS)
                self._kill(warm)
                return _failed(ranks, min((one for one in ended if one.status), key=lambda one: one.status > 0))
            for one in ended:
                self._agent.down(one.rank)
                done.add(one.rank)
            self._take(times, ranks, watch)
            if len(done) == len(ranks):
                return _End("completed")
            if self._told:
                self._kill(warm)
                return _End("told", reason="told to stop")
            if end := self._machine_trouble(ranks[0].attempt):
                self._kill(warm)
                return end
            if (found := self._straggling(stragglers)) and (end := self._slowed(found, ranks[0].attempt)):
                self._kill(warm)
                return end
            if hang := watch.hang(time.monotonic()):
                reason = self._autopsy(warm, ranks, hang)
                self._kill(warm)
                return _End("hang", hang.rank, reason)

    def _take(self, times: AttemptTimes, ranks: list[Rank] | None = None, watch: Watch | None = None) -> None:
        """Reads what the rings show."""
        missing = [rank for rank in ranks or () if rank.rank not in self._agent.ranks]
        self._agent.follow(rank.attempt_folder / f"rank-{rank.rank}.ring" for rank in missing)
        self._agent.look()
        self._count_findings()
        for number, followed in self._agent.ranks.items():
            if watch is not None:
                watch.look(number, followed.now, followed.latest(), time.monotonic())
        if leading := self._agent.ranks.get(0):
            first = times.attempt.first_step
            times.offset_ns = leading.view.owner.clock_offset_ns
            times.add(leading.fresh, leading.now.checkpoint)
            if first != first and times.attempt.first_step == times.attempt.first_step and self.attempts:
                recovery = times.attempt.first_step - self.attempts[-1].ended
                self.metrics[names.TRAINING_RECOVERY].labels(self._model, self._run).set(recovery)

    def _processes(self) -> dict[int, int]:
        return {rank: one.view.owner.process_id for rank, one in self._agent.ranks.items() if one.up}

    def _machine_trouble(self, attempt: int) -> _End | None:
        """Samples processes, host and GPUs now and then; gives the end of the attempt where trouble asks for one."""
        if time.monotonic() - self._sampled < _MACHINE_SECONDS:
            return None
        self._sampled = time.monotonic()
        self._machine.sample()
        for sample in self._machine.gpus:
            state, found = judge_gpu(DeviceRule(), self._gpus.get(sample.gpu, DeviceState()), sample)
            self._gpus[sample.gpu] = state
            for one in found:
                action, leading = self._limits.on_device, self._agent.ranks.get(0)
                step = leading.now.step if leading else 0
                self._record.add(Finding("device", one.reason, step), action, one.reason, step, attempt)
                _log.warning("%s: %s", action, one.reason)
                if action != "report":
                    return _End("device", reason=one.reason)
        return None

    def _straggling(self, watch: StragglerWatch) -> Straggler | None:
        """Compares the ranks' own work, and shows how slow each is."""
        if len(self._agent.ranks) < self._world_size or self._world_size < 2:
            return None
        kept = 3 * self._limits.straggler.window
        found = watch.look({rank: followed.latest(kept) for rank, followed in self._agent.ranks.items()})
        for rank, slowdown in watch.slowdown.items():
            self.metrics[names.TRAINING_RANK_SLOWDOWN].labels(self._model, self._run, str(rank)).set(slowdown)
        return found

    def _slowed(self, found: Straggler, attempt: int) -> _End | None:
        """Tells of a straggler; gives the end of the attempt where that is to follow."""
        reason = f"rank {found.rank} takes {found.ratio:.2f} times as long as the others, mostly in {found.phase}"
        step = self._agent.ranks[found.rank].now.step
        before = sum(one.cause == "straggler" for one in self.attempts)
        action = self._limits.on_straggler
        if action == "restart" and before >= self._limits.straggler_restarts:
            action = "report"
        _log.warning("%s: %s at step %d", action, reason, step)
        # This one is counted when it is read back, as all lines are.
        self._record.add(Finding("straggler", reason, step, found.ratio, found.rank), action, reason, step, attempt)
        return None if action == "report" else _End("straggler", found.rank, reason)

    def _count_findings(self) -> None:
        """Counts what the ranks' guards found since the last look: a rank's own metrics die with it."""
        lines, self._recorded = read_record(self._record.path, self._recorded)
        for line in lines:
            self.metrics[names.TRAINING_FINDINGS].labels(self._model, line["guard"], line["action"]).inc()
            if line["guard"] == "loss_spike":
                self.metrics[names.TRAINING_SPIKES].labels(self._model).inc()

    def _autopsy(self, warm: WarmProcess, ranks: list[Rank], hang: Hang) -> str:
        """Has every rank write its stacks, which are kept in the attempt's folder; says which could not."""
        warm.signal(signal.SIGUSR1)
        stacks = {rank.rank: rank.attempt_folder / f"rank-{rank.rank}.stacks" for rank in ranks}
        limit = time.monotonic() + _STACKS_SECONDS
        while time.monotonic() < limit and not all(_filled(stacks[rank]) for rank in warm.alive):
            time.sleep(0.02)
        silent = [str(rank) for rank in warm.alive if not _filled(stacks[rank])]
        said = f"; no stacks of rank {', '.join(silent)} ({_state(warm.alive, silent)})" if silent else ""
        reason = f"{hang.reason}{said}; stacks lie in {ranks[0].attempt_folder}"
        _log.error("%s", reason)
        return reason

    def _kill(self, warm: WarmProcess) -> None:
        """Kills all ranks and waits until they are gone."""
        warm.signal(signal.SIGKILL)
        limit = time.monotonic() + _END_SECONDS
        while warm.alive and time.monotonic() < limit:
            for ended in warm.ends(0.05):
                self._agent.down(ended.rank)
        if warm.alive:
            raise WarmError(f"ranks {sorted(warm.alive)} could not be killed within {_END_SECONDS:g} s")

    def _write(self, attempt: Attempt) -> None:
        with (self._folder / LEDGER).open("a", encoding="utf-8") as file:
            file.write(json.dumps(attempt.to_json()) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _show(self) -> None:
        wall = ledger(self.attempts)
        for cause, seconds in wall.items():
            self.metrics[names.TRAINING_WALL_TIME].labels(self._model, self._run, cause).set(seconds)
        self.metrics[names.TRAINING_GOODPUT].labels(self._model, self._run).set(goodput(wall))

    def _result(self, outcome: Literal["completed", "failed", "stopped"], reason: str) -> RunResult:
        wall = ledger(self.attempts)
        return RunResult(outcome, reason, tuple(self.attempts), wall, goodput(wall))


def _asks_to_stop(cause: str, limits: Limits) -> bool:
    chosen = {"straggler": limits.on_straggler, "device": limits.on_device}
    return chosen.get(cause) == "stop"


def _environment(rank: Rank) -> dict[str, str]:
    """What `torchrun` would set: a script that knows only that finds its group too."""
    return {
        "RANK": str(rank.rank),
        "LOCAL_RANK": str(rank.local_rank),
        "WORLD_SIZE": str(rank.world_size),
        "LOCAL_WORLD_SIZE": str(rank.world_size),
        "GROUP_RANK": "0",
        "MASTER_ADDR": rank.host,
        "MASTER_PORT": str(rank.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": str(rank.attempt),
        "TORCHELASTIC_RUN_ID": rank.run,
    }


def _failed(ranks: list[Rank], ended: Ended) -> _End:
    path = ranks[ended.rank].attempt_folder / f"rank-{ended.rank}.error.json"
    if ended.status < 0:
        name = signal.Signals(-ended.status).name
        return _End("killed", ended.rank, f"rank {ended.rank} was killed by {name}")
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError):
        return _End("error", ended.rank, f"rank {ended.rank} ended with status {ended.status}")
    return _End("error", ended.rank, f"rank {ended.rank}: {said['type']}: {said['message']}")


def given_up(attempts: Sequence[Attempt], limits: Limits) -> str:
    """Why no further attempt follows these; empty while one does."""
    last, restarts = attempts[-1], len(attempts) - 1
    if restarts >= limits.restarts:
        return f"{last.reason}; {restarts} restarts are the limit"
    idle = _without_progress(attempts)
    if len(idle) >= limits.without_progress:
        return f"{last.reason}; {len(idle)} attempts in a row saved nothing new"
    same = [one for one in idle if one.cause == "error" and one.reason == last.reason]
    if len(same) >= limits.same_error:
        return f"{last.reason}; the same error ended {len(same)} attempts that saved nothing new"
    return ""


def _without_progress(attempts: Sequence[Attempt]) -> Sequence[Attempt]:
    """The latest attempts in a row that left no newer checkpoint than was there before."""
    best, since = 0, 0
    for number, one in enumerate(attempts):
        if one.safe > best:
            best, since = one.safe, number + 1
    return attempts[since:]


def _earlier(path: Path) -> list[Attempt]:
    """The attempts that a ledger tells of; a last line that a crash cut is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(Attempt.from_json(json.loads(line)))
        except ValueError:
            _log.warning("%s has a line that is not whole; it is passed over", path)
    return found


def _filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _state(processes: Mapping[int, int], ranks: list[str]) -> str:
    """What the kernel says of these ranks' processes."""
    said = []
    for rank in ranks:
        try:
            text = Path(f"/proc/{processes[int(rank)]}/status").read_text()
        except (OSError, KeyError):
            continue
        said += [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("State:")]
    return ", ".join(said) or "gone"
