"""Rule groups against a real store in process: order, failures, restarts, a store that is away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from alerts.engine import RuleEngine
from alerts.rules import load
from alerts.state_store import StateStore

CHAIN = """
groups:
  - name: chain
    interval: 1s
    rules:
      - record: errors:ratio
        expr: sum by (model) (errors) / sum by (model) (requests)
      - alert: Broken
        expr: no_such_function_result > 0 or up == 0
      - alert: HighErrors
        expr: max by (model) (errors:ratio) > 0.1
        for: 3s
        keep_firing_for: 5s
        labels: {severity: page}
        annotations:
          summary: >-
            {{ $value | humanizePercentage }} of {{ $labels.model }} at
            {{ with query "sum(requests)" }}{{ . | first | value }}{{ end }}
"""


def make_engine(path: Path, metering: Any, database: sa.Engine) -> RuleEngine:
    return RuleEngine(load([path]), metering, metering, StateStore(database))


def run(engine: RuleEngine, metering: Any, clock: Any, errors: float) -> Any:
    clock.advance(1.0)
    metering.scrape(clock.now, {'errors{model="m"}': errors, 'requests{model="m"}': 100.0})
    ((group, ts),) = engine.due(clock.now)
    return engine.evaluate(group, ts)


def test_a_rule_sees_in_the_same_evaluation_what_the_rule_before_it_recorded(
    make_rule_file: Callable[[str], Path], metering: Any, database: sa.Engine, clock: Any
) -> None:
    engine = make_engine(make_rule_file(CHAIN), metering, database)

    evaluation = run(engine, metering, clock, 25.0)

    assert [(e.kind, e.alert.name) for e in evaluation.events] == [("pending", "HighErrors")]
    assert metering.value('errors:ratio{model="m"}', clock.now) == 0.25
    assert metering.value('ALERTS{alertname="HighErrors",alertstate="pending"}', clock.now) == 1.0
    assert metering.value("ALERTS_FOR_STATE", clock.now) == clock.now


def test_annotations_carry_numbers_and_firing_follows_for(
    make_rule_file: Callable[[str], Path], metering: Any, database: sa.Engine, clock: Any
) -> None:
    engine = make_engine(make_rule_file(CHAIN), metering, database)

    evaluations = [run(engine, metering, clock, 25.0) for _ in range(4)]

    (alert,) = evaluations[-1].firing
    assert [len(e.firing) for e in evaluations] == [0, 0, 0, 1]
    assert alert.annotation("summary") == "25% of m at 100"
    assert alert.label("severity") == "page"
    assert metering.value('ALERTS{alertstate="firing"}', clock.now) == 1.0
    assert metering.value('ALERTS{alertstate="pending"}', clock.now) is None  # ended by a stale marker


def test_a_failing_rule_says_why_and_the_others_go_on(
    make_rule_file: Callable[[str], Path], metering: Any, database: sa.Engine, clock: Any
) -> None:
    text = CHAIN.replace("no_such_function_result > 0 or up == 0", "errors * on (nothing) requests_twice")
    engine = make_engine(make_rule_file(text), metering, database)
    metering.scrape(clock.now, {'requests_twice{a="1"}': 1.0, 'requests_twice{a="2"}': 1.0}, target="other")

    evaluation = run(engine, metering, clock, 25.0)

    statuses = engine.groups[0].rules
    assert [status.health for status in statuses] == ["ok", "err", "ok"]
    assert statuses[1].last_error
    assert evaluation.failures == (f"Broken: {statuses[1].last_error}",)
    assert [e.alert.name for e in evaluation.events] == ["HighErrors"]


def test_nothing_resolves_or_acts_while_the_store_is_away(
    make_rule_file: Callable[[str], Path], metering: Any, database: sa.Engine, clock: Any
) -> None:
    engine = make_engine(make_rule_file(CHAIN), metering, database)
    for _ in range(4):
        run(engine, metering, clock, 25.0)

    metering.away = True
    clock.advance(60.0)
    ((group, ts),) = engine.due(clock.now)
    away = engine.evaluate(group, ts)
    metering.away = False
    back = run(engine, metering, clock, 25.0)

    assert (away.events, away.firing, len(away.failures)) == ((), (), 3)
    assert [alert.name for alert in back.firing] == ["HighErrors"]
    assert back.events == ()


def test_a_restart_keeps_when_an_alert_fired_and_since_when_it_is_kept(
    make_rule_file: Callable[[str], Path], metering: Any, database: sa.Engine, clock: Any
) -> None:
    path = make_rule_file(CHAIN)
    engine = make_engine(path, metering, database)
    for _ in range(4):
        run(engine, metering, clock, 25.0)
    fired_at = clock.now
    run(engine, metering, clock, 0.0)
    kept_since = clock.now

    restarted = make_engine(path, metering, database)
    evaluation = run(restarted, metering, clock, 0.0)
    (alert,) = restarted.alerts()
    later = [run(restarted, metering, clock, 0.0) for _ in range(4)]

    assert (alert.fired_at, alert.keep_firing_since, alert.state) == (fired_at, kept_since, "firing")
    assert evaluation.events == ()
    assert [event.kind for e in later for event in e.events] == ["resolved"]


def test_more_alerts_than_the_limit_are_an_error(
    make_rule_file: Callable[[str], Path], metering: Any, database: sa.Engine, clock: Any
) -> None:
    text = "groups: [{name: g, interval: 1s, limit: 1, rules: [{alert: A, expr: 'vector(1) or errors'}]}]"
    engine = make_engine(make_rule_file(text), metering, database)

    evaluation = run(engine, metering, clock, 1.0)

    assert evaluation.failures == ("A: exceeded limit of 1 with 2 alerts",)
    assert engine.alerts() == []


def test_missed_grid_points_are_skipped(
    make_rule_file: Callable[[str], Path], metering: Any, database: sa.Engine, clock: Any
) -> None:
    engine = make_engine(make_rule_file(CHAIN), metering, database)
    run(engine, metering, clock, 0.0)

    clock.advance(7.4)
    ((_, ts),) = engine.due(clock.now)

    assert ts == clock.now - 0.4
