"""What several processes gain: `python benchmarks/fleet.py [--seconds 2] [--rounds 3]`; one process is the measure.

One process, 1 front + 1 replica, 2 fronts + 1 replica and 1 front + 2 replicas serve the same network (64-256-256-8),
one row a request as JSON and 64 rows as V2 binary; wrk with one thread loads them one after another, round by round.
Printed are requests a second, their ratio to one process in the same round, and the processor time that the server's
processes took a request. Where all of it, the client too, shares two hyper-threads of one core, more processes cannot
be much faster: what they cost a request is then the figure to read, and it is what they are when cores are there.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

# Run as a script, this folder comes first on the path, and its serving.py would pass for the package of its name.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import msgspec  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402

from serving import Input, Output, Registry, Signature, save_artifact  # noqa: E402

FEATURES = 64
SERVER = """
    import sys
    from pathlib import Path
    from serving import ServingConfig, serve
    from serving.fleet import FleetOptions
    port, url, folder, replicas, fronts = sys.argv[1:]
    fleet = FleetOptions(replicas=int(replicas), fronts=int(fronts), min_ready=int(replicas))
    serve(ServingConfig(registry_url=url, artifacts_dir=Path(folder), port=int(port), fleet=fleet), "ERROR")
"""


@dataclass(frozen=True, slots=True)
class Form:
    """One way to serve: replicas and front processes, 0 fronts for a single process."""

    name: str
    replicas: int
    fronts: int


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of request."""

    name: str
    rows: int
    connections: int
    binary: bool


FORMS = (
    Form("1 process", 1, 0), Form("1 front + 1 replica", 1, 1), Form("2 fronts + 1 replica", 1, 2),
    Form("1 front + 2 replicas", 2, 1),
)  # fmt: skip
LOADS = (Load("one JSON row", 1, 64, False), Load("64 binary rows", 64, 16, True))


class Server:
    """A running server and the processor time of all its processes."""

    def __init__(self, form: Form, url: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        arguments = [str(self.port), url, str(folder), str(form.replicas), str(form.fronts)]
        self._process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(SERVER), *arguments])
        self._name = form.name

    def wait(self) -> None:
        """Returns when it is ready."""
        limit = time.monotonic() + 180
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > limit:
                raise SystemExit(f"{self._name} did not start")
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v2/health/ready", timeout=5).close()
        except OSError:
            return False
        return True

    def processor_seconds(self) -> float:
        """User and system time of the process and its children, so far."""
        parent = psutil.Process(self._process.pid)
        times = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
        return sum(one.user + one.system for one in times)

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait(60)


def script_of(load: Load, folder: Path) -> Path:
    """A wrk script that POSTs the load's request."""
    values = [round(0.01 * (index % 97), 2) for index in range(load.rows * FEATURES)]
    tensor: dict[str, object] = {"name": "x", "datatype": "FP32", "shape": [load.rows, FEATURES]}
    headers = {"Content-Type": "application/json"}
    if load.binary:
        tensor["parameters"] = {"binary_data_size": 4 * len(values)}
        head = msgspec.json.encode({"inputs": [tensor], "parameters": {"binary_data_output": True}})
        body = head + struct.pack(f"<{len(values)}f", *values)
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    else:
        body = msgspec.json.encode({"inputs": [{**tensor, "data": values}]})
    lines = ['wrk.method = "POST"', 'wrk.body = "{}"'.format("".join(f"\\{byte:03d}" for byte in body))]
    lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    path = folder / f"{load.rows}.lua"
    path.write_text("\n".join(lines))
    return path


def measure(server: Server, load: Load, script: Path, seconds: int) -> tuple[float, float, float]:
    """Requests a second, p99 in ms, and the server's processor microseconds a request. Raises at a failed request."""
    before = server.processor_seconds()
    shown = subprocess.run(
        ["wrk", "-t1", f"-c{load.connections}", f"-d{seconds}s", "--latency", "-s", str(script),
         f"http://127.0.0.1:{server.port}/v2/models/mlp/infer"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    spent = server.processor_seconds() - before
    if "Non-2xx" in shown or "Socket errors" in shown:
        raise RuntimeError(f"the load met errors:\n{shown}")
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", shown)[1])  # type: ignore[index]
    count = int(re.search(r"(\d+) requests in", shown)[1])  # type: ignore[index]
    value, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", shown).groups()  # type: ignore[union-attr]
    return rate, float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit], spent / count * 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs and prints the table; with --json one object."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=int, default=2, help="of each measurement; wrk takes whole ones")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args(arguments)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(FEATURES, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256), torch.nn.ReLU(),
        torch.nn.Linear(256, 8),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        signature = Signature((Input("x", "FP32", shape=(FEATURES,)),), (Output("y", shape=(8,)),))
        save_artifact(folder / "mlp", network, signature, {"x": [[0.1] * FEATURES]})
        url = f"sqlite:///{folder}/registry.db"
        registry = Registry(url, folder / "artifacts")
        registry.register("mlp", folder / "mlp", lineage={}, profile=None, metrics={})
        registry.set_alias("mlp", "stable", 1)
        registry.close()
        servers: dict[str, Server] = {}
        for form in FORMS:
            servers[form.name] = server = Server(form, url, folder / "artifacts")
            stack.callback(server.close)
        for server in servers.values():
            server.wait()
        results = [compare(servers, load, script_of(load, folder), chosen) for load in LOADS]
    if chosen.json:
        print(json.dumps(results))


def compare(servers: dict[str, Server], load: Load, script: Path, chosen: argparse.Namespace) -> dict[str, object]:
    """One load on all servers, interleaved round by round; the median of rounds."""
    for server in servers.values():
        measure(server, load, script, 1)
    rounds = [
        {name: measure(server, load, script, chosen.seconds) for name, server in servers.items()}
        for _ in range(chosen.rounds)
    ]
    found: dict[str, object] = {"load": load.name}
    print(f"\n{load.name}, {load.connections} connections")
    first = FORMS[0].name
    for name in servers:
        rate, p99, spent = (statistics.median(one[name][k] for one in rounds) for k in range(3))
        ratio, cost = (statistics.median(one[name][k] / one[first][k] for one in rounds) for k in (0, 2))
        print(
            f"  {name:21} {rate:8.0f} requests/s ({ratio:4.2f} x)   p99 {p99:6.1f} ms   "
            f"{spent:6.0f} us of processor a request ({cost:4.2f} x)"
        )
        found[name] = {"rate": rate, "ratio": ratio, "p99_ms": p99, "processor_us": spent, "cost_ratio": cost}
    return found


if __name__ == "__main__":
    main()
