"""Requests of the shortcut that wait for a shadow: what they were given and what was answered, rows behind rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from serving.calls import Call
from serving.protocol.signature import Signature
from serving.protocol.tensors import Array, BinaryTensor
from serving.router import Choice
from serving.shadows.messages import Answers, Batch, Packed
from serving.telemetry.rows import row_texts
from serving.telemetry.runs import Numbers
from serving.v2 import InferRequest


class Answered(NamedTuple):
    """A batch of the shortcut that was answered: tensors [rows, …], and the rows of each request as int64.

    Its requests stand in a run from place `first` on, which gives them their ids; without events they have none.
    """

    model: str
    choice: Choice
    signature: Signature
    instance: str
    column: Array
    output: Array
    counts: bytes
    numbers: Numbers | None
    first: int


class Block:
    """Some requests of one answering version, copied from its batches: what a shadow gets at a time.

    One input and one output: what the shortcut serves.
    """

    __slots__ = ("_asked", "_column", "_output", "choice", "counts", "instance", "model", "rows", "signature")

    def __init__(self, batch: Answered, rows: int) -> None:
        """With room for `rows` rows like those of the batch; takes in none."""
        self.model = batch.model
        self.choice = batch.choice
        self.signature = batch.signature
        self.instance = batch.instance
        self._column = np.empty((rows, *batch.column.shape[1:]), batch.column.dtype)
        self._output = np.empty((rows, *batch.output.shape[1:]), batch.output.dtype)
        self.rows = 0
        # Rows of each request, and where its id comes from: a run, the place there of a batch, places in the batch.
        self.counts: list[int] = []
        self._asked: list[tuple[Numbers | None, int, Sequence[int]]] = []

    def room(self, batch: Answered) -> int:
        """Rows of the batch that still fit; 0 when they are of another kind."""
        column, output = batch.column, batch.output
        alike = (
            batch.choice is self.choice and batch.signature is self.signature
            and column.shape[1:] == self._column.shape[1:] and output.shape[1:] == self._output.shape[1:]
            and column.dtype == self._column.dtype and output.dtype == self._output.dtype
        )  # fmt: skip
        return len(self._column) - self.rows if alike else 0

    def add(
        self, column: Array, output: Array, counts: Sequence[int], numbers: Numbers | None, first: int,
        places: Sequence[int],
    ) -> None:  # fmt: skip
        """Copies requests that there is room for; they stand in these places of a batch that begins at `first`."""
        end = self.rows + len(column)
        self._column[self.rows : end] = column
        self._output[self.rows : end] = output
        self.rows = end
        self.counts += counts
        self._asked.append((numbers, first, places))

    @property
    def column(self) -> Array:
        """What the requests hold, [rows, …]."""
        return self._column[: self.rows]

    @property
    def output(self) -> Array:
        """What they were answered, [rows, …]."""
        return self._output[: self.rows]

    @property
    def requests(self) -> int:
        """How many there are."""
        return len(self.counts)

    @property
    def bytes(self) -> int:
        """Of its rows."""
        return self.column.nbytes + self.output.nbytes

    @property
    def numbered(self) -> bool:
        """Whether its requests have their ids."""
        return all(numbers is None or numbers.first is not None for numbers, _, _ in self._asked)

    def split(self, rows: int) -> tuple[Block, Block]:
        """The first requests, of at most so many rows but one at least, and the others; over the same memory."""
        sizes = np.cumsum(self.counts)
        requests = max(1, int(np.searchsorted(sizes, rows, "right")))
        at, left = int(sizes[requests - 1]), requests
        first, other = Block.__new__(Block), Block.__new__(Block)
        for part, begin, end in ((first, 0, at), (other, at, self.rows)):
            part.model, part.choice, part.signature = self.model, self.choice, self.signature
            part.instance = self.instance
            part._column, part._output = self._column[begin:end], self._output[begin:end]
            part.rows = end - begin
            part._asked = []
        first.counts, other.counts = self.counts[:requests], self.counts[requests:]
        for numbers, begin, places in self._asked:
            for part, some in ((first, places[:left]), (other, places[left:])):
                if some:
                    part._asked.append((numbers, begin, some))
            left -= min(left, len(places))
        return first, other

    def ids(self) -> list[str]:
        """The id of each request; "" where there is none. To be asked for once they have them."""
        return [
            "" if numbers is None or numbers.first is None else f"{self.instance}-{numbers.first + first + place}"
            for numbers, first, places in self._asked
            for place in places
        ]

    def message(self, key: str, signature: Signature, *, outputs: bool) -> Batch | None:
        """The block as a message to the shadows' process; None where the shadow takes other inputs."""
        if signature != self.signature:
            return None
        names = tuple(output.name for output in signature.outputs)
        told = Answers(self.choice.version, names, self.counts, [Packed.of(self.output)])
        return Batch(key, [Packed.of(self.column)], [told], outputs)

    def calls(self) -> list[Call]:
        """The requests one by one, as if they had gone the general way."""
        made, first, input_ = [], 0, self.signature.inputs[0]
        for id, rows in zip(self.ids(), self.counts, strict=True):
            values, output = self.column[first : first + rows], self.output[first : first + rows]
            first += rows
            tensor = BinaryTensor(input_.name, input_.datatype, [rows, *input_.shape], values.tobytes())
            request = InferRequest(id, rows, {input_.name: tensor})
            call = Call(
                request, self.model, self.choice, self.signature, 0.0, None, _nobody_waits, values=[values]
            )  # fmt: skip
            call.settle([output], 0.0)
            made.append(call)
        return made


class BlockCopy(Call):
    """What a shadow gave for a block, as one call of all its rows: for whoever records it."""

    __slots__ = ("block",)

    def __init__(
        self, block: Block, choice: Choice, signature: Signature, output: Array, started: float, ended: float
    ) -> None:
        """`output` has the block's rows; `started` and `ended` are seconds of the lanes' clock."""
        self.block = block
        self.model = block.model
        self.choice = choice
        self.signature = signature
        self.values = [block.column]
        self.rows = block.rows
        self.bytes = block.column.nbytes
        self.arrived = self.queued = self.started = started
        self.ended = ended
        self.attributes = None
        self.span = self.parent = None
        self.drawn = True
        self.settle([output], ended)

    @property
    def row_ids(self) -> Sequence[str]:
        """The ids of its rows: those of the answers."""
        block = self.block
        if block.requests == block.rows:
            return block.ids()
        by_request = zip(block.ids(), block.counts, strict=True)
        return [
            text for id, rows in by_request
            for text in ([id] if rows == 1 else [f"{id}/{row}" for row in row_texts(rows)])
        ]  # fmt: skip


def _nobody_waits(_call: Call, _result: object) -> None:
    """What a copy does when it ends."""
