"""An expression as the tree that Prometheus' `parse_query` gives."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from collectors.query.numbers import format_float
from collectors.query.parse import CARDINALITIES, OPERATORS, SET_OPERATORS, at_of, grammar_tree

_MILLISECOND = timedelta(milliseconds=1)


def parsed_json(expr: str) -> dict[str, Any]:
    """The tree of an expression. Raises ParseError."""
    return _tree(grammar_tree(expr))


def _tree(node: Any) -> dict[str, Any]:
    return _TREES[type(node).__name__](node)


def _ms(duration: timedelta | None) -> int:
    return 0 if duration is None else duration // _MILLISECOND


def _when(node: Any) -> dict[str, Any]:
    at = at_of(node.at)
    return {
        "offset": _ms(node.offset),
        "timestamp": at if isinstance(at, int) else None,
        "startOrEnd": at if isinstance(at, str) else None,
    }


def _selector(node: Any) -> dict[str, Any]:
    matchers = [
        {"name": item.name, "type": OPERATORS[str(item.op).rsplit(".", 1)[-1]], "value": item.value}
        for item in node.matchers.matchers
    ]
    if node.name is not None:
        matchers.append({"name": "__name__", "type": "=", "value": node.name})
    return {"name": node.name or "", "matchers": matchers, **_when(node)}


def _binary(node: Any) -> dict[str, Any]:
    op, modifier, matching = str(node.op), node.modifier, None
    both_vectors = _is_vector(node.lhs) and _is_vector(node.rhs)
    if both_vectors:
        card = "many-to-many" if op in SET_OPERATORS else "one-to-one"
        labels: list[str] = []
        on = False
        include: list[str] = []
        if modifier is not None:
            card = CARDINALITIES[str(modifier.card).rsplit(".", 1)[-1]]
            include = list(modifier.group_labels or ())
            if modifier.matching is not None:
                labels = list(modifier.matching.labels)
                on = str(modifier.matching.type).endswith("Include")
        matching = {"card": card, "labels": labels, "on": on, "include": include}
    return {
        "type": "binaryExpr",
        "op": op,
        "lhs": _tree(node.lhs),
        "rhs": _tree(node.rhs),
        "matching": matching,
        "bool": bool(modifier is not None and modifier.return_bool),
    }


def _is_vector(node: Any) -> bool:
    kind = type(node).__name__
    if kind in ("ParenExpr", "UnaryExpr"):
        return _is_vector(node.expr)
    if kind == "BinaryExpr":
        return _is_vector(node.lhs) or _is_vector(node.rhs)
    if kind == "Call":
        return str(node.func.return_type).endswith("Vector")
    return kind in ("VectorSelector", "AggregateExpr")


def _call(node: Any) -> dict[str, Any]:
    function = node.func
    return {
        "type": "call",
        "func": {
            "name": function.name,
            "argTypes": [_kind(item) for item in function.arg_types],
            "variadic": function.variadic,
            "returnType": _kind(function.return_type),
        },
        "args": [_tree(argument) for argument in node.args],
    }


def _kind(value_type: Any) -> str:
    return str(value_type).rsplit(".", 1)[-1].lower()


def _aggregate(node: Any) -> dict[str, Any]:
    modifier = node.modifier
    return {
        "type": "aggregation",
        "op": str(node.op),
        "expr": _tree(node.expr),
        "param": None if node.param is None else _tree(node.param),
        "grouping": [] if modifier is None else list(modifier.labels),
        "without": modifier is not None and str(modifier.type).endswith("Without"),
    }


def _subquery(node: Any) -> dict[str, Any]:
    return {
        "type": "subquery",
        "expr": _tree(node.expr),
        "range": _ms(node.range),
        "step": _ms(node.step),
        **_when(node),
    }


_TREES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "NumberLiteral": lambda node: {"type": "numberLiteral", "val": format_float(node.val)},
    "StringLiteral": lambda node: {"type": "stringLiteral", "val": node.val},
    "ParenExpr": lambda node: {"type": "parenExpr", "expr": _tree(node.expr)},
    "UnaryExpr": lambda node: {"type": "unaryExpr", "op": "-", "expr": _tree(node.expr)},
    "VectorSelector": lambda node: {"type": "vectorSelector", **_selector(node)},
    "MatrixSelector": lambda node: {
        "type": "matrixSelector",
        "range": _ms(node.range),
        **_selector(node.vector_selector),
    },
    "SubqueryExpr": _subquery,
    "BinaryExpr": _binary,
    "AggregateExpr": _aggregate,
    "Call": _call,
}
