"""What the kinds of profile columns share: their types, their error, and how arrays are written into JSON."""

from __future__ import annotations

import base64
import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Kind = Literal["numeric", "categorical", "boolean", "datetime", "text", "embedding"]


class ProfileError(ValueError):
    """Profiles or columns that do not fit each other; the message names the column."""


def packed(values: Floats) -> str:
    """Float64 values as base64 of their little-endian bytes: exact, and half as long as decimals."""
    return base64.b64encode(np.ascontiguousarray(values, "<f8").tobytes()).decode("ascii")


def unpacked(value: Any) -> Floats:
    """The values that `packed` wrote, or a plain list of numbers (format 1). ProfileError if it is neither."""
    if isinstance(value, str):
        body = base64.b64decode(value, validate=True)
        if len(body) % 8:
            raise ProfileError(f"packed numbers take 8 bytes each, there are {len(body)} bytes")
        return np.frombuffer(body, "<f8").astype(np.float64)
    if not isinstance(value, list):
        raise ProfileError(f"numbers are a list or base64 text, not {type(value).__name__}")
    return np.array([float(number) for number in value], np.float64)


def counts_of(value: Any) -> Counts:
    """Counts from JSON. ProfileError unless they are whole numbers from 0 to 2⁶³ − 1."""
    if not isinstance(value, list):
        raise ProfileError(f"counts are a list of whole numbers, not {type(value).__name__}")
    return np.array([count_of(number) for number in value], np.int64)


def count_of(value: Any) -> int:
    """One count from JSON. ProfileError unless it is a whole number from 0 to 2⁶³ − 1."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ProfileError(f"a count is a whole number from 0 to 2⁶³ − 1, not {value!r}")
    return value


def plain(value: float) -> float | str:
    """A number for JSON, which has no infinity: `float()` reads both forms back."""
    return value if math.isfinite(value) else str(value)
