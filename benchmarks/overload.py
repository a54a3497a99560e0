"""Three times more requests than the server can answer: `python benchmarks/overload.py [--model device|cpu]`.

`device` stands for an accelerator: a batch of n rows takes 4 + n ms without using the processor, so that what
is measured is the queue and its limits; `cpu` is a large MLP on the processor, which the load generator and the
refusals compete for. Capacity is what a closed loop of 64 connections gets. Then an open loop (Poisson arrivals, a
process of its own, times counted from when a request was due) offers three times that with deadlines of 50 ms, and a
lone client measures the server before and right after. The last part is a closed loop of 64 connections on a small
model (wrk).

On a machine that does other work a process that is due may wait for a processor for tens of milliseconds, whatever it
does. So a witness, a process that only sleeps for 2 ms again and again, is measured in the same seconds: no refusal can
be faster than it wakes. `--realtime` (as root, for short runs) puts all processes before the machine's other work.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
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
import urllib.request
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Run as a script, this folder comes first on the path, and `serving.py` here would pass for the package of its name.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import httptools  # noqa: E402
import torch  # noqa: E402
import uvloop  # noqa: E402

from serving import Input, Output, Registry, Signature, save_artifact  # noqa: E402

SIGNATURE = Signature((Input.of("x", "FP32", shape=[64]),), (Output("y"),))
DEADLINE_MS = 50
BODY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [round(0.01 * i, 2) for i in range(64)]}]}
).encode()
ARCHITECTURE = """
    import time, torch

    class Device(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            time.sleep(0.004 + 0.001 * len(x))
            return x.sum(1) * self.scale
"""
SERVER = """
    import sys
    from pathlib import Path
    from serving import ServingConfig, serve
    serve(ServingConfig(registry_url=sys.argv[2], artifacts_dir=Path(sys.argv[3]), port=int(sys.argv[1]),
                        architectures=("overload_device:Device",), max_batch_rows=8), "ERROR")
"""


class Mlp(torch.nn.Module):
    """64 -> width -> width -> 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, width), torch.nn.ReLU(),
            torch.nn.Linear(width, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 64] -> [rows]."""
        out: torch.Tensor = self.layers(x).squeeze(1)
        return out


# --- the client's process --------------------------------------------------------------------------------------
class Connection(asyncio.Protocol):
    """One request at a time; tells `owner` the status and when it was complete."""

    def __init__(self, owner: Load) -> None:
        self._owner = owner
        self._due = 0.0
        self.transport: asyncio.Transport = None  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def send(self, due: float, request: bytes) -> None:
        """`due`: when it should have been sent."""
        self._due = due
        self._parser = httptools.HttpResponseParser(self)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._owner.answered(self, self._parser.get_status_code(), time.perf_counter() - self._due)


class Load:
    """An open loop of `rate` requests a second, or a closed one of `connections` if `rate` is 0."""

    def __init__(self, port: int, model: str, rate: float, connections: int, deadline: bool) -> None:
        head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(BODY)}\r\n"
        self._request = (head + (f"x-deadline-ms: {DEADLINE_MS}\r\n" if deadline else "") + "\r\n").encode() + BODY
        self._port, self._rate, self._connections = port, rate, connections
        self._idle: deque[Connection] = deque()
        self._waiting: deque[float] = deque()
        self._open = True
        self.answers: list[tuple[int, float]] = []
        self.sent = 0

    async def run(self, seconds: float) -> None:
        """Loads the server for so long, then waits for what is on its way."""
        loop = asyncio.get_running_loop()
        made = [
            await loop.create_connection(lambda: Connection(self), "127.0.0.1", self._port)
            for _ in range(self._connections)
        ]
        self._idle.extend(connection for _, connection in made)
        start = time.perf_counter()
        if self._rate:
            draw, due = random.Random(0), start
            while (due := due + draw.expovariate(self._rate)) < start + seconds:
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                self._send(due)
        else:
            while self._idle:
                self._send(time.perf_counter())
            await asyncio.sleep(seconds)
        self._open = False
        limit = time.perf_counter() + 10.0
        while len(self.answers) < self.sent and time.perf_counter() < limit:
            await asyncio.sleep(0.01)
        for connection, _ in made:
            connection.close()

    def _send(self, due: float) -> None:
        if self._idle:
            self.sent += 1
            self._idle.popleft().send(due, self._request)
        else:
            self._waiting.append(due)

    def answered(self, connection: Connection, status: int, latency: float) -> None:
        """Takes an answer, and sends the next request."""
        self.answers.append((status, latency))
        self._idle.append(connection)
        if self._rate == 0 and self._open:
            self._send(time.perf_counter())
        elif self._waiting:
            self._send(self._waiting.popleft())


def client(port: int, model: str, rate: float, connections: int, seconds: float, deadline: bool) -> dict[str, Any]:
    """What the client's process prints: answers by status, and quantiles of their times in ms."""
    load = Load(port, model, rate, connections, deadline)
    busy = time.process_time()
    uvloop.run(load.run(seconds))
    by_status: dict[int, list[float]] = {}
    for status, latency in load.answers:
        by_status.setdefault(status, []).append(1e3 * latency)
    return {
        "offered": len(load.answers) / seconds,
        "in_time": sum(status == 200 and latency <= DEADLINE_MS / 1e3 for status, latency in load.answers) / seconds,
        "busy": (time.process_time() - busy) / seconds,
        "status": {
            str(status): {"rate": len(times) / seconds, "p50": quantile(times, 0.5), "p99": quantile(times, 0.99)}
            for status, times in sorted(by_status.items())
        },
    }


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


WITNESS = """
    import sys, time
    late, end = [], time.perf_counter() + float(sys.argv[1])
    while (began := time.perf_counter()) < end:
        time.sleep(0.002)
        late.append(time.perf_counter() - began - 0.002)
    print(1e3 * sorted(late)[int(0.99 * len(late))])
"""


# --- the benchmark ---------------------------------------------------------------------------------------------
def apart(port: int, model: str, rate: float, connections: int, seconds: float, deadline: bool) -> dict[str, Any]:
    """`client` in a process of its own."""
    given = json.dumps([port, model, rate, connections, seconds, deadline])
    shown = subprocess.run([sys.executable, __file__, "--client", given], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def closed_rate(port: int, model: str, seconds: float) -> float:
    """Answers a second to 64 connections that each ask again when they have their answer."""
    return float(apart(port, model, 0.0, 64, seconds, False)["status"]["200"]["rate"])


def metric(port: int, name: str) -> float:
    """The sum of a family's series on `/metrics`."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if re.match(rf"{name}(\{{| )", line))


def resident(process: int) -> float:
    """Memory of a process in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def processor(process: int) -> float:
    """Seconds of processor time that a process has used."""
    user, system = Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def line(what: str, value: str, goal: str, reached: bool) -> None:
    """One goal and what was measured."""
    print(f"  {'ok  ' if reached else 'MISS'} {what:46} {value:>24}   goal {goal}")


def overload(port: int, process: int, model: str, seconds: float) -> dict[str, Any]:
    """The part with deadlines, on one model."""
    apart(port, model, 0.0, 64, 1.0, False)
    lone = apart(port, model, 0.0, 1, 1.0, False)["status"]["200"]["p50"]
    # The middle of three: a machine that others use does not have one speed.
    capacity = statistics.median(closed_rate(port, model, seconds / 2) for _ in range(3))
    apart(port, model, 3 * capacity, 256, 1.0, True)
    before, busy = resident(process), processor(process)
    witness = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WITNESS), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    run = apart(port, model, 3 * capacity, 256, seconds, True)
    waits = float(witness.communicate()[0])
    after, busy = resident(process), (processor(process) - busy) / seconds
    again = apart(port, model, 0.0, 1, 1.0, True)
    capacity_after = closed_rate(port, model, seconds / 2)
    capacity = (capacity + capacity_after) / 2
    refused = run["status"].get("429", {"rate": 0.0, "p99": 0.0})
    late, normal = metric(port, "inference_late_rows_total"), again["status"]["200"]
    print(
        f"{model}: capacity {capacity:.0f} requests/s, offered {run['offered']:.0f} ({run['offered'] / capacity:.1f} x)"
    )
    for status, found in run["status"].items():
        print(f"       {status}: {found['rate']:7.0f}/s   p50 {found['p50']:7.2f} ms   p99 {found['p99']:7.2f} ms")
    print(f"       the client used {run['busy']:.2f} of a processor, the server {busy:.2f}")
    goodput = run["in_time"] / capacity
    line("answers within 50 ms, of capacity", f"{goodput:.2f}", ">= 0.9", goodput >= 0.9)
    line("refusals, p99", f"{refused['p99']:.2f} ms", "<= 5 ms", refused["p99"] <= 5)
    print(f"       a process that does nothing woke {waits:.2f} ms late (p99)")
    line("rows behind their deadline with the model", f"{late:.0f}", "0", late == 0)
    line("memory before and after", f"{before:.1f}, {after:.1f} MB", "<= 1.01 x", after <= 1.01 * before)
    value = f"{normal['p50']:.2f} ms, was {lone:.2f} ms"
    line("a lone client in the second after, median", value, "<= 1.1 x", normal["p50"] <= 1.1 * lone)
    return {
        "model": model,
        "capacity": capacity,
        "goodput": goodput,
        "run": run,
        "late": late,
        "witness_late_ms": waits,
        "memory": [before, after],
    }


def closed(port: int, seconds: float, folder: Path) -> dict[str, Any]:
    """p99 and p50 of 64 connections on the small model."""
    script = folder / "closed.lua"
    script.write_text('wrk.method = "POST"\nwrk.body = "' + "".join(f"\\{byte:03d}" for byte in BODY) + '"')
    shown = subprocess.run(
        ["wrk", "-t1", "-c64", f"-d{max(1, round(seconds))}s", "--latency", "-s", str(script),
         f"http://127.0.0.1:{port}/v2/models/small/infer"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    unit = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    found = [re.search(rf"{share}%\s+([\d.]+)(us|ms|s)", shown) for share in (50, 99)]
    p50, p99 = (float(one[1]) * unit[one[2]] for one in found)  # type: ignore[index]
    print(f"small: 64 connections, closed loop, p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    line("p99 / p50", f"{p99 / p50:.2f}", "<= 2.5", p99 <= 2.5 * p50)
    return {"p50": p50, "p99": p99}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints goals beside what was measured; with --json one object."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=5.0, help="of the overload")
    options.add_argument("--model", choices=("device", "cpu", "both"), default="both")
    options.add_argument("--realtime", action="store_true", help="before the machine's other work (SCHED_RR; root)")
    options.add_argument("--json", action="store_true")
    options.add_argument("--client", help=argparse.SUPPRESS)
    chosen = options.parse_args(arguments)
    if chosen.client:
        print(json.dumps(client(*json.loads(chosen.client))))
        return
    if chosen.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "overload_device.py").write_text(textwrap.dedent(ARCHITECTURE))
        sys.path.append(name)
        device = importlib.import_module("overload_device").Device()
        registry = Registry(f"sqlite:///{folder}/registry.db", folder / "artifacts")
        example = {"x": [[0.1] * 64]}
        save_artifact(
            folder / "device", device, SIGNATURE, example, format="safetensors",
            architecture="overload_device:Device",
        )  # fmt: skip
        for model, width in (("cpu", 4096), ("small", 256)):
            save_artifact(folder / model, Mlp(width), SIGNATURE, example)
        for model in ("device", "cpu", "small"):
            registry.register(model, folder / model, lineage={}, profile=None, metrics={})
            registry.set_alias(model, "stable", 1)
        registry.close()
        results = measure(folder, chosen)
    if chosen.json:
        print(json.dumps(results))


def measure(folder: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Starts the server and runs every part against it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    server = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVER), str(port), f"sqlite:///{folder}/registry.db",
         str(folder / "artifacts")],
        env=environment,
    )  # fmt: skip
    try:
        limit = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > limit:
                    raise
                time.sleep(0.1)
        models = ("device", "cpu") if chosen.model == "both" else (chosen.model,)
        return [*(overload(port, server.pid, model, chosen.seconds) for model in models),
                closed(port, chosen.seconds, folder)]  # fmt: skip
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    main()
