"""Query results as the JSON of the Prometheus HTTP API: times in seconds, numbers as strings."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from collectors.query.numbers import format_float
from collectors.query.values import Matrix, Result, Scalar, String


def seconds(t_ms: int) -> float | int:
    """Unix seconds, whole ones without a fraction."""
    return t_ms // 1000 if t_ms % 1000 == 0 else t_ms / 1000


def sample_text(value: float) -> str:
    """A sample value as Prometheus writes it: plain, or with an exponent when very small or very large."""
    text = repr(value)
    if text.endswith(".0"):
        return text[:-2]
    # Go turns to exponents later than Python does.
    needs_care = "e" in text or "n" in text
    if not needs_care or (0 < abs(value) < 1e-6 or 1e21 <= abs(value) < float("inf")):
        return text
    return format_float(value)


def _times(t_ms: NDArray[np.int64]) -> list[float]:
    """Whole seconds stay integers, so that they are written without a fraction."""
    times: list[float] = (t_ms / 1000 if (t_ms % 1000).any() else t_ms // 1000).tolist()
    return times


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
                    "values": list(zip(_times(series.t), map(sample_text, series.v.tolist()), strict=True)),
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
