"""kill -9 in the midst of acting: `python benchmarks/act_kills.py [--kills 1000] [--engines 2] [--postgresql]`.

A real server has one canary after another; an alert asks for its rollback, and one or two engines of actions carry it
out over one database. Engines are killed at points of the act path and at random moments, the server at random moments,
and with PostgreSQL the connections of the engines are cut. What died is started again at once. For each release there
must then be one rollback in the server's own history, one action that is done, one result in the journal, and the chain
whole. Before that, the time from an alert to its verified rollback is measured with nothing killed.

Processes are forked from one that has imported everything, so that a start costs milliseconds and not seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import os
import random
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import httpx
import psutil
import sqlalchemy as sa
import torch

from alerts.actions import ActionPolicy, ActionRunner, serving_hooks
from alerts.actions.journal import verify
from alerts.schema import ACTION_CLAIMS, ACTIONS, JOURNAL, open_database
from alerts.states import Alert
from serving import Input, Output, Registry, ServingConfig, Signature, save_artifact, serve

MODEL = "toy"
POINTS = ("decided", "claimed", "prepared", "done", "confirmed", "written")
_LIMIT_SECONDS = 90.0
_LOOK_SECONDS = 0.02
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG (Linux)


class Doubled(torch.nn.Module):
    """x -> x * factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows] -> [rows]."""
        return x * self.factor


@dataclass(frozen=True, slots=True)
class Place:
    """Where everything is."""

    folder: Path
    database_url: str
    port: int

    @property
    def asked(self) -> Path:
        """The alert that fires now, as JSON."""
        return self.folder / "alert.json"

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}"


@dataclass(slots=True)
class Seen:
    """What happened, and what must not have."""

    kills: Counter[str] = field(default_factory=Counter)
    quiet_seconds: list[float] = field(default_factory=list)
    disturbed_seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    after_start_seconds: list[float] = field(default_factory=list)
    """From a server that was started again and answers to the rollback: what is not its own start."""
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    releases: list[str] = field(default_factory=list)


def forked(work: Callable[[], None]) -> int:
    """The id of a child that does the work and ends."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        work()
    except BaseException as error:  # a child must never go on as its parent
        print(f"child: {error!r}", file=sys.stderr, flush=True)
    os._exit(1)


def engine_of(place: Place, die_at: str, die_after: int) -> None:
    """An engine of actions that looks at the alert many times a second; dies at a point, if one is named."""
    passed = 0

    def at(point: str, key: str) -> None:
        nonlocal passed
        if point == die_at:
            passed += 1
            if passed > die_after:
                os.kill(os.getpid(), signal.SIGKILL)

    runner = ActionRunner(
        open_database(place.database_url),
        policies={"rollback": ActionPolicy(cooldown_seconds=0, budget_per_hour=10**9, breaker_failures=0)},
        hooks=serving_hooks(place.url, timeout_seconds=10.0),
        secret="sealed",
        term_seconds=3.0,
        at=at,
    )
    while True:
        try:
            runner.start()
            break
        except sa.exc.SQLAlchemyError:
            time.sleep(0.05)
    while True:
        with contextlib.suppress(FileNotFoundError, ValueError, sa.exc.SQLAlchemyError):
            asked = json.loads(place.asked.read_text())
            runner.consider(
                Alert(
                    labels=(
                        ("action", "rollback"), ("alertname", "CanaryHarmful"), ("model", MODEL),
                        ("release", asked["release"]),
                    ),
                    annotations=(("summary", "harm is proved"),), value=1.0, state="firing",
                    active_at=asked["at"], fired_at=asked["at"],
                )
            )  # fmt: skip
        time.sleep(_LOOK_SECONDS)


def server_of(place: Place) -> None:
    """The server, with two versions of a model."""
    url = f"sqlite:///{place.folder}/registry.db"
    config = ServingConfig(registry_url=url, artifacts_dir=place.folder / "artifacts", port=place.port)
    serve(config, "CRITICAL")


def prepare(place: Place) -> None:
    """Two versions of the model, the first of them stable."""
    registry = Registry(f"sqlite:///{place.folder}/registry.db", place.folder / "artifacts")
    for factor in (1.0, 2.0):
        artifact = place.folder / f"toy-{factor:g}"
        save_artifact(artifact, Doubled(factor), Signature((Input.of("x", "FP32"),), (Output("y"),)), {"x": [1.0]})
        registry.register(MODEL, artifact, lineage={}, profile=None, metrics={})
    registry.set_alias(MODEL, "stable", 1)
    registry.close()


class World:
    """The processes; all of them are this one's children."""

    def __init__(self, place: Place, engines: int, seed: int, postgresql: Postgresql | None = None) -> None:
        self.place = place
        self.postgresql = postgresql
        self.random = random.Random(seed)
        self.server = 0
        self.engines = [0] * engines
        self.client = httpx.Client(base_url=place.url, timeout=20.0)
        self.seen = Seen()

    def start(self) -> None:
        """Everything, for the first time."""
        self.server = forked(lambda: server_of(self.place))
        self.page()
        for number in range(len(self.engines)):
            self.start_engine(number)

    def start_engine(self, number: int, die_at: str = "", die_after: int = 0) -> None:
        """An engine in the place of the one before."""
        self.engines[number] = forked(lambda: engine_of(self.place, die_at, die_after))

    def revive(self) -> list[str]:
        """Start again what has died; what it was."""
        died = []
        if self.server and _ended(self.server):
            died.append("server")
            self.server = forked(lambda: server_of(self.place))
        for number, pid in enumerate(self.engines):
            if _ended(pid):
                died.append("engine")
                self.start_engine(number)
        return died

    def page(self) -> Any:
        """The model's page, when the server gives it."""
        limit = time.monotonic() + _LIMIT_SECONDS
        while True:
            try:
                answer = self.client.get(f"/api/v1/models/{MODEL}")
                if answer.is_success and answer.json()["stable"]:
                    return answer.json()
            except httpx.HTTPError:
                self.revive()
            if time.monotonic() > limit:
                raise TimeoutError("the server gives no page")
            time.sleep(0.02)

    def canary(self) -> str:
        """A new release in progress."""
        while True:
            with contextlib.suppress(httpx.HTTPError):
                answer = self.client.post(f"/api/v1/models/{MODEL}/canary", json={"version": 2, "weight": 0.1})
                if answer.is_success:
                    return str(answer.json()["canary"]["release"])
            self.revive()
            time.sleep(0.02)

    def trial(self, disturb: Callable[[], None] | None) -> None:
        """One release that is to be rolled back, with something killed meanwhile."""
        release = self.canary()
        self.seen.releases.append(release)
        asked = time.time()
        scratch = self.place.asked.with_suffix(".new")
        scratch.write_text(json.dumps({"release": release, "at": asked}))
        scratch.replace(self.place.asked)
        if disturb is not None:
            disturb()
        limit = time.monotonic() + _LIMIT_SECONDS
        starting, ready_at = False, 0.0
        while (completed := self._completed(release)) is None:
            for what in self.revive():
                self.seen.kills[what] += 1
                starting, ready_at = starting or what == "server", 0.0
            if starting and not ready_at and self._ready():
                ready_at = time.time()
            if time.monotonic() > limit:
                self.seen.lost.append(release)
                with contextlib.suppress(httpx.HTTPError):
                    self.client.post(f"/api/v1/models/{MODEL}/rollback", json={"release": release})
                return
            time.sleep(0.01)
        if self.seen.wrong and self.seen.wrong[-1].startswith(f"{release} "):
            with contextlib.suppress(httpx.HTTPError):
                self.client.post(f"/api/v1/models/{MODEL}/rollback", json={"release": release})
            return
        seen = self.seen
        times = seen.quiet_seconds if disturb is None else seen.disturbed_seconds[disturb.__name__]
        times.append(completed - asked)
        if ready_at:
            seen.after_start_seconds.append(completed - ready_at)
        time.sleep(self.random.uniform(0.0, 0.03))
        for what in self.revive():
            self.seen.kills[what] += 1

    def _ready(self) -> bool:
        try:
            return self.client.get("/v2/health/ready", timeout=0.5).is_success
        except httpx.HTTPError:
            return False

    def _completed(self, release: str) -> float | None:
        with contextlib.suppress(sa.exc.SQLAlchemyError), self.database.begin() as connection:
            query = sa.select(ACTIONS.c.state, ACTIONS.c.completed_at, ACTIONS.c.result)
            row = connection.execute(query.where(ACTIONS.c.key == f"rollback:{MODEL}:{release}")).first()
            if row is not None and row.state == "done":
                return float(row.completed_at)
            if row is not None and row.state not in ("running", "held"):
                self.seen.wrong.append(f"{release} is {row.state}: {row.result}")
                return time.time()
        return None

    def killed(self) -> int:
        """How often something was ended by kill -9; a connection that was cut is none."""
        return sum(count for what, count in self.seen.kills.items() if what != "connection")

    @property
    def database(self) -> sa.Engine:
        """The engines' database, opened once all forks of the start are done."""
        if not hasattr(self, "_database"):
            url = sa.make_url(self.place.database_url)
            if url.get_backend_name() == "sqlite":
                engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args={"timeout": 15.0})
            else:
                engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args={"application_name": "referee"})
            self._database = engine
        return self._database

    # --- what is done to them ---------------------------------------------------------------------------------------
    def kill_engine_at_a_point(self) -> None:
        """An engine that will die at a point takes the place of one."""
        number = self.random.randrange(len(self.engines))
        _kill(self.engines[number])
        os.waitpid(self.engines[number], 0)
        self.start_engine(number, self.random.choice(POINTS))

    def kill_an_engine(self) -> None:
        """At a random moment."""
        time.sleep(self.random.uniform(0.0, 0.15))
        _kill(self.random.choice(self.engines))

    def kill_all_engines(self) -> None:
        """At one moment."""
        time.sleep(self.random.uniform(0.0, 0.15))
        for pid in self.engines:
            _kill(pid)

    def kill_the_server(self) -> None:
        """At a random moment."""
        time.sleep(self.random.uniform(0.0, 0.15))
        _kill(self.server)

    def kill_the_database(self) -> None:
        """All of its processes at a random moment (PostgreSQL)."""
        time.sleep(self.random.uniform(0.0, 0.15))
        assert self.postgresql is not None
        self.postgresql.kill()
        self.postgresql.start()
        self.seen.kills["database"] += 1

    def cut_connections(self) -> None:
        """Those of the engines, at a random moment (PostgreSQL)."""
        time.sleep(self.random.uniform(0.0, 0.1))
        with self.database.begin() as connection:
            cut = connection.execute(
                sa.text("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = ''")
            ).scalar_one()
        self.seen.kills["connection"] += int(cut)

    def close(self) -> None:
        """End every child."""
        for pid in (self.server, *self.engines):
            if pid:
                _kill(pid)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
        self.client.close()
        self.database.dispose()


def judged(world: World) -> dict[str, Any]:
    """What the server's history, the actions and the journal say in the end."""
    seen = world.seen
    # The server's own record, whole: its page shows the last switches only.
    with contextlib.closing(sqlite3.connect(world.place.folder / "registry.db")) as registry:
        lines = registry.execute("SELECT release FROM traffic_history WHERE event = 'rollback'").fetchall()
    rollbacks = Counter(release for (release,) in lines)
    with world.database.begin() as connection:
        rows = verify(connection, secret="sealed")
        results = Counter(connection.execute(sa.select(JOURNAL.c.key).where(JOURNAL.c.kind == "result")).scalars())
        done = Counter(connection.execute(sa.select(ACTIONS.c.key).where(ACTIONS.c.state == "done")).scalars())
        taken_over = connection.execute(sa.select(sa.func.count()).where(ACTION_CLAIMS.c.token > 1)).scalar_one()
    for release in seen.releases:
        count = rollbacks[release]
        if count > 1:
            seen.doubled.append(f"{release}: {count} rollbacks at the server")
        if count == 0:
            seen.lost.append(f"{release}: no rollback at the server")
    for release in seen.releases:
        key = f"rollback:{MODEL}:{release}"
        if results[key] > 1:
            seen.doubled.append(f"{release}: {results[key]} results in the journal")
        if not done[key] or not results[key]:
            seen.lost.append(f"{release}: not done in the journal")
    return {"journal_rows": rows, "taken_over": int(taken_over), "rollbacks_at_server": len(lines)}


class Postgresql:
    """A PostgreSQL server of its own, on a free port; its commits reach the disk."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        self._programs = found[-1].parent if found else Path(str(shutil.which("initdb"))).parent
        self.folder = Path(tempfile.mkdtemp(prefix="trimtab-postgresql-"))
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self.folder, self._user, self._user)
        self._data = str(self.folder / "data")
        port = _free_port()
        self.url = f"postgresql+psycopg://trimtab@127.0.0.1:{port}/postgres"
        self._options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self._command("initdb", "-D", self._data, "-U", "trimtab", "--auth=trust", "--no-sync")
        self.start()

    def start(self) -> None:
        """Start it, after a crash too: what the killed processes held is free a moment later."""
        limit = time.monotonic() + _LIMIT_SECONDS
        while True:
            try:
                log = str(self.folder / "log")
                self._command("pg_ctl", "-D", self._data, "-o", self._options, "-l", log, "-t", "60", "-w", "start")
                return
            except subprocess.CalledProcessError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL to the server and each of its processes."""
        server = psutil.Process(int((Path(self._data) / "postmaster.pid").read_text().split()[0]))
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)

    def close(self) -> None:
        """Stop it and take its folder away."""
        self._command("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _command(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments], user=self._user, check=True, cwd=self.folder,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip


def main() -> int:
    """0 when nothing was lost or done twice and the chain is whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--quiet", type=int, default=100, help="rollbacks with nothing killed, for their times")
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--postgresql", action="store_true")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # the database is away by our own doing
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trimtab-kills-")))
        server = Postgresql() if options.postgresql else None
        if server is not None:
            stack.callback(server.close)
        url = server.url if server is not None else f"sqlite:///{folder}/alerts.db"
        place = Place(folder, url, _free_port())
        prepare(place)
        open_database(url).dispose()
        world = World(place, options.engines, options.seed, server)
        stack.callback(world.close)
        world.start()
        for _ in range(options.quiet):
            world.trial(None)
        ways = [world.kill_engine_at_a_point] * 4 + [world.kill_an_engine] * 3
        ways += [world.kill_all_engines, world.kill_the_server, world.kill_the_server]
        ways += [world.cut_connections] * 2 + [world.kill_the_database] if options.postgresql else []
        began = time.monotonic()
        while world.killed() < options.kills and time.monotonic() - began < options.seconds:
            world.trial(world.random.choice(ways))
            if len(world.seen.releases) % 50 == 0:
                print(f"{len(world.seen.releases)} releases, {dict(world.seen.kills)}", file=sys.stderr, flush=True)
        place.asked.unlink(missing_ok=True)
        found = judged(world)
        seen = world.seen
        print(json.dumps({
            "engines": options.engines, "database": "postgresql" if options.postgresql else "sqlite",
            "releases": len(seen.releases), "kills": dict(seen.kills), **found,
            "lost": seen.lost, "done_twice": seen.doubled, "wrong": seen.wrong, "chain": "whole",
            "quiet_seconds": _times(seen.quiet_seconds),
            "disturbed_seconds": _times([one for times in seen.disturbed_seconds.values() for one in times]),
            "by_what_was_done": {what: _times(times) for what, times in sorted(seen.disturbed_seconds.items())},
            "after_the_server_answered": _times(seen.after_start_seconds), "load": os.getloadavg()[0],
        }, indent=2))  # fmt: skip
        return 1 if seen.lost or seen.doubled or seen.wrong else 0


def _times(seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"median": round(cuts[49], 4), "p99": round(cuts[98], 4), "max": round(max(seconds), 4)}


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
