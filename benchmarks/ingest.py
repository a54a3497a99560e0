"""The store's ingest, memory and pauses: durable samples a second, resident bytes a series beside a real Prometheus.

Run: python benchmarks/ingest.py [rate|memory|pauses|start] [--series 10000] [--seconds 5]. Without a name it runs all.
`rate` appends scrapes of 1,000 series from several targets at once to an SQLite file that syncs at each commit; the
limit is the same rows written to a bare file with an fdatasync for each group. `memory` puts an hour of samples 15 s
apart into a store, and into a Prometheus by remote write, and reads what each process keeps in RAM above an empty one.
`pauses` measures appends while old hours are compacted and deleted. `start` opens a database that holds a day.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import httpx
import numpy as np
import psutil
import pyarrow as pa

from benchmarks.query import make_series, sample_time
from collectors.store import Matcher, Scrape, Store
from observability.protobuf import message, varint

HOUR_MS = 3_600_000
SCRAPE = 1000


def scrape_labels(target: int, count: int = SCRAPE) -> list[dict[str, str]]:
    """The series of one target."""
    return [
        {"__name__": "x", "job": "bench", "instance": f"host-{target}:9100", "i": str(k), "kind": f"k{k % 7}"}
        for k in range(count)
    ]


# --- rate -------------------------------------------------------------------------------------------------------------
def rate(seconds: float, targets: int, vectors: bool, url: str = "") -> None:
    """Durable samples a second of scrapes of 1,000: label sets and values, or vectors for series looked up once."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(url or f"sqlite:///{folder}/store.db")
        start = int(time.time() * 1000) - HOUR_MS
        stop = threading.Event()
        appended = [0] * targets
        ready = threading.Barrier(targets + 1)

        def work(target: int) -> None:
            labels, matrix = scrape_labels(target), np.random.default_rng(target).random((64, SCRAPE))
            columns = store.columns(f"t{target}", labels)
            scrapes = [list(zip(labels, row, strict=True)) for row in matrix[:4].tolist()]
            step = 0
            store.append(f"t{target}", start, scrapes[0])
            ready.wait()
            while not stop.is_set():
                step += 1
                t_ms = start + step * 1000
                if vectors:
                    appended[target] += store.append_values(columns, t_ms, matrix[step % 64])
                else:
                    appended[target] += store.append(f"t{target}", t_ms, scrapes[step % 4])

        threads = [threading.Thread(target=work, args=(target,)) for target in range(targets)]
        for thread in threads:
            thread.start()
        ready.wait()
        commits, begin, cpu = store.counts().commits, time.perf_counter(), time.process_time()
        stop.wait(seconds)
        stop.set()
        for thread in threads:
            thread.join()
        took, used = time.perf_counter() - begin, time.process_time() - cpu
        groups = store.counts().commits - commits
        store.close()
        total = sum(appended)
        limit = _bare_rate(Path(folder) / "bare", max(1, round(total / SCRAPE / groups)), min(seconds, 3.0))
    form = "vectors   " if vectors else "label sets"
    print(
        f"rate: {targets:3} targets, {form} {total / took:12,.0f} samples/s {total / SCRAPE / groups:6.1f} scrapes "
        f"a commit {used / total * 1e9:6.0f} ns CPU a sample; bare file {limit:12,.0f}, "
        f"ours/bare {total / took / limit:.2f}"
    )


def _bare_rate(path: Path, group: int, seconds: float) -> float:
    """Samples a second of the same rows appended to a file, with one fdatasync a group."""
    row = np.random.default_rng(0).random(SCRAPE).tobytes()
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    written, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for _ in range(group):
            written += os.write(descriptor, row)
        os.fdatasync(descriptor)
    took = time.perf_counter() - begin
    os.close(descriptor)
    return written / 8 / took


# --- memory -----------------------------------------------------------------------------------------------------------
def _ours(count: int, url: str, pipe: Connection) -> None:
    store = Store(url, clock=lambda: sample_time(240) / 1000)
    store.append("warm", sample_time(0), [({"__name__": "warm"}, 1.0)])
    gc.collect()
    empty = psutil.Process().memory_info().rss
    _fill(store, count)
    gc.collect()
    time.sleep(1)
    pipe.send((empty, psutil.Process().memory_info().rss))
    store.close()
    store = Store(url, clock=lambda: sample_time(240) / 1000)
    pipe.send(len(store.series([Matcher("__name__", "!=", "warm")])))
    store.close()


def _fill(store: Store, count: int) -> None:
    """An hour, in scrapes of 1,000."""
    series = make_series(count)
    chunks = [series[first : first + SCRAPE] for first in range(0, count, SCRAPE)]
    del series
    for number, chunk in enumerate(chunks):
        values = _values(chunk, number)
        for step in range(len(values)):
            store.append(f"t{number}", sample_time(step), list(zip(chunk, values[step].tolist(), strict=True)))


def _values(chunk: list[dict[str, str]], number: int) -> np.ndarray:  # type: ignore[type-arg]
    """[samples, series]: counters of small steps, gauges of three decimals."""
    chance = np.random.default_rng(number)
    values = chance.poisson(3.0, (241, len(chunk))).cumsum(axis=0).astype(float)
    gauges = np.array([labels["__name__"] == "temperature" for labels in chunk])
    values[:, gauges] = np.round(chance.normal(50, 10, (241, int(gauges.sum()))), 3)
    return values


def _write_request(heads: list[bytes], times: list[int], values: np.ndarray) -> bytes:  # type: ignore[type-arg]
    """A remote-write body: `values` [samples, series], `heads` the encoded labels."""
    samples = np.zeros((values.shape[1], len(times), 18), dtype=np.uint8)
    samples[:, :, :3] = (0x12, 16, 0x09)
    samples[:, :, 3:11] = np.ascontiguousarray(values.T).view(np.uint8).reshape(values.shape[1], len(times), 8)
    samples[:, :, 11] = 0x10
    for k, t_ms in enumerate(times):
        samples[:, k, 12:] = np.frombuffer(varint(t_ms), dtype=np.uint8)
    return b"".join(message(1, head + row.tobytes()) for head, row in zip(heads, samples, strict=True))


def _prometheus(count: int) -> tuple[int, int] | None:
    """Resident bytes of an empty Prometheus, and with the samples in its head after a garbage collection."""
    if shutil.which("prometheus") is None:
        return None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "p.yml").write_text("global: {scrape_interval: 1h}\n")
        command = [
            "prometheus", "--config.file=p.yml", "--storage.tsdb.path=data", "--web.enable-remote-write-receiver",
            "--storage.tsdb.retention.time=100y", f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
        ]  # fmt: skip
        peer = subprocess.Popen(command, cwd=folder)
        try:
            with httpx.Client(timeout=60) as client:
                _until(lambda: client.get(f"{url}/-/ready").status_code == 200)

                def settled() -> int:
                    for _ in range(3):
                        client.get(f"{url}/debug/pprof/heap?gc=1")
                        time.sleep(1)
                    return int(psutil.Process(peer.pid).memory_info().rss)

                empty = settled()
                codec = pa.Codec("snappy")
                headers = {"Content-Encoding": "snappy", "X-Prometheus-Remote-Write-Version": "0.1.0"}
                series = make_series(count)
                for number, first in enumerate(range(0, count, SCRAPE)):
                    chunk = series[first : first + SCRAPE]
                    heads = [
                        b"".join(
                            message(1, message(1, k.encode()) + message(2, v.encode())) for k, v in sorted(item.items())
                        )
                        for item in chunk
                    ]
                    values = _values(chunk, number)
                    for step in range(0, 241, 20):
                        times = [sample_time(k) for k in range(step, min(step + 20, 241))]
                        body = _write_request(heads, times, values[step : step + 20])
                        packed = codec.compress(body, asbytes=True)
                        client.post(f"{url}/api/v1/write", content=packed, headers=headers).raise_for_status()
                return empty, settled()
        finally:
            peer.terminate()
            peer.wait()


def _until(true: Callable[[], bool]) -> None:
    for _ in range(300):
        try:
            if true():
                return
        except httpx.HTTPError:
            pass  # it is not up yet
        time.sleep(0.2)
    raise SystemExit("the server did not start")


def memory(count: int) -> None:
    """Resident bytes a series, above those of an empty process."""
    with tempfile.TemporaryDirectory() as folder:
        near, far = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        child = context.Process(target=_ours, args=(count, f"sqlite:///{folder}/store.db", far))
        child.start()
        empty, full = near.recv()
        assert near.recv() == count
        child.join()
    ours = (full - empty) / count
    line = f"memory: {count:7,} series x 241  ours {ours:7,.0f} bytes a series ({full / 1e6:,.0f} MB resident)"
    peer = _prometheus(count)
    if peer is not None:
        theirs = (peer[1] - peer[0]) / count
        line += f"  Prometheus {theirs:7,.0f} ({peer[1] / 1e6:,.0f} MB)  ours/Prometheus {ours / theirs:.2f}"
        line += f"  whole processes {full / peer[1]:.2f}"
    print(line)


# --- pauses and start -------------------------------------------------------------------------------------------------
def pauses(seconds: float) -> None:
    """Times of appends (1,000 series, every 10 ms) alone, and while old hours are compacted and deleted."""
    with tempfile.TemporaryDirectory() as folder:
        now = [time.time()]
        store = Store(
            f"sqlite:///{folder}/store.db", clock=lambda: now[0], late_seconds=0.0, retention_seconds=86_400.0
        )
        columns = [store.columns(f"t{k}", scrape_labels(k)) for k in range(8)]
        start = int(now[0] * 1000) // HOUR_MS * HOUR_MS - 40 * HOUR_MS
        values = np.random.default_rng(0).poisson(3.0, (240, SCRAPE)).cumsum(axis=0).astype(float)
        for hour in range(38):
            for first in range(0, 240, 24):
                store.write(
                    [
                        Scrape(target, start + hour * HOUR_MS + step * 15_000, values[step])
                        for step in range(first, first + 24)
                        for target in columns
                    ]
                )
        live = store.columns("live", scrape_labels(99))

        def appends(lasting: float) -> list[float]:
            took, begin = [], time.perf_counter()
            while time.perf_counter() - begin < lasting:
                one = time.perf_counter()
                store.append_values(live, int(time.time() * 1000), values[len(took) % 240])
                took.append((time.perf_counter() - one) * 1000)
                time.sleep(0.01)
            return sorted(took)

        alone = appends(seconds)
        stop = threading.Event()
        steps: list[float] = []

        def keep() -> None:
            while not stop.is_set():
                one = time.perf_counter()
                if not store.maintain(now[0]):
                    now[0] += 1800.0  # another half hour is over
                steps.append((time.perf_counter() - one) * 1000)

        keeper = threading.Thread(target=keep)
        before = store.counts().compacted
        keeper.start()
        beside = appends(3 * seconds)
        stop.set()
        keeper.join()
        compacted = store.counts().compacted - before
        size = store.size_bytes()
        store.close()
    for name, took in (("alone", alone), ("beside compaction and retention", beside)):
        print(
            f"pauses: appends {name}: median {took[len(took) // 2]:.1f} ms, p99 {took[len(took) * 99 // 100]:.1f} ms, "
            f"longest {took[-1]:.1f} ms"
        )
    print(
        f"pauses: {len(steps)} steps, median {sorted(steps)[len(steps) // 2]:.0f} ms; {compacted:,} samples compacted, "
        f"{compacted / 3 / seconds:,.0f} a second; {size / 1e6:.0f} MB left"
    )


def start(count: int) -> None:
    """Opening a database of a day, compacted but for the last hour; and its bytes a sample."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/store.db"
        now = [float(int(time.time()) // 3600 * 3600 + 1800)]
        store = Store(url, clock=lambda: now[0], synchronous="OFF")
        series = make_series(count)
        begin_ms = int(now[0] * 1000) - 24 * HOUR_MS
        for number, first in enumerate(range(0, count, SCRAPE)):
            columns = store.columns(f"t{number}", series[first : first + SCRAPE])
            values = _values(series[first : first + SCRAPE], number)
            for hour in range(24):
                store.write(
                    [
                        Scrape(columns, begin_ms + hour * HOUR_MS + step * 15_000, values[step] + hour * values[-1])
                        for step in range(240)
                    ]
                )
        raw, samples = store.size_bytes(), store.counts().appended
        begin, cpu = time.perf_counter(), time.process_time()
        while store.maintain():
            pass
        took, used = time.perf_counter() - begin, time.process_time() - cpu
        compacted, packed = store.counts().compacted, store.size_bytes()
        store.close()
        begin = time.perf_counter()
        store = Store(url, clock=lambda: now[0])
        opening = time.perf_counter() - begin
        begin = time.perf_counter()
        one = store.select([Matcher("__name__", "=", "temperature"), Matcher("instance", "=", "i7")], 0, 1 << 60)
        single = time.perf_counter() - begin
        store.close()
    assert sum(len(item.t) for item in one) == 24 * 240
    rows = (raw - packed) / max(compacted, 1)
    print(
        f"start: {count:,} series x 5,760: opened in {opening:.2f} s; {samples:,} samples in {packed / 1e6:,.0f} MB, "
        f"{raw / 1e6:,.0f} MB before compaction ({raw / samples:.2f} bytes a sample, "
        f"{raw / samples - rows:.2f} compacted)"
    )
    print(
        f"start: compacted {compacted / took:,.0f} samples/s, {used / compacted * 1e9:.0f} ns CPU a sample; "
        f"a day of one series in {single * 1000:.0f} ms"
    )


PARTS = ("rate", "memory", "pauses", "start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--targets", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args()
    if options.part in (None, "rate"):
        for targets in options.targets:
            for vectors in (True, False):
                rate(options.seconds, targets, vectors)
    if options.part in (None, "memory"):
        memory(options.series)
    if options.part in (None, "pauses"):
        pauses(options.seconds)
    if options.part in (None, "start"):
        start(options.series)


if __name__ == "__main__":
    main()
