"""Templates: Go's text/template as alerts use it, byte for byte as promtool expands it; a failure becomes text."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from alerts.labels import Labels
from alerts.querier import QueryError, Sample, samples_of
from alerts.templates import Surroundings, Template, TemplateError
from alerts.templates import expand as expand_in
from collectors import query as promql
from collectors.store import Store

GOLDEN = Path(__file__).parent.parent / "golden" / "alert_templates.json"
CASES = [(case["template"], case["text"]) for case in json.loads(GOLDEN.read_text(encoding="utf-8"))]
LABELS = (("__name__", "up"), ("instance", "web-1.example.org:8080"), ("model", "delay"))
EXTERNAL_URL = "http://prom.example.org/p"


@pytest.fixture(scope="module")
def surroundings() -> Surroundings:
    store = Store("sqlite://", clock=lambda: 0.0)
    column = [({"__name__": "x", "column": name}, value) for name, value in (("a", 1.5), ("b", 2.0))]
    store.append("scrape", 0, column)
    engine = promql.Engine(store)

    def query(expr: str) -> Sequence[Sample]:
        return samples_of(engine.instant(expr, 0))

    return Surroundings(query, 0.0, EXTERNAL_URL, (("region", "eu"),), server_url=None)


def query(expr: str) -> Sequence[Sample]:
    if expr == "fails":
        raise QueryError("the store is away")
    if expr == "none":
        return []
    return [Sample((("column", "a"),), 1.5), Sample((("column", "b"),), 2.0)]


def expand(text: str, labels: Labels, value: float) -> str:
    return expand_in(text, labels, value, Surroundings(query), name="A")


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_a_template_expands_as_promtool_expands_it(text: str, expected: str, surroundings: Surroundings) -> None:
    assert expand_in(text, LABELS, 0.25, surroundings, name="A") == expected


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
    test = {
        "input_series": series,
        "external_labels": {"region": "eu"},
        "external_url": EXTERNAL_URL,
        "alert_rule_test": [{"eval_time": "0m", "alertname": "A", "exp_alerts": [alert]}],
    }
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": [rule]}]}))
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "tests": [test]}))

    done = subprocess.run(["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


def test_what_a_server_knows_of_itself() -> None:
    known = Surroundings(query, 1234.5, "http://h/p", (("region", "eu"),), server_url="http://h:9090/prefix")

    text = expand_in("{{ externalURL }} {{ pathPrefix }} {{ now }} {{ $externalURL }}", LABELS, 1.0, known)

    assert text == "http://h:9090/prefix /prefix 1234.5 http://h/p"


def test_functions_that_came_after_promtool_2_42() -> None:
    text = '{{ urlQueryEscape "a b&c" }} {{ toDuration 90.5 }} {{ toDuration 0.0015 }} {{ parseDuration "-5m" }}'

    assert expand(text, LABELS, 1.0) == "a+b%26c 1m30.5s 1.5ms -300"


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
