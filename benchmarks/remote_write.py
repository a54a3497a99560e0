"""Remote write: samples a second into our collector and into Prometheus' own receiver, in the same run.

Run: python benchmarks/remote_write.py [--series 10000] [--steps 12] [--per-request 500] [--senders 8]. The same
requests (snappy, version 1.0, eight labels a series) go to a collector and to Prometheus with its receiver on, each
a process of its own, by turns, over kept connections. The collector answers when a request is on disk; Prometheus when
it is in its write-ahead log, which is synced later. `read` is the reader alone, without HTTP and store.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import cramjam
import psutil

from collectors.api import CollectorConfig, serve
from collectors.remote_write import LabelCache, read_v1
from observability.protobuf import message, varint

HEADERS = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy"}


def label_bytes(series: int) -> bytes:
    """The eight labels of a series, as its message has them."""
    labels = {
        "__name__": "http_request_duration_seconds_bucket",
        "code": "200",
        "handler": f"/api/v1/resource{series % 100}",
        "instance": f"10.0.{series // 1000}.{series % 50}:9090",
        "job": "api-server",
        "le": str(series % 13),
        "namespace": "production",
        "pod": f"api-server-{series}-x7f9c",
    }
    pairs = ((name.encode(), value.encode()) for name, value in labels.items())
    return b"".join(message(1, message(1, name) + message(2, value)) for name, value in pairs)


def requests(labels: Sequence[bytes], at_ms: int, per_request: int, step: int) -> list[bytes]:
    """The bodies of one scrape of all series."""
    bodies = []
    for first in range(0, len(labels), per_request):
        series = [
            message(1, item + message(2, b"\x09" + struct.pack("<d", 1.5 * step + n) + b"\x10" + varint(at_ms)))
            for n, item in enumerate(labels[first : first + per_request])
        ]
        bodies.append(b"".join(series))
    return bodies


def send(port: int, bodies: Sequence[bytes], senders: int) -> float:
    """Seconds that the senders need for the bodies, each its own share in order."""

    def work(own: Sequence[bytes]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for body in own:
            connection.request("POST", "/api/v1/write", body, HEADERS)
            answer = connection.getresponse()
            answer.read()
            if answer.status // 100 != 2:
                raise RuntimeError(f"{answer.status} {answer.reason}")
        connection.close()

    threads = [threading.Thread(target=work, args=(bodies[number::senders],)) for number in range(senders)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _collector(folder: str, intake: int, query: int) -> None:
    serve(
        CollectorConfig(
            lake=Path(folder) / "lake",
            store_url=f"sqlite:///{folder}/store.db",
            intake_port=intake,
            query_port=query,
            scrape_interval_seconds=60.0,
        )
    )


def _wait(port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"nothing listens on port {port}")


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def read_alone(labels: Sequence[bytes], per_request: int) -> float:
    """Samples a second of processor time that the reader reads."""
    bodies, cache = requests(labels, int(time.time() * 1000), per_request, 0), LabelCache()
    for body in bodies:
        read_v1(body, cache)
    begin, rounds = time.process_time(), 5
    for _ in range(rounds):
        for body in bodies:
            read_v1(body, cache)
    return rounds * len(labels) / (time.process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("series", 10_000), ("steps", 12), ("per-request", 500), ("senders", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    labels = [label_bytes(number) for number in range(given.series)]
    print(f"read   {read_alone(labels, given.per_request):,.0f} samples a processor second")
    start_ms = int(time.time() * 1000) - given.steps * 15_000
    steps = [
        [
            bytes(cramjam.snappy.compress_raw(body))
            for body in requests(labels, start_ms + step * 15_000, given.per_request, step)
        ]
        for step in range(given.steps)
    ]
    with tempfile.TemporaryDirectory() as folder:
        intake, query, port = _free_port(), _free_port(), _free_port()
        ours = multiprocessing.get_context("spawn").Process(target=_collector, args=(folder, intake, query))
        ours.start()
        (Path(folder) / "prometheus.yml").write_text("{}")
        theirs = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
                "--web.enable-remote-write-receiver",
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            peers = {"ours": (query, psutil.Process(ours.pid)), "Prometheus": (port, psutil.Process(theirs.pid))}
            for waiting, _ in peers.values():
                _wait(waiting)
            time.sleep(1.0)
            totals = {name: [0.0, 0.0] for name in peers}
            for number, bodies in enumerate(steps):
                for name, (to, process) in peers.items():
                    before = _cpu(process)
                    seconds = send(to, bodies, given.senders)
                    if number:  # the first step brings new series
                        totals[name][0] += seconds
                        totals[name][1] += _cpu(process) - before
            samples = given.series * (given.steps - 1)
            for name, (wall, cpu) in totals.items():
                print(
                    f"{name:<11}{samples / wall:>12,.0f} samples/s  {cpu / samples * 1e6:6.2f} µs of processor a sample"
                )
            wall, cpu = (totals["ours"][k] / totals["Prometheus"][k] for k in (0, 1))
            print(f"ours/Prometheus: time {wall:.2f}, processor {cpu:.2f}")
        finally:
            ours.terminate()
            theirs.terminate()
            ours.join()
            theirs.wait()


if __name__ == "__main__":
    sys.exit(main())
