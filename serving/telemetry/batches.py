"""What the shortcut's batches leave behind for the counters and the recorder, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from opentelemetry.trace import SpanContext

from serving.calls import Traced
from serving.protocol.signature import Signature
from serving.protocol.tensors import Array
from serving.telemetry.accounts import Account
from serving.telemetry.memory import Memory
from serving.telemetry.runs import Run


class Batches:
    """For batches of one signature that one choice of the router answers. Without a memory they are only counted.

    `root` makes the id of a request whose trace is kept, and its span.
    """

    def __init__(
        self, account: Account, signature: Signature, memory: Memory | None, root: Callable[[], tuple[str, SpanContext]]
    ) -> None:
        self._account = account
        self._signature = signature
        self._memory = memory
        self._root = root
        self._kept: Run | None = None

    def rows(self, rows: int) -> Array | None:
        """Where the values of so many rows may be written, which need not be copied then; None where none are kept."""
        return None if self._memory is None else self._open(self._memory, rows).place(rows)

    def add(
        self, column: Array, outputs: Sequence[Array], requests: bytes, arrived: bytes, moments: bytes, done: float
    ) -> None:
        """A batch that was answered. `requests` are the rows of each as int64, `arrived` a double, `moments` the six of
        an account.
        """
        self._account.moments.frombytes(moments)
        self._account.ok += len(arrived) // 8
        if self._memory is not None:
            self._record(self._memory, column, outputs, requests, arrived, done)

    def add_traced(
        self, traced: Sequence[int], column: Array, outputs: Sequence[Array], requests: bytes, moments: bytes
    ) -> None:
        """A batch in which the requests in places `traced` have their trace kept: those are told one by one."""
        rows, times = np.frombuffer(requests, np.int64), np.frombuffer(moments).reshape(len(requests) // 8, -1)
        ends = np.cumsum(rows)
        named = [self._root() for _ in traced]
        company = [span for _, span in named]
        for place, (id, span) in zip(traced, named, strict=True):
            arrived, queued, started, ended, encoded, done = times[place].tolist()
            own = slice(ends[place] - rows[place], ends[place])
            call = Traced(
                id, self._account.model, self._account.choice, self._signature, [column[own].copy()],
                [output[own].copy() for output in outputs], int(rows[place]), len(column), arrived, queued, started,
                ended, done, span, company,
            )  # fmt: skip
            self._account.add_traced(call, encoded)
        others = np.ones(len(rows), bool)
        others[list(traced)] = False
        if others.any():
            left, times = np.repeat(others, rows), times[others]
            self.add(
                column[left], [output[left] for output in outputs], rows[others].tobytes(), times[:, 0].tobytes(),
                times.tobytes(), float(times[0, -1]),
            )  # fmt: skip

    def _open(self, memory: Memory, rows: int) -> Run:
        """The run that the next batch belongs to: one that has room, and that the recorder has not got."""
        served, run = self._account.served, self._kept
        if run is None or not run.fits(rows) or (run.requests and (not served or served[-1] is not run)):
            run = self._kept = Run(memory, self._signature, rows)
        return run

    def _record(
        self, memory: Memory, column: Array, outputs: Sequence[Array], requests: bytes, arrived: bytes, done: float
    ) -> None:
        """Keeps for the recorder what a batch was given and answered."""
        run = self._open(memory, len(column))
        if not run.add(column, outputs, requests, arrived, done):
            run = self._kept = Run(memory, self._signature, len(column))
            run.add(column, outputs, requests, arrived, done)
        if not self._account.served or self._account.served[-1] is not run:
            self._account.served.append(run)
