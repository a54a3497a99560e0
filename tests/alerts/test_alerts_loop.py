"""The whole judge in process: counters of a canary go in, a hook on a real server comes out, or rightly does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from alerts.actions import ActionPolicy
from alerts.config import AlertsConfig
from alerts.evidence import Outcome
from alerts.labels import Matcher
from alerts.service import AlertsService
from alerts.silence import Silence

RELEASE = 'model="m",release="m-1",candidate="2",baseline="1"'


class Traffic:
    """Requests a second by arm, some of which fail; the counters that a server would show."""

    def __init__(self, metering: Any, clock: Any, seed: int = 1) -> None:
        self.metering, self.clock = metering, clock
        self.rng = np.random.default_rng(seed)
        self.counts = {(arm, outcome): 0 for arm in ("canary", "stable") for outcome in ("ok", "error")}
        self.weight = 0.1

    def second(self, canary: float, stable: float = 0.005, rps: int = 100) -> float:
        now = self.clock.advance(1.0)
        for arm, share, rate in (("canary", self.weight, canary), ("stable", 1 - self.weight, stable)):
            requests = self.rng.poisson(rps * share)
            errors = self.rng.binomial(requests, rate)
            self.counts[arm, "error"] += int(errors)
            self.counts[arm, "ok"] += int(requests - errors)
        series = {
            f'release_requests_total{{{RELEASE},arm="{arm}",propensity="0.1",outcome="{outcome}"}}': float(count)
            for (arm, outcome), count in self.counts.items()
        }
        series['traffic_weight_ratio{model="m",version="1",role="stable"}'] = 1 - self.weight
        series['traffic_weight_ratio{model="m",version="2",role="canary"}'] = self.weight
        self.metering.scrape(now, series)
        return float(now)


@pytest.fixture
def make_service(database_url: str, metering: Any, clock: Any, hook_server: Any) -> Iterator[Callable[..., Any]]:
    made: list[AlertsService] = []

    def make(**changes: Any) -> AlertsService:
        config = AlertsConfig(**{"database_url": database_url, "serving_url": hook_server.url, **changes})
        made.append(AlertsService(config, querier=metering, writer=metering, clock=clock))
        return made[-1]

    yield make
    for service in made:
        service.close()


def settle(service: AlertsService) -> None:
    """Wait until nothing runs."""
    until = time.monotonic() + 60
    while any(action.state == "running" for action in service.actions.actions()):
        assert time.monotonic() < until, "an action still runs"
        time.sleep(0.01)


def test_a_bad_canary_is_rolled_back_once_within_seconds(
    make_service: Callable[..., AlertsService], metering: Any, clock: Any, hook_server: Any
) -> None:
    service, traffic = make_service(), Traffic(metering, clock)

    seconds = next(n for n in range(1, 61) if service.tick(traffic.second(canary=0.2)) and service.actions.actions())
    settle(service)
    for _ in range(5):
        service.tick(traffic.second(canary=0.2))
    settle(service)

    assert seconds <= 12
    (request,) = hook_server.requests
    assert request["path"] == "/api/v1/models/m/rollback"
    assert request["body"]["release"] == "m-1"
    assert "Version 2 of m fails more often than version 1" in request["body"]["reason"]
    (action,) = service.actions.actions()
    assert (action.state, action.alert, action.labels["severity"]) == ("done", "CanaryHarmful", "page")
    assert action.evidence["release"]["evidence"]["errors"]["harm"] >= 100
    assert metering.value('ALERTS{alertname="CanaryHarmful",alertstate="firing"}', clock.now) == 1.0
    assert metering.value('canary_verdict{verdict="rollback"}', clock.now) == 1.0

    traffic.weight = 0.0
    service.tick(traffic.second(canary=0.0))
    (judgement,) = service.judge.judgements()
    assert judgement.release.ended_at == clock.now
    assert metering.instant("canary_evidence", clock.now) == []
    assert metering.instant('ALERTS{alertname="CanaryHarmful"}', clock.now) == []


@pytest.mark.slow
def test_without_a_fault_there_is_no_rollback_and_the_release_is_promoted(
    make_service: Callable[..., AlertsService], metering: Any, clock: Any, hook_server: Any
) -> None:
    service, traffic = make_service(), Traffic(metering, clock)

    for _ in range(150):
        service.tick(traffic.second(canary=0.001, stable=0.001))
        settle(service)

    assert [request["path"] for request in hook_server.requests] == ["/api/v1/models/m/promote"]
    (judgement,) = service.judge.judgements()
    assert judgement.release.verdict is Outcome.ADVANCE


@pytest.mark.slow
def test_an_incident_common_to_both_versions_rolls_nothing_back(
    make_service: Callable[..., AlertsService], metering: Any, clock: Any, hook_server: Any
) -> None:
    service, traffic = make_service(), Traffic(metering, clock, seed=5)

    for second in range(60):
        service.tick(traffic.second(canary=0.3 if second > 20 else 0.005, stable=0.3 if second > 20 else 0.005))
    settle(service)

    assert [r["path"] for r in hook_server.requests if r["path"].endswith("rollback")] == []


def test_counters_that_restart_and_a_judge_that_restarts_lose_no_evidence(
    make_service: Callable[..., AlertsService], metering: Any, clock: Any
) -> None:
    service, traffic = make_service(policies={}), Traffic(metering, clock)
    totals = dict.fromkeys(traffic.counts, 0)
    for part in range(3):
        for _ in range(5):
            service.tick(traffic.second(canary=0.05))
        totals = {key: total + traffic.counts[key] for key, total in totals.items()}
        traffic.counts = dict.fromkeys(traffic.counts, 0)
        service.tick(traffic.second(canary=0.0, rps=0))  # the restarted server, before its first request
        if part == 1:
            service = make_service(policies={})

    (judgement,) = service.judge.judgements()

    assert judgement.counts.canary_errors == totals["canary", "error"]
    assert judgement.counts.canary_requests == totals["canary", "error"] + totals["canary", "ok"]
    assert judgement.counts.stable_requests == totals["stable", "error"] + totals["stable", "ok"]


def test_missing_metrics_neither_end_a_release_nor_act(
    make_service: Callable[..., AlertsService], metering: Any, clock: Any, hook_server: Any
) -> None:
    service, traffic = make_service(), Traffic(metering, clock)
    for _ in range(2):
        service.tick(traffic.second(canary=0.01))

    metering.scrape(clock.advance(1.0), {})  # the server is gone: all its series end
    service.tick(clock.now)
    gone = service.judge.judgements()
    metering.away = True
    service.tick(clock.advance(1.0))
    error = service.evidence_error
    metering.away = False
    service.tick(traffic.second(canary=0.01))

    assert gone[0].release.ended_at is None
    assert "away" in error
    assert service.evidence_error == ""
    assert hook_server.requests == []


def test_a_silenced_alert_neither_acts_nor_notifies(
    make_service: Callable[..., AlertsService], metering: Any, clock: Any, hook_server: Any
) -> None:
    service, traffic = make_service(notify_urls=(f"{hook_server.url}/notify",)), Traffic(metering, clock)
    silence = Silence(
        matchers=(Matcher("model", "=", "m"),),
        starts_at=clock.now,
        ends_at=clock.now + 20,
        created_by="ada",
        comment="",
    )
    service.silences.set(silence, clock.now)

    for _ in range(15):
        service.tick(traffic.second(canary=0.5))
    silenced = list(hook_server.requests)
    for _ in range(10):
        service.tick(traffic.second(canary=0.5))
    settle(service)
    service.notifications.close()

    assert silenced == []
    paths = [request["path"] for request in hook_server.requests]
    assert paths.count("/api/v1/models/m/rollback") == 1
    harmful = [
        r["body"] for r in hook_server.requests if r["body"].get("groupLabels", {}).get("alertname") == "CanaryHarmful"
    ]
    assert [(body["version"], body["status"]) for body in harmful] == [("4", "firing")]


def test_in_approve_mode_the_hook_waits_for_a_person(
    make_service: Callable[..., AlertsService], metering: Any, clock: Any, hook_server: Any
) -> None:
    service = make_service(policies={"rollback": ActionPolicy(mode="approve")})
    traffic = Traffic(metering, clock)
    for _ in range(12):
        service.tick(traffic.second(canary=0.5))
    (action,) = service.actions.actions()
    assert (action.state, hook_server.requests) == ("waiting", [])

    service.actions.approve(action.id, "ada")
    settle(service)

    assert len(hook_server.requests) == 1
