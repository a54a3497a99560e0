"""A server process with several versions of a small model, and a paced load on it: for the benchmarks of routing."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools
import msgspec
import torch
import uvloop

from serving import Input, Output, Registry, Signature, save_artifact

FEATURES, CLASSES = 64, 8
SIGNATURE = Signature((Input.of("x", "FP32", shape=(FEATURES,)),), (Output("y"),))
SERVER = """
    import json, sys
    from pathlib import Path
    from serving import CachePolicy, ServingConfig, serve
    from serving.shadow import ShadowLimits
    options = json.loads(sys.argv[4])
    options["shadow"] = ShadowLimits(**options.get("shadow", {}))
    cache = {model: CachePolicy(**policy) for model, policy in options.pop("cache", {}).items()}
    serve(ServingConfig(registry_url=sys.argv[2], artifacts_dir=Path(sys.argv[3]), port=int(sys.argv[1]),
                        cache=cache, **options), "ERROR")
"""


class Mlp(torch.nn.Module):
    """64 -> 256 -> 256 -> 8; `seed` makes versions that differ."""

    def __init__(self, seed: int, hidden: int = 256) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, hidden), torch.nn.ReLU(),
            torch.nn.Linear(hidden, CLASSES),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 64] -> [rows, 8]."""
        out: torch.Tensor = self.layers(x)
        return out


@dataclass(frozen=True, slots=True)
class Running:
    """A server that is ready: its process, and its control API."""

    port: int
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> Any:
        """The answer to a GET, JSON or text."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            text = answer.read().decode()
        return json.loads(text) if "json" in answer.headers["content-type"] else text

    def post(self, verb: str, body: Any) -> Any:
        """A control call on the model. Raises RuntimeError with the server's reason."""
        url = f"http://127.0.0.1:{self.port}/api/v1/models/mlp/{verb}"
        request = urllib.request.Request(url, json.dumps(body).encode(), method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{verb} {body}: {error.code} {error.read().decode()}") from None

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name whose labels are those given."""
        total = 0.0
        for line in self.get("/metrics").splitlines():
            if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total

    def resources(self) -> dict[str, int]:
        """Resident kilobytes, threads and open files of the process (Linux)."""
        folder = Path(f"/proc/{self.process.pid}")
        status = folder.joinpath("status").read_text()
        values = {name: int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads")}  # type: ignore[index]
        return {"rss_kb": values["VmRSS"], "threads": values["Threads"], "files": len(os.listdir(folder / "fd"))}

    def cpu_seconds(self) -> float:
        """Processor time of the process."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(versions: int = 3, hidden: int = 256, **options: Any) -> Iterator[Running]:
    """A server of `versions` versions of `mlp`, 1 stable; `options` are those of ServingConfig."""
    with tempfile.TemporaryDirectory() as name, socket.socket() as probe:
        folder = Path(name)
        registry = Registry(f"sqlite:///{folder}/registry.db", folder / "artifacts")
        for version in range(1, versions + 1):
            artifact = folder / f"mlp-{version}"
            save_artifact(artifact, Mlp(version, hidden), SIGNATURE, {"x": [[0.1] * FEATURES]})
            registry.register("mlp", artifact, lineage={}, profile=None, metrics={})
        registry.set_alias("mlp", "stable", 1)
        registry.close()
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        probe.close()
        arguments = [str(port), f"sqlite:///{folder}/registry.db", str(folder / "artifacts"), json.dumps(options)]
        program = [sys.executable, "-c", textwrap.dedent(SERVER), *arguments]
        process = subprocess.Popen(program, env={**os.environ, "OMP_NUM_THREADS": "1"})
        running = Running(port, process)
        try:
            limit = time.monotonic() + 120
            while True:
                try:
                    running.get("/v2/health/ready")
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > limit:
                        raise
                    time.sleep(0.1)
            yield running
        finally:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# --- the load -------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Answered:
    """One answer; times are seconds of `time.perf_counter`."""

    due: float
    sent: float
    done: float
    status: int
    unit: str
    version: str
    arm: str


@dataclass(slots=True)
class Load:
    """`connections` clients; with `rate` they send so many requests a second, late or not, else one after another.

    `keep` gets each answer. `units` is how many units share the requests, `distinct` how many inputs there are; `plain`
    requests do not say their unit.
    """

    port: int
    connections: int
    seconds: float
    rate: float = 0.0
    units: int = 1000
    distinct: int = 256
    plain: bool = False
    keep: Callable[[Answered], None] | None = None
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def run(self) -> Load:
        """Runs it in this thread, to its end."""
        uvloop.run(self.drive())
        return self

    async def drive(self, stop: asyncio.Event | None = None) -> None:
        """Runs it on the running loop, until its time is up or `stop` is set; then waits for the last answers."""
        loop = asyncio.get_running_loop()
        bodies = [_body(unit % self.distinct, unit, self.plain) for unit in range(self.units)]
        self._idle = []
        self._bodies = bodies
        self._ending = False
        clients = [
            (await loop.create_connection(lambda: _Client(self), "127.0.0.1", self.port))[1]
            for _ in range(self.connections)
        ]
        self._next_due = begun = time.perf_counter()
        if not self.rate:
            for client in clients:
                client.send(time.perf_counter())
        while (now := time.perf_counter()) < begun + self.seconds and not (stop and stop.is_set()):
            if not self.rate:
                await asyncio.sleep(0.02)
                continue
            while self._idle and self._next_due <= now:
                # A client was free when it was due: what is late is this loop's timer.
                self._next_due += 1 / self.rate
                self._idle.pop().send(time.perf_counter())
            await asyncio.sleep(max(0.0, self._next_due - time.perf_counter()) if self._idle else 0.001)
        self._ending = True
        limit = time.monotonic() + 30
        while any(client.waiting for client in clients) and time.monotonic() < limit:
            await asyncio.sleep(0.01)
        self.statuses[0] += sum(client.waiting for client in clients)
        for client in clients:
            client.transport.close()
        await asyncio.sleep(0.05)

    _idle: list[_Client] = field(default_factory=list)
    _bodies: list[tuple[str, bytes]] = field(default_factory=list)
    _ending: bool = False
    _next_due: float = 0.0

    def quantile(self, share: float) -> float:
        """A latency in milliseconds, from when the request was due."""
        ordered = sorted(self.latencies)
        return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def next(self) -> tuple[str, bytes]:
        """A request of a random unit."""
        return random.choice(self._bodies)

    def finished(self, client: _Client, answered: Answered) -> None:
        """Takes an answer; the client sends the next, or waits for one to be due."""
        self.statuses[answered.status] += 1
        self.latencies.append(answered.done - answered.due)
        if self.keep is not None:
            self.keep(answered)
        if self._ending:
            return
        if self.rate and self._next_due > answered.done:
            self._idle.append(client)
        elif self.rate:
            due, self._next_due = self._next_due, self._next_due + 1 / self.rate
            client.send(due)
        else:
            client.send(answered.done)


class _Client(asyncio.Protocol):
    def __init__(self, load: Load) -> None:
        self.load = load
        self.waiting = False
        self.due = self.sent = 0.0
        self.unit = ""
        self.headers: dict[bytes, bytes] = {}
        self.transport: Any = None
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.load.rate:
            self.load._idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiting:
            self.waiting = False
            self.load.statuses[0] += 1

    def send(self, due: float) -> None:
        """Sends a request that was due then."""
        self.unit, request = self.load.next()
        self.due, self.sent, self.waiting = due, time.perf_counter(), True
        self.headers = {}
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_message_complete(self) -> None:
        self.waiting = False
        self.load.finished(self, Answered(
            self.due, self.sent, time.perf_counter(), self.parser.get_status_code(), self.unit,
            self.headers.get(b"x-trimtab-version", b"").decode(), self.headers.get(b"x-trimtab-arm", b"").decode(),
        ))  # fmt: skip
        self.parser = httptools.HttpResponseParser(self)


def _body(number: int, unit: int, plain: bool) -> tuple[str, bytes]:
    values = [round((number * 31 + place * 7) % 100 / 50 - 1, 3) for place in range(FEATURES)]
    name = f"unit-{unit}"
    body = msgspec.json.encode({
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, FEATURES], "data": values}],
        **({} if plain else {"parameters": {"user": name}}),
    })  # fmt: skip
    head = b"POST /v2/models/mlp/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    return name, head % len(body) + body


def median_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """The median of first / second."""
    return statistics.median(first / second for first, second in pairs)


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser with the description of the benchmark."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
