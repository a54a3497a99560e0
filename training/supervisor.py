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
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from observability import names
from observability.machine import Gpus, Machine
from observability.metrics import Metrics
from observability.rank_agent import RankAgent
from observability.wall_time import goodput
from training.disk import fullness
from training.guards.device import DeviceRule, DeviceState, judge_gpu
from training.guards.finding import Finding
from training.guards.record import RECORD, GuardRecord, read_record
from training.ledger import Attempt, AttemptTimes, End, ledger
from training.neighbours import Neighbours
from training.nodes import Meeting, Nodes, Over, Place, meeting_of
from training.ranks import Rank
from training.warm import Ended, WarmError, WarmProcess
from training.watch import HangLimits, Straggler, StragglerRule, StragglerWatch, Watch

if TYPE_CHECKING:
    from observability.tracing import Tracing

_log = logging.getLogger(__name__)
_POLL_SECONDS, _LEAST_SECONDS = 0.1, 0.01
_AFTERMATH_SECONDS = 0.02
_STACKS_SECONDS, _STILL_SECONDS, _OTHERS_SECONDS, _CAUSE_SECONDS = 1.0, 0.1, 0.5, 1.0
_END_SECONDS = 30.0
_KEPT_RINGS = 3
_MACHINE_SECONDS = 5.0
_NOTE_SECONDS = 1.0
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
    """How a run ended. `wall` are the seconds of its time by cause (`observability.wall_time.CAUSES`)."""

    outcome: Literal["completed", "failed", "stopped"]
    reason: str
    attempts: tuple[Attempt, ...]
    wall: Mapping[str, float]
    goodput: float


@dataclass(frozen=True, slots=True)
class _Others:
    """What one attempt's ranks are compared with, and how: they, and those of other nodes."""

    stragglers: StragglerWatch
    neighbours: Neighbours
    meeting: Meeting


class Supervisor:
    """Trains `target`, a `module:function` called as `function(rank, **arguments)` in every rank.

    `arguments` must be JSON. `prepare`, another such name, is called once with them before the first fork and gives
    more arguments, as a dict of anything: what it loads is shared by all ranks of all attempts.

    With `nodes`, this is one of several supervisors, each on a machine of its own, that share the ranks out evenly and
    work in one `folder`, which they all see; `world_size` are the ranks of all. Node 0 decides what follows an attempt.
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
        nodes: Nodes | None = None,
        meeting: Meeting | None = None,
        parting_seconds: float = 0.0,
        tracing: Tracing | None = None,
    ) -> None:
        """`parting_seconds` are what ranks have to end by themselves, by SIGINT, when Ctrl-C ends `run`.

        With `tracing` some steps become traces (`observability.step_traces`): a share, and those that are odd.
        """
        if world_size < 1:
            raise ValueError(f"world_size is {world_size}: a run has at least one rank")
        self._nodes = nodes or Nodes(count=1, index=0, host="127.0.0.1", port=1)
        if world_size % self._nodes.count:
            raise ValueError(f"{world_size} ranks cannot be shared out evenly over {self._nodes.count} nodes")
        here = world_size // self._nodes.count
        self._own = range(self._nodes.index * here, (self._nodes.index + 1) * here)
        self._meeting, self._parting_seconds = meeting, parting_seconds
        self._target, self._arguments, self._prepare = target, dict(arguments or {}), prepare
        self._world_size, self._folder, self._model, self._run = world_size, folder.absolute(), model, run
        self._limits, self._environment, self._echo = limits or Limits(), dict(environment or {}), echo
        self.metrics = metrics or Metrics()
        self._agent = RankAgent(model, run, self.metrics, tracing=tracing)
        self._machine = Machine(self.metrics, model, run, self._processes, Gpus.found())
        self._sampled, self._gpus = -math.inf, dict[int, DeviceState]()
        self._told = False
        self._record, self._recorded = GuardRecord(self._folder / RECORD), 0
        self._ledger = self._folder / (LEDGER if self._leads else f"ledger.node-{self._nodes.index}.jsonl")
        self._note, self._noted = self._ledger.with_suffix(".now.json"), -math.inf
        self.attempts = _earlier(self._ledger)

    def run(self) -> RunResult:
        """Trains to the end, or until the limits say that it gets nowhere. WarmError where the target cannot start.

        NodesError where another node is missing for longer than `Nodes.patience`.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._take_up()
        if self._meeting is None:
            self._meeting = meeting_of(self._nodes, self._folder)
        warm = self._warm()
        over = Over("stopped", "it ended by an error of the supervisor's")
        try:
            while True:
                place = self._meeting.begin(self._next_number() if self._leads else -1)
                if isinstance(place, Over):
                    return self._result(place)
                attempt = self._attempt(warm, place, self._meeting)
                self.attempts.append(attempt)
                self._write(attempt)
                self._show()
                if self._leads and (found := self._over(attempt)):
                    over = found
                    return self._result(over)
                if attempt.cause != "completed":  # else node 0 has the last word, and a node that follows waits for it
                    self.metrics[names.TRAINING_RESTARTS].labels(self._model, attempt.cause).inc()
                    _log.warning("attempt %d ended (%s); the next begins", attempt.attempt, attempt.reason)
                if attempt.cause == "warm":
                    warm.close()
                    warm = self._warm()
        except KeyboardInterrupt:
            self._part(warm)
            raise
        finally:
            warm.close()
            self._meeting.close(over)

    def _over(self, attempt: Attempt) -> Over | None:
        """How the run ends, if this attempt was the last."""
        if attempt.cause == "completed":
            return Over("completed", f"{attempt.steps} steps in {len(self.attempts)} attempts")
        if attempt.cause == "told" or _asks_to_stop(attempt.cause, self._limits):
            return Over("stopped", attempt.reason)
        reason = given_up(self.attempts, self._limits)
        return Over("failed", reason) if reason else None

    @property
    def _leads(self) -> bool:
        return self._nodes.index == 0

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

    def _attempt(self, warm: WarmProcess, place: Place, meeting: Meeting) -> Attempt:
        # Of another name in every attempt, also where a number is used again.
        met = "" if meeting.others else f"meeting-{uuid.uuid4().hex}"
        ranks = [
            Rank(
                rank=rank, world_size=self._world_size, local_rank=local, attempt=place.attempt, run=self._run,
                host=place.host, port=place.port, folder=self._folder, meeting=met,
            )
            for local, rank in enumerate(self._own)
        ]  # fmt: skip
        times = AttemptTimes(0, Attempt(attempt=place.attempt, began=time.time()))
        watch = Watch(len(self._own), time.monotonic(), self._limits.hang, first=self._own.start)
        stragglers = StragglerWatch(self._limits.straggler)
        neighbours = Neighbours(place.attempt, 3 * self._limits.straggler.window, node=self._nodes.index)
        try:
            self._keep(times)
            warm.fork(ranks, [_environment(rank, self._nodes) for rank in ranks], echo=self._echo)
            end = self._follow(warm, ranks, watch, _Others(stragglers, neighbours, meeting), times)
        except WarmError as error:
            end = meeting.tell(place.attempt, End("warm", reason=str(error)))
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
        self,
        warm: WarmProcess,
        ranks: list[Rank],
        watch: Watch,
        others: _Others,
        times: AttemptTimes,
    ) -> End:
        """Watches the ranks to the end of the attempt, which is the same on all nodes; none of them runs afterwards."""
        done: set[int] = set()
        attempt, meeting = ranks[0].attempt, others.meeting
        while True:
            ended = list(warm.ends(min(max(others.neighbours.pause(), _LEAST_SECONDS), _POLL_SECONDS)))
            end = self._died(warm, ranks, ended)
            if end is None:
                for one in ended:
                    self._agent.down(one.rank)
                    done.add(one.rank)
                self._take(times, ranks, watch)
                if time.monotonic() - self._noted > _NOTE_SECONDS:
                    self._keep(times)
                if len(done) == len(ranks) and meeting.completed(attempt):
                    return End("completed")
                if elsewhere := meeting.ended(attempt):
                    if elsewhere.cause == "hang":
                        self._stacks(warm, ranks)
                    self._kill(warm)
                    return elsewhere
                end = self._trouble(warm, ranks, watch, others)
            if end is not None:
                end = _agreed(meeting, attempt, end)
                if end.cause == "hang" and meeting.others:
                    # The ranks of other nodes fall with these: their stacks are taken before that.
                    time.sleep(_OTHERS_SECONDS)
                self._kill(warm)
                return end

    def _died(self, warm: WarmProcess, ranks: list[Rank], ended: list[Ended]) -> End | None:
        """The end of the attempt where a rank ended by an error or was killed."""
        if not any(one.status for one in ended):
            return None
        # A rank that dies takes others with it, by errors of theirs: the one that was killed is the cause.
        ended += warm.ends(_AFTERMATH_SECONDS)
        end = _failed(ranks, min((one for one in ended if one.status), key=lambda one: one.status > 0))
        return replace(end, reason=end.reason + fullness(self._folder))

    def _trouble(self, warm: WarmProcess, ranks: list[Rank], watch: Watch, others: _Others) -> End | None:
        """The end of the attempt where the ranks of this node, or this node itself, ask for one."""
        attempt = ranks[0].attempt
        if self._told:
            return End("told", reason="told to stop")
        if end := self._machine_trouble(attempt):
            return end
        if (found := self._straggling(others, watch)) and (end := self._slowed(found, attempt)):
            return end
        if hang := watch.hang(time.monotonic(), others.neighbours.far()):
            reason = f"{hang.reason}{self._stacks(warm, ranks)}"
            _log.error("%s", reason)
            return End("hang", hang.rank, reason)
        return None

    def _take(self, times: AttemptTimes, ranks: list[Rank] | None = None, watch: Watch | None = None) -> None:
        """Reads what the rings show."""
        missing = [rank for rank in ranks or () if rank.rank not in self._agent.ranks]
        self._agent.follow(rank.attempt_folder / f"rank-{rank.rank}.ring" for rank in missing)
        self._agent.look()
        self._count_findings()
        for number, followed in self._agent.ranks.items():
            if watch is not None:
                watch.look(number, followed.now, followed.latest(), time.monotonic())
        if leading := self._agent.ranks.get(self._own.start):
            first = times.attempt.first_step
            times.offset_ns = leading.view.owner.clock_offset_ns
            times.add(leading.fresh, leading.now.checkpoint)
            if first != first and times.attempt.first_step == times.attempt.first_step and self.attempts:
                recovery = times.attempt.first_step - self.attempts[-1].ended
                self.metrics[names.TRAINING_RECOVERY].labels(self._model, self._run).set(recovery)

    def _processes(self) -> dict[int, int]:
        return {rank: one.view.owner.process_id for rank, one in self._agent.ranks.items() if one.up}

    def _machine_trouble(self, attempt: int) -> End | None:
        """Samples processes, host and GPUs now and then; gives the end of the attempt where trouble asks for one."""
        if time.monotonic() - self._sampled < _MACHINE_SECONDS:
            return None
        self._sampled = time.monotonic()
        self._machine.sample()
        for sample in self._machine.gpus:
            state, found = judge_gpu(DeviceRule(), self._gpus.get(sample.gpu, DeviceState()), sample)
            self._gpus[sample.gpu] = state
            for one in found:
                action, leading = self._limits.on_device, self._agent.ranks.get(self._own.start)
                step = leading.now.step if leading else 0
                self._record.add(Finding("device", one.reason, step), action, one.reason, step, attempt)
                _log.warning("%s: %s", action, one.reason)
                if action != "report":
                    return End("device", reason=one.reason)
        return None

    def _straggling(self, others: _Others, watch: Watch) -> Straggler | None:
        """Compares the own work of all nodes' ranks, and shows how slow each here is; gives one of here."""
        if self._world_size < 2:
            return None
        records = others.neighbours.records(self._agent.ranks, others.meeting, watch.far())
        if records is None or len(records) < self._world_size:
            return None
        found, compared = others.stragglers.look(records), others.stragglers.slowdown
        for rank in self._own:
            if rank in compared:
                slowdown = self.metrics[names.TRAINING_RANK_SLOWDOWN].labels(self._model, self._run, str(rank))
                slowdown.set(compared[rank])
        # Every node judges the same and each tells of its own ranks.
        return found if found is not None and found.rank in self._own else None

    def _slowed(self, found: Straggler, attempt: int) -> End | None:
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
        return None if action == "report" else End("straggler", found.rank, reason)

    def _count_findings(self) -> None:
        """Counts what the ranks' guards found since the last look: a rank's own metrics die with it.

        The record is that of all nodes.
        """
        if not self._leads:
            return
        lines, self._recorded = read_record(self._record.path, self._recorded)
        for line in lines:
            self.metrics[names.TRAINING_FINDINGS].labels(self._model, line["guard"], line["action"]).inc()
            self._agent.odd(line["sound"], f"{line['guard']}: {line['action']}")
            if line["guard"] == "loss_spike":
                self.metrics[names.TRAINING_SPIKES].labels(self._model).inc()

    def _stacks(self, warm: WarmProcess, ranks: list[Rank]) -> str:
        """Has every rank write its stacks, which are kept in the attempt's folder; says where, and which could not."""
        warm.signal(signal.SIGUSR1)
        stacks = {rank.rank: rank.attempt_folder / f"rank-{rank.rank}.stacks" for rank in ranks}
        limit, sizes, since = time.monotonic() + _STACKS_SECONDS, dict[int, int](), time.monotonic()
        # They come thread by thread, the main one last: what still grows is not whole.
        while (now := time.monotonic()) < limit and not (all(sizes.values()) and now > since + _STILL_SECONDS):
            before, sizes = sizes, {rank: _size(stacks[rank]) for rank in warm.alive}
            since = since if sizes == before else now
            time.sleep(0.02)
        silent = [str(rank) for rank in warm.alive if not _size(stacks[rank])]
        said = f"; no stacks of rank {', '.join(silent)} ({_state(warm.alive, silent)})" if silent else ""
        return f"{said}; stacks lie in {ranks[0].attempt_folder}"

    def _part(self, warm: WarmProcess) -> None:
        """Lets ranks end by themselves, for as long as they have; a second Ctrl-C ends that."""
        until = time.monotonic() + self._parting_seconds
        with suppress(WarmError):
            # A terminal has told them already; whoever signals this process alone has not.
            warm.signal(signal.SIGINT)
            while warm.alive and time.monotonic() < until:
                for ended in warm.ends(_POLL_SECONDS):
                    self._agent.down(ended.rank)

    def _kill(self, warm: WarmProcess) -> None:
        """Kills all ranks and waits until they are gone."""
        warm.signal(signal.SIGKILL)
        limit = time.monotonic() + _END_SECONDS
        while warm.alive and time.monotonic() < limit:
            for ended in warm.ends(0.05):
                self._agent.down(ended.rank)
        if warm.alive:
            raise WarmError(f"ranks {sorted(warm.alive)} could not be killed within {_END_SECONDS:g} s")

    def _keep(self, times: AttemptTimes) -> None:
        """Notes the attempt as it is now: all that is known of it if this process is killed."""
        self._noted = time.monotonic()
        moment = time.time()
        # As if it ended well now: what it does is lost only if it does not.
        self._show(times.ended(moment, "completed"))
        now = times.ended(moment, "supervisor", reason="its supervisor ended without a word")
        partial = self._note.with_suffix(".partial")
        try:
            partial.write_text(json.dumps(now.to_json()), encoding="utf-8")
            partial.replace(self._note)
        except OSError as error:  # a full disk must not end a training
            _log.warning("the attempt could not be noted: %s", error)

    def _take_up(self) -> None:
        """Writes the attempt of a supervisor that was killed into the ledger, as it was last noted."""
        try:
            last = Attempt.from_json(json.loads(self._note.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return
        if all(one.attempt != last.attempt for one in self.attempts):
            self.attempts.append(last)
            self._write(last)

    def _write(self, attempt: Attempt) -> None:
        try:
            with self._ledger.open("a", encoding="utf-8") as file:
                file.write(json.dumps(attempt.to_json()) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._note.unlink(missing_ok=True)
        except OSError as error:  # a full disk costs a line, and not the training
            _log.warning("attempt %d could not be written down: %s", attempt.attempt, error)

    def _show(self, running: Attempt | None = None) -> None:
        wall = ledger([*self.attempts, *([] if running is None else [running])])
        for cause, seconds in wall.items():
            self.metrics[names.TRAINING_WALL_TIME].labels(self._model, self._run, cause).set(seconds)
        self.metrics[names.TRAINING_GOODPUT].labels(self._model, self._run).set(goodput(wall))

    def _result(self, over: Over) -> RunResult:
        wall = ledger(self.attempts)
        return RunResult(over.outcome, over.reason, tuple(self.attempts), wall, goodput(wall))


def _agreed(meeting: Meeting, attempt: int, end: End) -> End:
    """The end that was told first. An error waits a moment: it may follow from a death that another node will tell."""
    until = time.monotonic() + _CAUSE_SECONDS
    while end.cause == "error" and meeting.others and time.monotonic() < until:
        if elsewhere := meeting.ended(attempt):
            return elsewhere
        time.sleep(_AFTERMATH_SECONDS)
    return meeting.tell(attempt, end)


def _asks_to_stop(cause: str, limits: Limits) -> bool:
    chosen = {"straggler": limits.on_straggler, "device": limits.on_device}
    return chosen.get(cause) == "stop"


def _environment(rank: Rank, nodes: Nodes) -> dict[str, str]:
    """What `torchrun` would set: a script that knows only that finds its group too."""
    return {
        "RANK": str(rank.rank),
        "LOCAL_RANK": str(rank.local_rank),
        "WORLD_SIZE": str(rank.world_size),
        "LOCAL_WORLD_SIZE": str(rank.world_size // nodes.count),
        "GROUP_RANK": str(nodes.index),
        "MASTER_ADDR": rank.host,
        "MASTER_PORT": str(rank.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": str(rank.attempt),
        "TORCHELASTIC_RUN_ID": rank.run,
    }


def _failed(ranks: list[Rank], ended: Ended) -> End:
    path = ranks[0].attempt_folder / f"rank-{ended.rank}.error.json"
    if ended.status < 0:
        name = signal.Signals(-ended.status).name
        return End("killed", ended.rank, f"rank {ended.rank} was killed by {name}")
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError):
        return End("error", ended.rank, f"rank {ended.rank} ended with status {ended.status}")
    return End("error", ended.rank, f"rank {ended.rank}: {said['type']}: {said['message']}")


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
    # That a supervisor was killed says nothing of what it trained.
    return [one for one in attempts[since:] if one.cause != "supervisor"]


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


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


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
