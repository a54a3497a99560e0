"""One inference call from its last byte to its answer, as the front, the counters and the recorder see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry.trace import SpanContext

from serving.batcher import Pending, Result
from serving.errors import ServingError
from serving.protocol.signature import Signature, Values
from serving.protocol.tensors import Array
from serving.router import Choice
from serving.v2 import InferRequest


class Call(Pending):
    """A request that a version was chosen for. `signature` is the one that its values are bound to."""

    __slots__ = (
        "attributes", "cache", "choice", "done", "drawn", "exchange", "flight", "id", "model", "on_finish", "outcome",
        "outputs", "parent", "request", "signature", "unit",
    )  # fmt: skip

    def __init__(
        self,
        request: InferRequest,
        model: str,
        choice: Choice,
        signature: Signature,
        arrived: float,
        deadline: float | None,
        on_finish: Callable[[Call, Result], None],
        exchange: Any = None,
        values: Sequence[Values] | None = None,
    ) -> None:
        """`values` are those of the request for this signature, where they are known."""
        if values is None:
            values = request.values(signature)
        super().__init__(values, request.rows, arrived, deadline)
        if signature.ragged:
            self.bucket = signature.key(values)
        self.wanted = request.outputs
        self.request = request
        self.model = model
        self.choice = choice
        self.signature = signature
        self.on_finish = on_finish
        self.exchange = exchange
        self.id = request.id
        self.attributes: str | None = None
        self.unit: str | None = None  # with sticky routing: what keeps its arm, "" of a request that names none
        self.drawn = True  # whether the router chose its arm by chance; a unit's further requests have its arm already
        self.parent: SpanContext | None = None
        self.cache = ""  # what the response cache found: hit, shared or miss; nothing without one
        self.flight: Any = None  # the cache's, of a call that others wait for
        self.outcome = ""
        self.outputs: Sequence[Array] | None = None
        self.done = 0.0

    @property
    def row_ids(self) -> Sequence[str] | None:
        """The ids of its rows where it stands for several requests; None where its own id says them."""
        return None

    def finish(self, result: Result) -> None:
        """Hands the result to whoever made the call."""
        self.on_finish(self, result)

    def rebind(self, choice: Choice, signature: Signature) -> None:
        """Makes it a call of another version. Raises InvalidRequest when its inputs do not fit that version."""
        self.values: Sequence[Values] = self.request.values(signature)
        self.bucket = signature.key(self.values) if signature.ragged else None
        self.signature = signature
        self.choice = choice

    def copied(self, choice: Choice, signature: Signature, *, alike: bool = False) -> Call:
        """The same request for another version, for nobody to wait for. Raises InvalidRequest when it does not fit.

        `alike` says that its signature equals this one's: the values are the same then, too.
        """
        values = self.values if alike else None
        copy = Call(self.request, self.model, choice, signature, self.arrived, None, _nobody_waits, values=values)
        copy.id, copy.attributes = self.id, self.attributes
        return copy

    def settle(self, result: Result, now: float) -> None:
        """Notes how it ended, and when."""
        self.done = now
        if isinstance(result, ServingError):
            self.outcome = result.outcome
        else:
            self.outcome, self.outputs = "ok", result


class LateCalls(Sequence[Call]):
    """Calls that are not made before somebody looks at one; `nbytes` is what they hold."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class Traced:
    """A request of the shortcut whose trace is kept: what its spans tell. Times are seconds of the lanes' clock.

    Its id is that of the `instance` and a number, which it gets when it is recorded.
    """

    instance: str
    model: str
    choice: Choice
    rows: int
    batch_rows: int
    arrived: float
    started: float
    ended: float
    done: float
    span: SpanContext
    company: Sequence[SpanContext]
    outcome: str = "ok"
    parent: None = None


def _nobody_waits(_call: Call, _result: Result) -> None:
    """What a copy does when it ends."""
