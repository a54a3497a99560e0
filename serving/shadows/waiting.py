"""What waits for one shadow version: calls of the general way and blocks of the shortcut, in the order of answers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from serving.calls import Call
from serving.protocol.tensors import Array
from serving.router import Choice
from serving.shadows.blocks import Answered, Block
from serving.versions.deployment import Version


class Waiting:
    """Answered requests that wait for one shadow version: so many rows and bytes at most, the others are dropped."""

    __slots__ = (
        "_block_next", "_block_rows", "_limit_bytes", "_limit_rows", "begun", "blocks", "bytes", "calls", "choice",
        "dropped", "granted", "requests", "rows", "since", "version",
    )  # fmt: skip

    def __init__(self, version: Version, choice: Choice, limit_rows: int, limit_bytes: int, block_rows: int) -> None:
        """`block_rows` are those of a block at most."""
        self.version = version
        self.choice = choice
        self._limit_rows = limit_rows
        self._limit_bytes = limit_bytes
        self._block_rows = block_rows
        self.calls: deque[Call] = deque()
        self.blocks: deque[Block] = deque()
        self._block_next = True
        self.requests = 0
        self.rows = 0
        self.bytes = 0
        self.dropped = 0
        # When the oldest came, or a step was taken last.
        self.since = 0.0
        # When its last batch began.
        self.begun = -math.inf
        # Rows of the batch under way that have not run yet.
        self.granted = 0

    def keep(self, call: Call, now: float) -> None:
        """Takes in a call of the general way, if there is room."""
        if self.rows + call.rows > self._limit_rows or self.bytes + call.bytes > self._limit_bytes:
            self.dropped += 1
            return
        self.calls.append(call)
        self._came(1, call.rows, call.bytes, now)

    def keep_of(self, batch: Answered, chosen: Sequence[int] | None, now: float) -> None:
        """Takes in requests of a batch of the shortcut, in the places `chosen` or all, as far as there is room."""
        requests = len(batch.counts) // 8
        places = range(requests) if chosen is None else chosen
        if self.rows >= self._limit_rows:
            self.dropped += len(places)
        elif requests == len(batch.column):
            self._keep_rows(batch, places, now)
        else:
            self._keep_requests(batch, places, now)

    def _keep_rows(self, batch: Answered, places: Sequence[int], now: float) -> None:
        """Of a batch of requests of one row."""
        column, output = batch.column, batch.output
        size = (column.nbytes + output.nbytes) // len(column)
        fit = min(len(places), self._limit_rows - self.rows, (self._limit_bytes - self.bytes) // size)
        self.dropped += len(places) - fit
        at = 0
        while at < fit:
            block, room = self._block(batch, 1)
            some = places[at : min(fit, at + room)]
            rows: slice | Sequence[int] = slice(some.start, some.stop) if isinstance(some, range) else some
            self._add(block, batch, column[rows], output[rows], [1] * len(some), some, now)
            at += len(some)

    def _keep_requests(self, batch: Answered, places: Sequence[int], now: float) -> None:
        """Of a batch of requests of several rows, one by one."""
        counts = np.frombuffer(batch.counts, np.int64)
        starts = (np.cumsum(counts) - counts).tolist()
        for place in places:
            start, rows = starts[place], int(counts[place])
            column, output = batch.column[start : start + rows], batch.output[start : start + rows]
            nbytes = column.nbytes + output.nbytes
            if self.rows + rows > self._limit_rows or self.bytes + nbytes > self._limit_bytes:
                self.dropped += 1
                continue
            self._add(self._block(batch, rows)[0], batch, column, output, [rows], (place,), now)

    def _block(self, batch: Answered, rows: int) -> tuple[Block, int]:
        """A block with room for so many rows at least, and its room."""
        if self.blocks and (room := self.blocks[-1].room(batch)) >= rows:
            return self.blocks[-1], room
        size = max(self._block_rows, rows)
        block = Block(batch, size)
        self.blocks.append(block)
        return block, size

    def _add(
        self, block: Block, batch: Answered, column: Array, output: Array, counts: Sequence[int],
        places: Sequence[int], now: float,
    ) -> None:  # fmt: skip
        block.add(column, output, counts, batch.numbers, batch.first, places)
        self._came(len(counts), len(column), column.nbytes + output.nbytes, now)

    def _came(self, requests: int, rows: int, nbytes: int, now: float) -> None:
        if not self.requests:
            self.since = now
        self.requests += requests
        self.rows += rows
        self.bytes += nbytes

    def take(self, call_rows: int, block_rows: int, now: float) -> Sequence[Call] | Block:
        """What a step runs: a block or calls, of at most so many rows but one request at least; in turns."""
        if self.blocks and (self._block_next or not self.calls):
            taken = self.blocks.popleft()
            if taken.rows > block_rows and taken.requests > 1:
                taken, rest = taken.split(block_rows)
                self.blocks.appendleft(rest)
            self._block_next = False
            self._left(taken.requests, taken.rows, taken.bytes, now)
            return taken
        self._block_next = True
        calls: list[Call] = []
        rows = nbytes = 0
        while self.calls and (not calls or rows + self.calls[0].rows <= call_rows):
            call = self.calls.popleft()
            rows += call.rows
            nbytes += call.bytes
            calls.append(call)
        self._left(len(calls), rows, nbytes, now)
        return calls

    def _left(self, requests: int, rows: int, nbytes: int, now: float) -> None:
        self.requests -= requests
        self.rows -= rows
        self.bytes -= nbytes
        self.granted = max(0, self.granted - rows)
        self.since = now
