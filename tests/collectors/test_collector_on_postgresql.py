"""A collector whose database is a PostgreSQL: all ways in, killed and started again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from observability.events import to_ipc
from observability.profile import Profile
from trimtab.ports import free_port

pytestmark = pytest.mark.slow
PROGRAM = """
import sys
from pathlib import Path
from collectors.api import CollectorConfig, serve
folder, url, intake, query = Path(sys.argv[1]), *sys.argv[2:]
serve(CollectorConfig(lake=folder / "lake", store_url=url, intake_port=int(intake), query_port=int(query),
                      scrape_file=folder / "p.yml", window_seconds=1.0, allowed_lateness_seconds=0.2))
"""
TRACE = "0af7651916cd43dd8448eb211c80319c"


def until(seen: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if found := seen():
                return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come")


class Process:
    """The collector of a folder and a database; its ports are those of the first start."""

    def __init__(self, folder: Path, url: str, ports: tuple[int, int]) -> None:
        self._command = [sys.executable, "-c", PROGRAM, str(folder), url, *map(str, ports)]
        self.intake = httpx.Client(base_url=f"http://127.0.0.1:{ports[0]}", timeout=60)
        self.query = httpx.Client(base_url=f"http://127.0.0.1:{ports[1]}", timeout=60)
        self.start()

    def start(self) -> None:
        self._running = subprocess.Popen(self._command)
        until(lambda: self.query.get("/-/ready").status_code == 200, "the collector")

    def signal(self, number: int) -> None:
        self._running.send_signal(number)

    def end(self, number: int) -> int:
        self.signal(number)
        return self._running.wait(60)

    def value(self, expr: str) -> float | None:
        found = self.query.get("/api/v1/query", params={"query": expr}).json()["data"]["result"]
        return float(found[0]["value"][1]) if found else None

    def close(self) -> None:
        self._running.kill()
        self._running.wait(60)
        self.intake.close()
        self.query.close()


@pytest.fixture
def process(tmp_path: Path, postgresql_url: str) -> Iterator[Process]:
    (tmp_path / "p.yml").write_text("scrape_configs: [{job_name: before}]\n")
    made = Process(tmp_path, postgresql_url, (free_port(), free_port()))
    yield made
    made.close()


def test_what_was_accepted_outlives_a_kill(
    process: Process, tmp_path: Path, events: Callable[..., pa.RecordBatch]
) -> None:
    now = time.time()
    span = {"traceId": TRACE, "spanId": "b7ad6b7169203331", "name": "infer", "startTimeUnixNano": str(int(now * 1e9))}
    span["endTimeUnixNano"] = span["startTimeUnixNano"]
    labels = [{"id": f"a/{row}", "model": "delay", "label": row % 2} for row in range(99)]
    table = pa.Table.from_batches([events(2_000, seed=9)])
    early, late = events(300, prefix="a", time_s=now - 30), events(200, prefix="b", time_s=now - 20)

    sent = [
        process.intake.put("/metrics/job/batch", content="rows_read 7\n"),
        process.intake.put("/v1/references/delay/1", content=Profile.of(table).to_json()),
        process.intake.post("/v1/events", content=to_ipc(early), headers={"X-Batch-Id": "one"}),
        process.intake.post("/v1/labels", json=labels),
        process.intake.post("/v1/traces", json={"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}),
    ]
    assert [answer.status_code for answer in sent] == [200] * len(sent)
    until(lambda: process.value('performance_score{metric="accuracy"}') is not None, "the scores")
    (tmp_path / "p.yml").write_text("scrape_configs: [{job_name: after}]\n")
    process.signal(signal.SIGHUP)
    until(lambda: "job_name: after" in process.query.get("/api/v1/status/config").json()["data"]["yaml"], "the reload")
    process.intake.post("/v1/events", content=to_ipc(late), headers={"X-Batch-Id": "two"}).raise_for_status()
    assert process.end(signal.SIGKILL) == -signal.SIGKILL

    process.start()

    again = process.intake.post("/v1/events", content=to_ipc(early), headers={"X-Batch-Id": "one"}).json()
    assert again["duplicate"] is True

    def rows() -> int:
        return sum(window["rows"] for window in process.query.get("/api/drift/delay").json()["windows"])

    until(lambda: rows() == 500, "all rows of the windows")
    assert process.value("rows_read") == 7
    assert process.query.get(f"/api/traces/{TRACE}").json()["data"][0]["spans"][0]["operationName"] == "infer"
    assert process.query.get("/api/performance/delay").json()["now"]["1"]["labels"] == 99
    assert process.end(signal.SIGTERM) == 0
    assert any((tmp_path / "lake").rglob("*.parquet"))
