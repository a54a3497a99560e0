"""The shipped rules: each alert is explained, told apart, tested firing and quiet, and asks only for what there is."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from alerts.rules import SHIPPED_RULES
from collectors.query import parse
from observability import names
from trimtab.cli import COMMANDS

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "docs" / "runbooks"
UNIT_TESTS = sorted((ROOT / "tests" / "rules").glob("*.yml"))
SECTIONS = (
    "## What it means", "## Who is hurt", "## How to check", "## How to mend it", "## When it is a false alarm",
)  # fmt: skip
# What every Prometheus writes by itself.
BUILT_IN = {"up", "ALERTS", "ALERTS_FOR_STATE"}


@cache
def rules() -> list[dict[str, Any]]:
    return [r for path in SHIPPED_RULES for g in yaml.safe_load(path.read_text())["groups"] for r in g["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def metrics(expr: str) -> set[str]:
    """The metrics that an expression names."""
    found: set[str] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector) and node.name:
            found.add(node.name)
        return True

    promql_parser.walk(promql_parser.parse(expr), visit, lambda node: True)
    return found


@cache
def known() -> set[str]:
    """The catalogue's series, and what rules record."""
    series = {metric.name for metric in names.CATALOGUE} | BUILT_IN | {r["record"] for r in rules() if "record" in r}
    for metric in names.CATALOGUE:
        if metric.kind == "histogram":
            series |= {f"{metric.name}_{suffix}" for suffix in ("bucket", "sum", "count")}
    return series


def test_every_alert_says_how_grave_it_is_what_it_means_and_where_its_page_is() -> None:
    for rule in rules():
        if "alert" in rule:
            name = rule["alert"]
            assert rule["labels"]["severity"] in ("page", "ticket", "info"), name
            assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name
            assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{name}.md"


def test_only_alerts_that_ask_for_an_action_carry_one() -> None:
    # The label of a series would do as well: a report of a rollback that failed would ask for another.
    expected = [
        alert
        for path in UNIT_TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test.get("alert_rule_test", ())
        for alert in ((case["alertname"], found["exp_labels"]) for found in case["exp_alerts"])
    ]
    assert {name for name, labels in expected if "action" in labels} == {
        name for name, rule in ALERTS.items() if "action" in rule["labels"]
    }


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_page(alert: str) -> None:
    text = (RUNBOOKS / f"{alert}.md").read_text()

    assert text.startswith(f"# {alert}\n")
    assert [line for line in text.splitlines() if line.startswith("## ")] == list(SECTIONS)
    for link in re.findall(r"\]\((\w+\.md)\)", text):
        assert (RUNBOOKS / link).is_file(), link


def test_no_page_is_left_over_and_all_are_in_the_index() -> None:
    pages = {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"}

    assert pages == set(ALERTS)
    assert set(re.findall(r"^\| \[(\w+)\]", (RUNBOOKS / "README.md").read_text(), re.M)) == pages


def test_what_the_pages_tell_to_type_exists() -> None:
    for path in RUNBOOKS.glob("*.md"):
        text = path.read_text()
        for query in re.findall(r"^trimtab query '(.*)'$", text, re.M):
            parse(query)
            assert metrics(query) <= known(), (path.name, query)
        for command in re.findall(r"\btrimtab (\w+)", re.sub(r"trimtab/\S+|trimtab\.toml", "", text)):
            assert command in COMMANDS, (path.name, command)


def test_rules_name_only_metrics_that_are_counted_or_recorded() -> None:
    for rule in rules():
        assert metrics(rule["expr"]) <= known(), rule
        for text in rule.get("annotations", {}).values():
            asked = set(re.findall(r'printf "(?:\w+ by \([^)]*\) \()?(?:\w+\()*([a-z_:]+)\{', text))
            assert asked <= known(), text


def test_every_alert_has_a_unit_test_that_fires_and_two_that_are_quiet() -> None:
    fires, quiet = set(), {}
    for path in UNIT_TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for row in case["alert_rule_test"]:
                if row["exp_alerts"]:
                    fires.add(row["alertname"])
                elif case["name"] in ("nothing is there yet", "a new installation that is idle"):
                    quiet.setdefault(row["alertname"], set()).add(case["name"])

    assert fires == set(ALERTS)
    assert {name for name, cases in quiet.items() if len(cases) == 2} == set(ALERTS)


@pytest.mark.slow
@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_promtool_passes_the_unit_tests(path: Path) -> None:
    done = subprocess.run(["promtool", "test", "rules", path.name], cwd=path.parent, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_shipped_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", *SHIPPED_RULES], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "duplicate" not in done.stdout


def test_no_name_of_the_catalogue_is_given_away_twice() -> None:
    """A constant that is assigned anew would count one thing under the name of another."""
    constants = re.findall(r"^([A-Z][A-Z0-9_]*) = ", Path(names.__file__).read_text(), re.M)

    assert sorted(constants) == sorted(set(constants))
    assert len({metric.name for metric in names.CATALOGUE}) == len(names.CATALOGUE)
