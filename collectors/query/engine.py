"""The query engine: PromQL text and times in, values out."""

from __future__ import annotations

import time

import numpy as np

from collectors.query.context import PROMETHEUS_3, Context, Semantics, Value
from collectors.query.errors import QueryError
from collectors.query.evaluate import evaluate, sample_windows
from collectors.query.frame import Frame, Ints
from collectors.query.parse import parse
from collectors.query.syntax import Node, RangeSelector, Subquery
from collectors.query.values import Matrix, MatrixSeries, Result, Scalar, String, Vector, VectorElement
from collectors.store import Labels, SampleReader

_SUBQUERY_STEP_MS = 60_000


class Engine:
    """Evaluates PromQL over what a reader gives. Holds no state: any number of threads may use one.

    `lookback_ms` is how old a sample may be and still stand for its series; `timeout_seconds` bounds one query.
    """

    def __init__(
        self,
        reader: SampleReader,
        lookback_ms: int = 300_000,
        *,
        timeout_seconds: float = 120.0,
        semantics: Semantics = PROMETHEUS_3,
    ) -> None:
        self._reader = reader
        self._lookback_ms = lookback_ms
        self._timeout_seconds = timeout_seconds
        self._semantics = semantics

    def instant(self, expr: str, at_ms: int, *, timeout_seconds: float | None = None) -> Result:
        """The value at one time (unix ms). A range selector gives a Matrix of its samples. Raises QueryError."""
        node = parse(expr)
        context = self._context(np.array([at_ms], dtype=np.int64), timeout_seconds)
        with np.errstate(all="ignore"):
            if isinstance(node, RangeSelector | Subquery):
                return _samples(node, context)
            return _instant_result(evaluate(node, context), int(at_ms))

    def range(
        self, expr: str, start_ms: int, end_ms: int, step_ms: int, *, timeout_seconds: float | None = None
    ) -> Matrix:
        """The values at start, start + step, … up to end (unix ms). Raises QueryError."""
        if step_ms <= 0:
            raise QueryError("zero or negative query resolution step widths are not accepted", "bad_data")
        if end_ms < start_ms:
            raise QueryError("end timestamp must not be before start time", "bad_data")
        node = parse(expr)
        if isinstance(node, RangeSelector | Subquery):
            raise QueryError(
                'invalid expression type "range vector" for range query, must be Scalar or instant Vector', "bad_data"
            )
        context = self._context(np.arange(start_ms, end_ms + 1, step_ms, dtype=np.int64), timeout_seconds, end_ms)
        with np.errstate(all="ignore"):
            return _range_result(evaluate(node, context), context)

    def _context(self, times: Ints, timeout_seconds: float | None, end_ms: int | None = None) -> Context:
        timeout = self._timeout_seconds if timeout_seconds is None else min(timeout_seconds, self._timeout_seconds)
        return Context(
            self._reader,
            times,
            int(times[0]),
            int(times[-1]) if end_ms is None else int(end_ms),
            self._lookback_ms,
            _SUBQUERY_STEP_MS,
            self._semantics,
            time.monotonic() + timeout,
        )


def _instant_result(value: Value, at_ms: int) -> Result:
    if isinstance(value, str):
        return String(at_ms, value)
    if not isinstance(value, Frame):
        return Scalar(at_ms, float(value[0]))
    frame = value.settled().merged()
    return Vector(
        tuple(
            VectorElement(labels, at_ms, number)
            for labels, number, there in zip(
                frame.labels, frame.values[:, 0].tolist(), frame.present[:, 0].tolist(), strict=True
            )
            if there
        )
    )


def _range_result(value: Value, context: Context) -> Matrix:
    if isinstance(value, str):
        raise QueryError(
            'invalid expression type "string" for range query, must be Scalar or instant Vector', "bad_data"
        )
    if not isinstance(value, Frame):
        return Matrix((MatrixSeries({}, context.times, np.asarray(value)),))
    frame = value.settled().merged().without_empty()
    found = [
        MatrixSeries(labels, context.times[present], values[present])
        for labels, values, present in zip(frame.labels, frame.values, frame.present, strict=True)
    ]
    return Matrix(tuple(sorted(found, key=_sorting)))


def _samples(node: Node, context: Context) -> Matrix:
    found: list[MatrixSeries] = []
    for item in sample_windows(node, context):
        rows = slice(int(item.low[0]), int(item.high[0]))
        if rows.start < rows.stop:
            t = item.samples.t[rows]
            columns = enumerate(item.samples.labels)
            found.extend(MatrixSeries(labels, t, item.samples.v[rows, column]) for column, labels in columns)
    return Matrix(tuple(sorted(found, key=_sorting)))


def _sorting(series: MatrixSeries) -> list[tuple[str, str]]:
    labels: Labels = series.labels
    return sorted(labels.items())
