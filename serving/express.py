"""The shortcut of the usual request: those read in one turn of the event loop are read, run and answered in one loop.

It takes what needs no decision: one float input of fixed shape, a policy that sends everything to one version, no
deadline, no caller's trace, a lane with nothing in it whose batches are short enough for the event loop. Whatever else
turns up, and every request of a batch that the model does not answer well, goes the general way, which says what is
wrong. So does a request whose trace is kept, unless the compiled way took it.
"""

from __future__ import annotations

import asyncio
import struct
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from serving import v2
from serving.protocol.frames import Asked, Frames
from serving.protocol.outputs import LONG_VALUES, Outputs
from serving.protocol.signature import packer
from serving.protocol.tensors import WIRE_TYPES, Array, FloatTensor
from serving.telemetry.accounts import Account
from serving.telemetry.batches import Batches
from serving.transport.exchange import Exchange
from serving.transport.intake import Form, binary_form, json_form, native

if TYPE_CHECKING:
    from serving.router import Choice
    from serving.versions.deployment import Deployment, Version

_MAX_ROWS = 256
# Seconds of the event loop's turn after which what waits still is left for the next one.
_TURN_SECONDS = 0.005
# Seconds that requests are held for a lane whose queue is about to be empty, such as behind a traced request.
_HOLD_SECONDS = 0.005
# Rows a request from which those that the compiled way took are held there.
_WIDE_ROWS = 16
# What the compiled way takes before it is asked for a batch, and the forms of requests that are looked for at once.
_MAX_TAKEN = 4096
_MAX_TAKEN_BYTES = 4 * 1024 * 1024
_FIRST_FORMS = 16
_NEXT_FORM = 1000
# Clients that were answered together send together: a batch waits for the next of them for so long at most, and never
# longer than it costs by itself, however many rows it has.
_GAP_SECONDS = 0.00003
# Numbers that a batch may have here where all of its answers are binary.
_BINARY_VALUES = 8 * LONG_VALUES
_TEXT: tuple[Asked, ...] = ((1, None, False),)
_LETTERS = {"FP32": "f", "FP64": "d"}


class Express:
    """The shortcut to one version, good as long as the deployment's router stays the same."""

    def __init__(
        self,
        deployment: Deployment,
        choice: Choice,
        version: Version,
        account: Account,
        *,
        general: Callable[[Exchange, bool], None],
        ended: Callable[[int, int], None],
        head: Callable[[Version, Choice, int | None], bytes],
        clock: Callable[[], float],
        batches: Batches,
        open: Callable[[], bool],
        traced: Callable[[int], Sequence[int]],
        body_limit: int,
    ) -> None:
        self.router = deployment.router
        self._deployment = deployment
        self._choice = choice
        self._version = version
        self.account = account
        self._general = general
        self._ended = ended
        self._head = head
        self._clock = clock
        self._batches = batches
        self._open = open
        # Places, the last first, of those of so many requests whose trace is kept.
        self._traced = traced
        self._model = version.loaded.model
        # Of what is answered here; the lane's own model counts by itself.
        self._counter = getattr(version.lane.model, "counter", None)
        self._signature = signature = self._model.signature
        self._input = column = signature.inputs[0]
        self._one = [1, *column.shape]
        self._wanted = list(column.shape)
        self._pack = packer(column.datatype, column.size)
        self._kind = WIRE_TYPES[column.datatype]
        # Requests that may wait for a turn: one over the queue's limit of rows is refused as by the queue.
        self.most = version.lane.policy.limit_rows
        self.waiting: list[Exchange] = []
        self._held_since: float | None = None
        # Those whose trace is kept go the general way, behind the others: in the lane's queue they would stop them.
        self.traced: list[Exchange] = []
        # Requests that the compiled way took; None where there is none.
        self.intake: Any = self._intake(body_limit)
        self._forms: list[Form] = []
        self._tried = self._since_form = 0
        self._frames = Frames(version.responder, partial(head, version, choice))

    def _intake(self, body_limit: int) -> Any:
        compiled, column, lane = native(), self._input, self._version.lane
        if compiled is None or len(self._signature.outputs) != 1:
            return None
        row_bytes = column.size * self._kind.itemsize
        rows = max(1, min(lane.policy.limit_rows, _MAX_TAKEN, _MAX_TAKEN_BYTES // row_bytes))
        wake = partial(asyncio.get_running_loop().call_soon, self.run)
        return compiled.Intake(
            column.size, row_bytes, _LETTERS.get(column.datatype, ""), rows, min(rows, self.most),
            min(body_limit, _MAX_TAKEN_BYTES), wake, self.spill,
        )  # fmt: skip

    @property
    def requests(self) -> int:
        """Requests that wait."""
        return len(self.waiting) + (0 if self.intake is None else self.intake.count)

    def close(self) -> None:
        """The compiled way leads here no longer."""
        if self.intake is not None:
            self.spill()
            self.intake.close()
            self.intake = None

    def spill(self) -> None:
        """What the compiled way took waits here, instead."""
        if self.intake is not None and self.intake.count:
            self.waiting += self._given_back(0, self.intake.count)

    def _given_back(self, first: int, last: int) -> Iterator[Exchange]:
        for _, connection, data, received in self.intake.give(first, last):
            exchange = None if connection is None else connection.given_back(data, received)
            if exchange is None:
                self.account.others["cancelled"] += 1
            else:
                yield exchange

    def _give_back_traced(self, places: Sequence[int]) -> None:
        """Has those that the compiled way took in these places, the last first, go the general way with their trace."""
        for place in places:
            self.traced += self._given_back(place, place + 1)

    def good(self, deployment: Deployment) -> bool:
        """Whether the shortcut still leads where the policy does."""
        return (
            deployment.router is self.router
            and deployment.versions.get(self._choice.version) is self._version
            and deployment.cache is None
            and not deployment.closing
        )

    def run(self) -> None:
        """Answers what waits; called once a turn of the loop."""
        if self.intake is not None:
            self.intake.slept()
            if self.intake.count:
                lane = self._version.lane
                self.intake.gather(lane.queue.max_rows, min(_GAP_SECONDS, lane.times.line()[0]))
            if self.intake is not None and self.intake.count and not self._run_taken():
                self.spill()
        waiting, self.waiting = self.waiting, []
        traced, self.traced = self.traced, []
        if waiting:
            self._run(waiting)
        if traced and self.waiting and self.waiting[0].received < traced[0].received:
            # Behind those that came before them; not behind all, which under load there is no end of.
            self.traced = traced + self.traced
            return
        for exchange in traced:
            self._leave(exchange, True)

    def refuse(self) -> None:
        """Raises Refused."""
        self._version.lane.refuse_overflow(self.requests)

    def _leave(self, exchange: Exchange, trace: bool = False) -> None:
        """To the general way, unless its client has left."""
        if exchange.answer is None:
            self._general(exchange, trace)
        else:
            self.account.others["cancelled"] += 1

    def _run(self, waiting: list[Exchange]) -> None:
        lane = self._version.lane
        begun = self._clock()
        largest = min(lane.queue.max_rows, _MAX_ROWS)
        # A batch that is a little too long for the loop goes in two or four.
        sizes = (largest, largest // 2, largest // 4)
        limits = [limit for limit in sizes if lane.free(min(len(waiting), limit), begun)]
        if not limits or not self.good(self._deployment):
            if self._holds(len(waiting), begun):
                self.waiting = waiting + self.waiting
                asyncio.get_running_loop().call_soon(self.run)
                return
            self._held_since = None
            for exchange in waiting:
                self._leave(exchange)
            return
        self._held_since = None
        limit = max(1, limits[0])
        wide = self._most_rows(limit, _TEXT) < limit
        most = own = limit
        parts: list[bytes | memoryview] = []
        asked: list[Asked] = []
        taken: list[Exchange] = []
        rows = 0
        ends = begun + _TURN_SECONDS
        for place, exchange in enumerate(waiting):
            if exchange.answer is not None:
                self.account.others["cancelled"] += 1
                continue
            head = exchange.head
            if head is not None and head.memo is None:
                # The compiled way took it, and gave it back: nobody has read a header of this length before.
                self._leave(exchange)
                continue
            if head is not None and head.memo.header_length is not None:
                found = self._binary(exchange.body, head.memo.header_length)
            else:
                found = None if self._wide else self._read(exchange.body)
            if found is not None and wide:
                own = self._most_rows(limit, found[1:])
            if found is None or found[1][0] > own:
                self._leave(exchange)
                continue
            if rows + found[1][0] > min(most, own):
                most = limit
                self._serve(taken, parts, asked, rows, begun)
                parts, asked, taken, rows, begun = [], [], [], 0, self._clock()
                if begun > ends:
                    # The rest goes with what comes next: others have a turn of the loop, too.
                    self.waiting = waiting[place:] + self.waiting
                    asyncio.get_running_loop().call_soon(self.run)
                    return
            most = min(most, own)
            self._learn(exchange, found[1])
            parts.append(found[0])
            asked.append(found[1])
            taken.append(exchange)
            rows += found[1][0]
        if taken:
            self._serve(taken, parts, asked, rows, begun)

    def _holds(self, requests: int, now: float) -> bool:
        """Whether to wait for the lane: behind a few in its queue these would follow them there, and others these."""
        if not self.good(self._deployment) or not self._version.lane.clears(requests, now):
            return False
        if self._held_since is None:
            self._held_since = now
        return now - self._held_since < _HOLD_SECONDS

    @property
    def _wide(self) -> bool:
        """Whether already a row as text takes long to write."""
        return self._version.responder.row_values > LONG_VALUES

    def _most_rows(self, limit: int, asked: Sequence[Asked]) -> int:
        """Rows that a batch of such requests may have, at most `limit`: long answers are written beside the loop."""
        values = self._version.responder.row_values
        if values * limit < LONG_VALUES:
            return limit
        binary = all(default if named is None else all(named.values()) for _, named, default in asked)
        return min(limit, (_BINARY_VALUES if binary else LONG_VALUES) // values)

    def _too_long(self, batch: Outputs, asked: Sequence[Asked]) -> bool:
        """Whether a batch's answers take too long, which is known before it was run but for the first one."""
        self._version.responder.row_values = sum(array.size for array in batch.arrays) // batch.rows
        return batch.rows > self._most_rows(batch.rows, asked)

    def _read(self, body: bytes) -> tuple[bytes, Asked] | None:
        """A JSON request's values and what it asks for; None when it is not of the usual kind."""
        quick = v2.decoded_floats(body)
        if quick is None or len(quick.inputs) != 1 or quick.id or quick.parameters is not None:
            return None
        tensor: FloatTensor = quick.inputs[0]
        column, shape = self._input, tensor.shape
        if (
            quick.outputs is not None or tensor.name != column.name
            or tensor.datatype != column.datatype or tensor.parameters is not None
        ):  # fmt: skip
            return None
        try:
            if shape == self._one:
                return self._pack(*tensor.data), (1, None, False)
            if shape[1:] == self._wanted and 0 < shape[0] <= _MAX_ROWS:
                return packer(column.datatype, shape[0] * column.size)(*tensor.data), (shape[0], None, False)
        except (struct.error, OverflowError):
            return None
        return None

    def _binary(self, body: bytes, header_length: int) -> tuple[bytes | memoryview, Asked] | None:
        plan = v2.plain_plan(body, header_length, self._signature)
        return None if plan is None else (plan.values(body), (plan.rows, *plan.outputs))

    def _serve(
        self, taken: list[Exchange], parts: list[bytes | memoryview], asked: list[Asked], rows: int, begun: float
    ) -> None:
        clock, responder = self._clock, self._version.responder
        column = self._input.column(parts)
        started, worked = clock(), time.thread_time()
        try:
            outputs = self._model.run([column])
            good = all(len(output) == rows and np.isfinite(output).all() for output in outputs)
        except Exception:
            good = False
        batch = Outputs(outputs, rows) if good else None
        if batch is None or (batch.long and self._too_long(batch, asked)):
            for exchange in taken:
                self._leave(exchange)
            return
        ended, worked = clock(), time.thread_time() - worked
        heads: dict[int | None, bytes] = {}
        answers, place = [], 0
        for count, wanted, binary in asked:
            body, header_length = responder.answer(batch, place, place + count, wanted, binary)
            answers.append((body, header_length))
            if header_length not in heads:
                heads[header_length] = self._head(self._version, self._choice, header_length)
            place += count
        encoded = clock()
        for exchange, (body, header_length) in zip(taken, answers, strict=True):
            exchange.connection.respond(exchange, 200, heads[header_length], body)
        done = clock()
        self._note(taken, asked, column, outputs, (begun, started, ended, encoded, done))
        self._ran(column, outputs, started, ended, worked)
        if self.intake is not None:
            for exchange in taken:
                if exchange.head is not None:
                    exchange.connection.arm(self.intake)  # type: ignore[attr-defined]

    def _ran(self, column: Array, outputs: list[Array], started: float, ended: float, worked: float) -> None:
        if self._counter is not None:
            self._counter.add((column,), outputs)
        self._version.lane.ran(len(column), started, ended, worked if self._model.solo else None)

    # --- the compiled way --------------------------------------------------------------------------------------------
    def _run_taken(self) -> bool:
        """Answers what the compiled way took; False when what is left of it must wait or go the general way."""
        intake, lane = self.intake, self._version.lane
        if not self._open() or not self.good(self._deployment):
            return False
        begun = self._clock()
        largest = min(lane.queue.max_rows, _MAX_ROWS)
        sizes = (largest, largest // 2, largest // 4)
        limit = next((limit for limit in sizes if limit and lane.free(min(intake.rows, limit), begun)), 0)
        wide = intake.rows >= _WIDE_ROWS * intake.count
        if not limit and wide and self._holds(min(intake.rows, max(1, sizes[-1])), begun):
            # Where they are: read by Python they would take longer than what they wait for, which few rows do not.
            asyncio.get_running_loop().call_soon(self.run)
            return True
        self._held_since = None
        ends = begun + _TURN_SECONDS
        while intake.count:
            batch = intake.batch(limit)
            if batch is not None and (most := self._most_rows(limit, batch[2])) < limit:
                batch = intake.batch(most)
            if batch is None or not batch[0]:
                self._give_back_traced(self._traced(intake.count))
                return False
            self._serve_taken(*batch)
            if intake.count and self._clock() > ends:
                asyncio.get_running_loop().call_soon(self.run)
                return True
        return True

    def _serve_taken(self, count: int, rows: int, tags: Sequence[Asked]) -> None:
        clock, intake, traced = self._clock, self.intake, self._traced(count)
        column = self._rows(rows)
        intake.read(column)
        started, worked = clock(), time.thread_time()
        try:
            outputs = self._model.run([column])
            good = len(outputs) == 1 and len(outputs[0]) == rows and self._finite(outputs[0])
        except Exception:
            good = False
        ended, worked = clock(), time.thread_time() - worked
        batch = Outputs(outputs, rows) if good else None
        good = batch is not None and not (batch.long and self._too_long(batch, tags))
        hows = self._frames.hows(batch, tags) if good and batch is not None else None
        if hows is None:
            self._give_back_traced(traced)
            for exchange in list(self._given_back(0, count - len(traced))):
                self._leave(exchange)
            return
        encoded = clock()
        intake.answer(count, hows)
        moments, arrived, counts = intake.end(count, started, ended, encoded, done := clock())
        if traced:
            self._batches.add_traced(traced, column, outputs, counts, arrived, moments, done)
        else:
            self._batches.add(column, outputs, counts, arrived, moments, done)
        # Counted already, they need not be counted soon.
        self._ended(0 if self.account.counts else count, column.nbytes)
        self._ran(column, outputs, started, ended, worked)

    def _rows(self, rows: int) -> Array:
        """Where the values of so many rows go."""
        kept = self._batches.rows(rows)
        return np.empty((rows, *self._input.shape), self._kind) if kept is None else kept

    def _finite(self, output: Array) -> bool:
        found = self.intake.finite(output)
        return bool(np.isfinite(output).all()) if found is None else found

    def _learn(self, exchange: Exchange, asked: Asked) -> None:
        """Lets the compiled way take requests like this one, which was read: some kinds at once, more seldom."""
        head, body = exchange.head, exchange.body
        self._since_form += 1
        if self.intake is None or head is None or (self._tried >= _FIRST_FORMS and self._since_form < _NEXT_FORM):
            return
        if any(form.fits(head.text, body) for form in self._forms):
            return
        self._tried += 1
        self._since_form = 0
        rows, length = asked[0], head.memo.header_length
        if length is not None:
            form = binary_form(head.text, body, length, rows)
        else:
            form = json_form(head.text, body, rows * self._input.size, rows)
        if form is not None and rows <= _MAX_ROWS and (form.binary or self._input.datatype in _LETTERS):
            self._forms = [*self._forms[-7:], form]
            self.intake.learn(form.before, form.behind, form.prefix, form.suffix, asked, rows, form.binary)

    def _note(
        self, taken: list[Exchange], asked: list[Asked], column: Array, outputs: list[Array],
        moments: tuple[float, float, float, float, float],
    ) -> None:  # fmt: skip
        begun, started, ended, encoded, done = moments
        decoding, times = started - begun, array("d")
        for exchange in taken:
            # Read after it had waited: the two stages change places, which their times do not show.
            received = exchange.received
            times.extend((received, received + decoding, started, ended, encoded, done))
        requests, arrived = array("q", [one[0] for one in asked]), array("d", [one.received for one in taken])
        self._batches.add(column, outputs, requests.tobytes(), arrived.tobytes(), times.tobytes(), done)
        self._ended(len(taken), column.nbytes)
