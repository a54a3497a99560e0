"""One change of a model at a time, and a rollback before all others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from serving.errors import Conflict
from serving.versions.deployment import Deployment

_T = TypeVar("_T")


class Overtaken(Conflict):
    """A rollback came while the change was being prepared: nothing was changed (409)."""


class Turn(asyncio.Lock):
    """Held by the change that is made; the versions that it was about to use are guarded until it ends.

    A change has two parts: it is prepared, for as long as versions take to load, and then made, which is short. A
    rollback does not wait for the first: it ends it, and goes before the changes that wait.
    """

    def __init__(self, model: str, deployments: Mapping[str, Deployment]) -> None:
        super().__init__()
        self._model = model
        self._deployments = deployments
        self._urgent = 0
        self._preparing: asyncio.Task[Any] | None = None

    def release(self) -> None:
        """Lifts the guards, too."""
        if self._model in self._deployments:
            self._deployments[self._model].guards.clear()
        super().release()

    async def prepared(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of work that changes no traffic, by who holds the turn. Raises Overtaken, or as the work."""
        if self._urgent:
            work.close()
            raise self._overtaken()
        task: asyncio.Task[_T] = asyncio.get_running_loop().create_task(work)
        self._preparing = task
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise self._overtaken() from None
        finally:
            self._preparing = None

    def end_preparing(self) -> None:
        """What is being prepared is not wanted any more: whoever waits for it gets Overtaken."""
        if self._preparing is not None:
            self._preparing.cancel()

    @asynccontextmanager
    async def overtaking(self) -> AsyncIterator[None]:
        """The turn, at once: before those that wait, and in the place of one that is only being prepared."""
        self._urgent += 1
        self.end_preparing()
        try:
            await self.acquire()
        finally:
            self._urgent -= 1
        try:
            yield
        finally:
            self.release()

    def _overtaken(self) -> Overtaken:
        return Overtaken(
            f"a rollback of {self._model!r} came while this change was being prepared: nothing was changed; look at "
            "the model, and ask again if the change is still wanted"
        )


class Turns(dict[str, Turn]):
    """The turn of each model."""

    def __init__(self, deployments: Mapping[str, Deployment]) -> None:
        super().__init__()
        self._deployments = deployments

    def __missing__(self, model: str) -> Turn:
        self[model] = Turn(model, self._deployments)
        return self[model]
