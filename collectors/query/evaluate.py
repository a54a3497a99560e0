"""The evaluator: walks the tree once and computes every node for all steps of the query."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from collectors.query import aggregate, binary, functions, histograms, range_functions, windows
from collectors.query.context import Context, Value, instant
from collectors.query.errors import QueryError
from collectors.query.frame import Bools, Floats, Frame, Ints
from collectors.query.syntax import (
    Aggregate,
    Binary,
    Call,
    Negation,
    Node,
    Number,
    RangeSelector,
    Selector,
    Subquery,
    Text,
)
from collectors.query.windows import Samples, Windows
from collectors.store import Labels


def evaluate(node: Node, context: Context) -> Value:
    """A frame, a number at each step [steps], or a text. Raises QueryError."""
    context.check()
    match node:
        case Number():
            return np.full(len(context.times), node.value)
        case Text():
            return node.value
        case Selector():
            return instant(node, context)[0]
        case Negation():
            return _negated(evaluate(node.expr, context), context)
        case Binary():
            return _binary(node, context)
        case Aggregate():
            return _aggregate(node, context)
        case Call():
            return _call(node, context)
        case RangeSelector() | Subquery():
            raise QueryError("a range vector must be the argument of a function that takes one", "bad_data")


def frame_of(node: Node, context: Context) -> Frame:
    """The node's value, which the grammar promises is a vector."""
    value = evaluate(node, context)
    if not isinstance(value, Frame):
        raise QueryError("expected an instant vector", "bad_data")
    return value


def scalar_of(node: Node, context: Context) -> Floats:
    """The node's value, which the grammar promises is a scalar: [steps]."""
    value = evaluate(node, context)
    if not isinstance(value, np.ndarray):
        raise QueryError("expected a scalar", "bad_data")
    return value


def _text(node: Node) -> str:
    if not isinstance(node, Text):
        raise QueryError("expected a string", "bad_data")
    return node.value


# --- ranges -----------------------------------------------------------------------------------------------------------
def sample_windows(node: Node, context: Context) -> list[Windows]:
    """The windows of a range vector."""
    if isinstance(node, RangeSelector):
        moments = context.moments(node.selector.offset_ms, node.selector.at)
        oldest = int(moments.min()) - node.range_ms
        blocks = context.reader.select_blocks(node.selector.matchers, oldest, int(moments.max()))
        samples = windows.from_blocks(blocks)
    elif isinstance(node, Subquery):
        moments = context.moments(node.offset_ms, node.at)
        samples = _subquery(node, moments, context)
    else:
        raise QueryError("expected a range vector", "bad_data")
    left_open = context.semantics.left_open
    return [windows.windows(item, moments, node.range_ms, left_open) for item in samples]


def _subquery(node: Subquery, moments: Ints, context: Context) -> list[Samples]:
    step = context.subquery_step_ms if node.step_ms is None else node.step_ms
    if step <= 0:
        raise QueryError("zero or negative subquery step", "bad_data")
    oldest = int(moments.min()) - node.range_ms
    # Steps of a subquery are multiples of its step, whatever the outer query's start.
    first = -(-(oldest + (1 if context.semantics.left_open else 0)) // step) * step
    times = np.arange(first, int(moments.max()) + 1, step, dtype=np.int64)
    if not len(times):
        return []
    value = evaluate(node.expr, replace(context, times=times))
    frame = value if isinstance(value, Frame) else _single_row(value, len(times))
    split = windows.split_by_presence(frame.labels, times, frame.values.T, frame.present.T)
    dropping = {id(labels) for labels, drop in zip(frame.labels, frame.drop_name, strict=True) if drop}
    if not dropping:
        return split
    bare = Frame(frame.labels, frame.values, frame.present, frame.drop_name).settled()
    return windows.split_by_presence(bare.labels, times, bare.values.T, bare.present.T)


def _single_row(value: Floats | str, steps: int) -> Frame:
    if isinstance(value, str):
        raise QueryError("a string has no range", "bad_data")
    return Frame.of([{}], value[None, :], np.ones((1, steps), dtype=np.bool_))


# --- operators --------------------------------------------------------------------------------------------------------
def _negated(value: Value, context: Context) -> Value:
    if isinstance(value, Frame):
        return value.with_values(-value.values).nameless(context.semantics.delayed_names)
    if isinstance(value, str):
        raise QueryError("a string cannot be negated", "bad_data")
    return -value


def _binary(node: Binary, context: Context) -> Value:
    left, right = evaluate(node.left, context), evaluate(node.right, context)
    delayed = context.semantics.delayed_names
    if isinstance(left, str) or isinstance(right, str):
        raise QueryError("binary operators do not work on strings", "bad_data")
    if isinstance(left, Frame) and isinstance(right, Frame):
        if node.op in binary.SETS:
            return binary.sets(node.op, left, right, node.matching)
        return binary.vectors(node.op, left, right, node.matching, node.return_bool, delayed)
    if isinstance(left, Frame):
        assert isinstance(right, np.ndarray)
        return binary.vector_and_scalar(node.op, left, right, False, node.return_bool, delayed)
    if isinstance(right, Frame):
        return binary.vector_and_scalar(node.op, right, left, True, node.return_bool, delayed)
    return binary.scalars(node.op, left, right)


def _aggregate(node: Aggregate, context: Context) -> Frame:
    frame = frame_of(node.expr, context)
    if node.op == "count_values":
        assert node.param is not None
        return aggregate.count_values(frame, _text(node.param), node.labels, node.without)
    if node.op in ("topk", "bottomk"):
        assert node.param is not None
        k = scalar_of(node.param, context)
        return aggregate.top(frame, k, node.labels, node.without, node.op == "topk")
    if node.op == "quantile":
        assert node.param is not None
        return aggregate.quantile(frame, scalar_of(node.param, context), node.labels, node.without)
    return aggregate.aggregate(node.op, frame, node.labels, node.without)


# --- functions --------------------------------------------------------------------------------------------------------
def _call(node: Call, context: Context) -> Value:
    handler = _CALLS.get(node.name)
    if handler is not None:
        return handler(node, context)
    if node.name in range_functions.SIMPLE:
        return _over_windows(node, context, node.args[0], range_functions.SIMPLE[node.name])
    if node.name in functions.MATHS:
        return _elementwise(frame_of(node.args[0], context), functions.MATHS[node.name], context)
    if node.name in functions.CALENDAR:
        frame = frame_of(node.args[0], context) if node.args else _now(context)
        return _elementwise(frame, functions.CALENDAR[node.name], context)
    raise QueryError(f"function {node.name}() is not supported", "bad_data")


def _elementwise(frame: Frame, function: Callable[[Floats], Floats], context: Context) -> Frame:
    return frame.with_values(function(frame.values)).nameless(context.semantics.delayed_names)


def _now(context: Context) -> Frame:
    return _single_row(context.times / 1000, len(context.times))


def _over_windows(node: Call, context: Context, argument: Node, function: range_functions.RangeFunction) -> Frame:
    frames = []
    for item in sample_windows(argument, context):
        context.check()
        values, present = function(item)
        there = np.broadcast_to(present[:, None], values.shape)
        frames.append(Frame.of(item.samples.labels, values.T, there.T))
    frame = Frame.concatenated(frames, len(context.times)).without_empty()
    if node.name in range_functions.KEEPS_NAME:
        return frame.merged()
    return frame.nameless(context.semantics.delayed_names)


def _growth(is_counter: bool, per_second: bool) -> Callable[[Call, Context], Frame]:
    def call(node: Call, context: Context) -> Frame:
        function = range_functions.growth(is_counter, per_second, context.semantics.zero_first)
        return _over_windows(node, context, node.args[0], function)

    return call


def _predict_linear(node: Call, context: Context) -> Frame:
    seconds = scalar_of(node.args[1], context)
    return _over_windows(node, context, node.args[0], range_functions.predict_linear(seconds, context.times))


def _quantile_over_time(node: Call, context: Context) -> Frame:
    quantile = scalar_of(node.args[0], context)
    return _over_windows(node, context, node.args[1], range_functions.quantile_over_time(quantile))


def _absent(node: Call, context: Context) -> Frame:
    nothing: Bools = np.atleast_1d(~frame_of(node.args[0], context).present.any(axis=0))
    return _absence(node.args[0], nothing, context)


def _absent_over_time(node: Call, context: Context) -> Frame:
    nothing = np.ones(len(context.times), dtype=np.bool_)
    for item in sample_windows(node.args[0], context):
        nothing &= item.counts == 0
    return _absence(node.args[0], nothing, context)


def _absence(argument: Node, nothing: Bools, context: Context) -> Frame:
    if not nothing.any():
        return Frame.empty(len(context.times))
    return Frame.of([_labels_of_selector(argument)], np.ones((1, len(nothing))), nothing[None, :])


def _labels_of_selector(node: Node) -> Labels:
    """The labels that a selector fixes with `=`, once each: what an absent series would have had."""
    selector = node.selector if isinstance(node, RangeSelector) else node
    if not isinstance(selector, Selector):
        return {}
    names = [matcher.name for matcher in selector.matchers]
    return {
        matcher.name: matcher.value
        for matcher in selector.matchers
        if matcher.op == "=" and matcher.name != "__name__" and names.count(matcher.name) == 1 and matcher.value
    }


def _scalar(node: Call, context: Context) -> Floats:
    frame = frame_of(node.args[0], context)
    if not len(frame):
        return np.full(len(context.times), np.nan)
    total = np.where(frame.present, frame.values, 0).sum(axis=0)
    return np.where(frame.present.sum(axis=0) == 1, total, np.nan)


def _timestamp(node: Call, context: Context) -> Frame:
    argument = node.args[0]
    if isinstance(argument, Selector):
        return instant(argument, context)[1].nameless(context.semantics.delayed_names)
    frame = frame_of(argument, context)
    moments = np.broadcast_to(context.times / 1000, frame.values.shape)
    return frame.with_values(moments).nameless(context.semantics.delayed_names)


def _clamp(node: Call, context: Context) -> Frame:
    frame = frame_of(node.args[0], context)
    bounds = [scalar_of(argument, context) for argument in node.args[1:]]
    infinite = np.full(len(context.times), np.inf)
    low = -infinite if node.name == "clamp_max" else bounds[0]
    high = infinite if node.name == "clamp_min" else bounds[-1]
    return functions.clamp(frame, low, high, context.semantics.delayed_names)


def _round(node: Call, context: Context) -> Frame:
    to_nearest = scalar_of(node.args[1], context) if len(node.args) > 1 else np.ones(len(context.times))
    return functions.rounded(frame_of(node.args[0], context), to_nearest, context.semantics.delayed_names)


def _label_replace(node: Call, context: Context) -> Frame:
    target, replacement, source, pattern = (_text(argument) for argument in node.args[1:])
    return functions.label_replace(frame_of(node.args[0], context), target, replacement, source, pattern)


def _label_join(node: Call, context: Context) -> Frame:
    target, separator, *sources = (_text(argument) for argument in node.args[1:])
    return functions.label_join(frame_of(node.args[0], context), target, separator, sources)


def _histogram_quantile(node: Call, context: Context) -> Frame:
    quantile = scalar_of(node.args[0], context)
    return histograms.histogram_quantile(frame_of(node.args[1], context), quantile, context.semantics.delayed_names)


def _histogram_fraction(node: Call, context: Context) -> Frame:
    lower, upper = scalar_of(node.args[0], context), scalar_of(node.args[1], context)
    return histograms.histogram_fraction(frame_of(node.args[2], context), lower, upper, context.semantics.delayed_names)


_CALLS: dict[str, Callable[[Call, Context], Value]] = {
    "rate": _growth(is_counter=True, per_second=True),
    "increase": _growth(is_counter=True, per_second=False),
    "delta": _growth(is_counter=False, per_second=False),
    "predict_linear": _predict_linear,
    "quantile_over_time": _quantile_over_time,
    "absent": _absent,
    "absent_over_time": _absent_over_time,
    "scalar": _scalar,
    "vector": lambda node, context: _single_row(scalar_of(node.args[0], context), len(context.times)),
    "time": lambda node, context: context.times / 1000,
    "pi": lambda node, context: np.full(len(context.times), np.pi),
    "timestamp": _timestamp,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "round": _round,
    "sort": lambda node, context: functions.ordered(frame_of(node.args[0], context), descending=False),
    "sort_desc": lambda node, context: functions.ordered(frame_of(node.args[0], context), descending=True),
    "label_replace": _label_replace,
    "label_join": _label_join,
    "histogram_quantile": _histogram_quantile,
    "histogram_fraction": _histogram_fraction,
}
