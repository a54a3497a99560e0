"""Servers and workers of one node as processes, kept running: whoever dies is started anew, and nobody else stops.

    cluster = Cluster("mine.training:work", network.state_dict(), layout, folder=Path("run"), model="delay", workers=4)
    result = cluster.run()
    network.load_state_dict(result.parameters, strict=False)

`mine.training.work(context, **arguments)` is called in every worker with a `WorkerContext`; returning is being done.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from observability import Metrics
from observability.push import push
from training.callables import resolve
from training.checkpoint import CheckpointStore
from training.faults import Faults
from training.parameter_server.client import Client, snapshot
from training.parameter_server.gloo import GlooConnect, GlooServer
from training.parameter_server.layout import Layout, Table
from training.parameter_server.links import LinkLost
from training.parameter_server.rules import Rule
from training.parameter_server.server import Server
from training.parameter_server.shard import Shard, Terms
from training.ranks import Rank
from training.warm import Ended, WarmError, WarmProcess

_log = logging.getLogger(__name__)
PUSH_SECONDS = 2.0
_START = "start"


class ClusterError(RuntimeError):
    """No worker got to the end; the message says what became of the last."""


@dataclass(frozen=True, slots=True)
class ClusterResult:
    """The parameters at the end by name, and how often servers and workers were started anew."""

    parameters: dict[str, Tensor]
    server_restarts: int
    worker_restarts: int
    given_up: tuple[int, ...]
    """Workers that were not started anew any more."""


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a worker's function is given: its client (entered already), which of how many it is, and the attempt."""

    client: Client
    number: int
    workers: int
    attempt: int
    faults: Faults
    _rank: int

    def strike(self, step: int) -> frozenset[str]:
        """Lets the planned faults of this worker strike; see `training.faults`."""
        return self.faults.strike(self._rank, self.attempt, step)


class Cluster:
    """One run of `layout.servers` servers and `workers` workers. What was begun in `folder` is gone on with.

    A cluster is given up, or a worker, when `restarts` in a row came before any server saved anything new.
    `faults` strike processes by rank: servers come first, and their step is the number of updates applied.
    """

    def __init__(
        self,
        work: str,
        start: Mapping[str, Tensor],
        layout: Layout,
        *,
        folder: Path,
        model: str,
        workers: int,
        rule: Rule = Rule(),  # noqa: B008 -- frozen
        terms: Terms = Terms(),  # noqa: B008
        arguments: Mapping[str, Any] | None = None,
        restarts: int = 10,
        faults: Faults | None = None,
        push_url: str | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}: at least one must train")
        self._layout, self._folder, self._workers, self._restarts = layout, folder, workers, restarts
        self._staleness = terms.staleness
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", 0, None, True, timeout=timedelta(seconds=60), wait_for_workers=False
        )
        CheckpointStore(folder / _START, keep=1).save(0, {name: start[name].detach() for name in _names(layout)})
        self._said = {
            "work": work,
            "model": model,
            "workers": workers,
            "layout": asdict(layout),
            "rule": asdict(rule),
            "terms": asdict(terms),
            "given": dict(arguments or {}),
            "faults": (faults or Faults()).to_json(),
            "push_url": push_url,
        }

    def run(self) -> ClusterResult:
        """Trains until every worker has returned or was given up. Raises ClusterError, WarmError or ValueError."""
        servers = self._layout.servers
        members = [
            Rank(rank=number, world_size=servers + self._workers, port=self._store.port, folder=self._folder)
            for number in range(servers + self._workers)
        ]
        running, given_up, restarts, last = set(range(servers, len(members))), list[int](), [0, 0], ""
        self._align()
        saved, idle, parameters, unheard = self._saved(), 0, None, 0
        warm, waiting = self._warm(running), list(range(len(members)))
        try:
            while parameters is None:
                warm, gone = self._turn(warm, [members[number] for number in waiting], running)
                waiting = []
                died = 0
                for ended in gone:
                    is_worker = ended.rank >= servers
                    if is_worker and ended.status == 0:
                        running.discard(ended.rank)
                        continue
                    last = self._why(members[ended.rank], ended.status)
                    if self._saved() > saved:
                        saved, idle = self._saved(), 0
                    if idle >= self._restarts:
                        if not is_worker:
                            raise ClusterError(f"{last}; {idle} restarts in a row saved nothing new")
                        running.discard(ended.rank)
                        given_up.append(ended.rank - servers)
                        continue
                    restarts[is_worker] += 1
                    # Those that went together count once.
                    died = 1
                    members[ended.rank] = replace(members[ended.rank], attempt=members[ended.rank].attempt + 1)
                    waiting.append(ended.rank)
                idle += died
                if len(given_up) == self._workers:
                    raise ClusterError(f"no worker got to the end; {last}")
                if not running and not waiting:
                    parameters, unheard = self._collected(unheard)
            warm.signal(signal.SIGTERM)
            until = time.monotonic() + 10.0
            with contextlib.suppress(WarmError):
                while warm.alive and time.monotonic() < until:
                    for _ in warm.ends(0.2):
                        pass
        finally:
            warm.close()
        return ClusterResult(parameters, restarts[0], restarts[1], tuple(given_up))

    def _turn(self, warm: WarmProcess, members: Sequence[Rank], running: set[int]) -> tuple[WarmProcess, list[Ended]]:
        """Starts the members and waits a little; gives who has ended since. All end with the warm process that forked
        them, in whose place there is then another one."""
        try:
            self._fork(warm, members)
            return warm, list(warm.ends(0.2))
        except WarmError as error:
            _log.warning("%s: all servers and workers begin anew from their checkpoints", error)
            warm.close()
            self._align()
            everybody = (*range(self._layout.servers), *sorted(running))
            return self._warm(running), [Ended(number, -signal.SIGKILL) for number in everybody]

    def _collected(self, unheard: int) -> tuple[dict[str, Tensor] | None, int]:
        """What the servers hold; None where one of them has just died, and how often in a row that was so."""
        try:
            return snapshot(self._layout, GlooConnect(self._store)), 0
        except LinkLost as error:
            if unheard >= self._restarts:
                raise ClusterError(f"{error}, after {unheard} times") from error
            _log.warning("%s; asked again", error)
            return None, unheard + 1

    def _warm(self, running: Iterable[int]) -> WarmProcess:
        said = {**self._said, "running": sorted(rank - self._layout.servers for rank in running)}
        return WarmProcess(f"{__name__}:member", said, prepare=f"{__name__}:prepared")

    def _align(self) -> None:
        """Takes all servers back to the newest step that all have in checkpoints that verify, before they begin.

        Nobody is left then who kept what one of them lacks. With a staleness there is no such step: pushes come to each
        server in an order of its own, and each goes on from its own newest.
        """
        if self._staleness:
            return
        stores = [CheckpointStore(self._folder / _place(one)) for one in range(self._layout.servers)]
        at_most: int | None = None
        while True:
            newest = [store.newest(at_most) for store in stores]
            steps = [-1 if one is None else one.step for one in newest]
            if (least := min(steps)) == max(steps):
                break
            at_most = least
        for store in stores:
            if any(int(path.stem.partition("-")[2]) > least for path in store.paths()):
                _log.warning("servers' checkpoints are of different steps: all go on from step %d", max(least, 0))
                store.drop_after(least)

    def _saved(self) -> int:
        """The updates in all servers' newest checkpoints: more of them are progress."""
        newest: dict[str, int] = {}
        for path in self._folder.glob("server-*/step-*.ckpt"):
            newest[path.parent.name] = max(newest.get(path.parent.name, 0), int(path.stem.partition("-")[2]))
        return sum(newest.values())

    def _why(self, member: Rank, status: int) -> str:
        """How a server or worker ended, by its own word where it left one."""
        number, servers = member.rank, self._layout.servers
        who = f"server {number}" if number < servers else f"worker {number - servers}"
        if status < 0:
            return f"{who} was killed by {signal.Signals(-status).name}"
        with contextlib.suppress(OSError, ValueError):
            said = json.loads((member.attempt_folder / f"rank-{number}.error.json").read_text(encoding="utf-8"))
            return f"{who}: {said['type']}: {said['message']}"
        return f"{who} ended with status {status}; its log is in {member.attempt_folder}"

    def _fork(self, warm: WarmProcess, members: Sequence[Rank]) -> None:
        warm.fork(members, [{} for _ in members], echo=None)


def prepared(*, work: str, **_: Any) -> Mapping[str, Any]:
    """Imports the workers' function before anything is forked. ValueError where it is not there."""
    resolve(work)
    return {}


def member(rank: Rank, **said: Any) -> None:
    """The life of one process of a cluster: a server or a worker, by its rank."""
    raw = said["layout"]
    layout = Layout(
        raw["servers"],
        tuple((name, tuple(shape)) for name, shape in raw["dense"]),
        tuple(Table(**table) for table in raw["tables"]),
    )
    store = dist.TCPStore(  # type: ignore[attr-defined]
        rank.host, rank.port, None, False, timeout=timedelta(seconds=60), wait_for_workers=False
    )
    terms, faults = Terms(**said["terms"]), Faults.from_json(said["faults"])
    if rank.rank < layout.servers:
        _serve(rank, layout, store, terms, faults, said)
        return
    number = rank.rank - layout.servers
    client = Client(layout, GlooConnect(store, silence_seconds=terms.lease_seconds), _name(number))
    client.enter()
    _meet(store, number, said["running"])
    resolve(said["work"])(
        WorkerContext(client, number, said["workers"], rank.attempt, faults, rank.rank), **said["given"]
    )
    client.leave()


def _place(server: int) -> str:
    """Where a server's checkpoints lie in the run's folder."""
    return f"server-{server}"


def _name(worker: int) -> str:
    """By which servers know a worker."""
    return f"worker-{worker:04d}"


def _meet(store: Any, number: int, running: Sequence[int]) -> None:
    """Waits until all workers have entered (not for those that come later): they begin with the same step."""
    store.add(f"entered/{number}", 1)
    until = time.monotonic() + 30.0
    while not all(store.add(f"entered/{one}", 0) for one in running) and time.monotonic() < until:
        time.sleep(0.01)


def _serve(rank: Rank, layout: Layout, store: Any, terms: Terms, faults: Faults, said: Mapping[str, Any]) -> None:
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    start = CheckpointStore(rank.folder / _START).at(0).state
    torch.set_num_threads(1)
    shard = Shard(
        layout.part(start, rank.rank),
        Rule(**said["rule"]),
        terms,
        store=CheckpointStore(rank.folder / _place(rank.rank)),
        fingerprint=f"{layout.fingerprint}-{rank.rank}",
        expected=[_name(number) for number in said["running"]],
    )
    metrics = Metrics()
    server = Server(shard, model=said["model"], number=rank.rank, metrics=metrics)
    listening = GlooServer(
        store, rank.rank, _struck(server, rank, faults), server.lost, silence_seconds=terms.lease_seconds
    )
    grouping = {"instance": f"{said['model']}-server-{rank.rank}"}
    while not over.wait(PUSH_SECONDS):
        if said["push_url"]:
            push(said["push_url"], "parameter-server", metrics, grouping=grouping)
    shard.save()
    listening.close()
    if said["push_url"]:
        push(said["push_url"], "parameter-server", metrics, grouping=grouping)


def _struck(server: Server, rank: Rank, faults: Faults) -> Callable[[bytes], bytes]:
    """The server's handler, before whose answers planned faults strike."""

    def handle(body: bytes) -> bytes:
        answer = server.handle(body)
        if faults.planned:
            faults.strike(rank.rank, rank.attempt, server.shard.updates)
        return answer

    return handle


def _names(layout: Layout) -> list[str]:
    return [*(name for name, _ in layout.dense), *(table.name for table in layout.tables)]
