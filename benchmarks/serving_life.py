"""Hot loads and switches of traffic under load, and the start of the server beside torch's own import.

    python benchmarks/serving_life.py [--loads 100] [--switches 1000] [--connections 16] [--starts 3]

One real server, closed-loop clients on their own connections, loads and unloads or changes of policy one after another.
Reported: failed requests (any answer but 200), the loop's longest stall as clients saw it, and memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch

# Beside this file lies a serving.py that is not the package.
sys.path[0] = str(Path(__file__).parents[1])

from serving import Input, Output, Registry, Signature, save_artifact  # noqa: E402

SERVER = """
import sys, time
begun = time.perf_counter()
from pathlib import Path
from serving import ServingConfig, serve
serve(ServingConfig(registry_url=sys.argv[1], artifacts_dir=Path(sys.argv[2]), port=0, drain_notice=0.3),
      log_level="WARNING", started=lambda service: print(service.port, time.perf_counter() - begun, flush=True))
"""
TORCH = """
import time
begun = time.perf_counter()
import torch
torch.set_num_threads(1)
layers = torch.nn.Sequential(*[torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8)])
with torch.inference_mode():
    layers(torch.randn(64, 64))
print(time.perf_counter() - begun, flush=True)
import sys
sys.stdin.read()
"""
BODY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [[0.1] * 64]}]}
).encode()  # fmt: skip
HEAD = f"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()


class Perceptron(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256), torch.nn.ReLU(),
            torch.nn.Linear(256, 8),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def registered(folder: Path, versions: int = 3) -> tuple[str, str]:
    """A registry with versions of the model, the first of them stable."""
    url, artifacts = f"sqlite:///{folder}/registry.db", str(folder / "artifacts")
    registry = Registry(url, artifacts)
    signature = Signature((Input.of("x", "FP32", shape=(64,)),), (Output("y"),))
    for number in range(versions):
        torch.manual_seed(number)
        save_artifact(folder / f"made-{number}", Perceptron(), signature, {"x": [[0.1] * 64]})
        registry.register("mlp", folder / f"made-{number}", lineage={}, profile=None, metrics={})
    registry.set_alias("mlp", "stable", 1)
    registry.close()
    return url, artifacts


class Clients:
    """Closed-loop connections: how many requests were answered, how many failed, and the longest waits."""

    def __init__(self, port: int, connections: int) -> None:
        self._port = port
        self._tasks = [asyncio.create_task(self._run()) for _ in range(connections)]
        self.failures: list[str] = []
        self.waits: list[float] = []
        self._stopped = False

    async def _run(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        while not self._stopped:
            sent = time.perf_counter()
            writer.write(HEAD + BODY)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
                await reader.readexactly(int(fields[b"content-length"]))
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                self.failures.append(repr(error))
                return
            if not head.startswith(b"HTTP/1.1 200"):
                self.failures.append(head.split(b"\r\n")[0].decode())
                if fields.get(b"connection") == b"close":
                    return
            self.waits.append(time.perf_counter() - sent)
            if fields.get(b"connection") == b"close":
                # The server drains: a client goes elsewhere.
                return
        writer.close()

    async def stop(self) -> dict[str, Any]:
        self._stopped = True
        await asyncio.gather(*self._tasks)
        waits = sorted(self.waits)
        return {
            "requests": len(waits),
            "failed": len(self.failures),
            "reasons": sorted(set(self.failures)),
            "p50_ms": round(waits[len(waits) // 2] * 1e3, 2),
            "p99_ms": round(waits[int(len(waits) * 0.99)] * 1e3, 2),
            "longest_ms": round(waits[-1] * 1e3, 2),
        }


def started(url: str, artifacts: str) -> tuple[subprocess.Popen[str], int, float]:
    """A server process, its port, and its seconds from the first import to ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, url, artifacts], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    port, seconds = process.stdout.readline().split()
    return process, int(port), float(seconds)


async def life(folder: Path, loads: int, switches: int, connections: int) -> dict[str, Any]:
    """Hot loads, then switches of policy, then SIGTERM, each under load."""
    process, port, _ = started(*registered(folder))
    memory = psutil.Process(process.pid)
    result: dict[str, Any] = {}
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as http:
            result["quiet"] = await _under_load(port, connections, asyncio.sleep(2.0))
            before = memory.memory_info().rss
            result["hot loads"] = await _under_load(port, connections, _reload(http, loads)) | {"loads": loads}
            result["memory growth"] = round(memory.memory_info().rss / before - 1, 4)
            result["switches"] = await _under_load(port, connections, _switch(http, switches)) | {"switches": switches}
        clients = Clients(port, connections)
        await asyncio.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 30)
        result["SIGTERM"] = await clients.stop()
    finally:
        process.kill()
    return result


async def _under_load(port: int, connections: int, work: Any) -> dict[str, Any]:
    clients = Clients(port, connections)
    begun = time.perf_counter()
    await work
    seconds = time.perf_counter() - begun
    return await clients.stop() | {"seconds": round(seconds, 2)}


async def _reload(http: httpx.AsyncClient, loads: int) -> None:
    for number in range(loads):
        version = 2 + number % 2
        for verb in ("load", "unload"):
            answer = await http.post(f"/v2/repository/models/mlp/{verb}", json={"parameters": {"version": version}})
            answer.raise_for_status()


async def _switch(http: httpx.AsyncClient, switches: int) -> None:
    for number in range(switches):
        weight = {"version": 2, "weight": (number % 10) / 10}
        (await http.post("/api/v1/models/mlp/canary", json=weight)).raise_for_status()


def starts(folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds from the first import to ready, and resident memory, beside torch alone; the best of several by turns."""
    url, artifacts = registered(folder, 1)
    ours: list[tuple[float, int]] = []
    alone: list[tuple[float, int]] = []
    for _ in range(repeats):
        bare = subprocess.Popen(
            [sys.executable, "-c", TORCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert bare.stdout is not None
        seconds = float(bare.stdout.readline())
        alone.append((seconds, psutil.Process(bare.pid).memory_info().rss))
        bare.kill()
        bare.wait()
        process, _, ready = started(url, artifacts)
        ours.append((ready, psutil.Process(process.pid).memory_info().rss))
        process.terminate()
        process.wait()
    seconds, memory = (tuple(min(run[place] for run in runs) for runs in (ours, alone)) for place in (0, 1))
    return {
        "ready_seconds": round(seconds[0], 3),
        "torch_seconds": round(seconds[1], 3),
        "difference_seconds": round(seconds[0] - seconds[1], 3),
        "resident_megabytes": round(memory[0] / 1e6, 1),
        "torch_megabytes": round(memory[1] / 1e6, 1),
        "memory_ratio": round(memory[0] / memory[1], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--loads", type=int, default=100)
    parser.add_argument("--switches", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--starts", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.starts:
            print(json.dumps({"start": starts(Path(folder), given.starts)}, indent=2), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(life(Path(folder), given.loads, given.switches, given.connections))
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
