"""Group commit: callers that wait at the same time share one transaction."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Ticket(Generic[Item, Result]):
    __slots__ = ("done", "error", "item", "leads", "result")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.result: Result | None = None
        self.error: BaseException | None = None
        self.leads = False
        self.done = threading.Lock()
        self.done.acquire()


class GroupCommit(Generic[Item, Result]):
    """Runs `commit(items) -> results` for whoever comes while the last commit was under way, all at once.

    `commit` is never run by two threads at a time, nor while another thread holds `turn`. When it raises, everybody in
    the group gets the error; a result that is an exception is raised for its own item only.
    """

    def __init__(self, commit: Callable[[Sequence[Item]], Sequence[Result | Exception]]) -> None:
        self._commit = commit
        self._waiting: list[_Ticket[Item, Result]] = []
        self._led = False
        self._waiting_lock = threading.Lock()
        self.turn = threading.RLock()

    def submit(self, item: Item) -> Result:
        """Blocks until the item is committed and gives its result."""
        ticket: _Ticket[Item, Result] = _Ticket(item)
        with self._waiting_lock:
            self._waiting.append(ticket)
            ticket.leads, self._led = not self._led, True
        if not ticket.leads:
            ticket.done.acquire()
        if ticket.leads:
            self._lead()
        if ticket.error is not None:
            raise ticket.error
        assert ticket.result is not None
        return ticket.result

    def _lead(self) -> None:
        """Commits all who wait, and hands the lead to the first of those who came meanwhile."""
        group: list[_Ticket[Item, Result]] = []
        try:
            with self.turn:
                with self._waiting_lock:
                    group, self._waiting = self._waiting, []
                results = self._commit([ticket.item for ticket in group])
            for ticket, result in zip(group, results, strict=True):
                if isinstance(result, Exception):
                    ticket.error = result
                else:
                    ticket.result = result
        except BaseException as error:  # every waiter must hear of it; each raises it in its own thread
            for ticket in group:
                ticket.error = error
        finally:
            with self._waiting_lock:
                self._led = bool(self._waiting)
                heir = self._waiting[0] if self._waiting else None
            for ticket in group:
                if not ticket.leads:
                    ticket.done.release()
            if heir is not None:
                heir.leads = True
                heir.done.release()
