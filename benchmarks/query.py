"""PromQL over 10,000 series x 241 samples (1 h at 15 s): our server against a real Prometheus, same data, same client.

Run: python benchmarks/query.py [--series 10000] [--rounds 5]. For each query, at an instant and over the hour, prints
the medians of the wall time through HTTP and the servers' processor time for one query, with their ratios; the engine
without HTTP is the limit. Then 200 rules over the same buckets: one call to ours, query by query to the peer. Rounds
of the two take turns. Answers are compared: a query on which the two disagree is marked DIFFER.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray

from collectors.query import Engine, Matrix, PrometheusClient, QueryError, Result, Scalar, String, query_app
from collectors.store import Store

START = 1_700_000_000_000
STEP = 15_000
SAMPLES = 241
AT = START + 3_600_000
_CALLS = 5

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


def make_values(series: list[dict[str, str]]) -> NDArray[np.float64]:
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


class Unversioned:
    """A store that does not say when its samples change: its engine keeps no answers from call to call."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        if name == "version":
            raise AttributeError(name)
        return getattr(self._store, name)


def serve(count: int, listener: socket.socket) -> None:
    """Our server, in a process of its own."""
    store = filled_store(count)
    # Without what the last call left: every query is computed.
    app = query_app(Engine(Unversioned(store)), store)
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


def processor_ms(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one call: median wall time, and the mean of the server's processor time, in ms."""

    wall: float
    processor: float


@dataclass(frozen=True, slots=True)
class Server:
    """Where it answers, and its process."""

    url: str
    pid: int


def costs(calls: Sequence[tuple[Callable[[], object], Server]], rounds: int) -> list[Cost]:
    """What each call costs its server; the calls take turns. Many times, as processor time comes in ticks of 10 ms."""
    for call, _ in calls:
        call()
        call()
    walls: list[list[float]] = [[] for _ in calls]
    used = [0.0 for _ in calls]
    for _ in range(rounds):
        for position, (call, server) in enumerate(calls):
            before = processor_ms(server.pid)
            for _ in range(_CALLS):
                begin = time.perf_counter()
                call()
                walls[position].append((time.perf_counter() - begin) * 1000)
            used[position] += processor_ms(server.pid) - before
    return [Cost(statistics.median(w), u / rounds / _CALLS) for w, u in zip(walls, used, strict=True)]


def engine_ms(call: Callable[[], object], rounds: int) -> float:
    """Median wall time in this process after one warm-up."""
    call()
    times = []
    for _ in range(rounds * _CALLS):
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


def compare(ours: Server, peer: Server, engine: Engine, rounds: int) -> None:
    """Prints a line a query and form."""
    heads = "".join(f"{head:>9}" for head in ("engine", "ours", "peer", "ratio", "CPU", "peer", "ratio"))
    print(f"{'query':96} {'kind':8}{heads}")
    at, start = f"{AT / 1000}", f"{AT / 1000 - 3600}"
    with httpx.Client(timeout=60) as http, PrometheusClient(ours.url) as one, PrometheusClient(peer.url) as two:
        for query in QUERIES:
            agree = "" if same(one.instant(query, AT / 1000), two.instant(query, AT / 1000)) else " DIFFER"
            forms = {
                "instant": ("query", {"query": query, "time": at}),
                "1h@15s": ("query_range", {"query": query, "start": start, "end": at, "step": "15"}),
            }
            for kind, (path, form) in forms.items():

                def ask(server: Server, path: str = path, form: dict[str, str] = form) -> None:
                    http.post(f"{server.url}/api/v1/{path}", data=form).raise_for_status()

                def evaluate(kind: str = kind, query: str = query) -> None:
                    if kind == "instant":
                        engine.instant_outcome(query, AT, engine.limits())
                    else:
                        engine.range_outcome(query, AT - 3_600_000, AT, STEP, engine.limits())

                limit = engine_ms(evaluate, rounds)
                found = costs([(functools.partial(ask, server), server) for server in (ours, peer)], rounds)
                wall, used = found[0].wall / found[1].wall, found[0].processor / max(found[1].processor, 1e-9)
                print(
                    f"{query:96} {kind:8}{limit:9.1f}{found[0].wall:9.1f}{found[1].wall:9.1f}{wall:9.2f}"
                    f"{found[0].processor:9.1f}{found[1].processor:9.1f}{used:9.2f}{agree}"
                )


def compare_rules(ours: Server, peer: Server) -> None:
    """200 rules over the same 6,000 series, as a rule group asks for them."""
    rules = [
        f"histogram_quantile({number / 200}, sum by (le, model) (rate(latency_seconds_bucket[5m])))"
        for number in range(1, 201)
    ]
    with PrometheusClient(ours.url, timeout_seconds=120) as one, PrometheusClient(peer.url) as two:
        for moment in (AT - 30_000, AT - 15_000, AT):
            before, begin = processor_ms(ours.pid), time.perf_counter()
            answers = one.batch(rules, moment / 1000)
            mine = time.perf_counter() - begin, (processor_ms(ours.pid) - before) / 1000
        before, begin = processor_ms(peer.pid), time.perf_counter()
        expected = [two.instant(rule, AT / 1000) for rule in rules]
        theirs = time.perf_counter() - begin, (processor_ms(peer.pid) - before) / 1000
    assert answers is not None
    pairs = zip(answers, expected, strict=True)
    agree = all(not isinstance(answer, QueryError) and same(answer, other) for answer, other in pairs)
    print(f"200 wide rules: ours {mine[0]:.2f} s ({mine[1]:.2f} s CPU), peer {theirs[0]:.2f} s ({theirs[1]:.2f} s CPU)",
          "" if agree else "DIFFER")  # fmt: skip


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
            assert server.pid is not None
            ours, theirs = Server(ours_url, server.pid), Server(peer_url, peer.pid)
            compare(ours, theirs, Engine(Unversioned(filled_store(options.series))), options.rounds)
            compare_rules(ours, theirs)
        finally:
            peer.terminate()
            peer.wait()
            server.terminate()
            server.join()


if __name__ == "__main__":
    main()
