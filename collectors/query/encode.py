"""Query results as the JSON of the Prometheus HTTP API: times in seconds, numbers as strings."""

from __future__ import annotations

from typing import Any

from collectors.query.numbers import format_float
from collectors.query.values import Matrix, Result, Scalar, String


def seconds(t_ms: int) -> float | int:
    """Unix seconds, whole ones without a fraction."""
    return t_ms // 1000 if t_ms % 1000 == 0 else t_ms / 1000


def sample_text(value: float) -> str:
    """A sample value as Prometheus writes it: plain, or with an exponent when very small or very large."""
    if value != 0 and not 1e-6 <= abs(value) < 1e21 and abs(value) < float("inf"):
        return repr(value)
    return format_float(value)


def result_data(result: Result) -> dict[str, Any]:
    """`resultType` and `result`."""
    if isinstance(result, Scalar):
        return {"resultType": "scalar", "result": [seconds(result.t_ms), sample_text(result.value)]}
    if isinstance(result, String):
        return {"resultType": "string", "result": [seconds(result.t_ms), result.value]}
    if isinstance(result, Matrix):
        return {
            "resultType": "matrix",
            "result": [
                {
                    "metric": series.labels,
                    "values": [
                        [seconds(t), sample_text(v)] for t, v in zip(series.t.tolist(), series.v.tolist(), strict=True)
                    ],
                }
                for series in result
            ],
        }
    return {
        "resultType": "vector",
        "result": [
            {"metric": element.labels, "value": [seconds(element.t_ms), sample_text(element.value)]}
            for element in result
        ],
    }
