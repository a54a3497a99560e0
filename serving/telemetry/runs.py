"""What the shortcut's batches were given and answered, batch behind batch, until it is recorded."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import prod
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from observability.tracing import format_trace_id
from serving.calls import Traced
from serving.protocol.signature import Signature
from serving.protocol.tensors import WIRE_TYPES, Array
from serving.telemetry.memory import Column, Memory

MAX_VALUES = 4096
"""Values a row of an input or an output that events still carry."""
# Of a run's tensors: about what is recorded together.
_BYTES = 4 * 1024 * 1024
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Numbers:
    """The number of a run's first request, which its ids go by: known once the run is given to the recorder."""

    __slots__ = ("first",)

    def __init__(self) -> None:
        self.first: int | None = None


class Run:
    """Batches of one signature, whose first input is recorded: each tensor's rows in one block.

    The signature is here because the version may be gone when this is recorded. Times are seconds of the lanes' clock.
    The event loop does as little here as can be: what is known of requests is put together when it is recorded.
    """

    __slots__ = (
        "_limit",
        "_memory",
        "_outputs",
        "answered",
        "column",
        "given",
        "kept",
        "numbers",
        "requests",
        "signature",
        "traced",
    )

    def __init__(self, memory: Memory, signature: Signature, rows: int = 1) -> None:
        """With room for `rows` rows at least."""
        kind, shape = WIRE_TYPES[signature.inputs[0].datatype], signature.inputs[0].shape
        self._limit = max(rows, _BYTES // max(1, prod(shape) * kind.itemsize))
        self._memory = memory
        # Where the next batch was told to be.
        self.given: Array | None = None
        self._outputs: list[Column] = []
        # Places of the outputs that events carry: a column a value of longer ones would be no table any more.
        self.kept: Sequence[int] = ()
        self.signature = signature
        self.column = Column(memory, shape, kind, self._limit)
        # How many there are, and what they are numbered by.
        self.requests = 0
        self.numbers = Numbers()
        # Of each request its rows (int64) and arrival (double), of each batch its requests (int64) and when it was
        # answered (double), batch behind batch.
        self.answered = bytearray(), bytearray(), array("q"), array("d")
        # Those whose trace is kept, with their places among the requests.
        self.traced: list[tuple[int, Traced]] = []

    def fits(self, rows: int) -> bool:
        """Whether there is room for so many rows."""
        return self.column.rows + rows <= self._limit

    def place(self, rows: int) -> Array:
        """Where the input of the next batch may be written: it need not be copied then."""
        self.given = given = self.column.free(rows)
        return given

    def add(
        self, column: Array, outputs: Sequence[Array], requests: bytes, arrived: bytes, done: float
    ) -> bool:  # fmt: skip
        """Takes a batch in; False when its outputs have other shapes than those before.

        `requests` are int64 and `arrived` doubles, one a request, as bytes.
        """
        if not self.requests:
            self.kept = [place for place, one in enumerate(outputs) if prod(one.shape[1:]) <= MAX_VALUES]
        if len(self.kept) < len(outputs):
            outputs = [outputs[place] for place in self.kept]
        if not self.requests:
            # No output's block is larger than the input's, either.
            widest = max((prod(one.shape[1:]) * one.dtype.itemsize for one in outputs), default=1)
            self._limit = max(len(column), min(self._limit, _BYTES // max(1, widest)))
            self._outputs = [Column(self._memory, one.shape[1:], one.dtype, self._limit) for one in outputs]
        else:
            for values, known in zip(outputs, self._outputs, strict=True):
                if values.shape[1:] != known.shape:
                    return False
        if column is self.given:
            self.column.rows += len(column)
        else:
            self.column.add(column)
        self.given = None
        for values, known in zip(outputs, self._outputs, strict=True):
            known.add(values)
        of_rows, arrivals, counts, ends = self.answered
        of_rows += requests
        arrivals += arrived
        counts.append(len(arrived) // 8)
        ends.append(done)
        self.requests += counts[-1]
        return True

    def told(self) -> tuple[Integers, Floats, Floats]:
        """A value a request: its rows, its arrival, when it was answered."""
        requests, arrived, counts, done = self.answered
        return np.frombuffer(requests, np.int64), np.frombuffer(arrived), np.repeat(done, counts)

    def traces(self) -> tuple[list[int], list[str]]:
        """The places of requests whose trace is kept, the first first, and the trace's id of each."""
        known = [(place, format_trace_id(one.span)) for place, one in sorted(self.traced, key=itemgetter(0))]
        told = [(place, id) for place, id in known if id is not None]
        return [place for place, _ in told], [id for _, id in told]

    @property
    def nbytes(self) -> int:
        """Bytes of its blocks, whether they are full or not."""
        return self.column.nbytes + sum(known.nbytes for known in self._outputs)

    @property
    def outputs(self) -> list[Array]:
        """Every output that is kept, [rows, …]."""
        return [known.array() for known in self._outputs]
