"""Just enough PromQL to answer the dashboard's queries from functions of time; not an engine, and no model of one.

Counters are given by their rate (events a second), so `rate` is that rate at the window's middle and `increase` its
integral over the window.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import promql_parser as pp

Labels = tuple[tuple[str, str], ...]
# (time) -> value, None where the series does not exist then; a counter's value is its rate
Value = Callable[[float], float | None]
World = Mapping[str, Mapping[Labels, Value]]
Vector = dict[Labels, float]


class Evaluator:
    """Answers queries about a world. Answers are kept: the past does not change, and refreshes ask for it again."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._kept: dict[tuple[str, float], Vector] = {}

    def instant(self, query: str, time: float) -> Vector:
        """The instant vector of a query. ValueError for what the dashboard does not use."""
        return self.range(query, [time])[0]

    def range(self, query: str, times: list[float]) -> list[Vector]:
        """The instant vectors of a query at some times."""
        node = pp.parse(query)
        out = []
        for time in times:
            key = (query, time)
            if key not in self._kept:
                self._kept[key] = _evaluate(self._world, node, time)
            out.append(self._kept[key])
        return out


def _evaluate(world: World, node: Any, time: float) -> Vector:
    if isinstance(node, pp.ParenExpr):
        return _evaluate(world, node.expr, time)
    if isinstance(node, pp.VectorSelector):
        found = {labels: value(time) for labels, value in _select(world, node).items()}
        if str(node.name).endswith("_total"):
            found = {labels: _counted(_select(world, node)[labels], time) for labels in found}
        named = (("__name__", str(node.name)),)
        return {named + labels: value for labels, value in found.items() if value is not None}
    if isinstance(node, pp.AggregateExpr):
        return _sum(_evaluate(world, node.expr, time), node.modifier.labels if node.modifier else [])
    if isinstance(node, pp.BinaryExpr) and str(node.op) == "/":
        left, right = _evaluate(world, node.lhs, time), _evaluate(world, node.rhs, time)
        return {labels: value / right[labels] for labels, value in left.items() if right.get(labels)}
    if isinstance(node, pp.Call):
        return _call(world, node, time)
    raise ValueError(f"the fake does not know {type(node).__name__} in {node.prettify()}")


def _call(world: World, node: Any, time: float) -> Vector:
    if node.func.name == "histogram_quantile":
        return _quantile(node.args[0].val, _evaluate(world, node.args[1], time))
    matrix = node.args[0]
    seconds = matrix.range.total_seconds()
    num_points = max(3, min(24, int(seconds / 15)))
    times = [time - seconds * (i + 0.5) / num_points for i in range(num_points)]
    out: Vector = {}
    for labels, value in _select(world, matrix.vector_selector).items():
        points = [v for v in map(value, times) if v is not None]
        if points and node.func.name == "max_over_time":
            out[labels] = max(points)
        elif points:
            out[labels] = sum(points) / num_points * (seconds if node.func.name == "increase" else 1.0)
    return out


def _counted(rate: Value, time: float, step: float = 10.0) -> float | None:
    """The counter behind a rate: what came since its series began, an hour back at most."""
    now, whole, at = rate(time), 0.0, time
    while now is not None and time - at < 3600 and (then := rate(at)) is not None:
        whole, at = whole + then * step, at - step
    return None if now is None else whole


def _select(world: World, node: Any) -> dict[Labels, Value]:
    return {labels: value for labels, value in world.get(node.name, {}).items() if _matches(node, dict(labels))}


def _matches(node: Any, labels: Mapping[str, str]) -> bool:
    for matcher in node.matchers.matchers:
        have, op = labels.get(matcher.name, ""), matcher.op
        same = (
            have == matcher.value
            if op in (pp.MatchOp.Equal, pp.MatchOp.NotEqual)
            else bool(re.fullmatch(matcher.value, have))
        )
        if same != (op in (pp.MatchOp.Equal, pp.MatchOp.Re)):
            return False
    return True


def _sum(vector: Vector, by: list[str]) -> Vector:
    out: Vector = {}
    for labels, value in vector.items():
        key = tuple((name, text) for name, text in sorted(labels) if name in by)
        out[key] = out.get(key, 0.0) + value
    return out


def _quantile(q: float, buckets: Vector) -> Vector:
    groups: dict[Labels, list[tuple[float, float]]] = {}
    for labels, value in buckets.items():
        rest = tuple(pair for pair in labels if pair[0] != "le")
        groups.setdefault(rest, []).append((float(dict(labels)["le"]), value))
    out: Vector = {}
    for labels, points in groups.items():
        bounds, counts = zip(*sorted(points), strict=True)
        if counts[-1] > 0:
            out[labels] = float(np.interp(q * counts[-1], (0.0, *counts[:-1]), (0.0, *bounds[:-1])))
    return out
