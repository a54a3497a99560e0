"""Serving against its limit and a peer, interleaved: `python benchmarks/serving.py [--seconds 3] [--rounds 3]`.

The limit is a do-nothing asyncio Protocol (uvloop and httptools) that answers one constant; the peer is Starlette on
uvicorn with the same model, unbatched, JSON by msgspec. Load is wrk with one thread. Ratios are of the same round, and
their medians are what counts: absolute figures move with whatever else the machine does. All instruments are on.
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
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Run as a script, this folder comes first on the path, and this file would pass for the package of its name.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import msgspec  # noqa: E402
import torch  # noqa: E402

from serving import Input, Output, Registry, Signature, load_artifact, save_artifact  # noqa: E402

FEATURES, OUTPUTS = 64, 8
SIGNATURE = Signature((Input("x", "FP32", shape=(FEATURES,)),), (Output("y", shape=(OUTPUTS,)),))

OURS = """
    import sys
    from pathlib import Path
    from serving import ServingConfig, serve
    serve(ServingConfig(registry_url=sys.argv[2], artifacts_dir=Path(sys.argv[3]), port=int(sys.argv[1]),
                        trace_sample_ratio=0.01, collector_url=sys.argv[5] if len(sys.argv) > 5 else None), "ERROR")
"""
LIMIT = """
    import asyncio, sys, httptools, uvloop
    OUTPUT = b'{"name":"y","datatype":"FP32","shape":[1,8],"data":[' + b",".join([b"0.12345678"] * 8) + b"]}"
    BODY = b'{"model_name":"mlp","model_version":"1","outputs":[' + OUTPUT + b"]}"
    HEAD = b"HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(BODY)
    ANSWER = HEAD + BODY
    class Nothing(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport, self.parser, self.parts = transport, httptools.HttpRequestParser(self), []
        def data_received(self, data):
            self.parser.feed_data(data)
        def on_header(self, name, value):
            pass
        def on_body(self, body):
            self.parts.append(body)
        def on_message_complete(self):
            b"".join(self.parts)
            self.parts = []
            self.transport.write(ANSWER)
    async def main():
        server = await asyncio.get_running_loop().create_server(Nothing, "127.0.0.1", int(sys.argv[1]), backlog=2048)
        await server.serve_forever()
    uvloop.run(main())
"""
PEER = """
    import sys
    from pathlib import Path
    import msgspec, numpy as np, torch, uvicorn
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route
    from serving import load_artifact
    torch.set_num_threads(1)
    model = load_artifact(Path(sys.argv[4]))
    async def infer(request):
        body = msgspec.json.decode(await request.body())
        columns = [np.array(tensor["data"], np.float32).reshape(tensor["shape"]) for tensor in body["inputs"]]
        (y,) = model.run(columns)
        return JSONResponse({"model_name": "mlp", "model_version": "1", "outputs": [
            {"name": "y", "datatype": "FP32", "shape": list(y.shape), "data": y.reshape(-1).tolist()}]})
    async def ready(request):
        return JSONResponse({})
    app = Starlette(routes=[Route("/v2/models/mlp/infer", infer, methods=["POST"]), Route("/v2/health/ready", ready)])
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", loop="uvloop", http="httptools")
"""


class Mlp(torch.nn.Module):
    """64 -> 256 -> 256 -> 8."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256), torch.nn.ReLU(),
            torch.nn.Linear(256, OUTPUTS),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 64] -> [rows, 8]."""
        out: torch.Tensor = self.layers(x)
        return out


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of load."""

    name: str
    connections: int
    rows: int
    binary: bool


LOADS = (
    Load("JSON row, 64 connections", 64, 1, False),
    Load("V2 binary row, 64 connections", 64, 1, True),
    Load("64 JSON rows, 16 connections", 16, 64, False),
    Load("64 V2 binary rows, 16 connections", 16, 64, True),
    Load("JSON row, a lone client", 1, 1, False),
)


def request(load: Load) -> tuple[bytes, dict[str, str]]:
    """Body and headers."""
    values = [round(0.01 * place + 0.001 * row, 4) for row in range(load.rows) for place in range(FEATURES)]
    tensor: dict[str, object] = {"name": "x", "datatype": "FP32", "shape": [load.rows, FEATURES]}
    if not load.binary:
        return msgspec.json.encode({"inputs": [tensor | {"data": values}]}), {"Content-Type": "application/json"}
    tail = struct.pack(f"<{len(values)}f", *values)
    tensor |= {"parameters": {"binary_data_size": len(tail)}}
    head = msgspec.json.encode({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    return head + tail, {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(program: str, *arguments: str) -> Iterator[int]:
    """The program as a process that listens on the yielded port."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), str(port), *arguments])
    try:
        limit = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > limit:
                    raise
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def wrk(port: int, load: Load, seconds: int, script: Path) -> tuple[float, float, float]:
    """Requests a second, p50 and p99 in ms. Raises when an answer was not 200."""
    shown = subprocess.run(
        ["wrk", "-t1", f"-c{load.connections}", f"-d{seconds}s", "--latency", "-s", str(script),
         f"http://127.0.0.1:{port}/v2/models/mlp/infer"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    if "Non-2xx" in shown or "Socket errors" in shown:
        raise RuntimeError(f"the load met errors:\n{shown}")
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", shown)[1])  # type: ignore[index]
    quantiles = [re.search(rf"{share}%\s+([\d.]+)(us|ms|s)", shown) for share in (50, 99)]
    unit = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    p50, p99 = (float(found[1]) * unit[found[2]] for found in quantiles)  # type: ignore[index]
    return rate, p50, p99


def script_of(load: Load, folder: Path) -> Path:
    """A wrk script that POSTs the load's request."""
    body, headers = request(load)
    escaped = "".join(f"\\{byte:03d}" for byte in body)
    lines = ['wrk.method = "POST"', f'wrk.body = "{escaped}"']
    lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    path = folder / f"{load.connections}-{load.rows}-{load.binary}.lua"
    path.write_text("\n".join(lines))
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs and prints the table; with --json one object."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=int, default=3, help="of each measurement; wrk takes whole ones")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--collector", default="", help="send events and traces there; by default they are not made")
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifact, url = folder / "mlp", f"sqlite:///{folder}/registry.db"
        save_artifact(artifact, Mlp(), SIGNATURE, {"x": [[0.1] * FEATURES]})
        registry = Registry(url, folder / "artifacts")
        registry.register("mlp", artifact, lineage={}, profile=None, metrics={})
        registry.set_alias("mlp", "stable", 1)
        registry.close()
        shared = [url, str(folder / "artifacts"), str(artifact), *([chosen.collector] if chosen.collector else [])]
        curve = load_artifact(artifact).warm_up(64, repeats=50).seconds
        print(f"the model alone: batch 1 {curve[1] * 1e6:.0f} us, batch 64 {curve[64] * 1e6:.0f} us", file=sys.stderr)
        with running(OURS, *shared) as ours, running(LIMIT) as limit, running(PEER, *shared) as peer:
            results = [measure(load, ours, limit, peer, chosen, script_of(load, folder), curve) for load in LOADS]
    if chosen.json:
        print(json.dumps(results))


def measure(
    load: Load, ours: int, limit: int, peer: int, chosen: argparse.Namespace, script: Path, curve: dict[int, float]
) -> dict[str, object]:
    """One load, interleaved round by round."""
    ports = {"ours": ours, "limit": limit} | ({} if load.binary else {"peer": peer})
    rounds = [
        {name: wrk(port, load, chosen.seconds, script) for name, port in ports.items()} for _ in range(chosen.rounds)
    ]
    middle = {name: [statistics.median(one[name][k] for one in rounds) for k in range(3)] for name in ports}
    ratios = {
        f"ours / {name}": round(statistics.median(one["ours"][0] / one[name][0] for one in rounds), 2)
        for name in ports
        if name != "ours"
    }
    model_rows = load.rows if load.rows > 1 else 64
    raw = model_rows / curve[model_rows]
    share = round(middle["ours"][0] * load.rows / raw, 2)
    print(f"\n{load.name}")
    for name, (rate, p50, p99) in middle.items():
        print(
            f"  {name:6} {rate:9.0f} requests/s {rate * load.rows:10.0f} rows/s   p50 {p50:7.2f} ms   p99 {p99:7.2f} ms"
        )
    print(f"  {', '.join(f'{name} {ratio}' for name, ratio in ratios.items())}; rows/s ours / model alone {share}")
    return {"load": load.name, "median": middle, "ratios": ratios, "of_model": share}


if __name__ == "__main__":
    main()
