"""Lints of rule files: each habit is found where it is, and nothing where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from alerts.rule_lint import LintPolicy, Target, lint
from alerts.rules import SHIPPED_RULES
from trimtab.cli import cli

MakeRuleFile = Callable[[str], Path]


def messages(make: MakeRuleFile, *rules: dict[str, object], target: Target = "trimtab", **group: object) -> list[str]:
    path = make(yaml.safe_dump({"groups": [{"name": "g", **group, "rules": list(rules)}]}))
    return [problem.message for problem in lint([path], LintPolicy(target=target))]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"alert": "A", "expr": "m > 1", "labels": {"v": "{{ $value }}"}}, "holds the value"),
        ({"alert": "A", "expr": "m > 1", "labels": {"v": '{{ query "x" }}'}}, "made of a query or a time"),
        ({"record": "r:r", "expr": "rate(m[30s])"}, "rate over 30s is less than 4 scrapes of 15s"),
        ({"record": "r:r", "expr": "sum(increase(m[59s])) / 2"}, "increase over 59s"),
        ({"alert": "A", "expr": "sum(rate(e[5m])) / sum(rate(t[5m])) > 0.1"}, "no least number"),
        ({"record": "r:r", "expr": "histogram_quantile(0.9, sum by (job) (rate(b[5m])))"}, "needs the label le"),
        ({"record": "r:r", "expr": "histogram_quantile(0.9, sum without (le) (rate(b[5m])))"}, "needs the label le"),
        ({"alert": "A", "expr": "m > 1", "labels": {"severity": "page"}}, "nothing tells when m is gone"),
    ],
)
def test_an_unwise_rule_is_told(make_rule_file: MakeRuleFile, rule: dict[str, object], said: str) -> None:
    (message,) = messages(make_rule_file, rule)

    assert said in message


@pytest.mark.parametrize(
    "rule",
    [
        {"alert": "A", "expr": "m > 1", "labels": {"v": "{{ $labels.x }}"}, "annotations": {"a": "{{ $value }}"}},
        {"record": "r:r", "expr": "rate(m[1m])"},
        {"alert": "A", "expr": "sum(rate(e[5m])) / sum(rate(t[5m])) > 0.1 and sum(increase(t[5m])) > 50"},
        {"alert": "A", "expr": "m / 2 > 1"},
        {"record": "r:r", "expr": "sum(rate(e[5m])) / sum(rate(t[5m]))"},
        {"record": "r:r", "expr": "histogram_quantile(0.9, sum by (job, le) (rate(b[5m])))"},
        {"record": "r:r", "expr": "histogram_quantile(0.9, rate(b[5m]))"},
        {"alert": "A", "expr": "absent(m)", "labels": {"severity": "page"}},
    ],
)
def test_nothing_is_said_against_a_good_rule(make_rule_file: MakeRuleFile, rule: dict[str, object]) -> None:
    assert messages(make_rule_file, rule) == []


PAGE: dict[str, object] = {"alert": "A", "expr": 'm{job="x"} > 1', "labels": {"severity": "page"}}
DOWN = "up == 0"


@pytest.mark.parametrize(
    "exprs",
    [
        ['absent(m{job="x"})'],
        ["absent_over_time(m[5m])"],
        ["last_over_time(m[1d]) unless m"],
        ["group by (job) (max_over_time(m[1h])) unless on (job) m"],
        ["m offset 1h unless on (job) m"],
        [DOWN, "absent(up)"],
        [DOWN, 'absent(up{job="x"})'],
        ["count(up == 0) / count(up) > 0.1", "group by (job) (last_over_time(up[1d])) unless on (job) up"],
    ],
)
def test_a_page_is_content_when_any_rule_tells_that_its_metric_is_gone(
    make_rule_file: MakeRuleFile, exprs: list[str]
) -> None:
    rules: list[dict[str, object]] = [{"alert": "B", "expr": expr} for expr in exprs]

    assert messages(make_rule_file, PAGE, *({**rule, "alert": f"B{n}"} for n, rule in enumerate(rules))) == []


@pytest.mark.parametrize(
    "exprs", [["absent(n)"], [DOWN], ["absent(up)"], [DOWN, 'absent(up{job="y"})'], ["m > 0 unless m offset 5m"]]
)
def test_what_tells_of_something_else_does_not_content_a_page(make_rule_file: MakeRuleFile, exprs: list[str]) -> None:
    rules: list[dict[str, object]] = [{"alert": f"B{n}", "expr": expr} for n, expr in enumerate(exprs)]

    (message,) = messages(make_rule_file, PAGE, *rules)
    assert "nothing tells when m is gone" in message


def test_nothing_is_said_against_the_shipped_rules() -> None:
    assert lint(SHIPPED_RULES, LintPolicy(scrape_interval_seconds=5.0, target="prometheus-2.42")) == []


def test_reading_what_another_group_records_is_told_unless_it_is_somebody_elses(make_rule_file: MakeRuleFile) -> None:
    made = {"record": "m:sum", "expr": "sum(m)", "labels": {"slo": "a"}}
    text = {
        "groups": [
            {"name": "one", "rules": [made, {"record": "m:x", "expr": "m:sum"}]},
            {"name": "two", "rules": [{"record": "m:y", "expr": "m:sum"}, {"record": "m:z", "expr": 'm:sum{slo="b"}'}]},
        ]
    }

    (problem,) = lint([make_rule_file(yaml.safe_dump(text))])

    assert "recorded in group 'one'" in problem.message


def test_two_equal_rules_are_told(make_rule_file: MakeRuleFile) -> None:
    rule: dict[str, object] = {"record": "m:sum", "expr": "sum(m)"}

    assert "stands twice" in messages(make_rule_file, rule, rule)[0]


def test_what_another_server_would_do_otherwise_is_told_on_request(make_rule_file: MakeRuleFile) -> None:
    rule: dict[str, object] = {"record": "m:r", "expr": "sum(a) / sum(b)"}
    new: dict[str, object] = {"record": "m:n", "expr": "double_exponential_smoothing(m[5m], 0.5, 0.5)"}

    assert messages(make_rule_file, rule, query_offset="1m", labels={"a": "b"}) == []
    old = messages(make_rule_file, new, target="prometheus-2.42", query_offset="1m", labels={"a": "b"})
    assert [("query_offset" in m, "'labels'" in m, "not known to" in m) for m in old] == [
        (True, False, False), (False, True, False), (False, False, True),
    ]  # fmt: skip
    assert "NaN" in messages(make_rule_file, rule, target="victoriametrics")[0]


def test_the_command_tells_lines_and_fails_only_for_errors_unless_strict(make_rule_file: MakeRuleFile) -> None:
    path = str(make_rule_file("groups:\n- name: g\n  rules:\n  - {record: 'r:r', expr: 'rate(m[1m])'}\n"))
    run = CliRunner().invoke

    good = run(cli, ["rules", "lint", path])
    slow = run(cli, ["rules", "lint", path, "--scrape-interval", "1m", "--json"])
    strict = run(cli, ["rules", "lint", path, "--scrape-interval", "1m", "--strict"])
    wrong = run(cli, ["rules", "lint", path, "--scrape-interval", "often"])

    assert (good.exit_code, good.output) == (0, "1 file with nothing to say against\n")
    (problem,) = json.loads(slow.output)
    assert (slow.exit_code, problem["line"], problem["column"], problem["severity"]) == (0, 4, 5, "warning")
    assert strict.exit_code == 1
    assert wrong.exit_code == 1
    assert "not a duration" in wrong.output
