"""What the shortcut's batches leave behind for the counters and the recorder, batch by batch."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from opentelemetry.trace import SpanContext

from serving.calls import Traced
from serving.protocol.signature import Signature
from serving.protocol.tensors import Array
from serving.telemetry.accounts import Account
from serving.telemetry.memory import Memory
from serving.telemetry.runs import Run
from serving.telemetry.signals import MOMENTS

# Of a request.
_MOMENTS, _ROWS = struct.Struct(f"={MOMENTS}d"), struct.Struct("=q")


class Batches:
    """For batches of one signature that one choice of the router answers. Without a memory they are only counted:
    where no events go, no traces do.

    `instance` begins the ids of requests; `root` makes the span of one whose trace is kept.
    """

    def __init__(
        self, account: Account, signature: Signature, memory: Memory | None, instance: str,
        root: Callable[[], SpanContext],
    ) -> None:  # fmt: skip
        self._account = account
        self._signature = signature
        self._memory = memory
        self._instance = instance
        self._root = root
        self._kept: Run | None = None

    def rows(self, rows: int) -> Array | None:
        """Where the values of so many rows may be written, which need not be copied then; None where none are kept."""
        return None if self._memory is None else self._open(self._memory, rows).place(rows)

    def add(
        self, column: Array, outputs: Sequence[Array], requests: bytes, arrived: bytes, moments: bytes, done: float
    ) -> Run | None:
        """A batch that was answered, and where it is kept. `requests`: the rows of each as int64; `arrived`: a double;
        `moments` the six of an account, of those that are counted together.
        """
        account, memory = self._account, self._memory
        account.add_many(moments)
        if memory is None:
            return None
        run = self._kept
        if run is None or run.given is not column:
            run = self._open(memory, len(column))
        if not run.add(column, outputs, requests, arrived, done):
            run = self._kept = Run(memory, self._signature, len(column))
            run.add(column, outputs, requests, arrived, done)
        served = account.served
        if not served or served[-1] is not run:
            served.append(run)
        return run

    def add_traced(
        self, traced: Sequence[int], column: Array, outputs: Sequence[Array], requests: bytes, arrived: bytes,
        moments: bytes, done: float,
    ) -> None:  # fmt: skip
        """As `add`, of a batch in which the requests in the places `traced` have their trace kept."""
        run, account = self.add(column, outputs, requests, arrived, moments, done), self._account
        spans = [self._root() for _ in traced]
        for place, span in zip(traced, spans, strict=True):
            arrived_at, _, started, ended, _, done_at = _MOMENTS.unpack_from(moments, place * _MOMENTS.size)
            account.point_to(done_at - arrived_at, span)
            if run is not None:
                told = Traced(
                    instance=self._instance,
                    model=account.model,
                    choice=account.choice,
                    rows=_ROWS.unpack_from(requests, place * _ROWS.size)[0],
                    batch_rows=len(column),
                    arrived=arrived_at,
                    started=started,
                    ended=ended,
                    done=done_at,
                    span=span,
                    company=spans,
                )
                run.traced.append((run.requests - len(requests) // _ROWS.size + place, told))

    def _open(self, memory: Memory, rows: int) -> Run:
        """The run that the next batch belongs to: one that has room, and that the recorder has not got."""
        served, run = self._account.served, self._kept
        if run is None or not run.fits(rows) or (run.requests and (not served or served[-1] is not run)):
            run = self._kept = Run(memory, self._signature, rows)
        return run
