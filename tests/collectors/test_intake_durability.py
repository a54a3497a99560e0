"""kill -9 of a real collector: what it acknowledged is in the lake and in the windows after its restart, once."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet
import pytest

from observability.events import to_ipc
from observability.lake import read_events
from trimtab.ports import free_port

pytestmark = pytest.mark.slow
Events = Callable[..., pa.RecordBatch]

SERVICE = """
import sys
from pathlib import Path
from collectors.api import CollectorConfig, serve
from collectors.housekeeping import Retention

folder = Path(sys.argv[1])
serve(CollectorConfig(
    lake=folder / "lake", store_url=f"sqlite:///{folder / 'store.db'}",
    intake_port=int(sys.argv[2]), query_port=int(sys.argv[3]),
    window_seconds=1.0, allowed_lateness_seconds=1.0, quiet_seconds=0.5,
    retention=Retention(compaction_seconds=0.2),
))
"""


class Service:
    """A collector's process; `kill` is SIGKILL, `stop` is SIGTERM and gives the exit status."""

    def __init__(self, folder: Path, ports: tuple[int, int]) -> None:
        self.intake, self.query = (f"http://127.0.0.1:{port}" for port in ports)
        self.process = subprocess.Popen([sys.executable, "-c", SERVICE, str(folder), *map(str, ports)])
        with httpx.Client() as client:
            for _ in range(1800):
                assert self.process.poll() is None, "the collector ended at its start"
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"{self.query}/-/ready").status_code == 200:
                        return
                time.sleep(0.05)
        raise AssertionError("the collector was not ready in time")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


@pytest.fixture
def ports() -> tuple[int, int]:
    return free_port(), free_port()


@pytest.fixture
def services() -> Iterator[list[Service]]:
    made: list[Service] = []
    yield made
    for service in made:
        if service.process.poll() is None:
            service.kill()


def window_rows(service: Service) -> int:
    windows = httpx.get(f"{service.query}/api/drift/delay", params={"windows": 500}).json()["windows"]
    return sum(window["rows"] for window in windows)


def test_kill_9_after_an_answer_loses_and_doubles_nothing(
    tmp_path: Path, ports: tuple[int, int], services: list[Service], events: Events
) -> None:
    services.append(Service(tmp_path, ports))
    acknowledged: set[str] = set()
    unanswered: list[tuple[str, bytes]] = []
    stop = threading.Event()

    def send(sender: int) -> None:
        with httpx.Client() as client:
            for number in range(10_000):
                if stop.is_set():
                    return
                name = f"{sender}-{number}"
                body = to_ipc(events(20, prefix=name, time_s=time.time()))
                try:
                    answer = client.post(f"{services[0].intake}/v1/events", content=body, headers={"X-Batch-Id": name})
                    answer.raise_for_status()
                except httpx.HTTPError:
                    unanswered.append((name, body))
                    return
                acknowledged.add(name)

    senders = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in senders:
        thread.start()
    while len(acknowledged) < 150:
        time.sleep(0.01)
    services[0].kill()
    stop.set()
    for thread in senders:
        thread.join()

    services.append(Service(tmp_path, ports))
    again = services[1]
    # The senders do what the exporter does: what had no answer is sent again under its id.
    for name, body in unanswered:
        httpx.post(f"{again.intake}/v1/events", content=body, headers={"X-Batch-Id": name}).raise_for_status()
    sent = acknowledged | {name for name, _ in unanswered}
    until = time.monotonic() + 90
    while window_rows(again) < 20 * len(sent) and time.monotonic() < until:
        time.sleep(0.1)
    counted = window_rows(again)
    assert again.stop() == 0

    files = list((tmp_path / "lake" / "events").rglob("*.parquet"))
    stored = read_events(tmp_path / "lake", "delay").column("id").to_pylist()
    assert sorted(stored) == sorted(f"{name}/{row}" for name in sent for row in range(20))
    assert sum(pa.parquet.read_metadata(file).num_rows for file in files) == len(stored)
    assert counted == len(stored)


def test_sigterm_drains_and_leaves_with_status_0(
    tmp_path: Path, ports: tuple[int, int], services: list[Service], events: Events
) -> None:
    services.append(Service(tmp_path, ports))
    body = to_ipc(events(50, time_s=time.time()))
    httpx.post(f"{services[0].intake}/v1/events", content=body).raise_for_status()

    assert services[0].stop() == 0
    assert len(read_events(tmp_path / "lake", "delay")) == 50


def test_promtool_accepts_the_collectors_page(
    tmp_path: Path, ports: tuple[int, int], services: list[Service], events: Events
) -> None:
    services.append(Service(tmp_path, ports))
    httpx.post(f"{services[0].intake}/v1/events", content=to_ipc(events(50, time_s=time.time()))).raise_for_status()
    until = time.monotonic() + 90
    while not window_rows(services[0]) and time.monotonic() < until:
        time.sleep(0.1)
    page = httpx.get(f"{services[0].query}/metrics").content

    checked = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False)

    assert b"observed_latency_seconds" in page
    assert checked.returncode == 0, checked.stdout.decode() + checked.stderr.decode()


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, "-c", SERVICE, str(tmp_path), str(port), "0"], capture_output=True, text=True, check=False
        )

    assert ended.returncode != 0
    assert f"port {port} on 127.0.0.1 cannot be had" in ended.stderr
