"""Which alerts may ask for an action: never one that tells of actions, whatever way it comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alerts.actions import FunctionHook
from alerts.actions.asking import asked_for
from alerts.config import AlertsConfig
from alerts.received import read_webhook
from alerts.service import AlertsService
from alerts.states import Alert

LABELS = {"action": "retrain", "alertname": "DriftDetected", "model": "m"}
ASKING = Alert(
    labels=tuple(sorted(LABELS.items())), annotations=(), value=1.0, state="firing", active_at=1.0, fired_at=1.0
)
# What shipped rules did once: the label `action` of the count stood in the alert.
FOLLOWS_A_COUNT = """
groups:
  - name: own
    rules:
      - alert: RetrainBroken
        expr: sum by (action, model) (actions_total{outcome="failed"}) > 0
      - alert: Wanted
        expr: broken > 0
        labels: {action: retrain}
"""


def test_an_alert_asks_by_its_action_and_model_while_it_fires() -> None:
    assert asked_for(ASKING) == "retrain"
    assert asked_for(replace(ASKING, state="pending")) == ""
    assert asked_for(replace(ASKING, keep_firing_since=2.0)) == ""
    assert asked_for(replace(ASKING, labels=(("action", "reboot"), ("model", "m")))) == ""
    assert asked_for(replace(ASKING, labels=(("action", "retrain"),))) == ""


@pytest.mark.parametrize(
    "labels", [{"alertname": "ActionFailed"}, {"alertname": "ActionHeld"}, {"outcome": "failed"}, {"attempted": "x"}]
)
def test_an_alert_that_tells_of_actions_asks_for_none(labels: dict[str, str]) -> None:
    assert asked_for(replace(ASKING, labels=tuple(sorted((LABELS | labels).items())))) == ""


def test_a_received_alert_over_counts_of_actions_asks_for_none() -> None:
    def sent(url: str) -> Alert:
        item = {"status": "firing", "labels": LABELS, "startsAt": "2026-01-01T00:00:00Z", "generatorURL": url}
        (alert,), _ = read_webhook({"version": "4", "alerts": [item]}, 1.0)
        return alert

    assert asked_for(sent("http://prometheus/graph?g0.expr=drift_columns_ratio+%3E+0.3")) == "retrain"
    assert asked_for(sent("http://prometheus/graph?g0.expr=sum+by+%28action%29+%28actions_total%29")) == ""


def test_a_label_that_comes_from_the_data_asks_for_nothing(
    database_url: str, metering: Any, clock: Any, make_rule_file: Callable[[str], Path]
) -> None:
    calls: list[Any] = []
    config = AlertsConfig(
        database_url=database_url, shipped_rules=False, rule_files=(make_rule_file(FOLLOWS_A_COUNT),),
        hooks={"retrain": FunctionHook(calls.append)},
    )  # fmt: skip
    service = AlertsService(config, querier=metering, writer=metering, clock=clock)
    for _ in range(3):
        now = clock.advance(1.0)
        metering.scrape(
            now, {'actions_total{action="retrain",model="m",outcome="failed"}': 1.0, 'broken{model="n"}': 1.0}
        )
        service.tick(now)
    firing = {alert.name for alert in service.rules.alerts() if alert.state == "firing"}
    asked = [action.model for action in service.actions.actions()]
    service.close()

    assert firing == {"RetrainBroken", "Wanted"}
    assert asked == ["n"]
