"""Runs one batch on a model and takes it apart again: every request gets its rows, a poisoned one fails alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serving.batcher import Pending, Result, State
from serving.errors import Expired, InvalidRequest, ModelFailed, NonFinite, NonFiniteInput
from serving.protocol.outputs import Outputs, Rows
from serving.protocol.signature import Signature, Values
from serving.protocol.tensors import Array

# What a batch needs of a request, as it was when the batch began: its values, rows, and the outputs that it asks for.
_Request = tuple[Sequence[Values], int, "Container[str] | None"]


class Runnable(Protocol):
    """What a lane needs of a loaded model."""

    signature: Signature

    def run(self, columns: Sequence[Array]) -> list[Array]:
        """Columns [rows] in, outputs [rows] or [rows, k] out."""


@dataclass(frozen=True, slots=True)
class Executed:
    """A batch's results, one a request in order, and when the model worked on it (lane clock, seconds)."""

    results: tuple[Result, ...]
    started: float
    ended: float
    # The largest part of it that the memory held, where the whole did not fit; 0 where it did.
    fits: int = 0
    # Seconds that the batch took this thread, without what the machine did meanwhile; from start to end where the model
    # has threads of its own.
    worked: float | None = None


def execute(model: Runnable, requests: Sequence[Pending], max_rows: int, clock: Callable[[], float]) -> Executed:
    """Runs the requests as one batch; never raises. A request that makes the model fail is found by halving, and what
    does not fit into memory runs in halves.
    """
    started, worked = clock(), time.thread_time()
    fitting: list[int] = []
    # Between the closing of the batch and its start a deadline may pass, and a client leave.
    live = [p for p in requests if p.state is not State.DONE and (p.deadline is None or p.deadline > started)]
    results = _run(model, [(p.values, p.rows, p.wanted) for p in live], max_rows, fitting) if live else []
    ended, worked = clock(), time.thread_time() - worked
    if len(live) < len(requests):
        found = dict(zip(map(id, live), results, strict=True))
        results = [found.get(id(p)) or Expired("the deadline passed before its batch began") for p in requests]
    own = worked if getattr(model, "solo", False) else ended - started
    return Executed(tuple(results), started, ended, min(fitting, default=0), own)


def _run(model: Runnable, requests: Sequence[_Request], max_rows: int, fitting: list[int]) -> list[Result]:
    try:
        outputs = _outputs(model, model.signature.columns([values for values, _, _ in requests]), max_rows, fitting)
        total = sum(rows for _, rows, _ in requests)
        if any(len(output) != total for output in outputs):
            raise ModelFailed(f"the model gave {[len(output) for output in outputs]} rows for {total}")
    except Exception as error:
        if len(requests) > 1:
            half = len(requests) // 2
            return _run(model, requests[:half], max_rows, fitting) + _run(model, requests[half:], max_rows, fitting)
        known = isinstance(error, (InvalidRequest, ModelFailed))
        return [error if known else ModelFailed(f"the model failed: {type(error).__name__}: {error}")]  # type: ignore[list-item]
    return _split(outputs, requests, model.signature)


def _outputs(model: Runnable, columns: list[Array], max_rows: int, fitting: list[int]) -> list[Array]:
    rows = len(columns[0])
    if rows <= max_rows:
        try:
            return model.run(columns)
        except Exception as error:
            if rows == 1 or not _out_of_memory(error):
                raise
        # Outside the handler: the error holds the frames, and they the tensors, that took the memory.
        max_rows = (rows + 1) // 2
        fitting.append(max_rows)
    chunks = [
        _outputs(model, [column[at : at + max_rows] for column in columns], max_rows, fitting)
        for at in range(0, rows, max_rows)
    ]
    return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]


def _out_of_memory(error: Exception) -> bool:
    """Whether a device's or the machine's memory was too small: torch says so in a class or in words."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "allocate memory" in text)


def _split(outputs: Sequence[Array], requests: Sequence[_Request], signature: Signature) -> list[Result]:
    finite = all(np.isfinite(output).all() for output in outputs)
    results: list[Result] = []
    start = 0
    if finite and not signature.lengths:
        batch = Outputs(outputs, len(outputs[0]))
        for _, count, _ in requests:
            results.append(Rows(batch, start, start + count))
            start += count
        return results
    for values, count, wanted in requests:
        parts = [output[start : start + count] for output in outputs]
        if signature.lengths:
            parts = signature.cut(parts, values)
        bad = [] if finite else not_finite(parts, wanted, signature)
        results.append(_non_finite(bad, values, signature) if bad else parts)
        start += count
    return results


def not_finite(parts: Sequence[Array], wanted: Container[str] | None, signature: Signature) -> list[str]:
    """Where the outputs that a request asks for are NaN or infinite, three places of each at most; nothing where they
    are finite. What it does not ask for may be anything.
    """
    return [
        f"{output.name} of row {int(row)}"
        for output, part in zip(signature.outputs, parts, strict=True)
        if (wanted is None or output.name in wanted) and not np.isfinite(part).all()
        for row in np.flatnonzero(~np.isfinite(part.reshape(len(part), -1)).all(axis=1))[:3]
    ]


def _non_finite(bad: Sequence[str], values: Sequence[Values], signature: Signature) -> NonFinite:
    """Whose fault it is: NaN and infinity in the request's own inputs, or the model's."""
    for column, part in zip(signature.inputs, values, strict=True):
        if column.codes is None and not np.isfinite(column.joined([part])).all():
            return NonFiniteInput(
                f"input {column.name!r} holds NaN or infinity (or null), of which the model makes no finite output"
            )
    return NonFinite(f"the model's output is NaN or infinite: {', '.join(bad)}")
