"""One inference call from its last byte to its answer, as the front, the counters and the recorder see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from opentelemetry.trace import SpanContext

from serving.batcher import Pending, Result
from serving.errors import ServingError
from serving.router import Choice
from serving.signature import Array, Signature, Values
from serving.v2 import InferRequest


class Call(Pending):
    """A request that a version was chosen for. `signature` is the one that its values are bound to."""

    __slots__ = (
        "attributes", "choice", "done", "exchange", "id", "model", "on_finish", "outcome", "outputs", "parent",
        "request", "shadow", "signature", "span",
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
    ) -> None:
        super().__init__(request.values(signature), request.rows, arrived, deadline)
        self.request = request
        self.model = model
        self.choice = choice
        self.signature = signature
        self.on_finish = on_finish
        self.exchange = exchange
        self.id = request.id
        self.attributes: str | None = None
        self.parent: SpanContext | None = None
        self.span: SpanContext | None = None
        self.shadow: Comparison | None = None
        self.outcome = ""
        self.outputs: Sequence[Array] | None = None
        self.done = 0.0

    def finish(self, result: Result) -> None:
        """Hands the result to whoever made the call."""
        self.on_finish(self, result)

    def rebind(self, choice: Choice, signature: Signature) -> None:
        """Makes it a call of another version. Raises InvalidRequest when its inputs do not fit that version."""
        self.values: Sequence[Values] = self.request.values(signature)
        self.signature = signature
        self.choice = choice

    def settle(self, result: Result, now: float) -> None:
        """Notes how it ended, and when."""
        self.done = now
        if isinstance(result, ServingError):
            self.outcome = result.outcome
        else:
            self.outcome, self.outputs = "ok", result


class Comparison:
    """The outputs of an answer and of its shadow; `difference` is known once both are there."""

    __slots__ = ("answer", "shadow")

    def __init__(self) -> None:
        self.answer: Sequence[Array] | None = None
        self.shadow: Sequence[Array] | None = None

    def difference(self) -> float | None:
        """Largest absolute difference over all outputs; None while one is missing or when they have other shapes."""
        if self.answer is None or self.shadow is None:
            return None
        pairs = list(zip(self.answer, self.shadow, strict=False))
        if not pairs or any(a.shape != b.shape for a, b in pairs):
            return None
        return max(float(np.abs(a - b).max()) for a, b in pairs)
