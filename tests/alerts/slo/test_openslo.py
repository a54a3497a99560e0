"""`slo.yaml`: what it may say, and what is said about what it may not, with file and line."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from alerts.rules import RuleError, check
from alerts.slo import (
    SHIPPED_OBJECTIVES,
    Calendar,
    Events,
    Objective,
    Raw,
    Rolling,
    Threshold,
    all_groups,
    burn_windows,
    load,
    read,
    to_yaml,
)

Make = Callable[[str], Path]

SLO = """apiVersion: openslo/v1
kind: SLO
metadata:
  name: checkout
  displayName: Checkout
  labels: {team: shop}
spec:
  service: shop
  indicator:
    metadata: {name: errors}
    spec:
      ratioMetric:
        counter: true
        bad: {metricSource: {type: Prometheus, spec: {query: 'sum(http_requests_total{code=~"5.."})'}}}
        total: {metricSource: {type: Prometheus, spec: {query: sum(http_requests_total)}}}
  timeWindow:
    - duration: 28d
      isRolling: true
  budgetingMethod: Occurrences
  objectives:
    - target: 0.999
"""


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def write(text: str) -> Path:
        path = tmp_path / "slo.yaml"
        path.write_text(text)
        return path

    return write


def promtool_accepts(objectives: list[Objective], folder: Path) -> None:
    path = folder / "rules.yml"
    path.write_text(to_yaml(*all_groups(objectives)))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [problem for problem in check([path]) if problem.severity == "error"] == []


def test_an_objective_is_read_with_all_it_says(make: Make, tmp_path: Path) -> None:
    (objective,) = load([make(SLO)])

    assert (objective.name, objective.service, objective.target, objective.budget) == ("checkout", "shop", 0.999, 0.001)
    assert (objective.period, objective.method, objective.labels) == (
        Rolling(28 * 86400.0),
        "Occurrences",
        (("team", "shop"),),
    )
    assert isinstance(objective.indicator, Events)
    assert objective.indicator.total_over(300) == "(sum(increase(http_requests_total[5m])))"
    promtool_accepts([objective], tmp_path)


@pytest.mark.parametrize(
    ("broken", "line", "message"),
    [
        (("  service: shop", "  services: shop"), 8, "unknown field 'services' in an SLO's spec"),
        (("openslo/v1", "openslo/v1alpha"), 1, "apiVersion must be openslo/v1 or trimtab/v1"),
        (("kind: SLO", "kind: SLOs"), 2, "kind must be one of SLO, SLI"),
        (("name: checkout", "name: Check Out"), 4, "is not a name"),
        (("target: 0.999", "target: 99.9"), 21, "write targetPercent: 99.9"),
        (("target: 0.999", "targetPercent: 100"), 21, "below 100"),
        (("target: 0.999", "goal: 0.999"), 21, "unknown field 'goal'"),
        (("duration: 28d", "duration: soon"), 17, "like 5m, 1h, 30d"),
        (("duration: 28d", "duration: 10m"), 17, "give at least 1d (m is minutes; a month is 10M)"),
        (("isRolling: true", "isRolling: false"), 17, "needs a calendar"),
        (("Occurrences", "Occurences"), 19, "one of Occurrences, Timeslices, RatioTimeslices"),
        (("Occurrences", "Timeslices"), 21, "needs timeSliceWindow"),
        (("type: Prometheus", "type: Datadog"), 14, "only metric sources of type Prometheus"),
        (("sum(http_requests_total)}", "sum(http_requests_total}"), 15, "not PromQL"),
        (("sum(http_requests_total)}", "avg(http_requests_total)}"), 15, "only sums of counters can"),
        (("        total:", "        all:"), 15, "unknown field 'all' in ratioMetric"),
        (("    metadata: {name: errors}", "    meta: {name: errors}"), 10, "unknown field 'meta' in an indicator"),
        (("  objectives:\n    - target: 0.999", "  objectives: []"), 20, "at least one objective"),
        (("  indicator:", "  indicatorRef: other\n  indicator:"), 22, "either an indicator or an indicatorRef"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(make: Make, broken: tuple[str, str], line: int, message: str) -> None:
    assert broken[0] in SLO
    _, problems = read([make(SLO.replace(*broken, 1))])

    errors = [problem for problem in problems if problem.severity == "error"]
    assert any(message in problem.message and problem.line == line for problem in errors), problems
    with pytest.raises(RuleError, match=r"slo.yaml:\d+:\d+: error"):
        load([make(SLO.replace(*broken, 1))])


def test_an_indicator_and_a_policy_may_stand_in_documents_of_their_own(make: Make, tmp_path: Path) -> None:
    text = """apiVersion: openslo/v1
kind: DataSource
metadata: {name: prom}
spec: {type: Prometheus, connectionDetails: {url: "http://p:9090"}}
---
apiVersion: openslo/v1
kind: Service
metadata: {name: shop}
---
apiVersion: openslo/v1
kind: SLI
metadata: {name: good-requests}
spec:
  ratioMetric:
    good: {metricSource: {metricSourceRef: prom, spec: {query: 'sum by (job) (rate(good_total[5m]))'}}}
    total: {metricSource: {metricSourceRef: prom, spec: {query: 'sum by (job) (rate(all_total[{{.window}}]))'}}}
---
apiVersion: openslo/v1
kind: AlertCondition
metadata: {name: fast}
spec: {severity: page, condition: {kind: burnrate, op: gte, threshold: 2, lookbackWindow: 1h, alertAfter: 5m}}
---
apiVersion: openslo/v1
kind: AlertPolicy
metadata: {name: policy}
spec: {alertWhenBreaching: true, alertWhenNoData: true, conditions: [{conditionRef: fast}]}
---
apiVersion: openslo/v1
kind: SLO
metadata: {name: requests}
spec:
  service: shop
  indicatorRef: good-requests
  budgetingMethod: Occurrences
  alertPolicies: [{alertPolicyRef: policy}]
  objectives:
    - {displayName: Internal, targetPercent: 99.5}
    - {displayName: The contract, target: 0.99}
"""
    first, second = load([make(text)])

    assert (first.name, second.name) == ("requests-internal", "requests-the-contract")
    assert first.absent == "always"
    (alert,) = first.alerts or ()
    assert (alert.severity, alert.factor, alert.lookback_seconds, alert.for_seconds, alert.or_equal) == (
        "page",
        2.0,
        3600.0,
        300.0,
        True,
    )
    rules = [rule for group in all_groups([first]) for rule in group["rules"] if rule.get("alert") == "ErrorBudgetBurn"]
    assert [(rule["for"], rule["labels"]["condition"]) for rule in rules] == [("5m", "fast")]
    assert 'slo:sli_error:ratio_rate1h{slo="requests-internal",service="shop"} / 0.005 >= 2' in rules[0]["expr"]
    promtool_accepts([first, second], tmp_path)


@pytest.mark.parametrize(
    ("indicator", "kind"),
    [
        ("availability: {model: flights, version: '2'}", Events),
        ("latency: {model: flights, threshold: 250ms}", Events),
        ("training: {model: flights}", Events),
        ("freshness: {model: flights, maximumAge: 15m}", Threshold),
        ("freshness: {}", Threshold),
        ("quality: {model: flights, score: roc_auc, minimum: 0.7}", Threshold),
        ("drift: {model: flights, maximumShare: 0.2}", Threshold),
        ("ratioMetric: {rawType: failure, raw: {metricSource: {type: Prometheus, spec: {query: my_ratio}}}}", Raw),
        (
            "ratioMetric: {counter: false, good: {metricSource: {spec: {query: g}}}, "
            "total: {metricSource: {spec: {query: t}}}}",
            Events,
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "window",
    [
        "",
        "timeWindow: [{duration: 1M, calendar: {startTime: 2026-01-01 00:00:00, timeZone: Europe/Berlin}}]",
    ],
)
def test_our_own_words_make_rules_that_promtool_accepts(
    make: Make, tmp_path: Path, indicator: str, kind: type, window: str
) -> None:
    text = f"""apiVersion: trimtab/v1
kind: SLO
metadata: {{name: short}}
spec:
  service: flights
  indicator: {{{indicator}}}
  {window}
  objectives: [{{target: 0.99}}]
"""
    (objective,) = load([make(text)])

    assert isinstance(objective.indicator, kind)
    assert isinstance(objective.period, Calendar if window else Rolling)
    promtool_accepts([objective], tmp_path)


@pytest.mark.parametrize(
    ("indicator", "message"),
    [
        ("latency: {threshold: 300ms}", "0.3 s is not a bucket of the histogram: choose from"),
        ("latency: {}", "latency needs a threshold"),
        ("quality: {score: auc, minimum: 0.7}", "there is no score 'auc': choose from roc_auc"),
        ("quality: {score: roc_auc}", "either its minimum or its maximum"),
        ("drift: {maximumShare: 35}", "from 0 to 1"),
        ("availability: {modle: x}", "unknown field 'modle' in availability; known are model, version"),
        ("speed: {}", "unknown field 'speed' in an indicator"),
    ],
)
def test_a_wrong_word_of_our_own_is_named(make: Make, indicator: str, message: str) -> None:
    text = SLO[: SLO.index("  indicator:")] + f"  indicator: {{{indicator}}}\n" + SLO[SLO.index("  timeWindow:") :]

    assert any(message in problem.message for problem in read([make(text)])[1])


@pytest.mark.parametrize("days", [28, 30])
def test_factors_and_windows_are_those_that_sloth_publishes(days: int) -> None:
    published = {28: (13.44, 5.6, 2.8, 0.933333), 30: (14.4, 6.0, 3.0, 1.0)}[days]

    windows = burn_windows(days * 86400.0)

    assert tuple(window.factor for window in windows) == pytest.approx(published)
    assert [(w.long_seconds / 3600, w.short_seconds / 60) for w in windows] == [(1, 5), (6, 30), (24, 120), (72, 360)]


@pytest.mark.parametrize("days", [1, 7, 14, 28, 30, 31, 90, 365])
def test_a_pair_spends_the_workbooks_share_of_the_budget_whatever_the_period(days: int) -> None:
    shares = [w.factor * w.long_seconds / (days * 86400) for w in burn_windows(days * 86400.0)]

    assert shares == pytest.approx([0.02, 0.05, 0.1, 0.1], rel=1e-4)


def test_a_pair_that_nothing_can_burn_fast_enough_for_is_left_out_and_told(make: Make) -> None:
    objectives, problems = read([make(SLO.replace("0.999", "0.9"))])

    assert [window.factor for window in objectives[0].windows] == [5.6, 2.8, 0.933333]
    assert any("cannot burn 13.44 times too fast" in problem.message for problem in problems)


def test_the_shipped_rules_are_made_of_the_shipped_objectives() -> None:
    path = SHIPPED_OBJECTIVES.parents[1] / "rules.d" / "slo.yml"

    assert path.read_text().split("\n", 1)[1] == to_yaml(*all_groups(load([SHIPPED_OBJECTIVES]), interval="15s"))


EXAMPLES = """apiVersion: openslo/v1
kind: AlertCondition
metadata: {name: cpu-usage-breach}
spec:
  severity: page
  condition: {kind: burnrate, op: gte, threshold: 2, lookbackWindow: 1h, alertAfter: 5m}
---
apiVersion: openslo/v1
kind: AlertPolicy
metadata: {name: AlertPolicy}
spec: {conditions: [{conditionRef: cpu-usage-breach}]}
---
apiVersion: openslo/v1
kind: SLO
metadata: {name: web}
spec:
  service: web
  indicator:
    metadata: {name: web}
    spec:
      ratioMetric:
        counter: true
        good: {metricSource: {type: Prometheus, spec: {query: good_total}}}
        total: {metricSource: {type: Prometheus, spec: {query: all_total}}}
  timeWindow: [{duration: 1m, isRolling: false, calendar: {startTime: 2022-01-01 12:00:00, timeZone: America/New_York}}]
  budgetingMethod: Occurrences
  objectives: [{target: 0.99}]
  alertPolicies: [{alertPolicyRef: AlertPolicy}]
"""


def test_what_openslos_own_examples_do_against_its_letter_is_taken_with_a_warning(make: Callable[[str], Path]) -> None:
    (objective,), problems = read([make(EXAMPLES)])

    assert objective.period.name == "1M"
    assert [(problem.severity, problem.line) for problem in problems] == [("warning", 10), ("warning", 25)]
