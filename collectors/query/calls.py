"""What each PromQL function does with its arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from collectors.query import functions, histograms, range_functions
from collectors.query.context import Context, instant
from collectors.query.errors import QueryError
from collectors.query.families import classic
from collectors.query.frame import Bools, Floats, Frame
from collectors.query.info import with_info
from collectors.query.range_functions import RangeFunction
from collectors.query.syntax import Call, Node, RangeSelector, Selector, Text
from collectors.query.windows import Samples, Windows
from collectors.store import Labels


@dataclass(frozen=True, slots=True)
class Evaluator:
    """How a function has its arguments evaluated."""

    frame: Callable[[Node, Context], Frame]
    scalar: Callable[[Node, Context], Floats]
    windows: Callable[[Node, Context], list[tuple[Samples, Windows]]]
    over: Callable[[str, Node, RangeFunction, Context], Frame]


VectorCall = Callable[[Call, Context, Evaluator], "Frame | Floats"]
ScalarCall = Callable[[list[Floats], Context], "Frame | Floats"]


def _text(node: Node) -> str:
    if not isinstance(node, Text):
        raise QueryError("expected a string", "bad_data")
    return node.value


def _row(value: Floats) -> Frame:
    return Frame.of([{}], value[None, :], np.ones((1, len(value)), dtype=np.bool_))


def _elementwise(function: Callable[[Floats], Floats]) -> VectorCall:
    def call(node: Call, context: Context, evaluate: Evaluator) -> Frame:
        # The functions of the calendar are about now when nothing is given.
        frame = evaluate.frame(node.args[0], context) if node.args else _row(context.times / 1000)
        return frame.with_values(function(frame.values)).nameless(context.naming)

    return call


# --- ranges -----------------------------------------------------------------------------------------------------------
def _growth(is_counter: bool, per_second: bool) -> VectorCall:
    def call(node: Call, context: Context, evaluate: Evaluator) -> Frame:
        function = range_functions.growth(is_counter, per_second, context.semantics.zero_first)
        return evaluate.over(node.name, node.args[0], function, context)

    return call


def _predict_linear(node: Call, context: Context, evaluate: Evaluator) -> Frame:
    seconds = evaluate.scalar(node.args[1], context)
    function = range_functions.predict_linear(seconds, context.times)
    return evaluate.over(node.name, node.args[0], function, context)


def _quantile_over_time(node: Call, context: Context, evaluate: Evaluator) -> Frame:
    quantile = evaluate.scalar(node.args[0], context)
    return evaluate.over(node.name, node.args[1], range_functions.quantile_over_time(quantile), context)


def _smoothing(node: Call, context: Context, evaluate: Evaluator) -> Frame:
    smoothing, trend = (evaluate.scalar(argument, context) for argument in node.args[1:])
    function = range_functions.double_exponential_smoothing(smoothing, trend)
    return evaluate.over(node.name, node.args[0], function, context)


# --- absence ----------------------------------------------------------------------------------------------------------
def _absent(node: Call, context: Context, evaluate: Evaluator) -> Frame:
    nothing: Bools = np.atleast_1d(~evaluate.frame(node.args[0], context).present.any(axis=0))
    return _absence(node.args[0], nothing)


def _absent_over_time(node: Call, context: Context, evaluate: Evaluator) -> Frame:
    nothing = np.ones(len(context.times), dtype=np.bool_)
    for _, item in evaluate.windows(node.args[0], context):
        nothing &= item.counts == 0
    return _absence(node.args[0], nothing)


def _absence(argument: Node, nothing: Bools) -> Frame:
    if not nothing.any():
        return Frame.empty(len(nothing))
    return Frame.of([_labels_of_selector(argument)], np.ones((1, len(nothing))), nothing[None, :])


def _labels_of_selector(node: Node) -> Labels:
    """The labels that a selector fixes with `=`: what an absent series would have had (createLabelsForAbsent)."""
    selector = node.selector if isinstance(node, RangeSelector) else node
    labels: dict[str, str] = {}
    fixed: set[str] = set()
    for matcher in selector.matchers if isinstance(selector, Selector) else ():
        if matcher.name == "__name__":
            continue
        if matcher.op == "=" and matcher.name not in fixed:
            labels[matcher.name] = matcher.value
            fixed.add(matcher.name)
        else:
            labels.pop(matcher.name, None)
    return {name: value for name, value in labels.items() if value}


# --- numbers and times ------------------------------------------------------------------------------------------------
def _scalar(node: Call, context: Context, evaluate: Evaluator) -> Floats:
    frame = evaluate.frame(node.args[0], context)
    if not len(frame):
        return np.full(len(context.times), np.nan)
    total = np.where(frame.present, frame.values, 0).sum(axis=0)
    return np.where(frame.present.sum(axis=0) == 1, total, np.nan)


def _timestamp(node: Call, context: Context, evaluate: Evaluator) -> Frame:
    argument = node.args[0]
    if isinstance(argument, Selector):
        return instant(argument, context)[1].nameless(context.naming)
    frame = evaluate.frame(argument, context)
    moments = np.broadcast_to(context.times / 1000, frame.values.shape)
    return frame.with_values(moments).nameless(context.naming)


def _clamp(node: Call, context: Context, evaluate: Evaluator) -> Frame:
    frame = evaluate.frame(node.args[0], context)
    bounds = [evaluate.scalar(argument, context) for argument in node.args[1:]]
    infinite = np.full(len(context.times), np.inf)
    low = -infinite if node.name == "clamp_max" else bounds[0]
    high = infinite if node.name == "clamp_min" else bounds[-1]
    return functions.clamp(frame, low, high, context.naming)


def _round(node: Call, context: Context, evaluate: Evaluator) -> Frame:
    to_nearest = evaluate.scalar(node.args[1], context) if len(node.args) > 1 else np.ones(len(context.times))
    return functions.rounded(evaluate.frame(node.args[0], context), to_nearest, context.naming)


def _constant(seconds: Callable[[Context], float]) -> ScalarCall:
    return lambda _, context: np.full(len(context.times), seconds(context))


# --- labels and order -------------------------------------------------------------------------------------------------
def _label_replace(node: Call, context: Context, evaluate: Evaluator) -> Frame:
    target, replacement, source, pattern = (_text(argument) for argument in node.args[1:])
    return functions.label_replace(evaluate.frame(node.args[0], context), target, replacement, source, pattern)


def _label_join(node: Call, context: Context, evaluate: Evaluator) -> Frame:
    target, separator, *sources = (_text(argument) for argument in node.args[1:])
    return functions.label_join(evaluate.frame(node.args[0], context), target, separator, sources)


def _sort(descending: bool) -> VectorCall:
    return lambda node, context, evaluate: functions.ordered(evaluate.frame(node.args[0], context), descending)


def _sort_by_label(descending: bool) -> VectorCall:
    def call(node: Call, context: Context, evaluate: Evaluator) -> Frame:
        names = [_text(argument) for argument in node.args[1:]]
        return functions.ordered_by_labels(evaluate.frame(node.args[0], context), names, descending)

    return call


def _info(node: Call, context: Context, evaluate: Evaluator) -> Frame:
    wanted = node.args[1] if len(node.args) > 1 else None
    return with_info(
        evaluate.frame(node.args[0], context), node.args[0], wanted if isinstance(wanted, Selector) else None, context
    )


# --- histograms -------------------------------------------------------------------------------------------------------
def _buckets(argument: Node, context: Context, evaluate: Evaluator) -> Frame:
    return evaluate.frame(classic(argument) if context.semantics.native_names else argument, context)


def _histogram_quantile(node: Call, context: Context, evaluate: Evaluator) -> Frame:
    quantile = evaluate.scalar(node.args[0], context)
    return histograms.histogram_quantile(_buckets(node.args[1], context, evaluate), quantile, context.naming)


def _histogram_quantiles(node: Call, context: Context, evaluate: Evaluator) -> Frame:
    quantiles = [evaluate.scalar(argument, context) for argument in node.args[2:]]
    frame = _buckets(node.args[0], context, evaluate)
    return histograms.histogram_quantiles(frame, _text(node.args[1]), quantiles, context.naming)


def _histogram_fraction(node: Call, context: Context, evaluate: Evaluator) -> Frame:
    lower, upper = evaluate.scalar(node.args[0], context), evaluate.scalar(node.args[1], context)
    frame = _buckets(node.args[2], context, evaluate)
    return histograms.histogram_fraction(frame, lower, upper, context.naming)


def _of_native_histograms(node: Call, context: Context, evaluate: Evaluator) -> Frame:
    """The functions of native histograms leave samples that are floats out: nothing is left."""
    evaluate.frame(node.args[0], context)
    return Frame.empty(len(context.times))


SCALAR_CALLS: dict[str, ScalarCall] = {
    "vector": lambda arguments, context: _row(arguments[0]),
    "time": lambda _, context: context.times / 1000,
    "pi": _constant(lambda context: np.pi),
    "min_of": lambda arguments, context: functions.smaller(arguments[0], arguments[1]),
    "max_of": lambda arguments, context: functions.larger(arguments[0], arguments[1]),
    "start": _constant(lambda context: context.start_ms / 1000),
    "end": _constant(lambda context: context.end_ms / 1000),
    "range": _constant(lambda context: (context.end_ms - context.start_ms) / 1000),
    "step": _constant(lambda context: context.step_ms / 1000),
}
VECTOR_CALLS: dict[str, VectorCall] = {
    **{name: _elementwise(function) for name, function in (functions.MATHS | functions.CALENDAR).items()},
    "rate": _growth(is_counter=True, per_second=True),
    "increase": _growth(is_counter=True, per_second=False),
    "delta": _growth(is_counter=False, per_second=False),
    "predict_linear": _predict_linear,
    "quantile_over_time": _quantile_over_time,
    "double_exponential_smoothing": _smoothing,
    "holt_winters": _smoothing,
    "absent": _absent,
    "absent_over_time": _absent_over_time,
    "scalar": _scalar,
    "timestamp": _timestamp,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "round": _round,
    "sort": _sort(descending=False),
    "sort_desc": _sort(descending=True),
    "sort_by_label": _sort_by_label(descending=False),
    "sort_by_label_desc": _sort_by_label(descending=True),
    "label_replace": _label_replace,
    "label_join": _label_join,
    "info": _info,
    "histogram_quantile": _histogram_quantile,
    "histogram_quantiles": _histogram_quantiles,
    "histogram_fraction": _histogram_fraction,
    **dict.fromkeys(
        ("histogram_avg", "histogram_count", "histogram_sum", "histogram_stddev", "histogram_stdvar"),
        _of_native_histograms,
    ),
}
