"""The API: Alertmanager's v2, Prometheus' rules, evidence and actions; what is wrong is said; amtool works."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import uvicorn

from alerts.actions import ActionPolicy, FunctionHook
from alerts.api import alerts_app
from alerts.config import AlertsConfig
from alerts.service import AlertsService
from observability import signing

RULES = """
groups:
  - name: g
    interval: 1s
    rules:
      - {alert: Up, expr: up > 0, labels: {severity: page}, annotations: {summary: "{{ $labels.model }} is up"}}
      - {record: "up:sum", expr: sum(up)}
"""


@pytest.fixture
def service(database_url: str, metering: Any, clock: Any, make_rule_file: Any) -> AlertsService:
    config = AlertsConfig(
        database_url=database_url,
        shipped_rules=False,
        rule_files=(make_rule_file(RULES),),
        policies={"rollback": ActionPolicy(mode="approve")},
        hooks={"rollback": FunctionHook(lambda call: {"called": call.key})},
        secret="s3cret",
    )
    service = AlertsService(config, querier=metering, writer=metering, clock=clock)
    metering.scrape(clock.advance(1.0), {'up{model="m"}': 1.0})
    service.tick(clock.now)
    return service


@pytest.fixture
def base_url(service: AlertsService) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(alerts_app(service, run=False), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def client(base_url: str, clock: Any) -> Iterator[httpx.Client]:
    def sign(request: httpx.Request) -> None:
        request.headers[signing.HEADER] = signing.sign("s3cret", request.read(), clock())

    with httpx.Client(base_url=base_url, event_hooks={"request": [sign]}) as client:
        yield client


def at(clock: Any, seconds: float = 0) -> str:
    return (datetime.fromtimestamp(clock(), UTC) + timedelta(seconds=seconds)).isoformat()


def silence(clock: Any, **changes: Any) -> dict[str, Any]:
    matcher = {"name": "alertname", "value": "Up", "isRegex": False}
    body = {"matchers": [matcher], "startsAt": at(clock), "endsAt": at(clock, 60), "createdBy": "ada", "comment": "c"}
    return {**body, **changes}


def test_prometheus_sees_its_rules_and_alerts(client: httpx.Client) -> None:
    (group,) = client.get("/api/v1/rules").json()["data"]["groups"]
    (alert,) = client.get("/api/v1/alerts").json()["data"]["alerts"]

    assert [(r["type"], r["name"], r["health"]) for r in group["rules"]] == [
        ("alerting", "Up", "ok"), ("recording", "up:sum", "ok"),
    ]  # fmt: skip
    assert group["rules"][0]["state"] == "firing"
    assert alert["labels"] == {"alertname": "Up", "model": "m", "severity": "page"}
    assert alert["annotations"] == {"summary": "m is up"}


def test_a_silence_suppresses_until_it_is_expired(client: httpx.Client, clock: Any) -> None:
    before = client.get("/api/v2/alerts").json()
    made = client.post("/api/v2/silences", json=silence(clock)).json()["silenceID"]
    during = client.get("/api/v2/alerts").json()
    hidden = client.get("/api/v2/alerts", params={"silenced": "false"}).json()
    ended = client.delete(f"/api/v2/silence/{made}")

    assert [alert["status"]["state"] for alert in before] == ["active"]
    assert [alert["status"]["silencedBy"] for alert in during] == [[made]]
    assert hidden == []
    assert ended.status_code == 200
    assert client.get(f"/api/v2/silence/{made}").json()["status"] == {"state": "expired"}


def test_alerts_of_others_are_kept_and_bad_ones_named(client: httpx.Client) -> None:
    answer = client.post("/api/v2/alerts", json=[{"labels": {"alertname": "Other", "empty": ""}}, {"labels": {}}])
    found = client.get("/api/v2/alerts", params={"filter": 'alertname="Other"'}).json()

    assert (answer.status_code, answer.json()) == (400, "at least one label pair required")
    assert [alert["labels"] for alert in found] == [{"alertname": "Other"}]


def test_alertmanagers_webhook_drives_actions_once(client: httpx.Client, clock: Any) -> None:
    alert = {
        "status": "firing",
        "labels": {"alertname": "Bad", "action": "rollback", "model": "m", "release": "m-4"},
        "annotations": {"summary": "bad"},
        "startsAt": at(clock),
        "endsAt": "0001-01-01T00:00:00Z",
        "fingerprint": "0",
    }
    message = {"version": "4", "status": "firing", "alerts": [alert, {**alert, "status": "resolved"}]}

    paths = ("/hooks/alertmanager", "/api/v1/webhook", "/hooks/alertmanager")
    answers = [client.post(path, json=message).json()["actions"] for path in paths]
    (action,) = answers[0]
    approved = client.post(f"/api/v1/actions/{action['id']}/approve", json={"actor": "ada"})

    assert answers[1:] == [[], []]
    assert (action["state"], action["key"]) == ("waiting", "rollback:m:m-4")
    assert (approved.status_code, approved.json()["actor"]) == (200, "ada")
    assert len(client.get("/api/v1/actions", params={"model": "m"}).json()) == 1
    assert client.post(f"/api/v1/actions/{action['id']}/reject", json={"actor": "ada"}).status_code == 409


def test_a_person_asks_for_an_action(client: httpx.Client) -> None:
    body = {"action": "rollback", "model": "m", "reason": "why not", "actor": "ada"}

    made = client.post("/api/v1/actions", json=body, headers={"Idempotency-Key": "k"})
    again = client.post("/api/v1/actions", json=body, headers={"Idempotency-Key": "k"})

    assert (made.status_code, made.json()["mode"], made.json()["reason"]) == (202, "manual", "why not")
    assert again.json()["id"] == made.json()["id"]
    assert client.get(f"/api/v1/actions/{made.json()['id']}").json()["actor"] == "ada"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("GET", "/api/v1/actions/99", None, 404, "there is no action 99"),
        ("GET", "/api/v1/actions/x", None, 404, "there is no action x"),
        ("GET", "/api/v1/actions?limit=0", None, 400, "limit must be a whole number"),
        ("POST", "/api/v1/actions", {"action": "reboot", "model": "m", "actor": "a"}, 400, "unknown action 'reboot'"),
        ("POST", "/api/v1/actions", {"action": 7}, 422, "action must be text"),
        ("POST", "/api/v1/actions", {"action": "retrain", "model": "m", "actor": "a"}, 400, "no hook is set"),
        ("POST", "/api/v1/actions/99/approve", {"actor": "a"}, 404, "no action 99"),
        ("POST", "/api/v1/webhook", {"version": "4"}, 400, "Alertmanager's webhook message"),
        ("GET", "/api/v2/silence/none", None, 422, "must be of type uuid"),
        ("GET", "/api/v2/alerts?filter=%7B", None, 400, "bad matcher format"),
        ("POST", "/api/v2/silences", {"matchers": []}, 422, "comment in body is required"),
        ("POST", "/hooks/alertmanager", {"version": "3", "alerts": []}, 400, "only version 4 is read"),
        ("POST", "/api/v2/alerts", {}, 400, "must be a list"),
        ("POST", "/api/v2/alerts", [{"labels": {"a": "b"}, "startsAt": "soon"}], 400, "RFC 3339"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(
    client: httpx.Client, method: str, path: str, body: Any, status: int, message: str
) -> None:
    answer = client.request(method, path, json=body)

    assert answer.status_code == status, answer.text
    assert message in answer.text


def test_silences_that_end_in_the_past_or_match_everything_are_refused(client: httpx.Client, clock: Any) -> None:
    past = client.post("/api/v2/silences", json=silence(clock, startsAt=at(clock, -9), endsAt=at(clock, -5)))
    every = [{"name": "a", "value": ".*", "isRegex": True}]
    everything = client.post("/api/v2/silences", json=silence(clock, matchers=every))

    assert (past.status_code, past.json()) == (400, "Failed to create silence: end time can't be in the past")
    assert everything.status_code == 400


def test_what_acts_needs_a_signature_or_the_bearer_token(base_url: str) -> None:
    body = {"action": "rollback", "model": "m", "reason": "", "actor": "ada"}

    unsigned = httpx.post(f"{base_url}/api/v1/actions", json=body)
    bearer = httpx.post(f"{base_url}/api/v1/actions", json=body, headers={"Authorization": "Bearer s3cret"})

    assert unsigned.status_code == 401
    assert "X-Trimtab-Signature" in unsigned.json()["error"]
    assert bearer.status_code == 202


def test_health_evidence_and_metrics_answer(client: httpx.Client) -> None:
    assert client.get("/-/healthy").text == client.get("/-/ready").text == "OK"
    assert client.get("/api/v1/evidence").json() == {"releases": [], "error": ""}
    assert 'rule_group_duration_seconds_count{group="g"} 1.0' in client.get("/metrics").text


def test_promtool_accepts_the_metrics(client: httpx.Client) -> None:
    page = client.get("/metrics").text

    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_amtool_queries_alerts_and_makes_and_ends_silences(
    database_url: str, metering: Any, make_rule_file: Any
) -> None:
    config = AlertsConfig(database_url=database_url, shipped_rules=False, rule_files=(make_rule_file(RULES),))
    service = AlertsService(config, querier=metering, writer=metering)
    metering.scrape(time.time() - 1, {'up{model="m"}': 1.0})
    service.tick(time.time())
    server = uvicorn.Server(uvicorn.Config(alerts_app(service, run=False), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    def amtool(*args: str) -> str:
        done = subprocess.run(["amtool", f"--alertmanager.url={url}", *args], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    alerts = json.loads(amtool("alert", "query", "-o", "json", "alertname=Up"))
    id = amtool("silence", "add", "alertname=Up", "--author=ada", "--comment=c", "--duration=1h").strip()
    unsilenced = json.loads(amtool("alert", "query", "-o", "json"))
    silences = json.loads(amtool("silence", "query", "-o", "json"))
    amtool("silence", "expire", id)
    left = json.loads(amtool("silence", "query", "-o", "json"))
    server.should_exit = True
    thread.join()

    assert [alert["annotations"]["summary"] for alert in alerts] == ["m is up"]
    assert unsilenced == []
    assert [silence["id"] for silence in silences] == [id]
    assert left == []
