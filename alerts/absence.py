"""Whether any rule tells when a metric is gone: by absent(), by `past unless now`, or by a watch on its target's up.

A comparison of nothing is nothing, so an alert on a metric that is gone never fires. Source: Prometheus' alerting
practices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from alerts.dependencies import recorded_name
from alerts.rules import Rule
from collectors.query import QueryError, parse
from collectors.query.selectors import walk
from collectors.query.syntax import Binary, Call, Node, RangeSelector, Selector, Subquery

_COMPARISONS = (">", "<", ">=", "<=", "==", "!=")
_SCRAPED = "up"


@dataclass(frozen=True, slots=True)
class Watch:
    """What alerts look for that is gone; `failing` says whether one tells of targets whose scrape fails."""

    gone: tuple[Selector, ...]
    failing: bool

    def tells_of(self, selector: Selector) -> bool:
        """Whether an alert fires when the selector's metric is gone, or the targets that it comes from."""
        name = recorded_name(selector)
        return any(recorded_name(other) == name for other in self.gone) or (
            self.failing and any(_is_scrape_of(other, selector) for other in self.gone)
        )


def watch(rules: Iterable[Rule]) -> Watch:
    """What the alerts among the rules look for."""
    nodes = [node for rule in rules if rule.kind == "alert" for node in _parsed(rule.expr)]
    return Watch(tuple(found for node in nodes for found in _gone(node)), any(map(_watches_scrapes, nodes)))


def looks_for_absence(rule: Rule) -> bool:
    """Whether the rule itself fires where something is gone."""
    return any(True for node in _parsed(rule.expr) for _ in _gone(node))


def _parsed(expr: str) -> Iterator[Node]:
    try:
        yield parse(expr)
    except QueryError:
        return


def _gone(node: Node) -> Iterator[Selector]:
    for part in walk(node):
        if isinstance(part, Call) and part.name in ("absent", "absent_over_time"):
            yield from (inner for inner in walk(part) if isinstance(inner, Selector))
        if isinstance(part, Binary) and part.op == "unless":
            past = {recorded_name(selector) for selector in _earlier(part.left)}
            yield from (
                inner
                for inner in walk(part.right)
                if isinstance(inner, Selector) and not inner.offset_ms and recorded_name(inner) in past
            )


def _earlier(node: Node) -> Iterator[Selector]:
    """The selectors that look back."""
    for part in walk(node):
        if isinstance(part, RangeSelector):
            yield part.selector
        elif isinstance(part, Subquery):
            yield from (inner for inner in walk(part.expr) if isinstance(inner, Selector))
        elif isinstance(part, Selector) and part.offset_ms > 0:
            yield part


def _watches_scrapes(node: Node) -> bool:
    return any(
        isinstance(part, Binary)
        and part.op in _COMPARISONS
        and any(isinstance(inner, Selector) and recorded_name(inner) == _SCRAPED for inner in walk(part.left))
        for part in walk(node)
    )


def _is_scrape_of(scrape: Selector, selector: Selector) -> bool:
    """Whether a selector of `up` means every target that the other selector may find."""
    conditions = [matcher for matcher in scrape.matchers if matcher.name != "__name__"]
    return recorded_name(scrape) == _SCRAPED and all(matcher in selector.matchers for matcher in conditions)
