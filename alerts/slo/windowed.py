"""A query of counters, made to count over any window: the text of `metricSource.spec.query`, rewritten.

Three ways of writing are understood: counters without a range (`requests_total{code="500"}`, sums of them), which get
`increase(...[window])`; ranges in `rate` or `increase`, whatever their length, which become the window; and sloth's
`[{{.window}}]`. Anything else would count something different over each window, and is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import promql_parser as pp

from alerts.rules import format_duration

Function = Literal["increase", "sum_over_time"]
_TEMPLATE = re.compile(r"\[\s*\{\{-?\s*\.window\s*-?\}\}\s*\]")
_STRING_OR_RANGE = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|`[^`]*`|\[[^\]]*\]')
_PLACE = "[5m]"
# What keeps sums sums: the increase of a sum is the sum of the increases.
_LINEAR = (pp.VectorSelector, pp.ParenExpr, pp.AggregateExpr, pp.BinaryExpr, pp.Call, pp.NumberLiteral)


@dataclass(frozen=True, slots=True)
class Counted:
    """Events counted over any window. `plain` is true for a bare selector, the only form that can be grouped."""

    text: str
    function: Function
    form: Literal["selector", "sum", "increase", "rate"]

    def over(self, seconds: float, by: tuple[str, ...] = ()) -> str:
        """PromQL of the events in the window that ends now; labels `by` are kept where the query is a selector."""
        window = f"[{format_duration(seconds)}]"
        if self.form == "selector":
            return f"{summed(by)} ({self.function}({self.text}{window}))"
        if self.form == "sum":
            return self._each(lambda selector: f"{self.function}({selector}{window})")
        text = _STRING_OR_RANGE.sub(lambda found: window if found[0].startswith("[") else found[0], self.text)
        return f"({text}) * {seconds:g}" if self.form == "rate" else f"({text})"

    def exactly_over(self, seconds: float, by: tuple[str, ...] = ()) -> str:
        """As `over`, but what follows one another adds up: the difference of a counter, not an extrapolation.

        A counter that began anew or was born within the window is extrapolated as always.
        """
        if self.function != "increase" or self.form not in ("selector", "sum"):
            return self.over(seconds, by)
        span = format_duration(seconds)

        def difference(selector: str) -> str:
            return (
                f"((({selector} - {selector} offset {span}) and resets({selector}[{span}]) == 0)"
                f" or increase({selector}[{span}]))"
            )

        if self.form == "selector":
            return f"{summed(by)} ({difference(self.text)})"
        return self._each(difference)

    def parts(self) -> str:
        """The selector whose labels tell who the events were, empty where the query hides it."""
        return self.text if self.form == "selector" else ""

    def _each(self, rewrite: Any) -> str:
        def replaced(node: Any) -> Any:
            return pp.parse(rewrite(node.prettify())) if isinstance(node, pp.VectorSelector) else None

        return f"({pp.transform(pp.parse(self.text), None, replaced).prettify()})"


def summed(by: tuple[str, ...]) -> str:
    """The aggregation that keeps the labels."""
    return f"sum by ({', '.join(by)})" if by else "sum"


def counted(query: str, *, counter: bool = True) -> Counted:
    """Reads a query; ValueError says what is wrong with it and how to write it. `counter=False`: values to add up."""
    text = _TEMPLATE.sub(_PLACE, query.strip())
    try:
        tree = pp.parse(text)
    except ValueError as error:
        raise ValueError(f"not PromQL: {query.strip()!r}: {error}") from error
    found = _kinds(tree)
    function: Function = "increase" if counter else "sum_over_time"
    if found["ranges"] == 0:
        if isinstance(tree, pp.VectorSelector):
            return Counted(text, function, "selector")
        _refuse_unless_linear(tree, query)
        return Counted(text, function, "sum")
    if found["selectors"] > found["ranges"]:
        raise ValueError(f"{query.strip()!r} has selectors with a range and without: give all of them one, or none")
    used = found["functions"] & {"rate", "increase", "sum_over_time", "count_over_time"}
    wrong = found["functions"] - used - {"vector", "clamp_min", "clamp_max", "label_replace", "absent"}
    if wrong or found["subqueries"] or len(used) != 1:
        what = ", ".join(sorted(wrong)) or "a subquery" if wrong or found["subqueries"] else "rate beside increase"
        raise ValueError(
            f"{query.strip()!r} cannot be counted over other windows ({what}): use `increase` or `rate` alone, "
            "or name the counters without a range"
        )
    return Counted(text, function, "rate" if used == {"rate"} else "increase")


def grouping(query: str) -> tuple[str, ...]:
    """The labels that the query's outermost aggregation keeps, where it is one."""
    tree = pp.parse(_TEMPLATE.sub(_PLACE, query.strip()))
    while isinstance(tree, (pp.ParenExpr, pp.BinaryExpr)):
        tree = tree.expr if isinstance(tree, pp.ParenExpr) else tree.lhs
    modifier = tree.modifier if isinstance(tree, pp.AggregateExpr) else None
    kept = modifier is not None and modifier.type == pp.AggModifierType.By
    return tuple(modifier.labels) if kept and modifier is not None else ()


def _kinds(tree: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"ranges": 0, "selectors": 0, "subqueries": 0, "functions": set()}

    def visit(node: Any) -> bool:
        found["ranges"] += isinstance(node, pp.MatrixSelector)
        found["selectors"] += isinstance(node, pp.VectorSelector)
        found["subqueries"] += isinstance(node, pp.SubqueryExpr)
        if isinstance(node, pp.Call):
            found["functions"].add(node.func.name)
        return True

    pp.walk(tree, visit, lambda node: True)
    return found


def _refuse_unless_linear(tree: Any, query: str) -> None:
    def visit(node: Any) -> bool:
        allowed = isinstance(node, _LINEAR)
        if isinstance(node, pp.AggregateExpr):
            allowed = str(node.op) == "sum"
        elif isinstance(node, pp.BinaryExpr):
            allowed = str(node.op) in ("+", "-", "or")
        elif isinstance(node, pp.Call):
            allowed = node.func.name == "vector"
        if not allowed:
            raise ValueError(
                f"{query.strip()!r} cannot be counted over a window: only sums of counters can; write the range "
                "yourself, as rate(...[{{.window}}])"
            )
        return True

    pp.walk(tree, visit, lambda node: True)
