"""Random rule files with unit tests, half of which are wrong somewhere: material to hold verdicts to promtool's."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

METRICS = ("requests", "errors", "temperature", "queue")
_TEMPLATES = (
    "{{ $labels.instance }} is at {{ $value }}",
    "{{ $value | humanize }} on {{ .Labels.job }}",
    '{{ range query "sort(sum by (job) (requests))" }}{{ .Labels.job }}={{ .Value }};{{ end }}',
    "{{ if gt $value 2.0 }}high{{ else }}low{{ end }} {{ $externalLabels.region }}",
    "{{ $value | humanizePercentage }} {{ $labels.nothing }}",
)
# Not stddev_over_time, whose last bit depends on the order of additions, nor topk: promtool itself picks at random
# among equals.
_EXPRESSIONS = (
    "{m}", "{m} > {n}", "sum by (job) ({m})", "sum by (job) ({m}) > {n}", "max({m}) - min({m})", "rate({m}[5m]) > 0",
    "increase({m}[3m])", "avg_over_time({m}[2m]) >= {n}", "count_over_time({m}[4m])", "{m} and on (job) {k}",
    "{m} unless {k} > {n}", "{m} or {k}", "absent({m})", "absent({m}{{job='x'}})", "changes({m}[10m]) > 1",
    "resets({m}[10m])", "delta({m}[6m])", "max_over_time({m}[3m:1m])", "{m} offset 2m", "count({m} > {n})",
    "quantile(0.5, {m})", "abs({m} - {n})",
    "{m} / on (job, instance) {k}",
    "clamp_max({m}, {n})", "label_replace({m}, 'zone', '$1', 'instance', '(.).*')", "time() / 60", "vector({n})",
    "{m} == bool {n}", "min_over_time({m}[2m]) < {n}", "group by (instance) ({m})", "irate({m}[3m])",
)  # fmt: skip


class Writer:
    """Writes a rule file and a test file into a folder, from one seed; `size` bounds the minutes that they last."""

    def __init__(self, folder: Path, seed: int, *, size: int = 8) -> None:
        self.random = random.Random(seed)
        self.rules = folder / f"rules{seed}.yml"
        self.tests = folder / f"test{seed}.yml"
        self.minutes = self.random.randint(4, size)
        self._groups = self._make_groups()
        self.document: dict[str, Any] = {
            "rule_files": [self.rules.name],
            "evaluation_interval": self.random.choice(["1m", "1m", "2m"]),
            "group_eval_order": [group["name"] for group in self._groups],
            "tests": [self._make_test(number) for number in range(1 + self.minutes // 16)],
        }

    def write(self) -> None:
        """Put both files where they belong."""
        self.rules.write_text(yaml.safe_dump({"groups": self._groups}, sort_keys=False))
        self.tests.write_text(yaml.safe_dump(self.document, sort_keys=False))

    def cases(self) -> dict[str, dict[str, Any]]:
        """Every case by a name that it can be told by."""
        return {
            f"{number}-{key}-{place}": case
            for number, test in enumerate(self.document["tests"])
            for key in ("alert_rule_test", "promql_expr_test")
            for place, case in enumerate(test[key])
        }

    def spoil(self) -> None:
        """Make one expectation wrong."""
        test = self.random.choice(self.document["tests"])
        cases = test["alert_rule_test"] + test["promql_expr_test"]
        case = self.random.choice(cases)
        key = "exp_alerts" if "exp_alerts" in case else "exp_samples"
        if not case[key]:
            case[key] = [{"exp_labels": {"job": "a"}}] if key == "exp_alerts" else [{"labels": "x", "value": 1}]
        elif key == "exp_alerts":
            alert = self.random.choice(case[key])
            self.random.choice(
                [
                    lambda: case[key].remove(alert),
                    lambda: alert.setdefault("exp_labels", {}).update(extra="1"),
                    lambda: alert.setdefault("exp_annotations", {}).update(summary="no"),
                    lambda: case[key].append({"exp_labels": {"other": "1"}}),
                ]
            )()
        else:
            sample = self.random.choice(case[key])
            change: Callable[[], Any] = self.random.choice(
                [
                    lambda: case[key].remove(sample),
                    lambda: sample.update(value=float(sample["value"]) * 1.000001 + 1e-9),
                ]
            )
            change()

    def _make_groups(self) -> list[dict[str, Any]]:
        groups = []
        for number in range(1 + self.minutes // 16):
            rules = [self._make_rule(number, place) for place in range(self.random.randint(2, 4))]
            groups.append({"name": f"group{number}", "interval": "1m", "rules": rules})
        return groups

    def _make_rule(self, group: int, place: int) -> dict[str, Any]:
        expr = self._expression()
        if self.random.random() < 0.4:
            rule: dict[str, Any] = {"record": f"job:rule{group}_{place}", "expr": expr}
            if self.random.random() < 0.5:
                rule["labels"] = {"source": "test"}
            return rule
        rule = {"alert": f"Alert{group}{place}", "expr": expr}
        if self.random.random() < 0.7:
            rule["for"] = f"{self.random.randint(0, 4)}m"
        if self.random.random() < 0.4:
            rule["keep_firing_for"] = f"{self.random.randint(1, 4)}m"
        rule["labels"] = {"severity": self.random.choice(["page", "ticket"]), "where": "{{ $labels.instance }}"}
        rule["annotations"] = {"summary": self.random.choice(_TEMPLATES)}
        return rule

    def _expression(self) -> str:
        first, second = self.random.sample(METRICS, 2)
        earlier = self.random.random()
        first = "job:rule0_0" if earlier < 0.1 else "ALERTS{alertstate='firing'}" if earlier < 0.15 else first
        return self.random.choice(_EXPRESSIONS).format(m=first, k=second, n=self.random.choice([0, 1, 2, 3.5]))

    def _make_test(self, number: int) -> dict[str, Any]:
        series = [
            {"series": f'{metric}{{job="{job}", instance="{job}{place}"}}', "values": self._values()}
            for metric in METRICS
            for job in "ab"
            for place in range(self.random.randint(0, 2))
        ]
        alerts = [rule["alert"] for group in self._groups for rule in group["rules"] if "alert" in rule]
        names = [rule["record"] for group in self._groups for rule in group["rules"] if "record" in rule]
        exprs = [self._expression() for _ in range(3)] + names + ["ALERTS", "ALERTS_FOR_STATE"]
        return {
            "name": f"test {number}",
            "interval": self.random.choice(["1m", "30s"]),
            "external_labels": {"region": "eu"},
            "input_series": series,
            "alert_rule_test": [{"eval_time": self._time(), "alertname": name} for name in alerts for _ in range(3)],
            "promql_expr_test": [{"eval_time": self._time(), "expr": expr} for expr in exprs],
        }

    def _values(self) -> str:
        parts: list[str] = []
        for _ in range(self.random.randint(1, 4)):
            start, step, times = self.random.randint(0, 5), self.random.randint(0, 3), self.random.randint(0, 9)
            parts.append(
                self.random.choice(
                    [
                        f"{start}+{step}x{times}", f"{start}-{step}x{times}", f"{start}x{times}", f"_x{times + 1}", "_",
                        "stale", str(start), f"{start}.5", f"-{start}", f"{start}e-1+0.1x{times}",
                    ]
                )
            )  # fmt: skip
        return " ".join(parts)

    def _time(self) -> str:
        return f"{self.random.randint(0, self.minutes)}m" + self.random.choice(["", "", "30s", "1s"])
