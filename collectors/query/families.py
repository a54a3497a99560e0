"""Queries written for native histograms, turned into queries of the classic buckets of the same families."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from collectors.query.selectors import selectors_of
from collectors.query.syntax import Aggregate, Binary, Call, Negation, Node, RangeSelector, Selector, Subquery
from collectors.store import Matcher

_BUCKET = "_bucket"


def classic(node: Node) -> Node:
    """The expression over `NAME_bucket` for a selector of NAME, keeping `le` in every aggregation on the way."""
    return _classic(node) if any(_names_family(matchers) for matchers in selectors_of(node)) else node


def _names_family(matchers: tuple[Matcher, ...]) -> bool:
    return any(_matcher(matcher) is not matcher for matcher in matchers)


@lru_cache(maxsize=512)
def _classic(node: Node) -> Node:
    match node:
        case Selector():
            return replace(node, matchers=tuple(_matcher(matcher) for matcher in node.matchers))
        case RangeSelector():
            selector = _classic(node.selector)
            assert isinstance(selector, Selector)
            return replace(node, selector=selector)
        case Subquery() | Negation():
            return replace(node, expr=_classic(node.expr))
        case Binary():
            return replace(node, left=_classic(node.left), right=_classic(node.right))
        case Aggregate():
            names = set(node.labels) - {"le"} if node.without else {*node.labels, "le"}
            return replace(node, expr=_classic(node.expr), labels=tuple(sorted(names)))
        case Call():
            return replace(node, args=tuple(_classic(argument) for argument in node.args))
        case _:
            return node


def _matcher(matcher: Matcher) -> Matcher:
    if matcher.name != "__name__":
        return matcher
    if matcher.op == "=" and not matcher.value.endswith(_BUCKET):
        return Matcher("__name__", "=~", f"{re.escape(matcher.value)}({_BUCKET})?")
    if matcher.op == "=~" and _BUCKET not in matcher.value:
        return Matcher("__name__", "=~", f"(?:{matcher.value})({_BUCKET})?")
    return matcher
