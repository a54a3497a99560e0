"""What an objective's burn-rate alerts cost over 30 days of counters: our engine's server against a real Prometheus.

Run: python benchmarks/burn_rates.py [--models 20] [--rounds 3]. Five counters a model, a sample each two minutes. For
each pair of windows of the shipped availability objective (long, short), and for the error ratio of the whole period,
prints the medians of the wall time through HTTP and the servers' processor time for one query, with their ratios, and
whether the answers agree. Rounds of the two take turns. Our server keeps two hours in memory, as it does by
default: the rest is read from the compacted hours of its database each time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import uvicorn

from benchmarks.query import Server, Unversioned, costs, same
from collectors.query import Engine, PrometheusClient, QueryError, Scalar, String, query_app
from collectors.store import Store

START = 1_700_000_000_000
STEP = 120_000
SAMPLES = 30 * 86400 * 1000 // STEP + 1
AT = START + (SAMPLES - 1) * STEP + 3_200
OUTCOMES = ("ok", "model_error", "unavailable", "expired", "invalid")
BAD = 'inference_requests_total{outcome=~"model_error|unavailable|expired"}'
PAIRS = (("1h", "5m", 14.4), ("6h", "30m", 6.0), ("1d", "2h", 3.0), ("3d", "6h", 1.0))


def ratio(window: str) -> str:
    """Bad requests of all requests of a window, by model."""
    total = f"sum by (model) (increase(inference_requests_total[{window}]) > 0)"
    return f"sum by (model) (increase({BAD}[{window}])) / {total}"


def pair(long: str, short: str, factor: float) -> str:
    """The condition of an alert: both windows burn a budget of 0.1 % faster than `factor`."""
    return f"({ratio(long)}) > {factor} * 0.001 and ({ratio(short)}) > {factor} * 0.001"


QUERIES = {
    **{f"{long}/{short}": pair(long, short, factor) for long, short, factor in PAIRS},
    "all pairs": " or ".join(f"({pair(*each)})" for each in PAIRS),
    "30d": ratio("30d"),
}


def labels_and_values(models: int) -> tuple[list[dict[str, str]], np.ndarray]:
    """Counters of each model and outcome, and their values, a row a time; half of the models fail too often."""
    random = np.random.default_rng(5)
    labels = [
        {"__name__": "inference_requests_total", "model": f"m{m}", "outcome": o}
        for m in range(models)
        for o in OUTCOMES
    ]
    rates = np.array([1200.0 if o == "ok" else 0.2 + 10.0 * (m % 2) for m in range(models) for o in OUTCOMES])
    return labels, np.cumsum(random.poisson(rates, (SAMPLES, len(labels))), axis=0).astype(np.float64)


def filled_store(path: Path, models: int) -> Store:
    """The samples in our store, each hour compacted when it had passed."""
    now = [START / 1000]
    store = Store(f"sqlite:///{path}", clock=lambda: now[0], retention_seconds=40 * 86400.0, synchronous="OFF")
    labels, values = labels_and_values(models)
    columns = store.columns("t", labels)
    for step, row in enumerate(values):
        at = START + step * STEP
        now[0] = at / 1000
        store.append_values(columns, at, row)
        if step % (3_600_000 // STEP) == 0:
            store.compact()
    now[0] = AT / 1000
    while store.maintain():
        pass
    return store


def serve(path: Path, models: int, listener: socket.socket) -> None:
    """Our server, in a process of its own; it keeps no answers from call to call."""
    store = filled_store(path, models)
    app = query_app(Engine(Unversioned(store)), store)
    uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off")).run(sockets=[listener])


def start_prometheus(folder: Path, models: int, port: int) -> subprocess.Popen[bytes]:
    """A Prometheus that holds the samples."""
    labels, values = labels_and_values(models)
    with (folder / "samples.txt").open("w") as file:
        file.write("# TYPE inference_requests counter\n")
        for series, column in zip(labels, values.T.tolist(), strict=True):
            inside = ",".join(f'{key}="{value}"' for key, value in series.items() if key != "__name__")
            file.writelines(
                f"inference_requests_total{{{inside}}} {value!r} {(START + step * STEP) / 1000:.3f}\n"
                for step, value in enumerate(column)
            )
        file.write("# EOF\n")
    (folder / "p.yml").write_text("global: {scrape_interval: 1h}\n")
    make_blocks = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "--max-block-duration=744h"]
    subprocess.run([*make_blocks, "samples.txt", "data"], cwd=folder, check=True, capture_output=True)
    (folder / "samples.txt").unlink()
    command = [
        "prometheus", "--config.file=p.yml", "--storage.tsdb.path=data", "--storage.tsdb.retention.time=100y",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=folder)


def wait_for(url: str) -> None:
    """Until the server answers with data."""
    for _ in range(1500):
        try:
            with PrometheusClient(url) as client:
                result = client.instant("count(inference_requests_total)", AT / 1000)
            if not isinstance(result, Scalar | String) and len(result):
                return
        except QueryError:
            pass  # it is not up yet
        time.sleep(0.2)
    raise SystemExit(f"{url} does not answer")


def compare(ours: Server, peer: Server, rounds: int) -> None:
    """Print what each query costs both."""
    print(f"{'query':<10} {'ours wall':>10} {'cpu':>8} {'theirs wall':>12} {'cpu':>8} {'wall x':>8} {'cpu x':>8}  ms")
    with (
        PrometheusClient(ours.url, timeout_seconds=300) as mine,
        PrometheusClient(peer.url, timeout_seconds=300) as other,
    ):
        for name, expr in QUERIES.items():
            agree = same(mine.instant(expr, AT / 1000), other.instant(expr, AT / 1000))
            calls = [
                (lambda expr=expr: mine.instant(expr, AT / 1000), ours),
                (lambda expr=expr: other.instant(expr, AT / 1000), peer),
            ]
            a, b = costs(calls, rounds)
            print(
                f"{name:<10} {a.wall:10.1f} {a.processor:8.1f} {b.wall:12.1f} {b.processor:8.1f} "
                f"{b.wall / a.wall:8.2f} {b.processor / max(a.processor, 0.1):8.2f}  {'AGREE' if agree else 'DIFFER'}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        raise SystemExit("this compares with a real Prometheus: install it (Debian: prometheus)")
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ours_url, peer_url = f"http://127.0.0.1:{listener.getsockname()[1]}", f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = multiprocessing.Process(target=serve, args=(folder / "ours.db", options.models, listener))
        server.start()
        try:
            peer = start_prometheus(folder, options.models, port)
            try:
                wait_for(ours_url)
                wait_for(peer_url)
                assert server.pid is not None
                compare(Server(ours_url, server.pid), Server(peer_url, peer.pid), options.rounds)
            finally:
                peer.terminate()
                peer.wait()
        finally:
            server.terminate()
            server.join()


if __name__ == "__main__":
    main()
