"""Rule files: read strictly, with file and line in every complaint; the shipped ones please promtool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.rules import SHIPPED_RULES, RuleError, check, format_duration, load, parse_duration
from observability import names

MakeRuleFile = Callable[[str], Path]

GOOD = """
groups:
  - name: g
    interval: 5s
    query_offset: 1m
    limit: 10
    labels: {team: ml}
    rules:
      - record: job:up:sum
        expr: sum by (job) (up)
      - alert: Down
        expr: up == 0
        for: 1m30s
        keep_firing_for: 2m
        labels: {severity: page}
        annotations: {summary: "{{ $labels.job }} is down"}
"""


def test_a_group_is_read_with_all_its_fields(make_rule_file: MakeRuleFile) -> None:
    (group,) = load([make_rule_file(GOOD)])

    record, alert = group.rules
    assert (group.name, group.interval_seconds, group.query_offset_seconds, group.limit) == ("g", 5.0, 60.0, 10)
    assert (record.kind, record.name, record.labels) == ("record", "job:up:sum", (("team", "ml"),))
    assert (alert.for_seconds, alert.keep_firing_for_seconds) == (90.0, 120.0)
    assert alert.labels == (("severity", "page"), ("team", "ml"))
    assert check([make_rule_file(GOOD)]) == []


@pytest.mark.parametrize(
    ("broken", "line", "message"),
    [
        (("interval: 5s", "intervall: 5s"), 4, "unknown field 'intervall' in a group"),
        (("interval: 5s", "interval: soon"), 4, "not a duration: 'soon'"),
        (("expr: up == 0", "expr: up =="), 12, "cannot parse the expression"),
        (("expr: up == 0", "expr: sum(up[5m])"), 12, "cannot parse the expression"),
        (("record: job:up:sum", "record: job-up"), 9, "not a metric name"),
        (("expr: sum by (job) (up)", "expr: up\n        for: 1m"), 11, "'for' has no meaning in a recording rule"),
        (("labels: {severity: page}", "labels: {1severity: page}"), 15, "not a valid name in labels"),
        (("$labels.job }}", "$labels.job"), 16, "not defined"),
        (("- alert: Down\n", "- alert: Down\n        record: x\n"), 11, "and this is both"),
        (("limit: 10", "limit: many"), 6, "must be a whole number"),
        (("  - name: g", "  - name: ''"), 3, "a group needs a name"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    make_rule_file: MakeRuleFile, broken: tuple[str, str], line: int, message: str
) -> None:
    assert broken[0] in GOOD
    path = make_rule_file(GOOD.replace(*broken))

    problems = check([path])

    assert [(p.line, p.severity) for p in problems] == [(line, "error")], problems
    assert message in problems[0].message
    with pytest.raises(RuleError, match=rf"rules.yml:{line}:\d+: error"):
        load([path])


def test_every_problem_is_reported_at_once(make_rule_file: MakeRuleFile) -> None:
    path = make_rule_file(GOOD.replace("up == 0", "up ==").replace("5s", "soon"))

    with pytest.raises(RuleError) as raised:
        load([path])

    assert len(raised.value.problems) == 2


def test_the_value_in_a_label_is_a_warning(make_rule_file: MakeRuleFile) -> None:
    (problem,) = check([make_rule_file(GOOD.replace("severity: page", 'level: "{{ $value }}"'))])

    assert problem.severity == "warning"
    assert "`for` never elapses" in problem.message


def test_a_file_that_is_missing_or_not_yaml_is_an_error(make_rule_file: MakeRuleFile, tmp_path: Path) -> None:
    assert "cannot read" in check([tmp_path / "none.yml"])[0].message
    assert "not YAML" in check([make_rule_file("groups: [")])[0].message
    assert load([make_rule_file("")]) == []


def test_a_group_name_twice_in_a_file_is_an_error(make_rule_file: MakeRuleFile) -> None:
    problems = check([make_rule_file("groups: [{name: a, rules: []}, {name: a, rules: []}]")])

    assert "used twice" in problems[0].message


@given(st.integers(0, 10**10))
def test_durations_read_back(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


def test_the_shipped_rules_have_no_problems_and_name_only_known_metrics() -> None:
    assert check(SHIPPED_RULES) == []
    text = "".join(path.read_text() for path in SHIPPED_RULES)
    faults = "|".join(names.FAULTS)
    assert f'outcome=~"{faults}"' in text
    actions = {dict(r.labels).get("action") for g in load(SHIPPED_RULES) for r in g.rules} - {None}
    assert actions == {"rollback", "promote", "retrain"}
    for metric in ("canary_evidence", "drift_columns_ratio", "training_runs_total", "telemetry_dropped_batches_total"):
        assert metric in {m.name for m in names.CATALOGUE}
        assert metric in text
