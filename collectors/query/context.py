"""What an evaluation knows besides the expression: times, bounds, settings, the samples and the deadline."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from collectors.query.errors import QueryError
from collectors.query.frame import Floats, Frame, Ints
from collectors.query.syntax import At, Selector
from collectors.store import SampleReader, is_stale

Value = Frame | Floats | str


@dataclass(frozen=True, slots=True)
class Semantics:
    """Where versions of Prometheus differ; the defaults are those of version 3.

    `left_open`: a range or lookback leaves out its oldest moment. `zero_first`: a rate is clamped at zero before the
    check whether samples are near the range's start. `delayed_names`: metric names are removed at the end only.
    """

    left_open: bool = True
    zero_first: bool = False
    delayed_names: bool = False


PROMETHEUS_3 = Semantics()
PROMETHEUS_2 = Semantics(left_open=False, zero_first=True)


@dataclass(frozen=True, slots=True)
class Context:
    """One evaluation: the steps' times (unix ms), the whole query's bounds for `@ start()`, settings, the deadline."""

    reader: SampleReader
    times: Ints
    start_ms: int
    end_ms: int
    lookback_ms: int
    subquery_step_ms: int
    semantics: Semantics
    deadline: float

    def moments(self, offset_ms: int, at: At | None) -> Ints:
        """The times that a selector looks at, one a step."""
        if at is None:
            return self.times - offset_ms
        fixed = {"start": self.start_ms, "end": self.end_ms}.get(at, 0) if isinstance(at, str) else at
        return np.full(len(self.times), fixed - offset_ms, dtype=np.int64)

    def check(self) -> None:
        """Raises QueryError when the query has run out of time."""
        if time.monotonic() > self.deadline:
            raise QueryError("query timed out in expression evaluation", "timeout")


def instant(node: Selector, context: Context) -> tuple[Frame, Frame]:
    """The newest value of each series within the lookback, and that sample's time in seconds."""
    moments = context.moments(node.offset_ms, node.at)
    open_edge = 1 if context.semantics.left_open else 0
    oldest = moments - context.lookback_ms + open_edge
    values, times, present, labels = [], [], [], []
    for block in context.reader.select_blocks(node.matchers, int(oldest.min()), int(moments.max())):
        row = np.searchsorted(block.t, moments, side="right") - 1
        inside = (row >= 0) & (block.t[np.maximum(row, 0)] >= oldest)
        row = np.maximum(row, 0)
        found = block.v[row]
        labels.extend(block.labels)
        values.append(found.T)
        present.append((inside[:, None] & ~is_stale(found)).T)
        times.append(np.broadcast_to(block.t[row] / 1000, (len(block.labels), len(row))))
    if not labels:
        empty = Frame.empty(len(moments))
        return empty, empty
    frame = Frame.of(labels, np.concatenate(values), np.concatenate(present)).without_empty()
    stamps = Frame.of(labels, np.concatenate(times), np.concatenate(present)).without_empty()
    return frame, stamps
