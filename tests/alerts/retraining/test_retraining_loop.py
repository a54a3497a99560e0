"""Episodes in the service: one retraining each, over restarts, two services, gaps and an Alertmanager's silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alerts.actions import ActionPolicy, ActionState, FunctionHook, HookError
from alerts.actions.journal import Entry, entries
from alerts.config import AlertsConfig
from alerts.received import read_webhook
from alerts.recheck import recheck
from alerts.retraining import RetrainingPolicy
from alerts.service import AlertsService

RULES = """
groups:
  - name: own
    rules:
      - {alert: Drifted, expr: drift > 0.5, labels: {action: retrain}}
      - {alert: Decayed, expr: decay > 0.5, labels: {action: retrain}}
"""
POLICY = RetrainingPolicy(
    calm_seconds=60.0, backoff_seconds=100.0, min_new_labels=500, failure_backoff_seconds=10.0, settle_seconds=30.0
)


class Loop:
    """Services on one database, a model whose drift and decay are measured, and a trainer that says what it is told."""

    def __init__(self, rules: Path, url: str, metering: Any, clock: Any) -> None:
        self.rules, self.url, self.metering, self.clock = rules, url, metering, clock
        self.calls: list[Any] = []
        self.answer: Mapping[str, Any] | HookError = {"passed": True, "version": 2}
        self.version, self.drift, self.decay, self.labels = 1, 0.0, 0.0, 0.0
        self.services = [self.service()]

    def service(self) -> AlertsService:
        config = AlertsConfig(
            database_url=self.url, shipped_rules=False, rule_files=(self.rules,), retraining=POLICY,
            policies={"retrain": ActionPolicy(cooldown_seconds=0.0, budget_per_hour=100)},
            hooks={"retrain": FunctionHook(self.train)},
        )  # fmt: skip
        return AlertsService(config, querier=self.metering, writer=self.metering, clock=self.clock)

    def train(self, call: Any) -> Mapping[str, Any]:
        self.calls.append(call)
        if isinstance(self.answer, HookError):
            raise self.answer
        return self.answer

    def go(self, seconds: int, step: float = 5.0, labels: float = 0.0) -> None:
        """Time passes; every service looks at each step, and simulated time waits for hooks."""
        for _ in range(round(seconds / step)):
            now = self.clock.advance(step)
            self.labels += labels * step
            self.metering.scrape(
                now,
                {
                    f'drift{{model="m",version="{self.version}"}}': self.drift,
                    'decay{model="m"}': self.decay,
                    f'traffic_weight_ratio{{model="m",version="{self.version}",role="stable"}}': 1.0,
                    'collector_label_rows_total{model="m",matched="true"}': self.labels,
                },
            )
            for service in self.services:
                service.tick(now)
                for pool in (service.actions._traffic, service.actions._others):
                    pool.submit(int).result(60)
                while any(a.state is ActionState.RUNNING for a in service.actions.actions()):
                    pass

    def episodes(self) -> list[dict[str, Any]]:
        return self.services[0].retraining.episodes()


@pytest.fixture
def loop(make_rule_file: Callable[[str], Path], database_url: str, metering: Any, clock: Any) -> Iterator[Loop]:
    loop = Loop(make_rule_file(RULES), database_url, metering, clock)
    yield loop
    with loop.services[0].database.begin() as connection:
        again = recheck(entries(connection, limit=10_000))
    for service in loop.services:
        service.close()
    assert [one.wrong for one in again if one.wrong] == []


def test_alerts_that_come_and_go_are_one_episode_and_one_retraining(loop: Loop) -> None:
    loop.services.append(loop.service())
    for drift, decay in ((0.9, 0.0), (0.1, 0.9), (0.9, 0.9), (0.1, 0.0), (0.9, 0.0)):
        loop.drift, loop.decay = drift, decay
        loop.go(15)
    loop.drift = 0.0
    loop.go(120)

    (episode,) = loop.episodes()
    assert len(loop.calls) == 1
    assert (episode["cause"], episode["version"]) == ("Drifted", "1")
    assert episode["ended_because"] == "nothing asked for 60 s"
    assert [attempt["outcome"] for attempt in episode["attempts"]] == ["released"]

    loop.go(65)
    loop.drift = 0.9
    loop.go(10)
    assert [call.key for call in loop.calls] == ["retrain:m:episode-1:1", "retrain:m:episode-2:1"]


def test_decisions_on_episodes_are_made_again_and_each_change_to_what_they_rest_on_is_found(loop: Loop) -> None:
    loop.answer = {"passed": False, "reason": "not better"}
    loop.drift = 0.9
    loop.go(20)
    loop.drift = 0.0
    loop.go(120)
    with loop.services[0].database.begin() as connection:
        rows = entries(connection)
    begun = next(row for row in rows if row.kind == "decided")
    told = {row.body["event"]: row for row in rows if row.kind == "episode"}
    ended, waits = told["ended"], told["waits"]
    look = waits.body["rests_on"]["look"]

    forged = [
        changed(ended, why="it was over"),
        changed(ended, ended="promoted"),
        *(changed(ended, rests_on={**ended.body["rests_on"], **one}) for one in (
            {"quiet_since": ended.time - 1.0}, {"calm_seconds": 61.0}, {"now": ended.time - 50.0},
            {"served": ["9"]}, {"unknown": 1})),
        changed(waits, reason="it waits"),
        changed(waits, rests_on={**waits.body["rests_on"], "decision": "retrain"}),
        *(changed(waits, rests_on={**waits.body["rests_on"], "look": {**look, **one}}) for one in (
            {"attempts": []}, {"busy": "m-1"}, {"now": look["now"] + 1e6, "new_labels": 1e6},
            {"policy": {**look["policy"], "backoff_seconds": 7.0}}, {"policy": None})),
    ]  # fmt: skip
    episode = begun.body["evidence"]["episode"]
    forged_look = {**episode["rests_on"]["look"], "begun_today": 99}
    episode = {**episode, "rests_on": {**episode["rests_on"], "look": forged_look}}
    forged.append(changed(begun, evidence={**begun.body["evidence"], "episode": episode}))

    assert [one.wrong for one in recheck(rows)] == [""] * 4  # an action, its attempt, waiting, the end
    for row in forged:
        assert any(one.wrong for one in recheck([row])), row.body


def changed(row: Entry, **body: Any) -> Entry:
    return replace(row, body={**row.body, **body})


def test_restarts_and_time_that_nobody_looked_at_make_no_second_one(loop: Loop) -> None:
    loop.drift = 0.9
    loop.go(10)
    for _ in range(3):
        loop.services.pop().close()
        loop.clock.advance(500.0)  # longer than the calm: nobody looked, so nothing is known of it
        loop.services.append(loop.service())
        loop.go(10)

    (episode,) = loop.episodes()
    assert (len(loop.calls), episode["ended_at"]) == (1, None)


def test_another_version_in_service_ends_it_and_drift_that_goes_on_is_not_retrained_blindly(loop: Loop) -> None:
    loop.drift = 0.9
    loop.go(10)
    loop.version = 2
    loop.go(10)

    second, first = loop.episodes()
    assert first["ended_because"] == "version 2 came into service, with its own reference"
    assert (second["follows"], second["version"], len(loop.calls)) == (first["id"], "2", 1)
    assert "did not help" in second["waits"]

    loop.go(150)
    assert len(loop.calls) == 1, "no label has come since"
    assert "500 labelled events" in loop.episodes()[0]["waits"]
    loop.go(10, labels=100.0)
    assert len(loop.calls) == 2
    assert loop.calls[1].evidence["episode"]["attempt"] == 1
    assert loop.calls[1].evidence["episode"]["earlier"][0]["outcome"] == "released"


def test_a_refusal_waits_for_labels_and_a_crash_is_tried_again_soon(loop: Loop) -> None:
    loop.drift = 0.9
    loop.answer = HookError("killed", {"exit_status": 137, "output": ""})
    loop.go(5)
    loop.answer = HookError("refused", {"exit_status": 2, "output": '{"passed": false, "reason": "no better"}'})
    loop.go(40)
    assert [attempt["outcome"] for attempt in loop.episodes()[0]["attempts"]] == ["failed", "refused"]
    loop.answer = {"passed": True, "version": 2}
    loop.go(50, labels=100.0)
    assert len(loop.calls) == 2, "the back-off is not over"
    loop.go(60)
    assert [attempt["outcome"] for attempt in loop.episodes()[0]["attempts"]] == ["failed", "refused", "released"]


def test_an_alertmanagers_alert_stands_until_it_is_resolved(loop: Loop) -> None:
    labels = {"alertname": "Drifted", "action": "retrain", "model": "m"}
    message = {"version": "4", "alerts": [{"status": "firing", "labels": labels, "startsAt": "2023-11-14T00:00:00Z"}]}
    service = loop.services[0]
    alerts, _ = read_webhook(message, loop.clock())
    decided = service.received_by_webhook(alerts, [], loop.clock())
    assert [action.key for action in decided] == ["retrain:m:episode-1:1"]
    loop.go(300)
    assert loop.episodes()[0]["ended_at"] is None
    service.received_by_webhook([], [labels], loop.clock())
    loop.go(90)
    assert loop.episodes()[0]["ended_at"] is not None
    assert len(loop.calls) == 1
