"""What is unwise in rule files that are right: habits that make alerts late, silent, noisy or not portable.

Sources: Prometheus' practices for alerting, the SRE workbook on low traffic, and the issues that their users report.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alerts.absence import looks_for_absence, watch
from alerts.dependencies import may_meet, recorded_name, selectors
from alerts.durations import format_duration
from alerts.rules import Rule, RuleGroup, read
from alerts.yaml_nodes import Problem
from collectors.query import QueryError, parse
from collectors.query.selectors import walk
from collectors.query.syntax import Aggregate, Binary, Call, Node, Number, RangeSelector

Target = Literal["trimtab", "prometheus-2.42", "prometheus-3", "victoriametrics"]
TARGETS: tuple[Target, ...] = ("trimtab", "prometheus-2.42", "prometheus-3", "victoriametrics")

_SCRAPES_IN_A_RATE = 4
_RATES = ("rate", "irate", "increase", "delta", "idelta", "deriv")
_COUNTS = ("rate", "irate", "increase")
_COMPARISONS = (">", "<", ">=", "<=", "==", "!=")
_PAGES = ("page", "critical")
# What version 3 has and 2.42 has not.
_NEW_FUNCTIONS = (
    "histogram_avg", "histogram_stddev", "histogram_stdvar", "mad_over_time", "sort_by_label", "sort_by_label_desc",
    "info", "double_exponential_smoothing", "first_over_time", "ts_of_first_over_time", "ts_of_last_over_time",
    "ts_of_max_over_time", "ts_of_min_over_time", "limitk", "limit_ratio",
)  # fmt: skip
_UNBOUNDED = re.compile(r"\{\{[^}]*\b(?:query|now|toTime|humanizeTimestamp)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class LintPolicy:
    """`scrape_interval_seconds` is how often the targets are asked; `target` is what else the rules must run on."""

    scrape_interval_seconds: float = 15.0
    target: Target = "trimtab"


def lint(paths: Iterable[str | Path], policy: LintPolicy | None = None) -> list[Problem]:
    """Errors and everything unwise in the files, in order; empty when all is well."""
    groups, problems = read(paths)
    chosen = policy or LintPolicy()
    found = [*problems, *_across(groups)]
    for group in groups:
        found += _group(group, chosen)
        for rule in group.rules:
            try:
                node = parse(rule.expr)
            except QueryError:
                continue  # said already
            for check in _CHECKS:
                found += (_at(group.path, rule, message) for message in check(rule, node, chosen))
    order = {str(path): place for place, path in enumerate(dict.fromkeys(group.path for group in groups))}
    return sorted(found, key=lambda problem: (order.get(problem.path, -1), problem.line, problem.column))


# --- one rule ---------------------------------------------------------------------------------------------------------
def _short_window(rule: Rule, node: Node, policy: LintPolicy) -> Iterator[str]:
    least = _SCRAPES_IN_A_RATE * policy.scrape_interval_seconds
    for call in walk(node):
        if isinstance(call, Call) and call.name in _RATES:
            for part in call.args:
                if isinstance(part, RangeSelector) and part.range_ms < least * 1000:
                    yield (
                        f"{call.name} over {format_duration(part.range_ms / 1000)} is less than {_SCRAPES_IN_A_RATE} "
                        f"scrapes of {format_duration(policy.scrape_interval_seconds)}: one that fails leaves a hole; "
                        f"take {format_duration(least)} or more"
                    )


def _ratio_without_traffic(rule: Rule, node: Node, policy: LintPolicy) -> Iterator[str]:
    if rule.kind != "alert" or any(isinstance(part, Binary) and part.op == "and" for part in walk(node)):
        return
    for part in walk(node):
        if isinstance(part, Binary) and part.op in _COMPARISONS and any(map(_is_ratio, (part.left, part.right))):
            yield (
                "a ratio of events is compared with no least number of them: with few requests one failure is enough; "
                "add `and sum(increase(…)) > 50` or the like"
            )
            return


def _quantile_without_le(rule: Rule, node: Node, policy: LintPolicy) -> Iterator[str]:
    for call in walk(node):
        if isinstance(call, Call) and call.name == "histogram_quantile" and isinstance(call.args[-1], Aggregate):
            inner = call.args[-1]
            if ("le" in inner.labels) == inner.without:
                yield f"histogram_quantile needs the label le, which this {inner.op} takes away; add it to `by`"


def _unbounded_label(rule: Rule, node: Node, policy: LintPolicy) -> Iterator[str]:
    for name, text in rule.labels:
        if rule.kind == "alert" and _UNBOUNDED.search(text):
            yield (
                f"label {name!r} is made of a query or a time, so each evaluation may make a new alert and `for` never "
                "elapses; put it in an annotation"
            )


def _new_in_version_3(rule: Rule, node: Node, policy: LintPolicy) -> Iterator[str]:
    if policy.target != "prometheus-2.42":
        return
    for part in walk(node):
        name = part.name if isinstance(part, Call) else part.op if isinstance(part, Aggregate) else ""
        if name in _NEW_FUNCTIONS:
            yield f"{name} is not known to Prometheus 2.42"


def _sensitive_to_nan(rule: Rule, node: Node, policy: LintPolicy) -> Iterator[str]:
    if policy.target != "victoriametrics":
        return
    for part in walk(node):
        if isinstance(part, Binary) and part.op in ("/", "%") and not isinstance(part.right, Number):
            yield "VictoriaMetrics drops results that are NaN, as 0/0 is; Prometheus keeps them: guard the divisor"
            return
        if isinstance(part, Call) and part.name in ("avg_over_time", "predict_linear"):
            yield f"VictoriaMetrics keeps the metric's name in {part.name}, Prometheus drops it: aggregate it away"
            return


_Check = Callable[[Rule, Node, LintPolicy], Iterator[str]]
_CHECKS: tuple[_Check, ...] = (
    _short_window,
    _ratio_without_traffic,
    _quantile_without_le,
    _unbounded_label,
    _new_in_version_3,
    _sensitive_to_nan,
)


def _is_ratio(node: Node) -> bool:
    """Whether a part divides one count of events by another."""
    return any(
        isinstance(part, Binary) and part.op == "/" and all(_counts_events(side) for side in (part.left, part.right))
        for part in walk(node)
    )


def _counts_events(node: Node) -> bool:
    return any(isinstance(part, Call) and part.name in _COUNTS for part in walk(node))


# --- groups and files -------------------------------------------------------------------------------------------------
def _group(group: RuleGroup, policy: LintPolicy) -> Iterator[Problem]:
    if policy.target == "prometheus-2.42":
        for there, field in ((group.sets_offset, "query_offset"), (bool(group.labels), "labels")):
            if there:
                message = f"group {group.name!r} has {field!r}, for which Prometheus 2.42 refuses the whole file"
                yield Problem(group.path, group.line, "warning", message, group.column)
    seen: set[tuple[str, str, object]] = set()
    for rule in group.rules:
        key = (rule.kind, rule.name, (rule.labels, rule.expr if rule.kind == "alert" else ""))
        if key in seen:
            yield _at(group.path, rule, f"{rule.name} stands twice in group {group.name!r} with the same labels")
        seen.add(key)


def _across(groups: Sequence[RuleGroup]) -> Iterator[Problem]:
    recorded: dict[str, list[tuple[RuleGroup, Rule]]] = {}
    for group in groups:
        for rule in group.rules:
            if rule.kind == "record":
                recorded.setdefault(rule.name, []).append((group, rule))
    watched = watch(rule for group in groups for rule in group.rules)
    for group in groups:
        for rule in group.rules:
            read = [selector for selector in selectors(rule.expr) if recorded_name(selector)]
            for selector in read:
                name = recorded_name(selector)
                makers = [g for g, other in recorded.get(name, []) if may_meet(selector, name, dict(other.labels))]
                if makers and all(maker.key != group.key for maker in makers):
                    message = (
                        f"{name} is recorded in group {makers[0].name!r}, and groups do not wait for each other: "
                        "this rule may see the value of an evaluation before"
                    )
                    yield _at(group.path, rule, message)
                    break
            if _pages(rule) and not looks_for_absence(rule):
                unwatched = [selector for selector in read if recorded_name(selector) not in recorded]
                if unwatched and not any(map(watched.tells_of, unwatched)):
                    shown = ", ".join(sorted(set(map(recorded_name, unwatched))))
                    message = (
                        f"nothing tells when {shown} is gone, and then this page stays silent: add an absent() rule, "
                        "or rules for `up == 0` and for jobs without `up`"
                    )
                    yield _at(group.path, rule, message)


def _pages(rule: Rule) -> bool:
    return rule.kind == "alert" and dict(rule.labels).get("severity") in _PAGES


def _at(path: str, rule: Rule, message: str) -> Problem:
    return Problem(path, rule.line, "warning", message, rule.column)
