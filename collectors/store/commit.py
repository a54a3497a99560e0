"""Group commit: callers that wait at the same time share one transaction."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Ticket(Generic[Item, Result]):
    __slots__ = ("error", "item", "result")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.result: Result | None = None
        self.error: BaseException | None = None


class GroupCommit(Generic[Item, Result]):
    """Runs `commit(items) -> results` for whoever comes while the last commit was under way, all at once.

    `commit` is never run by two threads at a time. When it raises, everybody in the group gets the error.
    """

    def __init__(self, commit: Callable[[Sequence[Item]], Sequence[Result]]) -> None:
        self._commit = commit
        self._waiting: list[_Ticket[Item, Result]] = []
        self._waiting_lock = threading.Lock()
        self.turn = threading.RLock()

    def submit(self, item: Item) -> Result:
        """Blocks until the item is committed and gives its result."""
        ticket: _Ticket[Item, Result] = _Ticket(item)
        with self._waiting_lock:
            self._waiting.append(ticket)
        with self.turn:
            if ticket.result is None and ticket.error is None:
                self._lead()
        if ticket.error is not None:
            raise ticket.error
        assert ticket.result is not None
        return ticket.result

    def _lead(self) -> None:
        with self._waiting_lock:
            group, self._waiting = self._waiting, []
        try:
            results = self._commit([ticket.item for ticket in group])
        except BaseException as error:  # every waiter must hear of it; each raises it in its own thread
            for ticket in group:
                ticket.error = error
            return
        for ticket, result in zip(group, results, strict=True):
            ticket.result = result
