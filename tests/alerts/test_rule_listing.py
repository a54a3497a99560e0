"""Prometheus' list of rules: filters, pages, and what it refuses, in its words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.datastructures import QueryParams

from alerts.engine import RuleEngine
from alerts.rule_listing import BadParameter, rule_discovery
from alerts.rules import load
from alerts.state_store import StateStore

RULES = """
groups:
  - name: first
    interval: 1s
    rules:
      - {record: "m:sum", expr: sum(m), labels: {team: a}}
      - alert: High
        expr: m > 1
        for: 2s
        keep_firing_for: 5s
        labels: {team: b}
        annotations: {summary: "{{ $value }}"}
  - {name: second, interval: 1s, limit: 7, rules: [{alert: Low, expr: m < 0}]}
  - {name: third, interval: 1s, rules: [{record: "n:sum", expr: sum(n)}]}
"""


@pytest.fixture
def engine(make_rule_file: Callable[[str], Path], metering: Any, database: sa.Engine, clock: Any) -> RuleEngine:
    made = RuleEngine(load([make_rule_file(RULES)]), metering, metering, StateStore(database))
    for value in (2.0, 2.5, 2.5, 0.0):
        metering.scrape(clock.advance(1.0), {'m{x="1"}': value})
        for status, ts in made.due(clock.now):
            made.evaluate(status, ts)
    return made


def ask(engine: RuleEngine, query: str) -> dict[str, Any]:
    return rule_discovery(engine.groups, QueryParams(query))


def names(data: dict[str, Any]) -> dict[str, list[str]]:
    return {group["name"]: [rule["name"] for rule in group["rules"]] for group in data["groups"]}


def test_groups_and_rules_have_prometheus_fields(engine: RuleEngine, clock: Any) -> None:
    first, second, _ = ask(engine, "")["groups"]

    record, alert = first["rules"]
    assert set(first) == {"name", "file", "rules", "interval", "limit", "evaluationTime", "lastEvaluation"}
    assert (second["limit"], second["interval"], second["rules"][0]["state"]) == (7, 1.0, "inactive")
    assert set(record) == {"name", "query", "labels", "health", "evaluationTime", "lastEvaluation", "type"}
    assert (alert["state"], alert["duration"], alert["keepFiringFor"], alert["health"]) == ("firing", 2.0, 5.0, "ok")
    (active,) = alert["alerts"]
    assert active["value"] == "2.5e+00"
    assert active["annotations"] == {"summary": "2.5"}
    assert active["activeAt"] == "2023-11-14T22:13:21Z"
    assert active["keepFiringSince"] == "2023-11-14T22:13:24Z"
    assert first["lastEvaluation"].startswith("2023-11-14T22:13:24")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("type=alert", {"first": ["High"], "second": ["Low"]}),
        ("type=record", {"first": ["m:sum"], "third": ["n:sum"]}),
        ("rule_name[]=High&rule_name[]=n:sum", {"first": ["High"], "third": ["n:sum"]}),
        ("rule_group[]=second", {"second": ["Low"]}),
        ("file[]=nosuch.yml", {}),
        ('match[]={team="a"}', {"first": ["m:sum"]}),
        ('match[]={team="a"}&match[]={team="b"}', {"first": ["m:sum", "High"]}),
    ],
)
def test_filters(engine: RuleEngine, query: str, expected: dict[str, list[str]]) -> None:
    assert names(ask(engine, query)) == expected


def test_alerts_can_be_left_out(engine: RuleEngine) -> None:
    (group,) = ask(engine, "exclude_alerts=true&rule_name[]=High")["groups"]

    assert group["rules"][0]["alerts"] is None
    assert group["rules"][0]["state"] == "firing"


def test_pages_follow_one_another(engine: RuleEngine) -> None:
    seen: list[str] = []
    query = "group_limit=1"
    for _ in range(3):
        data = ask(engine, query)
        seen += names(data)
        query = f"group_limit=1&group_next_token={data.get('groupNextToken', '')}"

    assert seen == ["first", "second", "third"]
    assert "groupNextToken" not in data
    assert names(ask(engine, "group_limit=5")).keys() == {"first", "second", "third"}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("type=alerts", 'invalid parameter "type": not supported value "alerts"'),
        ("exclude_alerts=maybe", "strconv.ParseBool"),
        ("group_next_token=x", "group_limit needs to be present"),
        ("group_limit=x", "valid number"),
        ("group_limit=0", "greater than 0"),
        ("group_limit=1&group_next_token=x", "were rule groups changed?"),
        ("match[]={", 'invalid parameter "match[]"'),
    ],
)
def test_wrong_parameters_are_refused(engine: RuleEngine, query: str, message: str) -> None:
    with pytest.raises(BadParameter) as raised:
        ask(engine, query)

    assert message in str(raised.value)
