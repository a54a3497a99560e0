"""What an evaluation knows besides the expression: times, bounds, settings, the samples and the limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from collectors.query.errors import QueryError
from collectors.query.frame import IDENTITY, NAME, Floats, Frame, Ints, Naming, joined
from collectors.query.syntax import At, Node, Selector
from collectors.store import Block, SampleReader, is_stale

Value = Frame | Floats | str


@dataclass(frozen=True, slots=True)
class Semantics:
    """Where versions of Prometheus differ; the defaults are those of version 3.

    `left_open`: a range or lookback leaves out its oldest moment. `zero_first`: a rate is clamped at zero before the
    check whether samples are near the range's start. `delayed_names`: metric names are removed at the end only.
    `type_and_unit`: the labels `__type__` and `__unit__` go where the name goes. `arctangent_keeps_name`: `atan2` is
    no new quantity. `filter_first`: elements that a comparison drops may match several others.
    `running_moments`: the variance of one infinite value is 0, not NaN. `native_names`: the histogram functions read
    the classic buckets of a family that a selector names without `_bucket`, as if they had been converted to native
    histograms with custom buckets.
    """

    left_open: bool = True
    zero_first: bool = False
    delayed_names: bool = False
    type_and_unit: bool = True
    arctangent_keeps_name: bool = False
    filter_first: bool = False
    running_moments: bool = False
    native_names: bool = False

    @property
    def naming(self) -> Naming:
        """What becomes of the names of new quantities."""
        return Naming(IDENTITY if self.type_and_unit else (NAME,), self.delayed_names)


PROMETHEUS_3 = Semantics()
PROMETHEUS_2 = Semantics(
    left_open=False,
    zero_first=True,
    type_and_unit=False,
    arctangent_keeps_name=True,
    filter_first=True,
    running_moments=True,
)
TOO_MANY_SAMPLES = "query processing would load too many samples into memory in query execution"


@dataclass(slots=True)
class Tally:
    """What a query looked at: `samples` over all its steps, and the most that it held at once."""

    samples: int = 0
    peak: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """When a query is stopped: at a time (`time.monotonic`), when cancelled, at so many samples held at once."""

    deadline: float
    max_samples: int = 50_000_000
    cancelled: threading.Event | None = None
    tally: Tally | None = None
    """Where what the query looks at is counted, if anybody wants to know."""

    def check(self) -> None:
        """Raises QueryError when the query has run out of time or nobody waits for it."""
        if self.cancelled is not None and self.cancelled.is_set():
            raise QueryError("query was canceled in expression evaluation", "canceled")
        if time.monotonic() > self.deadline:
            raise QueryError("query timed out in expression evaluation", "timeout")

    def take(self, samples: int) -> None:
        """Raises QueryError when a value would hold more samples than allowed."""
        if samples > self.max_samples:
            raise QueryError(TOO_MANY_SAMPLES)
        if self.tally is not None:
            self.tally.peak = max(self.tally.peak, samples)

    def count(self, samples: Callable[[], int]) -> None:
        """Counts samples that the query looks at."""
        if self.tally is not None:
            self.tally.samples += samples()


class Shared:
    """Values of sub-expressions that the next expression at the same times may need; bounded by their size."""

    def __init__(self, max_values: int = 8_000_000) -> None:
        self._values: dict[tuple[Node, int, int, int], Value] = {}
        self._room = max_values

    def find(self, key: tuple[Node, int, int, int]) -> Value | None:
        """The value, if it was kept."""
        return self._values.get(key)

    def keep(self, key: tuple[Node, int, int, int], value: Value) -> None:
        """Keeps a value while there is room."""
        size = value.values.size * 2 if isinstance(value, Frame) else len(value)
        if size <= self._room:
            self._room -= size
            self._values[key] = value


@dataclass(frozen=True, slots=True)
class Context:
    """One evaluation: the steps' times (unix ms), the whole query's bounds for `@ start()`, settings and limits."""

    reader: SampleReader
    times: Ints
    start_ms: int
    end_ms: int
    step_ms: int
    lookback_ms: int
    subquery_step_ms: int
    semantics: Semantics
    limits: Limits
    shared: Shared = field(default_factory=Shared)

    @property
    def naming(self) -> Naming:
        """What becomes of the names of new quantities."""
        return self.semantics.naming

    def key(self, node: Node) -> tuple[Node, int, int, int]:
        """What tells the node's value here from others."""
        return node, int(self.times[0]), int(self.times[-1]), len(self.times)

    def moments(self, offset_ms: int, at: At | None) -> Ints:
        """The times that a selector looks at, one a step."""
        if at is None:
            return self.times - offset_ms
        fixed = {"start": self.start_ms, "end": self.end_ms}.get(at, 0) if isinstance(at, str) else at
        return np.full(len(self.times), fixed - offset_ms, dtype=np.int64)

    def blocks(self, node: Selector, oldest_ms: int, newest_ms: int) -> list[Block]:
        """The samples of a selector. Raises QueryError when they are too many."""
        self.limits.check()
        found = self.reader.select_blocks(node.matchers, oldest_ms, newest_ms)
        self.limits.take(sum(block.v.size for block in found))
        return found


def instant(node: Selector, context: Context) -> tuple[Frame, Frame]:
    """The newest value of each series within the lookback, and that sample's time in seconds."""
    moments = context.moments(node.offset_ms, node.at)
    oldest = moments - context.lookback_ms + (1 if context.semantics.left_open else 0)
    blocks = [block for block in context.blocks(node, int(oldest.min()), int(moments.max())) if len(block.t)]
    labels = joined([block.labels for block in blocks])
    shape = len(labels), len(moments)
    context.limits.take(shape[0] * shape[1])
    values, times, present = np.empty(shape), np.empty(shape), np.empty(shape, dtype=np.bool_)
    first = 0
    for block in blocks:
        rows = slice(first, first + len(block.labels))
        first += len(block.labels)
        newest = np.searchsorted(block.t, moments, side="right") - 1
        index = np.maximum(newest, 0)
        found = block.v[index]
        inside = (newest >= 0) & (block.t[index] >= oldest)
        values[rows] = found.T
        present[rows] = (inside[:, None] & ~is_stale(found)).T
        times[rows] = block.t[index] / 1000
    context.limits.count(lambda: int(np.count_nonzero(present)))
    frame, stamps = Frame.of(labels, values, present), Frame.of(labels, times, present)
    return frame.without_empty(), stamps.without_empty()
