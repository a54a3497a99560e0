"""The nodes of an expression, and which selectors it reads."""

from __future__ import annotations

from collections.abc import Iterator

from collectors.query.syntax import Aggregate, Binary, Call, Negation, Node, RangeSelector, Selector, Subquery
from collectors.store import Matcher


def selectors_of(node: Node) -> Iterator[tuple[Matcher, ...]]:
    """The matchers of each selector, from left to right."""
    return (part.matchers for part in walk(node) if isinstance(part, Selector))


def walk(node: Node) -> Iterator[Node]:
    """A node and all that is in it, each before its parts, from left to right."""
    yield node
    for child in children_of(node):
        yield from walk(child)


def children_of(node: Node) -> tuple[Node, ...]:
    """The nodes right below a node, from left to right."""
    match node:
        case RangeSelector():
            return (node.selector,)
        case Subquery() | Negation():
            return (node.expr,)
        case Binary():
            return node.left, node.right
        case Aggregate():
            return (node.expr,) if node.param is None else (node.param, node.expr)
        case Call():
            return node.args
        case _:
            return ()
