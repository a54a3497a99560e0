"""promtool's unit-test files, read strictly: every complaint names line and column. Times and durations are seconds."""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml

from alerts.labels import Labels
from alerts.rule_tests.series import series_labels, series_values
from alerts.yaml_nodes import Problem, YamlFile, is_null

_FILE = ("rule_files", "evaluation_interval", "group_eval_order", "tests", "fuzzy_compare")
_TEST = (
    "interval", "input_series", "alert_rule_test", "promql_expr_test", "external_labels", "external_url", "name",
    "start_timestamp",
)  # fmt: skip
_INTEGER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|0[oO]?[0-7]+|0b[01]+|\d+)\Z")
_FLOAT = re.compile(r"[-+]?(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?\Z")
_NAMED = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}


class TestFileError(ValueError):
    """A test file that cannot be used; `problems` says why."""

    __test__ = False

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class InputSeries:
    """A series to load: its values at the start and every interval after it, None for a gap."""

    labels: Labels
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class ExpectedAlert:
    """An alert that should fire, `alertname` among its labels."""

    labels: Labels
    annotations: Labels


@dataclass(frozen=True, slots=True)
class AlertCase:
    """All alerts of a name that should fire at a time after the start."""

    at: float
    name: str
    expected: tuple[ExpectedAlert, ...]


@dataclass(frozen=True, slots=True)
class QueryCase:
    """What an expression should give at a time after the start."""

    at: float
    expr: str
    expected: tuple[tuple[Labels, float], ...]


@dataclass(frozen=True, slots=True)
class RuleTest:
    """One test: what is loaded, and what should come of it. `start` is unix seconds."""

    name: str
    interval: float
    series: tuple[InputSeries, ...]
    alerts: tuple[AlertCase, ...]
    queries: tuple[QueryCase, ...]
    external_labels: Labels
    external_url: str
    start: float

    @property
    def last(self) -> float:
        """When the last case is, in seconds after the start."""
        times = [case.at for case in self.alerts] + [case.at for case in self.queries]
        return max(times, default=0.0)


@dataclass(frozen=True, slots=True)
class RuleTestFile:
    """A test file; `missing` are patterns of rule files that nothing matches."""

    path: str
    rule_files: tuple[Path, ...]
    missing: tuple[str, ...]
    interval: float
    order: tuple[str, ...]
    fuzzy: bool
    tests: tuple[RuleTest, ...]


def read_test_file(path: Path) -> RuleTestFile:
    """Read a test file; raises TestFileError."""
    reader = _Reader(path)
    found = reader.document()
    errors = [problem for problem in reader.problems if problem.severity == "error"]
    if errors:
        raise TestFileError(errors)
    return found


_NO_LABELS: Labels = ()


class _Reader(YamlFile):
    def document(self) -> RuleTestFile:
        root = self.root()
        fields = self.fields(root, "a test file", _FILE) if root is not None else {}
        interval = self.duration(fields.get("evaluation_interval"), "evaluation_interval") or 60.0
        folder = Path(self.path).parent
        files: list[Path] = []
        missing = []
        for node in self.items(fields.get("rule_files"), "rule_files"):
            pattern = str(folder / self.text(node, "rule_files"))
            matched = sorted(glob.glob(pattern))
            files += map(Path, matched)
            missing += [] if matched else [pattern]
        return RuleTestFile(
            path=self.path,
            rule_files=tuple(files),
            missing=tuple(missing),
            interval=interval,
            order=tuple(self._order(fields.get("group_eval_order"))),
            fuzzy=self._truth(fields.get("fuzzy_compare"), "fuzzy_compare"),
            tests=tuple(self._test(node, interval) for node in self.items(fields.get("tests"), "tests")),
        )

    def _order(self, node: yaml.Node | None) -> Iterator[str]:
        seen: set[str] = set()
        for item in self.items(node, "group_eval_order"):
            name = self.text(item, "group_eval_order")
            if name in seen:
                self.report(item, f"group name repeated in evaluation order: {name}")
            seen.add(name)
            yield name

    def _test(self, node: yaml.Node, default: float) -> RuleTest:
        fields = self.fields(node, "a test", _TEST)
        return RuleTest(
            name=self.text(fields.get("name"), "name"),
            interval=self.duration(fields.get("interval"), "interval") or default,
            series=tuple(self._series(item) for item in self.items(fields.get("input_series"), "input_series")),
            alerts=tuple(self._alerts(item) for item in self.items(fields.get("alert_rule_test"), "alert_rule_test")),
            queries=tuple(self._query(item) for item in self.items(fields.get("promql_expr_test"), "promql_expr_test")),
            external_labels=self._pairs(fields.get("external_labels"), "external_labels"),
            external_url=self.text(fields.get("external_url"), "external_url"),
            start=self.value(fields.get("start_timestamp"), "start_timestamp", _timestamp, 0.0),
        )

    def _series(self, node: yaml.Node) -> InputSeries:
        fields = self.fields(node, "an input series", ("series", "values"))
        labels = self.value(fields.get("series"), "series", series_labels, _NO_LABELS)
        return InputSeries(labels, tuple(self.value(fields.get("values"), "values", series_values, [])))

    def _alerts(self, node: yaml.Node) -> AlertCase:
        fields = self.fields(node, "an alert test", ("eval_time", "alertname", "exp_alerts"))
        name = self.text(fields.get("alertname"), "alertname")
        at = self.duration(fields.get("eval_time"), "eval_time")
        if not name:
            self.report(node, "an item under alert_rule_test misses required attribute alertname")
        expected = []
        for item in self.items(fields.get("exp_alerts"), "exp_alerts"):
            parts = self.fields(item, "an expected alert", ("exp_labels", "exp_annotations"))
            labels = dict(self._pairs(parts.get("exp_labels"), "exp_labels"))
            annotations = self._pairs(parts.get("exp_annotations"), "exp_annotations")
            expected.append(ExpectedAlert(tuple(sorted({**labels, "alertname": name}.items())), annotations))
        return AlertCase(at, name, tuple(expected))

    def _query(self, node: yaml.Node) -> QueryCase:
        fields = self.fields(node, "an expression test", ("expr", "eval_time", "exp_samples"))
        samples = []
        for item in self.items(fields.get("exp_samples"), "exp_samples"):
            parts = self.fields(item, "an expected sample", ("labels", "value", "histogram"))
            if self.text(parts.get("histogram"), "histogram"):
                self.report(parts["histogram"], "native histograms are not supported; leave this sample out")
            labels = self.value(parts.get("labels"), "labels", series_labels, _NO_LABELS)
            samples.append((labels, self.value(parts.get("value"), "value", _number, 0.0)))
        at = self.duration(fields.get("eval_time"), "eval_time")
        return QueryCase(at, self.text(fields.get("expr"), "expr"), tuple(samples))

    def _pairs(self, node: yaml.Node | None, what: str) -> Labels:
        return tuple(sorted((name, text) for _, _, name, text in self.texts(node, what)))

    def _truth(self, node: yaml.Node | None, what: str) -> bool:
        text = self.text(node, what).lower()
        if node is not None and not is_null(node) and text not in ("true", "false", "yes", "no", "on", "off"):
            self.report(node, f"{what} must be true or false")
        return text in ("true", "yes", "on")


def _number(text: str) -> float:
    plain = text.replace("_", "").lower()
    if plain in _NAMED:
        return _NAMED[plain]
    if _INTEGER.match(plain):
        digits = plain.lstrip("+-")
        octal = len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
        whole = int(digits, 8 if octal else 0)
        return float(-whole if plain[0] == "-" else whole)
    if not _FLOAT.match(plain):
        raise ValueError(f"not a number: {text!r}")
    return float(plain)


def _timestamp(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"not a time: {text!r}; write unix seconds or 2024-01-01T00:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError(f"a time needs its zone: {text!r}; write it like 2024-01-01T00:00:00Z")
    return moment.timestamp()
