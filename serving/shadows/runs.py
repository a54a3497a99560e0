"""Copies of answered requests, run on a shadow in this process, and what a batch of them came to."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from serving.batching.execution import Runnable, execute
from serving.calls import Call, LateCalls
from serving.errors import ServingError
from serving.protocol.outputs import Outputs, Rows
from serving.protocol.signature import Signature
from serving.protocol.tensors import Array
from serving.router import Choice
from serving.routing.disagreement import Disagreement, Pair, compare, compare_rows
from serving.shadows.blocks import Block, BlockCopy
from serving.shadows.messages import Answers, Batch, Difference, Packed, Ran

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shadowed:
    """What a batch came to: the copies, how many of them have outputs, differences by answering version, how many
    failed, how many requests did not fit, and seconds that it kept this process from other work. A block's copies are
    in `block`, where they are wanted.
    """

    copies: Sequence[Call]
    ran: int
    found: Mapping[int, Disagreement]
    failed: int
    unfit: int
    seconds: float
    block: BlockCopy | None = None


class Copies(LateCalls):
    """Copies of calls whose batch another process ran; each is made when the first is asked for.

    Whoever records them does so on a thread of its own: the event loop need not make them.
    """

    def __init__(
        self,
        calls: Sequence[Call],
        choice: Choice,
        signature: Signature,
        outputs: Outputs,
        started: float,
        ended: float,
    ) -> None:
        """`outputs` has the rows of the calls in their order; `started` and `ended` are seconds of the lanes' clock."""
        self._calls = calls
        self._choice = choice
        self._signature = signature
        self._outputs = outputs
        self._times = started, ended
        self.nbytes = sum(call.bytes for call in calls) + sum(output.nbytes for output in outputs.arrays)
        self._made: list[Call] | None = None

    def __len__(self) -> int:
        return len(self._calls)

    @overload
    def __getitem__(self, place: int) -> Call: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Call]: ...

    def __getitem__(self, place: int | slice) -> Call | Sequence[Call]:
        if self._made is None:
            self._made = self._make()
        return self._made[place]

    def _make(self) -> list[Call]:
        made, first, (started, ended) = [], 0, self._times
        for call in self._calls:
            copy = call.copied(self._choice, self._signature, alike=True)
            copy.arrived = copy.queued = copy.started = started
            copy.ended = ended
            copy.settle(Rows(self._outputs, first, first + call.rows), ended)
            first += call.rows
            made.append(copy)
        return made


def shadowed(calls: Sequence[Call] | Block, choice: Choice, signature: Signature, ran: Ran, now: float) -> Shadowed:
    """What a batch of these calls came to in the shadows' process, which has just told so."""
    found = {
        told.version: Disagreement(
            told.absolute.array(), told.relative.array(), told.incomparable, told.ranked_rows, told.other_rows
        )
        for told in ran.found
    }
    copies: Sequence[Call] = ()
    if isinstance(calls, Block):
        block = None
        if ran.outputs:
            block = BlockCopy(calls, choice, signature, ran.outputs[0].array(), now - ran.seconds, now)
        return Shadowed((), calls.requests, found, 0, 0, 0.0, block)
    if ran.outputs:
        outputs = Outputs([output.array() for output in ran.outputs], sum(call.rows for call in calls))
        copies = Copies(calls, choice, signature, outputs, now - ran.seconds, now)
    return Shadowed(copies, len(calls), found, 0, 0, 0.0)


def run_copies(
    model: Runnable, choice: Choice, calls: Sequence[Call], step_rows: int, clock: Callable[[], float]
) -> Shadowed:
    """Runs copies of answered calls on a shadow, and compares its outputs with the answers."""
    begun = time.thread_time()
    copies: list[Call] = []
    answered: list[Call] = []
    # By identity, as calls of one version share theirs: its outputs' names, and whether the shadow takes the same.
    known: dict[int, tuple[tuple[str, ...], bool]] = {}
    for call in calls:
        if id(call.signature) not in known:
            known[id(call.signature)] = output_names(call.signature), call.signature == model.signature
        try:
            copies.append(call.copied(choice, model.signature, alike=known[id(call.signature)][1]))
            answered.append(call)
        except ServingError as error:
            # The shadow may take other inputs than the answering version: no matter to the client.
            _log.debug("a request does not fit shadow version %d: %s", choice.version, error)
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for place, copy in enumerate(copies):
        groups[copy.bucket].append(place)
    names = output_names(model.signature)
    pairs: dict[int, list[Pair]] = defaultdict(list)
    failed = 0
    for places in groups.values():
        run = execute(model, [copies[place] for place in places], step_rows, clock)
        for place, result in zip(places, run.results, strict=True):
            copy, call = copies[place], answered[place]
            # Its waiting is by design: what a shadow takes is what its model takes.
            copy.arrived = copy.queued = copy.started = run.started
            copy.ended = run.ended
            copy.settle(result, run.ended)
            if isinstance(result, ServingError):
                failed += 1
            elif call.outputs is not None:
                told = known[id(call.signature)][0]
                pairs[call.choice.version].append(Pair(told, call.outputs, names, result))
    found = {number: compare(group) for number, group in pairs.items()}
    unfit = len(calls) - len(copies)
    return Shadowed(copies, len(copies) - failed, found, failed, unfit, time.thread_time() - begun)


def output_names(signature: Signature) -> tuple[str, ...]:
    """The names of a signature's outputs, in its order."""
    return tuple(output.name for output in signature.outputs)


def run_batch(model: Runnable, step_rows: int, batch: Batch) -> Ran:
    """Runs a batch, so many rows at a time, and compares what it gives with the answers; never raises."""
    try:
        return _run_batch(model, step_rows, batch)
    except Exception as error:
        return Ran(0.0, [], [], f"{type(error).__name__}: {error}")


def _run_batch(model: Runnable, step_rows: int, batch: Batch) -> Ran:
    begun = time.perf_counter()
    columns = [column.array() for column in batch.columns]
    rows = len(columns[0])
    parts = [model.run([column[at : at + step_rows] for column in columns]) for at in range(0, rows, step_rows)]
    outputs = [np.concatenate(part) for part in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]
    seconds = time.perf_counter() - begun
    if any(len(output) != rows for output in outputs):
        return Ran(seconds, [], [], f"the model gave {[len(output) for output in outputs]} rows for {rows}")
    if not all(np.isfinite(output).all() for output in outputs):
        return Ran(seconds, [], [], "an output is not finite")
    found, first, names = [], 0, output_names(model.signature)
    for group in batch.groups:
        last = first + sum(group.rows)
        if group.outputs is not None:
            found.append(_difference(group, names, [output[first:last] for output in outputs]))
        first = last
    return Ran(seconds, found, [Packed.of(output) for output in outputs] if batch.outputs else [])


def _difference(group: Answers, names: Sequence[str], outputs: Sequence[Array]) -> Difference:
    assert group.outputs is not None
    answers = [answer.array() for answer in group.outputs]
    told = compare_rows(Pair(group.names, answers, names, outputs), group.rows)
    return Difference(
        group.version, Packed.of(told.absolute), Packed.of(told.relative), told.incomparable, told.ranked_rows,
        told.other_rows,
    )  # fmt: skip
