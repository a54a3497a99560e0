"""One request in a queue, and a batch of them."""

from __future__ import annotations

import enum
from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry.trace import SpanContext

from serving.errors import ServingError
from serving.protocol.signature import Values
from serving.protocol.tensors import Array

Result = Sequence[Array] | ServingError

DEFAULT_PRIORITY = 2
LOWEST_PRIORITY = 8


class State(enum.Enum):
    """Where a request is: it is answered exactly once, on the way to DONE."""

    QUEUED = enum.auto()
    RUNNING = enum.auto()
    DONE = enum.auto()


class Pending:
    """One request on its way through a lane; a subclass says what `finish` does. Times are seconds of its clock.

    `priority` 1 goes first. Requests with different `bucket` never share a batch. `bytes` is what it holds in memory.
    """

    __slots__ = (
        "arrived", "batch_rows", "bucket", "bytes", "caller", "company", "deadline", "ended", "expected", "key", "lane",
        "priority", "promised", "queued", "rows", "span", "started", "state", "values", "wanted",
    )  # fmt: skip

    def __init__(
        self,
        values: Sequence[Values],
        rows: int,
        arrived: float,
        deadline: float | None,
        *,
        priority: int = DEFAULT_PRIORITY,
        bytes: int = 0,
        bucket: Hashable = None,
    ) -> None:
        self.values = values
        self.rows = rows
        self.arrived = arrived
        self.deadline = deadline
        self.priority = priority
        self.bytes = bytes
        self.bucket = bucket
        self.wanted: Container[str] | None = None  # names of the outputs that are asked for; None: all
        self.caller: str | None = None
        self.state = State.QUEUED
        self.lane: Any = None  # the lane that has it now; a rollback moves it
        self.key = 0.0  # the queue's: by when it should go
        self.queued: float | None = None
        self.expected: float | None = None  # seconds that it was expected to wait when it was queued
        self.promised: float | None = None  # when it should be done, by what was known when it was queued
        self.started: float | None = None
        self.ended: float | None = None
        self.batch_rows = 0
        self.span: SpanContext | None = None  # where its trace is kept
        self.company: Sequence[SpanContext] = ()  # of all those in its batch whose trace is kept, its own among them

    def finish(self, result: Result) -> None:
        """Takes the outputs or the error; called exactly once, on the event loop. Must not raise."""
        raise AssertionError("a lane got a request that nobody waits for")


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that run together. `reason` is one of `names.CLOSE_REASONS`."""

    requests: tuple[Pending, ...]
    rows: int
    reason: str


@dataclass(frozen=True, slots=True)
class QueueState:
    """What waits in a lane, the rows of the largest batch at present, and those that adaptive concurrency lets in."""

    rows: int
    bytes: int
    oldest_seconds: float
    expected_seconds: float
    batch_rows: int
    limit_rows: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is due before `until`."""

    until: float
