"""The store of several nodes as one of them reaches it: a connection that is lost, or answers no more, is opened again.

A question may be put twice, where the first answer got lost: it must be one for which that makes no difference.
"""

from __future__ import annotations

import queue
import socket
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

_STORE_SECONDS = 10.0
_CONNECT_SECONDS = 1.0
Answer = TypeVar("Answer")
_Asked = tuple[Callable[[Any], Any], "Future[Any]"]


class StoreLost(RuntimeError):
    """The store gave no answer; the message says why."""


def serve(host: str, port: int) -> Any:
    """Serves a store, for as long as the object lives. RuntimeError where the port is taken."""
    return _opened(host, port, serves=True)


class NodeStore:
    """The store at an address, which is reached with the first question."""

    def __init__(self, host: str, port: int, patience: float) -> None:
        """`patience` are the seconds in which an answer must be there."""
        self._host, self._port, self._patience = host, port, patience
        self._line: _Line | None = None

    def ask(self, question: Callable[[Any], Answer]) -> Answer:
        """What `question` makes of the store; a connection that was good before is opened again once.

        StoreLost where there is none, it closes, or nothing is heard.
        """
        if self._line is not None:
            try:
                return self._line.ask(question, self._patience)
            except StoreLost:
                self._line = None
        line = _Line(self._host, self._port)
        answer = line.ask(question, self._patience)
        self._line = line
        return answer


class _Line:
    """One connection, and the thread that uses it.

    torch waits for an answer for as long as the kernel thinks that it may come, which is a quarter of an hour where
    the other machine has gone without a word: the thread is left to that, and nobody waits for it.
    """

    def __init__(self, host: str, port: int) -> None:
        self._asked: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        threading.Thread(target=_answer, args=(self._asked, host, port), name="store", daemon=True).start()
        weakref.finalize(self, self._asked.put, None).atexit = False

    def ask(self, question: Callable[[Any], Answer], patience: float) -> Answer:
        answer: Future[Answer] = Future()
        self._asked.put((question, answer))
        try:
            return answer.result(patience)
        except TimeoutError as error:
            raise StoreLost(f"no answer within {patience:.1f} s") from error


def _answer(asked: queue.SimpleQueue[_Asked | None], host: str, port: int) -> None:
    store: Any = None
    while (one := asked.get()) is not None:
        question, answer = one
        try:
            store = store or _opened(host, port, serves=False)
            answer.set_result(question(store))
        except RuntimeError as error:  # torch's own kinds are of this
            answer.set_exception(StoreLost(short(error)))
        except Exception as error:
            answer.set_exception(error)
        del one, question, answer


def _opened(host: str, port: int, *, serves: bool) -> Any:
    if not serves:
        try:  # torch's own way to the store tries for long, and writes of each try
            socket.create_connection((host, port), _CONNECT_SECONDS).close()
        except OSError as error:
            raise RuntimeError(str(error)) from error
    limit = timedelta(seconds=_STORE_SECONDS)
    return dist.TCPStore(host, port, None, serves, timeout=limit, wait_for_workers=False)  # type: ignore[attr-defined]


def short(error: Exception) -> str:
    """The first line of what an error says, or its name."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
