"""The process of a server's shadows: models in, batches in, differences out; it ends when its server does.

It runs when nobody else wants a processor (Linux: SCHED_IDLE), and is the first that the kernel ends when memory is
short. Whatever a batch has that is not usual (a model that fails, a value that is not finite) is the server's to tell.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from serving.errors import ArtifactError
from serving.models import load_artifact
from serving.protocol.signature import Signature
from serving.protocol.tensors import Array
from serving.shadows.messages import (
    Drop,
    Frames,
    Load,
    Loaded,
    Ran,
    ToWorker,
    for_worker,
    framed,
)
from serving.shadows.runs import run_batch

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
        return run_batch(*held, message)

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
