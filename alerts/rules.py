"""Prometheus rule files: groups of recording and alerting rules, read strictly, and what is wrong or unwise in them.

The format is Prometheus' own (`groups: [{name, interval, query_offset, limit, labels, rules}]`): an unknown field, a
bad duration, an expression that does not parse are errors that name file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from alerts.labels import LABEL_NAME, METRIC_NAME, Labels
from alerts.templates import Template, TemplateError
from collectors.query import QueryError, parse

DEFAULT_INTERVAL_SECONDS = 1.0
_SHIPPED = Path(__file__).parent / "rules.d"
SHIPPED_RULES = (_SHIPPED / "trimtab.yml", _SHIPPED / "availability.yml")

_GROUP_FIELDS = ("name", "interval", "query_offset", "limit", "labels", "rules")
_RULE_FIELDS = ("record", "alert", "expr", "for", "keep_firing_for", "labels", "annotations")
_DURATION = re.compile(r"(?:(\d+)y)?(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?\Z")
_UNIT_SECONDS = (365 * 86400.0, 7 * 86400.0, 86400.0, 3600.0, 60.0, 1.0, 0.001)
# With the value in a label, the alert's identity changes with each evaluation.
_VALUE_IN_LABEL = re.compile(r"\{\{[^}]*(?:\$value|\.Value)\b")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong (`error`) or unwise (`warning`) in a rule file. Lines count from 1."""

    path: str
    line: int
    severity: Literal["error", "warning"]
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.severity}: {self.message}"


class RuleError(ValueError):
    """Rule files that cannot be used; `problems` says why, each with file and line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A recording rule (`record`) or an alerting rule (`alert`); durations are seconds."""

    kind: Literal["record", "alert"]
    name: str
    expr: str
    for_seconds: float = 0.0
    keep_firing_for_seconds: float = 0.0
    labels: Labels = ()
    annotations: Labels = ()
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleGroup:
    """Rules that are evaluated one after the other, each seeing what those before it recorded."""

    name: str
    path: str
    rules: tuple[Rule, ...]
    interval_seconds: float = DEFAULT_INTERVAL_SECONDS
    query_offset_seconds: float = 0.0
    limit: int = 0
    """Most series or alerts that a rule of the group may make; 0 is no limit."""


def load(paths: Iterable[str | Path], *, interval_seconds: float = DEFAULT_INTERVAL_SECONDS) -> list[RuleGroup]:
    """All groups of the files; `interval_seconds` is for groups that name none. Raises RuleError with every problem."""
    groups: list[RuleGroup] = []
    errors: list[Problem] = []
    for path in paths:
        found, problems = _read(Path(path), interval_seconds)
        groups.extend(found)
        errors.extend(problem for problem in problems if problem.severity == "error")
    if errors:
        raise RuleError(errors)
    return groups


def check(paths: Iterable[str | Path]) -> list[Problem]:
    """Errors and warnings of the files, in order; empty when all is well."""
    return [problem for path in paths for problem in _read(Path(path), DEFAULT_INTERVAL_SECONDS)[1]]


def parse_duration(text: str) -> float:
    """Seconds of a Prometheus duration such as `1h30m` or `500ms`; raises ValueError."""
    found = _DURATION.match(text)
    if text == "0":
        return 0.0
    if not text or found is None:
        raise ValueError(f"not a duration: {text!r}; write it like 30s, 5m or 1h30m")
    return sum(int(number) * unit for number, unit in zip(found.groups(), _UNIT_SECONDS, strict=True) if number)


def format_duration(seconds: float) -> str:
    """A duration as Prometheus writes it: 5m, 1h30m, 500ms."""
    rest, parts = round(seconds * 1000), []
    for unit, milliseconds in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        number, rest = divmod(rest, milliseconds)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"


class _File:
    """One file on its way in: collects problems instead of stopping at the first."""

    def __init__(self, path: Path, interval_seconds: float) -> None:
        self.path = str(path)
        self.interval_seconds = interval_seconds
        self.problems: list[Problem] = []

    def report(self, node: yaml.Node | int, message: str, severity: Literal["error", "warning"] = "error") -> None:
        line = node if isinstance(node, int) else node.start_mark.line + 1
        self.problems.append(Problem(self.path, line, severity, message))

    def fields(self, node: yaml.Node, what: str, allowed: Sequence[str]) -> dict[str, yaml.Node]:
        """The fields of a mapping; unknown and repeated ones are reported."""
        if not isinstance(node, yaml.MappingNode):
            self.report(node, f"{what} must be a mapping")
            return {}
        result: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if key.value not in allowed:
                self.report(key, f"unknown field {key.value!r} in {what}; known are {', '.join(allowed)}")
            elif key.value in result:
                self.report(key, f"field {key.value!r} appears twice in {what}")
            else:
                result[key.value] = value
        return result

    def items(self, node: yaml.Node | None, what: str) -> list[yaml.Node]:
        if node is None or _is_null(node):
            return []
        if not isinstance(node, yaml.SequenceNode):
            self.report(node, f"{what} must be a list")
            return []
        return list(node.value)

    def text(self, node: yaml.Node | None, what: str) -> str:
        if node is None or _is_null(node):
            return ""
        if not isinstance(node, yaml.ScalarNode):
            self.report(node, f"{what} must be text")
            return ""
        return str(node.value)

    def duration(self, node: yaml.Node | None, what: str, default: float = 0.0) -> float:
        text = self.text(node, what)
        if node is None or not text:
            return default
        try:
            return parse_duration(text)
        except ValueError as error:
            self.report(node, f"{what}: {error}")
            return default

    def pairs(self, node: yaml.Node | None, what: str, *, templated: bool, owner: str = "") -> Labels:
        """Labels or annotations; names and templates are checked."""
        if node is None or _is_null(node):
            return ()
        if not isinstance(node, yaml.MappingNode):
            self.report(node, f"{what} must be a mapping of names to text")
            return ()
        pairs = []
        for key, value in node.value:
            name, text = key.value, self.text(value, f"{what} {key.value!r}")
            if not LABEL_NAME.match(name) or name == "__name__":
                self.report(key, f"{name!r} is not a valid name in {what}")
            if templated:
                try:
                    Template.parse(text, owner)
                except TemplateError as error:
                    self.report(value, f"{what} {name!r}: {error}")
            pairs.append((name, text))
        return tuple(sorted(pairs))

    def groups(self, root: yaml.Node | None) -> Iterator[RuleGroup]:
        if root is None or _is_null(root):
            return
        names: set[str] = set()
        for node in self.items(self.fields(root, "a rule file", ("groups",)).get("groups"), "groups"):
            group = self.group(node)
            if group.name in names:
                self.report(node, f"group name {group.name!r} is used twice in this file")
            names.add(group.name)
            yield group

    def group(self, node: yaml.Node) -> RuleGroup:
        fields = self.fields(node, "a group", _GROUP_FIELDS)
        name = self.text(fields.get("name"), "a group's name")
        if not name:
            self.report(node, "a group needs a name")
        limit = self.text(fields.get("limit"), "limit") or "0"
        if not limit.isdigit():
            self.report(fields["limit"], f"limit must be a whole number, got {limit!r}")
            limit = "0"
        interval = self.duration(fields.get("interval"), "interval") or self.interval_seconds
        shared = self.pairs(fields.get("labels"), "labels", templated=False)
        rules = [self.rule(item, shared) for item in self.items(fields.get("rules"), "rules")]
        return RuleGroup(
            name=name,
            path=self.path,
            rules=tuple(rule for rule in rules if rule is not None),
            interval_seconds=interval,
            query_offset_seconds=self.duration(fields.get("query_offset"), "query_offset"),
            limit=int(limit),
        )

    def rule(self, node: yaml.Node, shared: Labels) -> Rule | None:
        fields = self.fields(node, "a rule", _RULE_FIELDS)
        kind: Literal["record", "alert"] = "record" if "record" in fields else "alert"
        if ("record" in fields) == ("alert" in fields):
            self.report(node, "a rule is either a `record` or an `alert`, and this is both or neither")
            return None
        name = self.text(fields[kind], kind)
        if not name:
            self.report(fields[kind], f"{kind} must not be empty")
        if kind == "record":
            self._only_for_alerts(fields)
            if name and not METRIC_NAME.match(name):
                self.report(fields[kind], f"{name!r} is not a metric name")
        labels = self.pairs(fields.get("labels"), "labels", templated=kind == "alert")
        self._lint_labels(fields.get("labels"))
        return Rule(
            kind=kind,
            name=name,
            expr=self._expr(node, fields.get("expr")),
            for_seconds=self.duration(fields.get("for"), "for"),
            keep_firing_for_seconds=self.duration(fields.get("keep_firing_for"), "keep_firing_for"),
            labels=tuple(sorted({**dict(shared), **dict(labels)}.items())),
            annotations=self.pairs(fields.get("annotations"), "annotations", templated=True),
            line=node.start_mark.line + 1,
        )

    def _only_for_alerts(self, fields: dict[str, yaml.Node]) -> None:
        for field in ("for", "keep_firing_for", "annotations"):
            if field in fields:
                self.report(fields[field], f"{field!r} has no meaning in a recording rule; remove it")

    def _expr(self, rule: yaml.Node, node: yaml.Node | None) -> str:
        expr = self.text(node, "expr").strip()
        if node is None or not expr:
            self.report(rule, "a rule needs an expr")
            return ""
        try:
            parse(expr)
        except QueryError as error:
            self.report(node, f"cannot parse the expression {expr!r}: {error}")
        return expr

    def _lint_labels(self, node: yaml.Node | None) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            if isinstance(value, yaml.ScalarNode) and _VALUE_IN_LABEL.search(value.value):
                self.report(
                    value,
                    f"label {key.value!r} holds the value, so each evaluation makes a new alert and `for` never "
                    "elapses; put it in an annotation",
                    "warning",
                )


def _read(path: Path, interval_seconds: float) -> tuple[list[RuleGroup], list[Problem]]:
    file = _File(path, interval_seconds)
    groups: list[RuleGroup] = []
    try:
        # Like Prometheus, only the first document of a file counts.
        documents = yaml.compose_all(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        groups = list(file.groups(next(iter(documents), None)))
    except OSError as error:
        file.report(0, f"cannot read the file: {error.strerror or error}")
    except UnicodeDecodeError as error:
        file.report(0, f"the file is not UTF-8: {error}")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        file.report(line, f"not YAML: {error.problem}")
    return groups, sorted(file.problems, key=lambda problem: problem.line)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
