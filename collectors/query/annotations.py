"""What is probably not meant in an expression that has an answer, in the words of Prometheus 3 (util/annotations).

It is read off the expression alone: a rate of what is no counter by its name, quantiles outside of 0 to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from collectors.query.complaints import argument_places
from collectors.query.numbers import format_float
from collectors.query.parse import parse
from collectors.query.selectors import walk
from collectors.query.syntax import Aggregate, Call, Node, Number, RangeSelector, Selector, Subquery
from collectors.query.tokens import place, quoted

_COUNTERS = ("_total", "_sum", "_count", "_bucket")
_QUANTILES = ("quantile", "quantile_over_time", "histogram_quantile")
_NOT_A_COUNTER = f"PromQL info: metric might not be a counter, name does not end in {'/'.join(_COUNTERS)}"
_BAD_QUANTILE = "PromQL warning: quantile value should be between 0 and 1"


@dataclass(frozen=True, slots=True)
class Notes:
    """What an answer carries beside its data."""

    warnings: tuple[str, ...] = ()
    infos: tuple[str, ...] = ()


@lru_cache(maxsize=2048)
def notes_on(expr: str) -> Notes:
    """The warnings and infos of an expression, each with line and column of the argument. Raises ParseError."""
    calls = [node for node in walk(parse(expr)) if isinstance(node, Call | Aggregate)]
    found = [(number, _not_a_counter(node), _bad_quantile(node)) for number, node in enumerate(calls)]
    if not any(info or warning for _, info, warning in found):
        return Notes()
    places = argument_places(expr)
    if len(places) != len(calls):
        return Notes()
    warnings, infos = dict[str, None](), dict[str, None]()
    for number, info, warning in found:
        where = f" ({place(expr, places[number][0])})" if places[number] else ""
        if info:
            infos[info + where] = None
        if warning:
            warnings[warning + where] = None
    return Notes(tuple(warnings), tuple(infos))


def _not_a_counter(node: Call | Aggregate) -> str:
    if not isinstance(node, Call) or node.name not in ("rate", "increase"):
        return ""
    name = _metric_name(node.args[0])
    return "" if not name or name.endswith(_COUNTERS) else f"{_NOT_A_COUNTER}: {quoted(name)}"


def _metric_name(node: Node) -> str:
    """The name of the series of a range vector, where the expression says it."""
    selector = node.selector if isinstance(node, RangeSelector) else node.expr if isinstance(node, Subquery) else node
    matchers = selector.matchers if isinstance(selector, Selector) else ()
    return next((item.value for item in matchers if item.name == "__name__" and item.op == "="), "")


def _bad_quantile(node: Call | Aggregate) -> str:
    if isinstance(node, Call):
        quantile = node.args[0] if node.name in _QUANTILES else None
    else:
        quantile = node.param if node.op in _QUANTILES else None
    if not isinstance(quantile, Number) or 0 <= quantile.value <= 1:
        return ""
    value = "NaN" if math.isnan(quantile.value) else format_float(quantile.value)
    return f"{_BAD_QUANTILE}, got {value}"
