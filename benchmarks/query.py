"""PromQL over 10,000 series x 241 samples (1 h at 15 s): our server against a real Prometheus, same data, same client.

Run: python benchmarks/query.py [--series 10000] [--rounds 5]. Prints medians of wall time and their ratio; the engine
without HTTP is the limit. Answers are compared: a query on which the two disagree is marked DIFFER.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import uvicorn

from collectors.query import Engine, Matrix, PrometheusClient, QueryError, Result, Scalar, String, query_app
from collectors.store import Store

START = 1_700_000_000_000
STEP = 15_000
SAMPLES = 241
AT = START + 3_600_000

QUERIES = [
    "sum by (model) (rate(requests_total[5m]))",
    "histogram_quantile(0.99, sum by (le, model) (rate(latency_seconds_bucket[5m])))",
    'sum by (model) (rate(requests_total{code="500"}[5m])) / sum by (model) (rate(requests_total[5m]))',
    "topk(10, rate(requests_total[5m]))",
    "max_over_time(temperature[30m])",
    'histogram_quantile(0.9, sum by (le) (rate(latency_seconds_bucket{model="m3"}[5m])))',
]


def make_series(count: int) -> list[dict[str, str]]:
    """60 % histogram buckets, 20 % counters, 20 % gauges."""
    bounds = [*(str(0.005 * 1.5**k) for k in range(19)), "+Inf"]
    histograms = range(count * 6 // 10 // len(bounds))
    found = [
        {"__name__": "latency_seconds_bucket", "model": f"m{k % 20}", "instance": f"i{k}", "le": bound}
        for k in histograms
        for bound in bounds
    ]
    found += [
        {
            "__name__": "requests_total",
            "model": f"m{k % 20}",
            "instance": f"i{k}",
            "code": "500" if k % 4 == 0 else "200",
        }
        for k in range(count // 5)
    ]
    return found + [{"__name__": "temperature", "instance": f"i{k}"} for k in range(count // 5)]


def make_values(series: list[dict[str, str]]) -> np.ndarray:  # type: ignore[type-arg]
    """[samples, series]: counters rise, histograms are cumulative over their buckets, gauges wander."""
    chance = np.random.default_rng(1)
    values = chance.exponential(4.0, (SAMPLES, len(series))).cumsum(axis=0)
    buckets = sum(labels["__name__"] == "latency_seconds_bucket" for labels in series)
    values[:, :buckets] = values[:, :buckets].reshape(SAMPLES, -1, 20).cumsum(axis=2).reshape(SAMPLES, -1)
    gauges = slice(len(series) - len(series) // 5, None)
    values[:, gauges] = chance.normal(50, 10, values[:, gauges].shape)
    return values


def sample_time(step: int) -> int:
    """Not on a step's boundary, where versions of Prometheus differ."""
    return START + step * STEP + 3_200


def filled_store(count: int) -> Store:
    """The samples in our store."""
    series = make_series(count)
    store = Store("sqlite://", clock=lambda: AT / 1000)
    for step, row in enumerate(make_values(series)):
        store.append("t", sample_time(step), list(zip(series, row.tolist(), strict=True)))
    return store


def serve(count: int, listener: socket.socket) -> None:
    """Our server, in a process of its own."""
    store = filled_store(count)
    app = query_app(Engine(store), store)
    uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off")).run(sockets=[listener])


def write_openmetrics(path: Path, count: int) -> None:
    """The samples as text for promtool."""
    series = make_series(count)
    values = make_values(series).T.tolist()
    kinds = {"requests": "counter", "latency_seconds": "histogram", "temperature": "gauge"}
    with path.open("w") as file:
        for family, kind in kinds.items():
            file.write(f"# TYPE {family} {kind}\n")
            for labels, column in zip(series, values, strict=True):
                name = labels["__name__"]
                if name.startswith(family):
                    inside = ",".join(f'{key}="{value}"' for key, value in labels.items() if key != "__name__")
                    for step, value in enumerate(column):
                        file.write(f"{name}{{{inside}}} {value!r} {sample_time(step) / 1000:.3f}\n")
        file.write("# EOF\n")


def start_prometheus(folder: Path, count: int, port: int) -> subprocess.Popen[bytes]:
    """A Prometheus that holds the samples."""
    write_openmetrics(folder / "samples.txt", count)
    (folder / "p.yml").write_text("global: {scrape_interval: 1h}\n")
    make_blocks = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "samples.txt", "data"]
    subprocess.run(make_blocks, cwd=folder, check=True, capture_output=True)
    (folder / "samples.txt").unlink()
    command = [
        "prometheus", "--config.file=p.yml", "--storage.tsdb.path=data", "--storage.tsdb.retention.time=100y",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=folder)


def wait_for(url: str) -> None:
    """Until the server answers with data."""
    for _ in range(600):
        try:
            with PrometheusClient(url) as client:
                result = client.instant("count(temperature)", AT / 1000)
            if not isinstance(result, Scalar | String) and len(result):
                return
        except QueryError:
            pass  # it is not up yet
        time.sleep(0.2)
    raise SystemExit(f"{url} does not answer")


def median_ms(call: Callable[[], object], rounds: int) -> float:
    """Median wall time after one warm-up."""
    call()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1000)
    return statistics.median(times)


def same(ours: Result, theirs: Result) -> bool:
    """Whether two vectors agree to nine digits."""
    if isinstance(ours, Scalar | String | Matrix) or isinstance(theirs, Scalar | String | Matrix):
        return False
    mine, other = ({frozenset(e.labels.items()): e.value for e in result} for result in (ours, theirs))
    return mine.keys() == other.keys() and all(
        np.isclose(mine[key], value, rtol=1e-9, equal_nan=True) for key, value in other.items()
    )


def compare(ours_url: str, peer_url: str, engine: Engine, rounds: int) -> None:
    """Prints a line a query."""
    print(f"{'query':96} {'kind':8} {'engine':>9} {'ours':>9} {'peer':>9} {'ours/peer':>10}")
    at, start = f"{AT / 1000}", f"{AT / 1000 - 3600}"
    with httpx.Client(timeout=60) as http, PrometheusClient(ours_url) as one, PrometheusClient(peer_url) as two:
        for query in QUERIES:
            agree = "" if same(one.instant(query, AT / 1000), two.instant(query, AT / 1000)) else " DIFFER"
            forms = {
                "instant": ("query", {"query": query, "time": at}),
                "1h@15s": ("query_range", {"query": query, "start": start, "end": at, "step": "15"}),
            }
            for kind, (path, form) in forms.items():

                def ask(url: str, path: str = path, form: dict[str, str] = form) -> None:
                    http.post(f"{url}/api/v1/{path}", data=form).raise_for_status()

                def evaluate(kind: str = kind, query: str = query) -> None:
                    if kind == "instant":
                        engine.instant(query, AT)
                    else:
                        engine.range(query, AT - 3_600_000, AT, STEP)

                limit = median_ms(evaluate, rounds)
                ours, peer = (median_ms(lambda url=url: ask(url), rounds) for url in (ours_url, peer_url))  # type: ignore[misc]
                print(f"{query:96} {kind:8} {limit:9.1f} {ours:9.1f} {peer:9.1f} {ours / peer:10.2f}{agree}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        raise SystemExit("this compares with a real Prometheus: install it (Debian: prometheus)")
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ours_url, peer_url = f"http://127.0.0.1:{listener.getsockname()[1]}", f"http://127.0.0.1:{port}"
    server = multiprocessing.Process(target=serve, args=(options.series, listener))
    server.start()
    with tempfile.TemporaryDirectory() as name:
        peer = start_prometheus(Path(name), options.series, port)
        try:
            wait_for(ours_url)
            wait_for(peer_url)
            compare(ours_url, peer_url, Engine(filled_store(options.series)), options.rounds)
        finally:
            peer.terminate()
            peer.wait()
            server.terminate()
            server.join()


if __name__ == "__main__":
    main()
