"""Offers what the shortcut answered to a model's shadows, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opentelemetry.trace import SpanContext

from serving.protocol.signature import Signature
from serving.protocol.tensors import Array
from serving.shadows.blocks import Answered
from serving.telemetry.accounts import Account
from serving.telemetry.batches import Batches
from serving.telemetry.memory import Memory
from serving.telemetry.runs import Run


class MirroredBatches(Batches):
    """Batches of a version that has shadows: `offer` gets each, with one input and one output, once it is answered."""

    def __init__(
        self, account: Account, signature: Signature, memory: Memory | None, instance: str,
        root: Callable[[], SpanContext], offer: Callable[[Answered], None],
    ) -> None:  # fmt: skip
        super().__init__(account, signature, memory, instance, root)
        self._offer = offer
        self._of = account.model, account.choice, signature, instance

    def add(
        self, column: Array, outputs: Sequence[Array], requests: bytes, arrived: bytes, moments: bytes, done: float
    ) -> Run | None:
        """As batches do; offers them besides."""
        run = super().add(column, outputs, requests, arrived, moments, done)
        place = (None, 0) if run is None else (run.numbers, run.requests - len(requests) // 8)
        self._offer(Answered(*self._of, column, outputs[0], requests, *place))
        return run
