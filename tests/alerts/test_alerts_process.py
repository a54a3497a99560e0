"""The service as a process beside a real collector: pushes, queries, a collector that dies and comes back, SIGTERM."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from trimtab.ports import free_port

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RELEASE = 'model="m",release="m-1",candidate="2",baseline="1"'


def wait_until(true: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := true():
                return found
        except httpx.HTTPError:
            pass  # it is not up yet
        time.sleep(0.1)
    return pytest.fail(f"not within {seconds} s")


@pytest.fixture
def spawn() -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(program: str) -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_a_bad_canary_is_found_through_a_collector_that_was_killed_and_restarted(
    spawn: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path, hook_server: Any
) -> None:
    intake, query, port = free_port(), free_port(), free_port()
    collector = f"""
        from pathlib import Path
        from collectors.api import CollectorConfig, serve
        serve(CollectorConfig(lake=Path({str(tmp_path / "lake")!r}), store_url="sqlite:///{tmp_path / "store.db"}",
                              intake_port={intake}, query_port={query}))
    """
    judge = f"""
        from alerts import AlertsConfig, serve
        serve(AlertsConfig(port={port}, query_url="http://127.0.0.1:{query}", push_url="http://127.0.0.1:{intake}",
                           serving_url={hook_server.url!r}, database_url="sqlite:///{tmp_path / "alerts.db"}"))
    """
    api = f"http://127.0.0.1:{port}"
    counts = {("canary", "ok"): 0, ("canary", "error"): 0, ("stable", "ok"): 0, ("stable", "error"): 0}

    def serve_requests(canary_errors: int) -> None:
        counts["canary", "ok"] += 10 - canary_errors
        counts["canary", "error"] += canary_errors
        counts["stable", "ok"] += 90
        page = "".join(
            f'release_requests_total{{{RELEASE},arm="{arm}",propensity="0.1",outcome="{outcome}"}} {count}\n'
            for (arm, outcome), count in counts.items()
        )
        page += 'traffic_weight_ratio{model="m",version="2",role="canary"} 0.1\n'
        page += 'traffic_weight_ratio{model="m",version="1",role="stable"} 0.9\n'
        httpx.put(f"http://127.0.0.1:{intake}/metrics/job/serving", content=page).raise_for_status()

    first = spawn(collector)
    wait_until(lambda: httpx.get(f"http://127.0.0.1:{query}/-/ready").is_success)
    process = spawn(judge)
    wait_until(lambda: httpx.get(f"{api}/-/ready").is_success)
    serve_requests(0)
    wait_until(lambda: httpx.get(f"{api}/api/v1/evidence").json()["releases"])

    first.kill()
    first.wait()
    # A push that was under way when the collector died is told in other words, until the next question.
    wait_until(lambda: "cannot reach" in httpx.get(f"{api}/api/v1/evidence").json()["error"])
    spawn(collector)
    wait_until(lambda: httpx.get(f"http://127.0.0.1:{query}/-/ready").is_success)
    for _ in range(20):
        serve_requests(5)
        time.sleep(0.2)
    wait_until(lambda: hook_server.requests)
    pushed = wait_until(
        lambda: httpx.get(
            f"http://127.0.0.1:{query}/api/v1/query",
            params={"query": 'ALERTS{alertname="CanaryHarmful",alertstate="firing"}'},
        ).json()["data"]["result"]
    )
    process.send_signal(signal.SIGTERM)

    assert pushed[0]["metric"]["release"] == "m-1"
    assert [request["path"] for request in hook_server.requests] == ["/api/v1/models/m/rollback"]
    assert process.wait(60) in (0, -signal.SIGTERM)
