"""Beside real servers: a Prometheus sends here; ours go on to a real Alertmanager, whose webhook acts here once."""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from alerts.actions import ActionPolicy, FunctionHook
from alerts.api import alerts_app
from alerts.config import AlertsConfig
from alerts.notifications.alert_store import KnownAlert
from alerts.notifications.forwarder import Forwarder
from alerts.service import AlertsService
from observability import names
from observability.metrics import Metrics
from trimtab.ports import free_port

RULES = """
groups:
  - name: g
    interval: 1s
    rules:
      - alert: Bad
        expr: up > 0
        labels: {action: rollback, model: "{{ $labels.model }}", release: m-1}
        annotations: {summary: it is bad}
"""
PROMETHEUS = """
global: {evaluation_interval: 1s, external_labels: {cluster: c}}
alerting: {alertmanagers: [{static_configs: [{targets: ["TARGET"]}]}]}
rule_files: [rules.yml]
"""
PROMETHEUS_RULES = """
groups:
  - name: g
    rules:
      - {alert: Always, expr: vector(1), labels: {severity: page}, annotations: {summary: "{{ $value }}"}}
"""


def wait_until(true: Callable[[], Any], seconds: float = 90.0) -> Any:
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
def serve() -> Iterator[Callable[..., str]]:
    stops: list[Callable[[], None]] = []

    def start(service: AlertsService, *, run: bool = True, port: int = 0) -> str:
        config = uvicorn.Config(alerts_app(service, run=run), port=port, log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)

        def stop() -> None:
            server.should_exit = True
            thread.join()

        stops.append(stop)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for stop in stops:
        stop()


@pytest.mark.slow
def test_a_prometheus_sends_here_and_a_silence_of_amtool_holds(
    tmp_path: Path, database_url: str, metering: Any, serve: Callable[..., str]
) -> None:
    config = AlertsConfig(database_url=database_url, shipped_rules=False)
    url = serve(AlertsService(config, querier=metering, writer=metering))
    (tmp_path / "prometheus.yml").write_text(PROMETHEUS.replace("TARGET", url.removeprefix("http://")))
    (tmp_path / "rules.yml").write_text(PROMETHEUS_RULES)
    prometheus = subprocess.Popen(
        ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb",
         f"--web.listen-address=127.0.0.1:{free_port()}", "--rules.alert.resend-delay=1s"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def amtool(*args: str) -> str:
        return subprocess.run(
            ["amtool", f"--alertmanager.url={url}", *args], capture_output=True, text=True, check=True
        ).stdout

    try:
        wait_until(lambda: json.loads(amtool("alert", "query", "Always", "-o", "json")))
        (alert,) = json.loads(amtool("alert", "query", "Always", "-o", "json"))
        amtool("silence", "add", "Always", "--author=ada", "--comment=c")
        left = json.loads(amtool("alert", "query", "-o", "json"))
    finally:
        prometheus.terminate()
        prometheus.wait()

    assert alert["labels"] == {"alertname": "Always", "cluster": "c", "severity": "page"}
    assert (alert["annotations"], alert["status"]["state"]) == ({"summary": "1"}, "active")
    assert left == []


@pytest.mark.slow
def test_our_alerts_go_on_to_a_real_alertmanager_whose_webhook_acts_once(
    database_url: str, metering: Any, serve: Callable[..., str], tmp_path: Path,
    real_alertmanager: Callable[[str], str],
) -> None:  # fmt: skip
    port = free_port()
    theirs = real_alertmanager(
        "route: {receiver: t, group_by: [alertname], group_wait: 0s, group_interval: 1s, repeat_interval: 1s}\n"
        f"receivers: [{{name: t, webhook_configs: [{{url: 'http://127.0.0.1:{port}/hooks/alertmanager'}}]}}]"
    )
    (tmp_path / "rules.yml").write_text(RULES)
    calls: list[str] = []
    hook = FunctionHook(lambda call: calls.append(call.key) or {})
    judge = AlertsService(
        AlertsConfig(
            database_url=database_url, shipped_rules=False, rule_files=(tmp_path / "rules.yml",),
            alertmanagers=(theirs,), policies={"rollback": ActionPolicy(mode="advise")},
        ),
        querier=metering, writer=metering,
    )  # fmt: skip
    actor = AlertsService(
        AlertsConfig(database_url=f"{database_url}-actor", shipped_rules=False, hooks={"rollback": hook}),
        querier=metering, writer=metering,
    )  # fmt: skip
    serve(actor, port=port)
    metering.scrape(time.time() - 1, {'up{model="m"}': 1.0})
    judge.tick(time.time())

    found = wait_until(lambda: httpx.get(f"{theirs}/api/v2/alerts").json())
    wait_until(lambda: calls)
    time.sleep(2.5)  # two repetitions
    judge.close()

    assert [(alert["labels"]["alertname"], alert["annotations"]) for alert in found] == [
        ("Bad", {"summary": "it is bad"})
    ]
    assert calls == ["rollback:m:m-1"]


def test_webhooks_ten_times_and_out_of_order_lead_to_one_action(
    database_url: str, metering: Any, clock: Any, serve: Callable[..., str]
) -> None:
    calls: list[str] = []
    hook = FunctionHook(lambda call: calls.append(call.key) or {})
    config = AlertsConfig(database_url=database_url, shipped_rules=False, hooks={"retrain": hook})
    service = AlertsService(config, querier=metering, writer=metering, clock=clock)
    url = serve(service, run=False)
    alert = {
        "labels": {"alertname": "Stale", "action": "retrain", "model": "m"}, "annotations": {"summary": "old"},
        "startsAt": "2023-11-14T22:00:00.123456789Z", "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "",
        "fingerprint": "1",
    }  # fmt: skip
    messages = []
    for status in ("firing", "resolved"):
        ends = alert["endsAt"] if status == "firing" else "2023-11-14T22:05:00Z"
        body = {"version": "4", "status": status, "alerts": [{**alert, "status": status, "endsAt": ends}]}
        messages += [body] * 10
    random.Random(3).shuffle(messages)

    with httpx.Client(base_url=url, verify=False) as client:
        answers = [client.post("/hooks/alertmanager", json=message) for message in messages]
        wait_until(lambda: calls)
        actions = client.get("/api/v1/actions").json()

    assert {answer.status_code for answer in answers} == {200}
    assert len(actions) == len(calls) == 1


def test_alerts_are_sent_on_to_all_until_they_are_taken(webhooks: Any) -> None:
    metrics = Metrics(families=(names.ALERTS_FORWARDED, names.ALERTS_FORWARD_ERRORS, names.ALERTS_FORWARD_DROPPED))
    webhooks.statuses = [503, 429, 500]
    forwarder = Forwarder(
        [f"{webhooks.url}/one", f"{webhooks.url}/two/"], metrics=metrics, wait=lambda event, seconds: None
    )
    alerts = [
        KnownAlert(
            labels=(("alertname", f"A{number}"),), annotations=(), starts_at=1.0, ends_at=2.5e9, updated_at=1.0
        )
        for number in range(100)
    ]  # fmt: skip

    forwarder.put(alerts)

    def taken(path: str) -> set[str]:
        posted = [each for each in webhooks.requests if each["path"] == path and each["status"] == 200]
        return {alert["labels"]["alertname"] for each in posted for alert in each["body"]}

    wait_until(lambda: all(len(taken(f"/{name}/api/v2/alerts")) == 100 for name in ("one", "two")))
    forwarder.close()
    body = webhooks.requests[-1]["body"][0]
    assert (body["startsAt"], body["endsAt"]) == ("1970-01-01T00:00:01Z", "2049-03-22T04:26:40Z")
    assert all(len(each["body"]) <= 64 for each in webhooks.requests)
