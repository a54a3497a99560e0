"""A server of several real processes: what is killed, stopped or changed under load, and what callers see of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from observability import names
from serving import Registry

pytestmark = pytest.mark.slow
PROGRAM = """
    import json, sys
    from pathlib import Path
    from serving import ServingConfig, serve
    from serving.fleet import FleetOptions
    given = json.loads(sys.argv[1])
    fleet = FleetOptions(**given.pop("fleet"))
    folder = Path(given.pop("artifacts"))
    config = ServingConfig(artifacts_dir=folder, port=0, fleet=fleet, **given)
    serve(config, "INFO", lambda fleet: print(fleet.port, flush=True))
"""
ROW = {
    "inputs": [
        {"name": "amount", "datatype": "FP32", "shape": [1, 1], "data": [2.0]},
        {"name": "carrier", "datatype": "BYTES", "shape": [1, 1], "data": ["AA"]},
    ]
}
# Generous: eight processes may share two cores with other tests.
PATIENCE = 120.0
CONNECTIONS = 12


async def until(condition: Callable[[], Awaitable[Any]], what: str) -> Any:
    limit = time.monotonic() + PATIENCE
    while True:
        found = await condition()
        if found:
            return found
        assert time.monotonic() < limit, f"{what} did not come"
        await asyncio.sleep(0.05)


class Fleet:
    """The supervisor's process and what one can ask of the port, by the client of the test."""

    http: httpx.AsyncClient

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    def pids(self, kind: str) -> dict[int, int]:
        """Process ids of the fronts or replicas by number."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            try:
                words = child.cmdline()
            except psutil.Error:
                continue
            if kind in words:
                found[int(words[words.index(kind) + 1])] = child.pid
        return found

    async def control(self, verb: str, body: Any, **headers: str) -> httpx.Response:
        return await self.http.post(f"/api/v1/models/fares/{verb}", json=body, headers=headers)

    async def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        page = (await self.http.get("/metrics")).text
        return {
            (s.name, tuple(sorted(s.labels.items()))): s.value
            for f in text_string_to_metric_families(page)
            for s in f.samples
        }

    async def value(self, metric: names.Metric, **labels: str) -> float:
        return (await self.samples()).get((metric.name, tuple(sorted(labels.items()))), 0.0)

    async def infer(self, model: str = "fares") -> httpx.Response:
        return await self.http.post(f"/v2/models/{model}/infer", json=ROW)

    async def described(self) -> dict[str, Any]:
        answer = await self.http.get("/api/v1/models/fares")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def leader(self) -> int:
        """The replica that last took the lead."""
        return int(re.findall(r"replica (\d+) leads", self.log.read_text())[-1])

    async def all_up(self, replicas: int = 2, fronts: int = 2) -> None:
        async def up() -> bool:
            page = await self.samples()
            everybody = [(names.REPLICA_UP, "replica", n) for n in range(replicas)]
            everybody += [(names.FRONT_UP, "front", n) for n in range(fronts)]
            return all(page.get((metric.name, ((label, str(n)),))) == 1.0 for metric, label, n in everybody)

        await until(up, "every process")


class Load:
    """Closed-loop requests over several connections; counts what came back."""

    def __init__(self, port: int, connections: int = CONNECTIONS) -> None:
        body = json.dumps(ROW).encode()
        self._request = (
            b"POST /v2/models/fares/infer HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        self._port = port
        self.seen: Counter[Any] = Counter()
        self.versions: list[tuple[float, float, str]] = []
        self.stopped = False
        self._tasks = [asyncio.create_task(self._one()) for _ in range(connections)]

    async def _one(self) -> None:
        while not self.stopped:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError as error:
                self.seen["refused" if isinstance(error, ConnectionRefusedError) else "broken"] += 1
                await asyncio.sleep(0.02)
                continue
            try:
                while not self.stopped and await self._ask(reader, writer):
                    pass
            except (OSError, asyncio.IncompleteReadError):
                self.seen["broken"] += 1
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection stays open."""
        began = time.monotonic()
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
        content = await reader.readexactly(length)
        status = int(head.split(b" ", 2)[1])
        self.seen[status if status == 200 else (status, content)] += 1
        version = re.search(rb"x-trimtab-version: (\d+)", head)
        if version is not None:
            self.versions.append((began, time.monotonic(), version[1].decode()))
        return b"connection: close" not in head

    async def answered(self, count: int) -> None:
        """Returns when so many more requests are answered."""
        target = self.seen[200] + count

        async def enough() -> bool:
            return self.seen[200] >= target

        await until(enough, f"{count} answers")

    async def stop(self) -> Counter[Any]:
        self.stopped = True
        await asyncio.gather(*self._tasks)
        return self.seen


@contextmanager
def running(registry_url: str, folder: Path, options: dict[str, Any], **fleet: Any) -> Iterator[Fleet]:
    """A server with these settings, ready; it and all its processes have ended behind the block."""
    given = {"registry_url": registry_url, "artifacts": str(folder / "artifacts"), "fleet": fleet, **options}
    log = folder / f"fleet-{time.monotonic_ns()}.log"
    # Models whose code a test has written stand in the folder.
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), json.dumps(given)],
            stdout=subprocess.PIPE, stderr=errors, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )  # fmt: skip
    assert process.stdout is not None
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        line = process.stdout.readline()
        watchdog.cancel()
        assert line, log.read_text()[-3000:]
        yield Fleet(process, int(line), log)
    finally:
        watchdog.cancel()
        process.stdout.close()
        children = psutil.Process(process.pid).children() if process.poll() is None else []
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _, outlived = psutil.wait_procs(children, timeout=PATIENCE)
        assert outlived == [], log.read_text()[-3000:]


@pytest.fixture(scope="module")
def fleet_folder(tmp_path_factory: pytest.TempPathFactory, artifacts: list[Path]) -> Path:
    """A registry with three versions of `fares`; 1 is stable."""
    folder = tmp_path_factory.mktemp("fleet")
    registry = Registry(f"sqlite:///{folder}/registry.db", folder / "artifacts")
    for artifact in artifacts:
        registry.register("fares", artifact, lineage={}, profile=None, metrics={})
    registry.set_alias("fares", "stable", 1)
    registry.close()
    return folder


@pytest.fixture(scope="module")
def shared_fleet(fleet_folder: Path) -> Iterator[Fleet]:
    """Two fronts and two replicas, for one test after another."""
    options = {"drain_notice": 0.5}
    url = f"sqlite:///{fleet_folder}/registry.db"
    with running(
        url, fleet_folder, options, replicas=2, fronts=2, ping_interval=0.25, ping_limit=3.0, hang_limit=600.0
    ) as fleet:
        yield fleet


@pytest.fixture
async def fleet(shared_fleet: Fleet) -> AsyncIterator[Fleet]:
    """The shared fleet with everybody up, and a client for this test."""
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{shared_fleet.port}", trust_env=False, timeout=60
    ) as client:
        shared_fleet.http = client
        await shared_fleet.all_up()
        yield shared_fleet


async def test_killed_processes_cost_no_more_than_their_connections_and_no_counter_goes_backwards(
    fleet: Fleet,
) -> None:
    load = Load(fleet.port)
    await load.answered(200)
    before = await fleet.samples()
    os.kill(fleet.pids("replica")[1], signal.SIGKILL)
    await load.answered(200)
    during = await fleet.samples()
    await fleet.all_up()
    assert set(load.seen) == {200}, load.seen

    os.kill(fleet.pids("front")[0], signal.SIGKILL)
    await load.answered(200)
    await fleet.all_up()
    seen = await load.stop()
    after = await fleet.samples()

    assert set(seen) <= {200, "broken"}, seen
    assert seen["broken"] <= CONNECTIONS
    counters = [key for key in before if key[0].endswith(("_total", "_count", "_bucket", "_sum"))]
    assert len(counters) > 50
    for earlier, later in ((before, during), (during, after)):
        assert [key for key in counters if later[key] < earlier[key]] == []
    for metric, label in ((names.REPLICA_RESTARTS, ("replica", "1")), (names.FRONT_RESTARTS, ("front", "0"))):
        assert after[metric.name, (label,)] == before[metric.name, (label,)] + 1
    assert after[names.REPLICA_EJECTIONS.name, (("reason", "closed"), ("replica", "1"))] >= 1
    ok = (names.INFERENCE_REQUESTS.name, (("model", "fares"), ("outcome", "ok"), ("version", "1")))
    assert after[ok] > before[ok] > 0


async def test_a_change_is_in_force_on_every_replica_when_it_is_answered(fleet: Fleet) -> None:
    load = Load(fleet.port)
    before = (await fleet.described())["generation"]
    switches: list[tuple[float, float, str]] = []
    for turn in range(12):
        began = time.monotonic()
        answer = await fleet.control("promote", {"version": 2 + turn % 2})
        assert answer.status_code == 200, answer.text
        switches.append((began, time.monotonic(), str(2 + turn % 2)))
        await load.answered(50)
    seen = await load.stop()

    assert set(seen) == {200}, seen
    assert (await fleet.described())["generation"] == before + 12
    assert await fleet.value(names.TRAFFIC_GENERATION, model="fares") == before + 12
    checked = 0
    for start, end, version in load.versions:
        # A request that lies whole between two changes sees the one generation that was in force everywhere.
        for (_, done, name), following in zip(switches, [*switches[1:], None], strict=True):
            if start >= done and (following is None or end <= following[0]):
                assert version == name
                checked += 1
    assert checked > 200


async def test_a_new_leader_takes_over_and_has_what_was_stored(fleet: Fleet) -> None:
    assert (await fleet.control("promote", {"version": 1})).status_code == 200
    before = await fleet.described()
    leader = fleet.leader()
    os.kill(fleet.pids("replica")[leader], signal.SIGKILL)

    async def led() -> bool:
        answer = await fleet.control("promote", {"version": 2}, **{"Idempotency-Key": "once"})
        return answer.status_code == 200

    await until(led, "a new leader")
    assert fleet.leader() != leader
    await fleet.all_up()
    after = await fleet.described()

    assert (after["stable"], after["previous"], after["generation"]) == (2, 1, before["generation"] + 1)
    assert {(await fleet.infer()).headers["x-trimtab-version"] for _ in range(30)} == {"2"}


async def test_a_hanging_replica_gets_nothing_until_it_answers_again(fleet: Fleet) -> None:
    load = Load(fleet.port)
    await load.answered(50)
    hung = fleet.pids("replica")[1]
    before = await fleet.value(names.REPLICA_EJECTIONS, replica="1", reason="silent")
    os.kill(hung, signal.SIGSTOP)

    async def ejected() -> bool:
        return await fleet.value(names.REPLICA_EJECTIONS, replica="1", reason="silent") >= before + 2

    try:
        await until(ejected, "the ejection by both fronts")
        await load.answered(200)
    finally:
        os.kill(hung, signal.SIGCONT)

    async def returned() -> bool:
        return fleet.log.read_text().count("replica 1 is back") >= 2

    await until(returned, "the replica")
    seen = await load.stop()

    assert set(seen) == {200}, seen
    assert fleet.pids("replica")[1] == hung


async def test_no_request_fails_when_processes_or_the_whole_server_are_told_to_end(fleet: Fleet) -> None:
    load = Load(fleet.port)
    await load.answered(100)
    for kind in ("replica", "front"):
        old = fleet.pids(kind)[0]
        os.kill(old, signal.SIGTERM)

        async def replaced(kind: str = kind, old: int = old) -> bool:
            return fleet.pids(kind).get(0, old) != old

        await until(replaced, f"another {kind}")
        await fleet.all_up()
        await load.answered(100)
    fleet.process.terminate()
    assert await asyncio.to_thread(fleet.process.wait, PATIENCE) == 0
    seen = await load.stop()

    # A refused connection is no lost request: the listener is closed, and nothing was sent.
    assert set(seen) - {"refused"} == {200}, seen


async def test_without_retries_only_what_a_killed_replica_held_fails_and_it_comes_back_to_where_the_others_are(
    registry: Registry, registry_url: str, tmp_path: Path, gate: tuple[str, Path]
) -> None:
    architecture, gate_file = gate
    with running(
        registry_url, tmp_path, {"architectures": [architecture], "drain_notice": 0.0}, replicas=2, fronts=1,
        retry_lost=False,
    ) as fleet:  # fmt: skip
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{fleet.port}", trust_env=False, timeout=PATIENCE
        ) as fleet.http:
            await fleet.all_up(fronts=1)
            assert (await fleet.control("promote", {"version": 2})).status_code == 200
            gate_file.unlink()
            held = [asyncio.create_task(fleet.infer("gate")) for _ in range(8)]

            async def spread() -> bool:
                flights = [await fleet.value(names.REPLICA_IN_FLIGHT, replica=n) for n in "01"]
                return flights == [4.0, 4.0]

            await until(spread, "four requests in each replica")
            folder = registry.artifact(registry.get("fares", 2))
            shutil.move(folder, folder.with_name("away"))
            os.kill(fleet.pids("replica")[1], signal.SIGKILL)
            await asyncio.wait(held, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            other = await fleet.infer("fares")
            gate_file.touch()
            answers = [await task for task in held]
            lost = [answer for answer in answers if answer.status_code != 200]
            assert other.status_code == 200
            assert len(lost) == 4
            for answer in lost:
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) >= 1
                assert "retry it" in answer.json()["error"]

            async def given_up() -> bool:
                return "which others serve" in fleet.log.read_text()

            await until(given_up, "the complaint of a replica that cannot load what is stored")
            assert await fleet.value(names.REPLICA_UP, replica="1") == 0.0
            assert (await fleet.http.get("/v2/health/ready")).status_code == 200
            shutil.move(folder.with_name("away"), folder)
            await fleet.all_up(fronts=1)
            assert {(await fleet.infer()).headers["x-trimtab-version"] for _ in range(20)} == {"2"}
