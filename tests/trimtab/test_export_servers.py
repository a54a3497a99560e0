"""Real Debian servers run with what `trimtab export` wrote, beside a running collector and alerts service."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import yaml

from trimtab.ports import free_port
from trimtab.settings import ActionSettings, General, Settings, dump
from trimtab.stack import running, with_free_ports

RULES = Path(__file__).parents[2] / "alerts" / "rules.d"

SECRET = "only-for-tests"
# Debian gives Alertmanager its longer name.
ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ALERTMANAGER and shutil.which("prometheus")), reason="Prometheus or Alertmanager is not installed"
    ),
]


def _until(condition: Callable[[], Any], what: str, seconds: float = 90.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = condition()
        except httpx.TransportError:
            found = None
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.25)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Starts a server; it is stopped at the end of the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: object) -> None:
        with (tmp_path / f"{Path(str(command[0])).name}.log").open("wb") as log:
            started.append(subprocess.Popen([str(word) for word in command], stdout=log, stderr=log))

    yield start
    for server in started:
        server.terminate()
    for server in started:
        server.wait(60)


def test_an_action_comes_from_the_collector_by_way_of_a_real_prometheus_and_alertmanager(
    trimtab: Callable[..., Any], process: Callable[..., None], tmp_path: Path
) -> None:
    replace = msgspec.structs.replace
    alerts = replace(Settings().alerts, shipped_rules=False, actions={"rollback": ActionSettings(mode="advise")})
    own = replace(Settings(), trimtab=General(data=str(tmp_path / "data"), secret=SECRET), alerts=alerts)
    settings, _ = with_free_ports(own, anywhere=True)
    path = tmp_path / "trimtab.toml"
    path.write_text(dump(settings))
    prometheus_port, alertmanager_port = free_port(), free_port()
    query, alertmanager = f"http://127.0.0.1:{prometheus_port}", f"127.0.0.1:{alertmanager_port}"
    trimtab("export", "prometheus", tmp_path / "p", "--alertmanager", alertmanager, "--settings", path)
    trimtab("export", "alertmanager", tmp_path / "am", "--settings", path)
    written = tmp_path / "am" / "alertmanager.yml"
    written.write_text(written.read_text().replace("PUT THE SECRET HERE", SECRET))

    with running(settings, ("collector", "alerts")):
        labels = 'model="m",release="m-1",candidate="2",baseline="1"'
        page = (
            f'canary_evidence{{{labels},check="errors",hypothesis="harm"}} 150\n'
            'drift_columns_ratio{model="m",version="1"} 0.5\n'
        )
        push = f"{settings.intake_url}/metrics/job/test?honor_labels=true"
        assert httpx.put(push, content=page).status_code == 200
        process(
            *(ALERTMANAGER, f"--config.file={written}", f"--storage.path={tmp_path / 'am-data'}"),
            *(f"--web.listen-address={alertmanager}", "--cluster.listen-address="),
        )
        process(
            *("prometheus", f"--config.file={tmp_path / 'p' / 'prometheus.yml'}"),
            *(f"--storage.tsdb.path={tmp_path / 'p-data'}", f"--web.listen-address=127.0.0.1:{prometheus_port}"),
        )

        def federated() -> Any:
            answer = httpx.get(f"{query}/api/v1/query", params={"query": "drift_columns_ratio"})
            return answer.status_code == 200 and answer.json()["data"]["result"]

        def actions() -> Any:
            return httpx.get(f"{settings.alerts_url}/api/v1/actions").json()

        (series,) = _until(federated, "the drift that the collector holds")
        (action,) = _until(actions, "the action")
        groups = httpx.get(f"{query}/api/v1/rules").json()["data"]["groups"]

    rules = [rule for group in groups for rule in group["rules"]]
    files = [yaml.safe_load(path.read_text()) for path in sorted(RULES.glob("*.yml"))]
    shipped = sum(len(group["rules"]) for file in files for group in file["groups"])
    assert {"model": "m", "version": "1"}.items() <= series["metric"].items()
    assert series["value"][1] == "0.5"
    assert len(rules) == shipped
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule.get("lastError")] == []
    assert (action["action"], action["model"], action["state"]) == ("rollback", "m", "advised")
    assert action["alert"] == "CanaryHarmful"
    assert action["labels"]["release"] == "m-1"
