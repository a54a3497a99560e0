"""A server of several processes for a test, the supervisor's process at the top, and requests in a loop."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from observability import names
from serving import Registry

PROGRAM = """
    import json, sys
    from pathlib import Path
    from serving import ServingConfig, serve
    from serving.callers import Caller
    from serving.fleet import FleetOptions
    given = json.loads(sys.argv[1])
    fleet = FleetOptions(**given.pop("fleet"))
    folder = Path(given.pop("artifacts"))
    for name in ("ssl_certfile", "ssl_keyfile"):
        if name in given:
            given[name] = Path(given[name])
    given["callers"] = tuple(Caller(**caller) for caller in given.get("callers", ()))
    config = ServingConfig(artifacts_dir=folder, port=0, fleet=fleet, **given)
    serve(config, "INFO", lambda fleet: print(fleet.port, fleet.grpc_port or 0, flush=True))
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
# Between two requests of a connection: the processes that are started anew need the cores too.
PAUSE = 0.02
# Seconds that a connection without a request stays open at least while its server ends (`drain_notice` of the fleet).
MOMENT = 0.4


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

    def __init__(self, process: subprocess.Popen[bytes], port: int, grpc_port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.grpc_port = grpc_port
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
        """The page of metrics. A front that is killed takes its connections along: then another front is asked."""
        page = ""

        async def answered() -> bool:
            nonlocal page
            with suppress(httpx.TransportError):
                page = (await self.http.get("/metrics")).text
            return bool(page)

        await until(answered, "a page of metrics")
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
            asked, before = time.monotonic(), 0.0
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError as error:
                self.seen["refused" if isinstance(error, ConnectionRefusedError) else "broken"] += 1
                await asyncio.sleep(0.02)
                continue
            try:
                while not self.stopped:
                    before, asked = asked, time.monotonic()
                    if not await self._ask(reader, writer):
                        break
                    await asyncio.sleep(PAUSE)
            except (OSError, asyncio.IncompleteReadError):
                # A server that ends keeps a connection open for a moment behind an answer. A client that the machine
                # kept from working for longer than that has asked nobody.
                self.seen["late" if asked - before > MOMENT else "broken"] += 1
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
        yield Fleet(process, *map(int, line.split()), log)
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


def with_versions(folder: Path, artifacts: Sequence[Path]) -> str:
    """The URL of a registry in the folder with the artifacts as versions of `fares`; 1 is stable."""
    url = f"sqlite:///{folder}/registry.db"
    registry = Registry(url, folder / "artifacts")
    for artifact in artifacts:
        registry.register("fares", artifact, lineage={}, profile=None, metrics={})
    registry.set_alias("fares", "stable", 1)
    registry.close()
    return url
