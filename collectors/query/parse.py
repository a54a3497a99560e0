"""From PromQL text to nodes: `promql-parser` has the grammar and the type check, this converts its tree once."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, cast

import promql_parser as grammar

from collectors.query.complaints import complaint, refuse_overflow, selector_complaint
from collectors.query.errors import ParseError
from collectors.query.syntax import (
    Aggregate,
    At,
    Binary,
    Call,
    Cardinality,
    Matching,
    Negation,
    Node,
    Number,
    RangeSelector,
    Selector,
    Subquery,
    Text,
)
from collectors.query.tokens import located
from collectors.store import Matcher

_TOKENS = re.compile(
    r"""(?P<quoted>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|`(?P<raw>[^`]*)`|(?P<comment>\#[^\n]*)""", re.S
)
_STRINGS = re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'""", re.S)
_INFO = re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\binfo\s*\(|,\s*\{(?!\s*\})|[()\[\]{}]""", re.S)
_MARK = "__trimtab_info__"
_NEGATIVE_AT = re.compile(r"@\s*-")
_MILLISECOND = timedelta(milliseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
OPERATORS = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}
# What promql-parser does not know, or not any more: the name that double_exponential_smoothing had before version 3.
grammar.register_extra_functions(
    [
        grammar.Function(
            "holt_winters",
            [grammar.ValueType.Matrix, grammar.ValueType.Scalar, grammar.ValueType.Scalar],
            grammar.ValueType.Vector,
        )
    ]
)
CARDINALITIES: dict[str, Cardinality] = {
    "OneToOne": "one-to-one",
    "ManyToOne": "many-to-one",
    "OneToMany": "one-to-many",
    "ManyToMany": "many-to-many",
}
SET_OPERATORS = ("and", "or", "unless")


@lru_cache(maxsize=2048)
def parse(expr: str) -> Node:
    """The tree of an expression. Raises ParseError for text that is not PromQL or is wrongly typed."""
    tree = grammar_tree(expr)
    try:
        return _node(tree)
    except ValueError as error:
        raise ParseError(complaint(expr, str(error))) from error


def format_query(expr: str) -> str:
    """The expression, laid out. Raises ParseError."""
    return cast(str, grammar_tree(expr).prettify())


def parse_selector(text: str) -> tuple[Matcher, ...]:
    """The matchers of a series selector such as `up{job="x"}`. Raises ParseError."""
    try:
        node = parse(text)
    except ParseError as error:
        raise ParseError(selector_complaint(text)) from error
    if not isinstance(node, Selector) or node.offset_ms or node.at is not None:
        raise ParseError(selector_complaint(text))
    return node.matchers


def grammar_tree(expr: str) -> Any:
    """The tree of `promql-parser`. Raises ParseError."""
    try:
        tree = _tree(expr)
    except ValueError as error:
        raise ParseError(complaint(expr, str(error))) from error
    refuse_overflow(expr)
    return tree


def _tree(expr: str) -> Any:
    prepared = _TOKENS.sub(_double_quoted, expr)
    negative = _NEGATIVE_AT.search(_STRINGS.sub(lambda match: " " * len(match[0]), expr))
    if negative:
        # The parser accepts these but panics when the time is read.
        raise located(expr, negative.start(), "times before 1970 after @ are not supported")
    return grammar.parse(_info_marked(prepared) if "info" in prepared else prepared)


def _info_marked(text: str) -> str:
    """The second argument of info() with a matcher that stands for itself: it may match everything, selectors not."""
    found: list[str] = []
    inside: list[int] = []
    depth = end = 0
    for match in _INFO.finditer(text):
        piece = match[0]
        if piece.endswith("(") or piece in "[{":
            depth += 1
            if piece not in "([{":
                inside.append(depth)
        elif piece in ")]}":
            if inside and inside[-1] == depth:
                inside.pop()
            depth -= 1
        elif piece.startswith(",") and inside and inside[-1] == depth:
            found.append(text[end : match.start()] + piece + f'{_MARK}="1",')
            end = match.end()
            depth += 1
    return "".join([*found, text[end:]])


def _double_quoted(match: re.Match[str]) -> str:
    """Raw strings as quoted ones (the parser reads escapes in them), and no comments."""
    if match["raw"] is not None:
        escaped = match["raw"].replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    return "" if match["comment"] is not None else match[0]


def _milliseconds(duration: timedelta | None) -> int:
    return 0 if duration is None else duration // _MILLISECOND


def at_of(modifier: Any) -> At | None:
    """The `@` modifier of a grammar node."""
    if modifier is None:
        return None
    kind = str(modifier.type).rsplit(".", 1)[-1].lower()
    if kind in ("start", "end"):
        return cast(At, kind)
    moment: datetime = modifier.at
    return (moment - _EPOCH) // _MILLISECOND


def _node(tree: Any) -> Node:
    convert = _CONVERTERS.get(type(tree).__name__)
    if convert is None:
        raise ParseError(f"unsupported syntax {type(tree).__name__}")
    return convert(tree)


def _selector(tree: Any) -> Selector:
    if tree.matchers.or_matchers:
        raise ParseError("`or` between matchers is not PromQL; use a regular expression")
    matchers = [Matcher("__name__", "=", tree.name)] if tree.name is not None else []
    for item in tree.matchers.matchers:
        if item.name == _MARK:
            continue
        operator = OPERATORS[str(item.op).rsplit(".", 1)[-1]]
        matchers.append(Matcher(item.name, cast(Any, operator), item.value))
    return Selector(tuple(matchers), _milliseconds(tree.offset), at_of(tree.at))


def _subquery(tree: Any) -> Subquery:
    step = None if tree.step is None else _milliseconds(tree.step)
    return Subquery(_node(tree.expr), _milliseconds(tree.range), step, _milliseconds(tree.offset), at_of(tree.at))


def _binary(tree: Any) -> Binary:
    op, modifier = str(tree.op), tree.modifier
    default: Cardinality = "many-to-many" if op in SET_OPERATORS else "one-to-one"
    matching, return_bool = Matching(default, on=False, labels=()), False
    if modifier is not None:
        fills = modifier.fill_values
        if fills is not None and (fills.lhs is not None or fills.rhs is not None):
            raise ParseError("the fill modifier is not supported")
        labels, on = (), False
        if modifier.matching is not None:
            labels = tuple(modifier.matching.labels)
            on = str(modifier.matching.type).endswith("Include")
        cardinality = CARDINALITIES[str(modifier.card).rsplit(".", 1)[-1]]
        matching = Matching(cardinality, on, labels, tuple(modifier.group_labels or ()))
        return_bool = bool(modifier.return_bool)
    return Binary(op, _node(tree.lhs), _node(tree.rhs), matching, return_bool)


def _aggregate(tree: Any) -> Aggregate:
    modifier = tree.modifier
    labels = () if modifier is None else tuple(modifier.labels)
    without = modifier is not None and str(modifier.type).endswith("Without")
    param = None if tree.param is None else _node(tree.param)
    return Aggregate(str(tree.op), _node(tree.expr), param, labels, without)


_CONVERTERS: dict[str, Callable[[Any], Node]] = {
    "NumberLiteral": lambda tree: Number(tree.val),
    "StringLiteral": lambda tree: Text(tree.val),
    "ParenExpr": lambda tree: _node(tree.expr),
    "UnaryExpr": lambda tree: Negation(_node(tree.expr)),
    "VectorSelector": _selector,
    "MatrixSelector": lambda tree: RangeSelector(_selector(tree.vector_selector), _milliseconds(tree.range)),
    "SubqueryExpr": _subquery,
    "BinaryExpr": _binary,
    "AggregateExpr": _aggregate,
    "Call": lambda tree: Call(tree.func.name, tuple(_node(argument) for argument in tree.args)),
}
