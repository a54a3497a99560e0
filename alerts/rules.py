"""Prometheus rule files: groups of recording and alerting rules, read strictly.

The format is Prometheus' own (`groups: [{name, interval, query_offset, limit, labels, rules}]`): an unknown field, a
bad duration, a template or an expression that does not parse are errors that name file, line and column.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from alerts.durations import format_duration, parse_duration
from alerts.labels import LABEL_NAME, METRIC_NAME, Labels
from alerts.templates import Template, TemplateError
from alerts.yaml_nodes import Problem, YamlFile
from collectors.query import QueryError, parse

__all__ = [
    "DEFAULT_INTERVAL_SECONDS", "SHIPPED_RULES", "Problem", "Rule", "RuleError", "RuleGroup",
    "check", "format_duration", "load", "parse_duration", "read",
]  # fmt: skip

DEFAULT_INTERVAL_SECONDS = 1.0
_SHIPPED = Path(__file__).parent / "rules.d"
SHIPPED_RULES = tuple(sorted(_SHIPPED.glob("*.yml")))

_GROUP_FIELDS = ("name", "interval", "query_offset", "limit", "labels", "rules")
_RULE_FIELDS = ("record", "alert", "expr", "for", "keep_firing_for", "labels", "annotations")

# With the value in a label, the alert's identity changes with each evaluation.
_VALUE_IN_LABEL = re.compile(r"\{\{[^}]*(?:\$value|\.Value)\b")


class RuleError(ValueError):
    """Rule files that cannot be used; `problems` says why, each with file, line and column."""

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
    column: int = 0


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
    labels: Labels = ()
    """Labels of the group, which its rules hold already."""
    sets_offset: bool = False
    """Whether the file says the offset; old versions of Prometheus do not know the field."""
    line: int = 0
    column: int = 0

    @property
    def key(self) -> str:
        """File and name, as Prometheus' metrics name a group."""
        return f"{self.path};{self.name}"


def load(paths: Iterable[str | Path], *, interval_seconds: float = DEFAULT_INTERVAL_SECONDS) -> list[RuleGroup]:
    """All groups of the files; `interval_seconds` is for groups that name none. Raises RuleError with every problem."""
    groups, problems = read(paths, interval_seconds=interval_seconds)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        raise RuleError(errors)
    return groups


def check(paths: Iterable[str | Path]) -> list[Problem]:
    """Errors and warnings of the files, in order; empty when all is well."""
    return read(paths)[1]


def read(
    paths: Iterable[str | Path], *, interval_seconds: float = DEFAULT_INTERVAL_SECONDS, strict: bool = True
) -> tuple[list[RuleGroup], list[Problem]]:
    """The groups of the files as far as they can be read, and every problem; without `strict` unknown fields pass."""
    groups: list[RuleGroup] = []
    problems: list[Problem] = []
    for path in paths:
        file = _RuleFile(Path(path), interval_seconds, strict)
        groups += file.groups()
        problems += sorted(file.problems, key=lambda problem: (problem.line, problem.column))
    return groups, problems


class _RuleFile(YamlFile):
    """The groups of one file."""

    def __init__(self, path: Path, interval_seconds: float, strict: bool) -> None:
        super().__init__(path, strict=strict)
        self._interval_seconds = interval_seconds

    def groups(self) -> Iterator[RuleGroup]:
        root = self.root()
        if root is None:
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
        shared = self.pairs(fields.get("labels"), "labels", "")
        rules = [self.rule(item, shared) for item in self.items(fields.get("rules"), "rules")]
        return RuleGroup(
            name=name,
            path=self.path,
            rules=tuple(rule for rule in rules if rule is not None),
            interval_seconds=self.duration(fields.get("interval"), "interval") or self._interval_seconds,
            query_offset_seconds=self.duration(fields.get("query_offset"), "query_offset"),
            limit=self.value(fields.get("limit"), "limit", _whole_number, 0),
            labels=shared,
            sets_offset="query_offset" in fields,
            line=node.start_mark.line + 1,
            column=node.start_mark.column + 1,
        )

    def rule(self, node: yaml.Node, shared: Labels) -> Rule | None:
        fields = self.fields(node, "a rule", _RULE_FIELDS)
        record, alert = (self.text(fields.get(kind), kind) for kind in ("record", "alert"))
        if bool(record) == bool(alert):
            which = "both" if record else "neither"
            self.report(node, f"a rule is either a `record` or an `alert`, and this is {which}: give it one of them")
            return None
        keep, annotations = "keep_firing_for", fields.get("annotations")
        hold_seconds, keep_seconds = self.duration(fields.get("for"), "for"), self.duration(fields.get(keep), keep)
        if record:
            notes = self.mapping(annotations, "annotations")
            for field, given in (("for", hold_seconds), (keep, keep_seconds), ("annotations", notes)):
                if given:
                    self.report(fields[field], f"{field!r} has no meaning in a recording rule; remove it")
            if not METRIC_NAME.match(record):
                hint = "; should the braces be in expr?" if "{" in record else ""
                self.report(fields["record"], f"{record!r} is not a metric name{hint}")
        return Rule(
            kind="record" if record else "alert",
            name=record or alert,
            expr=self._expr(node, fields.get("expr")),
            for_seconds=hold_seconds,
            keep_firing_for_seconds=keep_seconds,
            labels=tuple(sorted({**dict(shared), **dict(self.pairs(fields.get("labels"), "labels", alert))}.items())),
            annotations=self.pairs(annotations, "annotations", alert) if alert else (),
            line=node.start_mark.line + 1,
            column=node.start_mark.column + 1,
        )

    def pairs(self, node: yaml.Node | None, what: str, alert: str) -> Labels:
        """Labels or annotations; names are checked, and of an alert the templates."""
        pairs = []
        for key, value, name, text in self.texts(node, what):
            if not LABEL_NAME.match(name) or (name == "__name__" and what == "labels"):
                self.report(key, f"{name!r} is not a valid name in {what}")
            if alert:
                try:
                    Template.parse(text, alert)
                except TemplateError as error:
                    self.report(value, f"{what} {name!r}: {error}")
                if what == "labels" and _VALUE_IN_LABEL.search(text):
                    self.report(
                        value,
                        f"label {name!r} holds the value, so each evaluation makes a new alert and `for` never "
                        "elapses; put it in an annotation",
                        "warning",
                    )
            pairs.append((name, text))
        return tuple(sorted(pairs))

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


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"must be a whole number, got {text!r}") from None
