"""The evaluator: walks the tree once and computes every node for all steps of the query."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from collectors.query import aggregate, binary, range_functions, windows
from collectors.query.calls import SCALAR_CALLS, VECTOR_CALLS, Evaluator
from collectors.query.context import Context, Value, instant
from collectors.query.errors import QueryError
from collectors.query.frame import Floats, Frame, Ints, joined
from collectors.query.hashes import label_hashes
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


def evaluate(node: Node, context: Context) -> Value:
    """A frame, a number at each step [steps], or a text. Raises QueryError."""
    context.limits.check()
    match node:
        case Number():
            return np.full(len(context.times), node.value)
        case Text():
            return node.value
        case RangeSelector() | Subquery():
            raise QueryError("a range vector must be the argument of a function that takes one", "bad_data")
    key = context.key(node)
    found = context.shared.find(key)
    if found is None:
        found = _computed(node, context)
        context.shared.keep(key, found)
    return found


def _computed(node: Node, context: Context) -> Value:
    match node:
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
        case _:
            raise QueryError(f"{type(node).__name__} has no value of its own", "internal")


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


# --- ranges -----------------------------------------------------------------------------------------------------------
def sample_windows(node: Node, context: Context) -> list[tuple[Samples, Windows]]:
    """The samples of a range vector, with their windows."""
    if isinstance(node, RangeSelector):
        selector = node.selector
        moments = context.moments(selector.offset_ms, selector.at)
        blocks = context.blocks(selector, int(moments.min()) - node.range_ms, int(moments.max()))
        samples = windows.from_blocks(blocks)
    elif isinstance(node, Subquery):
        moments = context.moments(node.offset_ms, node.at)
        samples = _subquery(node, moments, context)
    else:
        raise QueryError("expected a range vector", "bad_data")
    left_open = context.semantics.left_open
    found = [(item, windows.windows(item, moments, node.range_ms, left_open)) for item in samples]
    context.limits.count(lambda: sum(int(whole.counts.sum()) * whole.v.shape[1] for _, whole in found))
    return found


def _subquery(node: Subquery, moments: Ints, context: Context) -> list[Samples]:
    step = context.subquery_step_ms if node.step_ms is None else node.step_ms
    if step <= 0:
        raise QueryError("zero or negative subquery step", "bad_data")
    oldest = int(moments.min()) - node.range_ms
    # Steps of a subquery are multiples of its step, whatever the outer query's start.
    first = -(-(oldest + (1 if context.semantics.left_open else 0)) // step) * step
    context.limits.take((int(moments.max()) - first) // step + 1)
    times = np.arange(first, int(moments.max()) + 1, step, dtype=np.int64)
    if not len(times):
        return []
    value = evaluate(node.expr, replace(context, times=times, step_ms=step))
    frame = value if isinstance(value, Frame) else _single_row(value, len(times))
    if frame.drop_name.any():
        frame = frame.settled(context.naming)
    return windows.split_by_presence(frame.labels, times, frame.values.T, frame.present.T)


def _single_row(value: Floats | str, steps: int) -> Frame:
    if isinstance(value, str):
        raise QueryError("a string has no range", "bad_data")
    return Frame.of([{}], value[None, :], np.ones((1, steps), dtype=np.bool_))


def over_windows(name: str, argument: Node, function: range_functions.RangeFunction, context: Context) -> Frame:
    """A function of a range vector, applied to every window of every series."""
    found = sample_windows(argument, context)
    labels = joined([samples.labels for samples, _ in found])
    shape = len(labels), len(context.times)
    context.limits.take(shape[0] * shape[1])
    values, present = np.empty(shape), np.empty(shape, dtype=np.bool_)
    first = 0
    for samples, whole in found:
        for columns, some in whole.slices():
            context.limits.check()
            answer, there = function(some)
            begin = first + (columns.start or 0)
            values[begin : begin + some.shape[1]] = answer.T
            present[begin : begin + some.shape[1]] = there
        first += len(samples.labels)
    frame = Frame.of(labels, values, present).without_empty()
    return frame.merged() if name in range_functions.KEEPS_NAME else frame.nameless(context.naming)


# --- operators --------------------------------------------------------------------------------------------------------
def _negated(value: Value, context: Context) -> Value:
    if isinstance(value, Frame):
        return value.with_values(-value.values).nameless(context.naming)
    if isinstance(value, str):
        raise QueryError("a string cannot be negated", "bad_data")
    return -value


def _binary(node: Binary, context: Context) -> Value:
    left, right = evaluate(node.left, context), evaluate(node.right, context)
    semantics = context.semantics
    if isinstance(left, str) or isinstance(right, str):
        raise QueryError("binary operators do not work on strings", "bad_data")
    if isinstance(left, Frame) and isinstance(right, Frame):
        if node.op in binary.SETS:
            return binary.sets(node.op, left, right, node.matching)
        return binary.vectors(node.op, left, right, node.matching, node.return_bool, semantics)
    if isinstance(left, Frame):
        assert isinstance(right, np.ndarray)
        return binary.vector_and_scalar(node.op, left, right, False, node.return_bool, semantics)
    if isinstance(right, Frame):
        return binary.vector_and_scalar(node.op, right, left, True, node.return_bool, semantics)
    return binary.scalars(node.op, left, right)


def _aggregate(node: Aggregate, context: Context) -> Frame:
    frame = frame_of(node.expr, context)
    if node.param is None:
        moments = context.semantics.running_moments
        return aggregate.aggregate(node.op, frame, node.labels, node.without, moments)
    if node.op == "count_values":
        label = evaluate(node.param, context)
        assert isinstance(label, str)
        return aggregate.count_values(frame, label, node.labels, node.without)
    parameter = scalar_of(node.param, context)
    if node.op in ("topk", "bottomk"):
        return aggregate.top(frame, parameter, node.labels, node.without, node.op == "topk")
    if node.op == "limitk":
        return aggregate.limited(frame, parameter, node.labels, node.without)
    if node.op == "limit_ratio":
        return aggregate.ratio_limited(frame, parameter, label_hashes(frame.labels))
    return aggregate.quantile(frame, parameter, node.labels, node.without)


def _call(node: Call, context: Context) -> Value:
    scalar = SCALAR_CALLS.get(node.name)
    if scalar is not None:
        return scalar([scalar_of(argument, context) for argument in node.args], context)
    call = VECTOR_CALLS.get(node.name)
    if call is not None:
        return call(node, context, _EVALUATOR)
    if node.name in range_functions.SIMPLE:
        return over_windows(node.name, node.args[0], range_functions.SIMPLE[node.name], context)
    raise QueryError(f'unknown function with name "{node.name}"', "bad_data")


_EVALUATOR = Evaluator(frame_of, scalar_of, sample_windows, over_windows)
