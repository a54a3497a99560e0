"""Which rules of a group need what those before them record, so that the others may be asked for together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from alerts.rules import Rule
from collectors.query import QueryError, parse
from collectors.query.selectors import walk
from collectors.query.syntax import Node, Selector

_ALERT_SERIES = ("ALERTS", "ALERTS_FOR_STATE")


def batches(rules: Sequence[Rule]) -> list[range]:
    """Runs of rules, by place, of which none reads what another of the run makes."""
    runs: list[range] = []
    start = 0
    for place, rule in enumerate(rules):
        read = list(selectors(rule.expr))
        texts = [text for _, text in (*rule.labels, *rule.annotations) if "query" in text]
        if any(_reads(read, texts, earlier) for earlier in rules[start:place]):
            runs.append(range(start, place))
            start = place
    return [*runs, range(start, len(rules))] if rules else []


def selectors(expr: str) -> Iterator[Selector]:
    """Every selector of an expression; none of one that does not parse."""
    try:
        yield from _selectors(parse(expr))
    except QueryError:
        return


def recorded_name(selector: Selector) -> str:
    """The metric that a selector names, "" when it names none."""
    return next((m.value for m in selector.matchers if m.name == "__name__" and m.op == "="), "")


def _selectors(node: Node) -> Iterator[Selector]:
    return (part for part in walk(node) if isinstance(part, Selector))


def _reads(read: Sequence[Selector], texts: Sequence[str], earlier: Rule) -> bool:
    """Whether selectors, or queries in templates, may meet a series of an earlier rule."""
    made = (earlier.name,) if earlier.kind == "record" else _ALERT_SERIES
    if any(name in text for name in made for text in texts):
        return True
    known = {"alertname": earlier.name} if earlier.kind == "alert" else dict(earlier.labels)
    return any(may_meet(selector, name, known) for name in made for selector in read)


def may_meet(selector: Selector, name: str, labels: Mapping[str, str]) -> bool:
    """Whether a selector may find the series of a name that have these labels, and perhaps others."""
    fixed = {**labels, "__name__": name}
    return all(matcher.matches(fixed[matcher.name]) for matcher in selector.matchers if matcher.name in fixed)
