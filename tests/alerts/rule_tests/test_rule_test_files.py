"""Unit tests of rules: what a file may hold, what fails it, and how that is shown."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as xml

import pytest
from click.testing import CliRunner, Result

from alerts.rule_tests import Options, Version, run_file
from alerts.rule_tests.series import SeriesError, series_labels, series_values
from collectors.store.values import STALE_BITS
from trimtab.cli import cli

RULES = """
groups:
  - name: g
    rules:
      - {record: "job:m:sum", expr: sum by (job) (m)}
      - alert: High
        expr: job:m:sum > 3
        for: 1m
        labels: {severity: page}
        annotations: {summary: "{{ $labels.job }} at {{ $value }} in {{ $externalLabels.region }} {{ $externalURL }}"}
"""
TEST = """
rule_files: [rules.yml]
evaluation_interval: 1m
tests:
  - name: high
    interval: 30s
    input_series:
      - {series: 'm{job="a", i="1"}', values: "1+1x8"}
      - {series: 'm{job="a", i="2"}', values: "_x3 1x5"}
    external_labels: {region: eu}
    external_url: http://here
    alert_rule_test:
      - {eval_time: 1m, alertname: High}
      - eval_time: 3m
        alertname: High
        exp_alerts:
          - exp_labels: {severity: page, job: a}
            exp_annotations: {summary: "a at 8 in eu http://here"}
    promql_expr_test:
      - expr: job:m:sum
        eval_time: 2m
        exp_samples: [{labels: 'job:m:sum{job="a"}', value: 6}]
  - name: quiet
    promql_expr_test:
      - {expr: vector(1), eval_time: 0m, exp_samples: [{value: 1}]}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(*changes: tuple[str, str], rules: str = RULES) -> Path:
        text = TEST
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        (tmp_path / "rules.yml").write_text(rules)
        (tmp_path / "test.yml").write_text(text)
        return tmp_path / "test.yml"

    return make


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["rules", "test", *map(str, arguments)])


def test_what_holds_passes(write: Callable[..., Path]) -> None:
    verdict = run_file(write())

    assert verdict.failures == ()
    assert [test.name for test in verdict.tests] == ["high", "quiet"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("at 8 in eu", "at 9 in eu"), "alertname: High, time: 3m"),
        (("severity: page, job: a", "job: a"), "exp:["),
        (("eval_time: 1m, alertname: High", "eval_time: 4m, alertname: High"), "time: 4m"),
        (("value: 6", "value: 6.000001"), '{__name__="job:m:sum", job="a"} 6.000001E+00'),
        (("expr: job:m:sum\n", "expr: sum(job:m:sum)\n"), '{__name__="job:m:sum", job="a"} 6E+00'),
        (("[{value: 1}]", "[]"), "exp:nil"),
        (("expr: vector(1)", "expr: vector("), "err: "),
        (("[{value: 1}]", "[{value: .nan}]"), "NaN"),
    ],
)
def test_what_does_not_hold_fails_and_is_shown(write: Callable[..., Path], change: tuple[str, str], said: str) -> None:
    failures = run_file(write(change)).failures

    assert len(failures) == 1
    assert said in failures[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("rule_files", "rules_files"), "test.yml:2:1: error: unknown field 'rules_files'"),
        (("interval: 30s", "interval: often"), "not a duration: 'often'"),
        (('"1+1x8"', '"1+1x8 z"'), "cannot read the values at 'z'"),
        (('"1+1x8"', '"{{schema:1}}"'), "native histograms are not supported"),
        (("[{value: 1}]", "[{histogram: '{{}}'}]"), "native histograms are not supported"),
        (('\'m{job="a", i="1"}\'', "'m{job!=\"a\"}'"), "is a condition, not a label"),
        (("alertname: High}", "expr: x}"), "misses required attribute alertname"),
        (("tests:", "group_eval_order: [g, g]\ntests:"), "group name repeated in evaluation order: g"),
        (("interval: 30s", "interval: 30s\n    start_timestamp: noon"), "not a time: 'noon'"),
    ],
)
def test_a_file_that_cannot_be_used_says_where(write: Callable[..., Path], change: tuple[str, str], said: str) -> None:
    verdict = run_file(write(change))

    assert said in verdict.error
    assert verdict.tests == ()


def test_rules_that_are_wrong_or_fail_fail_the_file(write: Callable[..., Path]) -> None:
    wrong = run_file(write(rules=RULES.replace("sum by (job) (m)", "sum by (job) (m")))
    failing = run_file(write(rules=RULES.replace("job:m:sum > 3", "m + on (job) m")))

    assert "rules.yml:5:" in wrong.error
    assert "rule: High, time: 2m, err: " in failing.failures[-1]


def test_unknown_fields_of_rules_pass_on_request(write: Callable[..., Path]) -> None:
    path = write(rules=RULES.replace("name: g", "name: g\n    owner: me"))

    assert "unknown field 'owner'" in run_file(path).error
    assert run_file(path, Options(strict=False)).failures == ()


def test_a_test_may_begin_at_any_time_and_compare_to_the_last_bit(write: Callable[..., Path]) -> None:
    start = ("  - name: quiet", "  - name: quiet\n    start_timestamp: 2024-01-01T00:00:00Z")
    close = ("vector(1)", "time() / 1.7040672e+08")

    assert "1E+01" in run_file(write(start, close)).failures[0]
    near = ("value: 1}", "value: 10.000000000000002}")
    exact = run_file(write(start, close, near))
    fuzzy = run_file(write(start, close, near, ("tests:", "fuzzy_compare: on\ntests:")))
    assert (len(exact.failures), len(fuzzy.failures)) == (1, 0)


@pytest.mark.parametrize(("count", "version", "other"), [(5, "3", "2"), (6, "2", "3")])
def test_what_holds_in_another_version_only_fails_and_is_told_of(
    write: Callable[..., Path], count: int, version: Version, other: Version
) -> None:
    query = ("expr: vector(1)", 'expr: "count_over_time(vector(1)[5m:1m])"')
    path = write(query, ("[{value: 1}]", f"[{{value: {count}}}]"))

    there, elsewhere = (run_file(path, Options(version=each)) for each in (version, other))
    said = run(path, "--prometheus", other)

    assert (there.failures, there.tests[1].holds_in) == ((), None)
    assert (len(elsewhere.failures), elsewhere.tests[1].holds_in) == (1, version)
    assert (said.exit_code, f"--prometheus {version}" in said.output) == (1, True)
    assert bool(run_file(path).failures) == (version == "2")


@pytest.mark.parametrize(
    ("said", "asked"),
    [("promtool, version 2.42.0+ds (branch: x)", "2"), ("promtool, version 3.14.0 (branch: x)", "3"), (None, "3")],
)
def test_the_verdict_is_that_of_the_promtool_on_the_path(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, asked: str
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    if said is not None:
        tool = folder / "promtool"
        tool.write_text(f"#!/bin/sh\necho '{said}' >&2\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    query = ("expr: vector(1)", 'expr: "count_over_time(vector(1)[5m:1m])"')
    path = write(query, ("[{value: 1}]", f"[{{value: {6 if asked == '2' else 5}}}]"))

    assert run(path).exit_code == 0
    assert run(path, "--prometheus", {"2": "3", "3": "2"}[asked]).exit_code == 1


def test_the_command_exits_with_1_when_something_fails(write: Callable[..., Path], tmp_path: Path) -> None:
    good = run(write())
    bad = run(write(("at 8 in eu", "at 9 in eu")), "--junit", tmp_path / "out.xml", "--diff")
    picked = run(tmp_path / "test.yml", "--run", "qui")
    machine = json.loads(run(tmp_path / "test.yml", "--json").output)

    assert (good.exit_code, "SUCCESS" in good.output) == (0, True)
    assert (bad.exit_code, "FAILED" in bad.output) == (1, True)
    assert "-      Annotations:" in bad.output
    assert "+      Annotations:" in bad.output
    assert (picked.exit_code, "SUCCESS" in picked.output) == (0, True)
    assert [len(test["failures"]) for test in machine[0]["tests"]] == [1, 0]
    suite = xml.parse(tmp_path / "out.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    assert "alertname: High" in str(suite[0][0].get("message"))
    assert run(tmp_path / "test.yml", "--run", "(").exit_code == 1


def test_missing_rule_files_are_a_warning(write: Callable[..., Path]) -> None:
    answer = run(write(("[rules.yml]", "[rules.yml, none*.yml]")))

    assert answer.exit_code == 0
    assert "WARNING: no file match pattern" in answer.output


def test_values_are_promtools() -> None:
    assert series_values("1 -2 .5 1e3 Inf -inf _ 2x2 1+2x3 5-1x2 _x2") == [
        1, -2, 0.5, 1000, float("inf"), float("-inf"), None, 2, 2, 2, 1, 3, 5, 7, 5, 4, 3, None, None,
    ]  # fmt: skip
    (stale,) = series_values("stale")
    assert struct.pack("<d", stale or 0.0) == struct.pack("<Q", STALE_BITS)
    assert series_values("0x10") == [0] * 11
    for text in ("a", "1x", "1+x2", "_+1", "0x1f"):
        with pytest.raises(SeriesError):
            series_values(text)


def test_series_are_promtools() -> None:
    assert series_labels("up{b='2', a=\"1\"}") == (("__name__", "up"), ("a", "1"), ("b", "2"))
    assert series_labels('{__name__="x"}') == (("__name__", "x"),)
    assert series_labels("{}") == series_labels("") == ()
    with pytest.raises(SeriesError):
        series_labels("up{")
