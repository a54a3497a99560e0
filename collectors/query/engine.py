"""The query engine: PromQL text and times in, values out."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from collectors.query.context import PROMETHEUS_3, Context, Limits, Semantics, Shared, Tally, Value
from collectors.query.errors import QueryError
from collectors.query.evaluate import evaluate, sample_windows
from collectors.query.frame import Frame, Ints
from collectors.query.parse import parse
from collectors.query.syntax import Node, RangeSelector, Subquery
from collectors.query.values import Matrix, MatrixSeries, Result, Scalar, String, Vector, VectorElement
from collectors.store import Labels, SampleReader

_SUBQUERY_STEP_MS = 60_000


@runtime_checkable
class Versioned(Protocol):
    """A reader that says when its answers may have changed."""

    def version(self) -> int:
        """A number that is another one after every change of the samples."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an expression gave at `times`, as matrices: what the API writes as JSON, and `result` as plain values."""

    value: Value | Matrix
    times: Ints
    is_range: bool

    def __len__(self) -> int:
        """Series in it."""
        return len(self.value) if isinstance(self.value, Matrix | Frame) else 1

    def first(self, limit: int) -> Outcome:
        """With at most so many series: the first ones, by their labels where they are not in an order of their own."""
        if len(self) <= limit:
            return self
        if isinstance(self.value, Matrix):
            return Outcome(Matrix(self.value.series[:limit]), self.times, self.is_range)
        assert isinstance(self.value, Frame)
        order = self.value.labels.order() if self.is_range else np.arange(len(self.value))
        return Outcome(self.value.rows(order[:limit]), self.times, self.is_range)

    def result(self) -> Result:
        """The values one by one."""
        if isinstance(self.value, Matrix):
            return self.value
        if self.is_range:
            return _range_result(self.value, self.times)
        return _instant_result(self.value, int(self.times[0]))


class Engine:
    """Evaluates PromQL over what a reader gives. Any number of threads may use one.

    `lookback_ms` is how old a sample may be and still stand for its series. `timeout_seconds` bounds one query, and
    `max_samples` what it holds at once. Expressions at the same time over the same samples share their
    sub-expressions, in one call of `instants` or, over a reader that is Versioned, in calls that follow each other.
    """

    def __init__(
        self,
        reader: SampleReader,
        lookback_ms: int = 300_000,
        *,
        timeout_seconds: float = 120.0,
        max_samples: int = 50_000_000,
        semantics: Semantics = PROMETHEUS_3,
        subquery_step_ms: int = _SUBQUERY_STEP_MS,
    ) -> None:
        self._reader = reader
        self._subquery_step_ms = subquery_step_ms
        self._lookback_ms = lookback_ms
        self._timeout_seconds = timeout_seconds
        self._max_samples = max_samples
        self._semantics = semantics
        self._version = reader.version if isinstance(reader, Versioned) else None
        self._lock = threading.Lock()
        self._latest: tuple[tuple[int, int], Shared] | None = None

    @property
    def timeout_seconds(self) -> float:
        """How long a query may take at most."""
        return self._timeout_seconds

    @property
    def max_samples(self) -> int:
        """How many samples a query may hold at once."""
        return self._max_samples

    @property
    def lookback_ms(self) -> int:
        """How old a sample may be and still stand for its series."""
        return self._lookback_ms

    def instant(self, expr: str, at_ms: int, *, timeout_seconds: float | None = None) -> Result:
        """The value at one time (unix ms). A range selector gives a Matrix of its samples. Raises QueryError."""
        return self.instant_outcome(expr, at_ms, self.limits(timeout_seconds)).result()

    def instants(
        self, exprs: Sequence[str], at_ms: int, *, timeout_seconds: float | None = None
    ) -> list[Result | QueryError]:
        """The values of several expressions at one time; sub-expressions that they share are computed once."""
        outcomes = self.instant_outcomes(exprs, at_ms, self.limits(timeout_seconds))
        return [outcome if isinstance(outcome, QueryError) else outcome.result() for outcome in outcomes]

    def range(
        self, expr: str, start_ms: int, end_ms: int, step_ms: int, *, timeout_seconds: float | None = None
    ) -> Matrix:
        """The values at start, start + step, … up to end (unix ms). Raises QueryError."""
        result = self.range_outcome(expr, start_ms, end_ms, step_ms, self.limits(timeout_seconds)).result()
        assert isinstance(result, Matrix)
        return result

    def limits(
        self,
        timeout_seconds: float | None = None,
        cancelled: threading.Event | None = None,
        tally: Tally | None = None,
    ) -> Limits:
        """The limits of a query that begins now; its own timeout cannot be longer than the engine's."""
        timeout = self._timeout_seconds if timeout_seconds is None else min(timeout_seconds, self._timeout_seconds)
        return Limits(time.monotonic() + timeout, self._max_samples, cancelled, tally)

    # --- outcomes -----------------------------------------------------------------------------------------------------
    def instant_outcome(self, expr: str, at_ms: int, limits: Limits, lookback_ms: int | None = None) -> Outcome:
        """As `instant`; with another lookback than the engine's if one is given."""
        # What is counted must be looked at.
        shared = self._shared(at_ms) if lookback_ms is None and limits.tally is None else Shared()
        return self._at(expr, at_ms, limits, shared, lookback_ms)

    def instant_outcomes(self, exprs: Sequence[str], at_ms: int, limits: Limits) -> list[Outcome | QueryError]:
        """As `instants`."""
        shared = self._shared(at_ms)
        found: list[Outcome | QueryError] = []
        for expr in exprs:
            try:
                found.append(self._at(expr, at_ms, limits, shared))
            except QueryError as error:
                found.append(error)
        return found

    def range_outcome(
        self, expr: str, start_ms: int, end_ms: int, step_ms: int, limits: Limits, lookback_ms: int | None = None
    ) -> Outcome:
        """As `range`; with another lookback than the engine's if one is given."""
        if step_ms <= 0:
            raise QueryError("zero or negative query resolution step widths are not accepted", "bad_data")
        if end_ms < start_ms:
            raise QueryError("end timestamp must not be before start time", "bad_data")
        node = parse(expr)
        if isinstance(node, RangeSelector | Subquery):
            raise QueryError(_wrong_type("range vector"), "bad_data")
        limits.take((end_ms - start_ms) // step_ms)
        times = np.arange(start_ms, end_ms + 1, step_ms, dtype=np.int64)
        value = self._evaluated(node, self._context(times, end_ms, step_ms, limits, Shared(), lookback_ms))
        if isinstance(value, str):
            raise QueryError(_wrong_type("string"), "bad_data")
        return Outcome(value.without_empty() if isinstance(value, Frame) else value, times, True)

    def _at(self, expr: str, at_ms: int, limits: Limits, shared: Shared, lookback_ms: int | None = None) -> Outcome:
        node = parse(expr)
        times = np.array([at_ms], dtype=np.int64)
        # The step of an instant is zero.
        context = self._context(times, int(at_ms), 0, limits, shared, lookback_ms)
        if isinstance(node, RangeSelector | Subquery):
            with np.errstate(all="ignore"):
                return Outcome(_samples(node, context), times, False)
        return Outcome(self._evaluated(node, context), times, False)

    def _evaluated(self, node: Node, context: Context) -> Value:
        with np.errstate(all="ignore"):
            value = evaluate(node, context)
            return value.settled(context.naming).merged() if isinstance(value, Frame) else value

    def _context(
        self, times: Ints, end_ms: int, step_ms: int, limits: Limits, shared: Shared, lookback_ms: int | None
    ) -> Context:
        return Context(
            self._reader,
            times,
            int(times[0]),
            int(end_ms),
            step_ms,
            self._lookback_ms,
            self._subquery_step_ms,
            self._semantics,
            limits,
            shared,
        )

    def _shared(self, at_ms: int) -> Shared:
        """What the last expression at this time left, unless samples have come since."""
        if self._version is None:
            return Shared()
        key = self._version(), int(at_ms)
        with self._lock:
            if self._latest is None or self._latest[0] != key:
                self._latest = key, Shared()
            return self._latest[1]


def _wrong_type(kind: str) -> str:
    return f'invalid expression type "{kind}" for range query, must be Scalar or instant Vector'


def _instant_result(value: Value, at_ms: int) -> Result:
    if isinstance(value, str):
        return String(at_ms, value)
    if not isinstance(value, Frame):
        return Scalar(at_ms, float(value[0]))
    rows = zip(value.labels, value.values[:, 0].tolist(), value.present[:, 0].tolist(), strict=True)
    return Vector(tuple([VectorElement(labels, at_ms, number) for labels, number, there in rows if there]))


def _range_result(value: Value, times: Ints) -> Matrix:
    assert not isinstance(value, str)
    if not isinstance(value, Frame):
        return Matrix((MatrixSeries({}, times, np.asarray(value)),))
    whole = np.logical_and.reduce(value.present, axis=1)
    found = []
    for row in value.labels.order().tolist():
        present = slice(None) if whole[row] else value.present[row]
        found.append(MatrixSeries(value.labels[row], times[present], value.values[row][present]))
    return Matrix(tuple(found))


def _samples(node: Node, context: Context) -> Matrix:
    found: list[MatrixSeries] = []
    for samples, item in sample_windows(node, context):
        rows = slice(int(item.low[0]), int(item.high[0]))
        if rows.start < rows.stop:
            t = samples.t[rows]
            columns = enumerate(samples.labels)
            found.extend(MatrixSeries(labels, t, samples.v[rows, column]) for column, labels in columns)
    return Matrix(tuple(sorted(found, key=_sorting)))


def _sorting(series: MatrixSeries) -> list[tuple[str, str]]:
    labels: Labels = series.labels
    return sorted(labels.items())
