"""Templates: Go's text/template as alerts use it; a failure becomes text."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from alerts.labels import Labels
from alerts.querier import QueryError, Sample
from alerts.templates import Surroundings, Template, TemplateError
from alerts.templates import expand as expand_in

LABELS = (("__name__", "up"), ("instance", "web-1.example.org:8080"), ("model", "delay"))


def query(expr: str) -> Sequence[Sample]:
    if expr == "fails":
        raise QueryError("the store is away")
    if expr == "none":
        return []
    return [Sample((("column", "a"),), 1.5), Sample((("column", "b"),), 2.0)]


def expand(text: str, labels: Labels, value: float) -> str:
    return expand_in(text, labels, value, Surroundings(query), name="A")


CASES = [
    ("{{ $labels.model }} at {{ .Labels.instance }}: {{ $value }}", "delay at web-1.example.org:8080: 0.25"),
    ("{{ $value | humanizePercentage }}", "25%"),
    ('{{ printf "%.2f|%5.1f|%-6s|%q|%v|%d" $value $value "ab" "c" $value 3 }}', '0.25|  0.2|ab    |"c"|0.25|3'),
    ("{{ if gt $value 0.5 }}big{{ else if gt $value 0.2 }}middle{{ else }}small{{ end }}", "middle"),
    ('{{ range query "x" | sortByLabel "column" }}{{ .Labels.column }}={{ .Value }} {{ end }}', "a=1.5 b=2 "),
    ('{{ range $i, $s := query "x" }}{{ $i }}:{{ $s.Value }} {{ end }}', "0:1.5 1:2 "),
    ('{{ range query "none" }}x{{ else }}nothing{{ end }}', "nothing"),
    ('{{ with query "x" }}{{ . | first | value }}{{ end }}', "1.5"),
    ('{{ query "x" | first | label "column" }}', "a"),
    ("{{ $labels.absent }}|", "|"),
    ('{{ $x := "a" }}{{ $x }}{{- /* gone */ -}} {{ $x | toUpper }}', "aA"),
    ('{{ define "t" }}<{{ . }}>{{ end }}{{ template "t" $labels.model }}', "<delay>"),
    ("{{ $labels.instance | stripPort }} {{ $labels.instance | stripDomain }}", "web-1.example.org web-1:8080"),
    ('{{ reReplaceAll "(.*)-(.*)" "$2-$1" "a-b" }} {{ match "^a.c$" "abc" }} {{ title "to be" }}', "b-a true To Be"),
    ("{{ humanize 1234567.0 }} {{ humanize 0.0012 }} {{ humanize1024 2048.0 }}", "1.235M 1.2m 2ki"),
    (
        "{{ humanizeDuration 93784.5 }} {{ humanizeDuration 0.0123 }} {{ humanizeDuration 45.678 }}",
        "1d 2h 3m 4s 12.3ms 45.68s",
    ),
    ("{{ humanizeTimestamp 1435065584.128 }}", "2015-06-23 13:19:44.128 +0000 UTC"),
    ('{{ and $value (not false) }} {{ or 0 "b" }} {{ len "abc" }} {{ eq 1 2 1 }}', "true b 3 true"),
    ("{{ 1000000.0 }} {{ 0.00001 }} {{ 123456789.0 }} {{ 1e21 }}", "1e+06 1e-05 1.23456789e+08 1e+21"),
    ("{{ $labels }}", "map[__name__:up instance:web-1.example.org:8080 model:delay]"),
    ('{{ (query "x" | first).Labels.column }}{{ index (query "x") 1 | value }}', "a2"),
    ('{{ with $x := $value }}{{ $x }}{{ end }}{{ with "" }}x{{ else }}y{{ end }}', "0.25y"),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_a_template_expands_as_go_expands_it(text: str, expected: str) -> None:
    assert expand(text, LABELS, 0.25) == expected


@pytest.mark.slow
def test_promtool_expands_the_same(tmp_path: Path) -> None:
    annotations = {f"case{place}": text for place, (text, _) in enumerate(CASES)}
    expected = {f"case{place}": text for place, (_, text) in enumerate(CASES)}
    rule = {"alert": "A", "expr": "up", "annotations": annotations}
    series = [
        {"series": 'up{instance="web-1.example.org:8080", model="delay"}', "values": "0.25"},
        {"series": 'x{column="a"}', "values": "1.5"},
        {"series": 'x{column="b"}', "values": "2"},
    ]
    alert = {"exp_labels": dict(LABELS[1:]), "exp_annotations": expected}
    test = {"input_series": series, "alert_rule_test": [{"eval_time": "0m", "alertname": "A", "exp_alerts": [alert]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": [rule]}]}))
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "tests": [test]}))

    done = subprocess.run(["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "{{ nosuch }}",
        "{{ $nosuch }}",
        "{{ if }}x{{ end }}",
        "{{ if true }}x",
        "{{ end }}",
        "{{ $value",
        "{{ .Nosuch }}",
        '{{ query "fails" }}',
        '{{ query "none" | first }}',
        "{{ gt $value 1 }}",
        '{{ template "nosuch" }}',
        '{{ define "t" }}{{ template "t" }}{{ end }}{{ template "t" }}',
        "{{ humanize $labels }}",
        "{{ range $value }}{{ end }}",
    ],
)
def test_a_failure_is_told_in_the_text(text: str) -> None:
    assert expand(text, LABELS, 0.25).startswith("<error expanding template: ")


def test_a_template_without_actions_is_itself() -> None:
    assert expand("100 % sure", LABELS, 1.0) == "100 % sure"


def test_parsing_finds_errors_before_any_alert() -> None:
    with pytest.raises(TemplateError, match="nosuch"):
        Template.parse("{{ 1 | nosuch }}")
