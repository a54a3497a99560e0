"""The rows of each version in a batch of events, with what several that measure them ask of them, found out once."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from collectors.routed import Routed, routed
from collectors.windows import by_version
from observability.events import PREDICTION

Floats = npt.NDArray[np.float64]


class Part:
    """The rows of one version: `events` has METADATA's columns. Nothing changes it."""

    def __init__(self, model: str, version: str, events: pa.Table) -> None:
        self.model = model
        self.version = version
        self.events = events

    @cached_property
    def predictions(self) -> Floats | None:
        """`predictions_of` the rows."""
        return predictions_of(self.events)

    @cached_property
    def routed(self) -> Routed:
        """What the router chose for the rows."""
        return routed(self.events)


def parts_of(events: pa.Table) -> list[Part]:
    """The rows of each (model, version)."""
    return [Part(*part) for part in by_version(events)]


def predictions_of(events: pa.Table) -> Floats | None:
    """The first prediction column of a batch of events as float64, NaN where it failed; None if it has no numbers."""
    for name in events.schema.names:
        if name.startswith(PREDICTION) and _is_number(events.schema.field(name).type):
            values = events.column(name).cast(pa.float64())
            return np.asarray(pc.fill_null(values, math.nan).to_numpy(), np.float64)
    return None


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))
