"""What the shortcut's batches were given and answered, batch behind batch, until it is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from observability.native import extension
from observability.tracing import format_trace_id
from serving.calls import Traced
from serving.protocol.signature import Output, Signature
from serving.protocol.tensors import WIRE_TYPES, Array
from serving.telemetry.memory import Column, Memory

MAX_VALUES = 4096
"""Values a row of an input or an output that events still carry."""
# Of a run's tensors: about what is recorded together.
_BYTES = 4 * 1024 * 1024
# Outputs that the compiled way takes.
_MOST_OUTPUTS = 64
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Numbers:
    """The number of a run's first request, which its ids go by: known once the run is given to the recorder."""

    __slots__ = ("first",)

    def __init__(self) -> None:
        self.first: int | None = None


@cache
def native() -> ModuleType | None:
    """The compiled `Answers`; None where there is no compiler."""
    return extension(Path(__file__).with_name("runs.c"))


class Answers:
    """What a run's batches answered, without a compiler: copied into blocks, arrays with room for all rows.

    `told` is of each request its rows (int64) and arrival (double), of each batch its requests (int64) and when it was
    answered (double), batch behind batch.
    """

    def __init__(self, blocks: tuple[Array, ...]) -> None:
        self._blocks = blocks
        self.told = bytearray(), bytearray(), bytearray(), bytearray()

    def add(
        self, rows: int, more: int, outputs: Sequence[Array], requests: bytes, arrived: bytes, done: float
    ) -> bool | None:  # fmt: skip
        """Takes in a batch of `more` rows behind the first `rows`; False when its outputs are not like those before."""
        for values, block in zip(outputs, self._blocks, strict=True):
            if values.shape[1:] != block.shape[1:] or values.dtype != block.dtype:
                return False
        for values, block in zip(outputs, self._blocks, strict=True):
            block[rows : rows + more] = values
        for told, news in zip(self.told, (requests, arrived, _of(len(requests) // 8), _of(done)), strict=True):
            told += news
        return True


def _of(number: int | float) -> bytes:
    return np.array(number, np.int64 if isinstance(number, int) else np.float64).tobytes()


def carried(output: Output, width: int) -> bool:
    """Whether events carry an output of so many values a row. They have a column a value: those of a longer one would
    be no table any more, and one whose length varies would bring other columns with each answer.
    """
    return width <= MAX_VALUES and -1 not in output.shape


class Run:
    """Batches of one signature, whose first input is recorded: each tensor's rows in one block.

    The signature is here because the version may be gone when this is recorded. Times are seconds of the lanes' clock.
    The event loop does as little here as can be: what is known of requests is put together when it is recorded.
    """

    __slots__ = (
        "_answers",
        "_limit",
        "_memory",
        "_outputs",
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
        # Places of the outputs that events carry.
        self.kept: Sequence[int] = ()
        self.signature = signature
        self.column = Column(memory, shape, kind, self._limit)
        # How many there are, and what they are numbered by.
        self.requests = 0
        self.numbers = Numbers()
        self._answers: Any = None
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
        if self._answers is None:
            self._begin(column, outputs)
        if len(self.kept) < len(outputs):
            outputs = [outputs[place] for place in self.kept]
        of_input, more = self.column, len(column)
        rows = of_input.rows
        taken = self._answers.add(rows, more, outputs, requests, arrived, done)
        if taken is None:
            outputs = [np.ascontiguousarray(values) for values in outputs]
            taken = self._answers.add(rows, more, outputs, requests, arrived, done)
        if not taken:
            return False
        if column is self.given:
            of_input.rows = rows + more
        else:
            of_input.add(column)
        self.given = None
        self.requests += len(arrived) // 8
        return True

    def _begin(self, column: Array, outputs: Sequence[Array]) -> None:
        declared = self.signature.outputs
        self.kept = [place for place, one in enumerate(outputs) if carried(declared[place], prod(one.shape[1:]))]
        outputs = [outputs[place] for place in self.kept]
        # No output's block is larger than the input's, either.
        widest = max((prod(one.shape[1:]) * one.dtype.itemsize for one in outputs), default=1)
        self._limit = max(len(column), min(self._limit, _BYTES // max(1, widest)))
        self._outputs = [Column(self._memory, one.shape[1:], one.dtype, self._limit) for one in outputs]
        library = native()
        kind = Answers if library is None or len(outputs) > _MOST_OUTPUTS else library.Answers
        self._answers = kind(tuple(one.block for one in self._outputs))

    @property
    def answered(self) -> Sequence[bytearray]:
        """Of each request its rows (int64) and arrival (double), of each batch its requests (int64) and when it was
        answered (double), batch behind batch.
        """
        told: Sequence[bytearray] = self._answers.told
        return told

    def told(self) -> tuple[Integers, Floats, Floats]:
        """A value a request: its rows, its arrival, when it was answered."""
        requests, arrived, counts, done = self.answered
        ends = np.repeat(np.frombuffer(done), np.frombuffer(counts, np.int64))
        return np.frombuffer(requests, np.int64), np.frombuffer(arrived), ends

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
        for known in self._outputs:
            known.rows = self.column.rows
        return [known.array() for known in self._outputs]
