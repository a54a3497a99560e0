"""The process of a server's shadows: models in, batches in, differences out; it ends when its server does.

It runs when nobody else wants a processor (Linux: SCHED_IDLE), and is the first that the kernel ends when memory is
short. Whatever a batch has that is not usual (a model that fails, a value that is not finite) is the server's to tell.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from serving.errors import ArtifactError
from serving.models import load_artifact
from serving.protocol.signature import Signature
from serving.protocol.tensors import Array
from serving.routing.disagreement import Pair, compare_rows
from serving.shadows.messages import (
    Answers,
    Batch,
    Difference,
    Drop,
    Frames,
    Load,
    Loaded,
    Packed,
    Ran,
    ToWorker,
    for_worker,
    framed,
)
from serving.shadows.runs import output_names

_log = logging.getLogger(__name__)
_READ_BYTES = 256 * 1024


class _Model(Protocol):
    signature: Signature

    def run(self, columns: Sequence[Array]) -> list[Array]: ...


class Worker:
    """The models that are held, by key, and what is answered to a message."""

    def __init__(self) -> None:
        self._models: dict[str, tuple[_Model, int]] = {}

    def answer(self, message: ToWorker) -> Loaded | Ran | None:
        """Does what is asked; None where there is nothing to say."""
        if isinstance(message, Load):
            return self._load(message)
        if isinstance(message, Drop):
            self._models.pop(message.key, None)
            return None
        held = self._models.get(message.key)
        if held is None:
            return Ran(0.0, [], [], f"no model {message.key}")
        try:
            return _ran(*held, message)
        except Exception as error:
            return Ran(0.0, [], [], f"{type(error).__name__}: {error}")

    def _load(self, wanted: Load) -> Loaded:
        try:
            model = load_artifact(Path(wanted.folder), digest=wanted.digest)
            model.warm_up(wanted.step_rows, repeats=1)
        except ArtifactError as error:
            return Loaded(wanted.key, str(error))
        except Exception as error:
            return Loaded(wanted.key, f"{type(error).__name__}: {error}")
        self._models[wanted.key] = model, wanted.step_rows
        return Loaded(wanted.key)


def main(descriptor: int) -> None:
    """Answers messages on the socket with this file number until the other end is closed."""
    # The terminal's Ctrl-C goes to all processes; the server ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)
    worker, first = Worker(), True
    with socket.socket(fileno=descriptor) as sock, suppress(ConnectionError):
        for message in _messages(sock):
            answer = worker.answer(message)
            if answer is not None:
                sock.sendall(framed(answer))
            if first:
                # The first model is loaded at the usual priority: beside busy callers it would take minutes.
                give_way()
                first = False


def give_way() -> None:
    """Lets everybody else go first: processor and memory."""
    try:
        if hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        else:
            os.nice(19)
    except OSError as error:  # a sandbox may forbid it
        _log.debug("the shadows' process keeps its priority: %s", error)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _messages(sock: socket.socket) -> Iterator[ToWorker]:
    frames = Frames()
    while data := sock.recv(_READ_BYTES):
        for frame in frames.feed(data):
            yield for_worker(frame)


def _ran(model: _Model, step_rows: int, batch: Batch) -> Ran:
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
