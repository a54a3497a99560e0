"""What tests put in the place of other threads, and of the end of a process."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from typing import Any


class Killed(BaseException):
    """What kill -9 is to the code: nothing after it runs."""


class Inline(Executor):
    """Runs at once, in the caller."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future
