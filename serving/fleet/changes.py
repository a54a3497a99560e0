"""One change of policy at a time for all replicas, in two phases: all can, then all do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from serving.fleet.channel import ChannelClosed, RemoteError
from serving.fleet.members import Member, Roster

# A version is loaded, warmed and verified in this time on every replica, or the change does not happen.
PREPARE_SECONDS = 600.0
# A switch of what is loaded already, with the batches that still run.
_COMMIT_SECONDS = 30.0


class Changes:
    """`each` asks members something and takes out of the traffic who fails."""

    def __init__(self, roster: Roster, each: Callable[..., Awaitable[None]]) -> None:
        self._roster = roster
        self._each = each
        # Held while a policy changes and while a replica joins: both see a fleet that stands still.
        self.lock = asyncio.Lock()
        self._changing: Member | None = None
        # The changes that wait, by their leader's number for them, and whether they were called off meanwhile.
        self._waiting: dict[tuple[Member, int], bool] = {}
        self._change = 0
        # What the other replicas are asked, while the change is prepared, and whether it is a rollback.
        self._urgent = False
        self._asking: asyncio.Future[list[BaseException | None]] | None = None

    async def prepare(
        self, member: Member, policy: Mapping[str, Any], change: int = 0, *, urgent: bool = False
    ) -> None:
        """Every other replica loads and verifies what the policy names, or nothing changes.

        What is `urgent` does not wait for a change that is only being prepared: that one fails, and is told so.
        """
        if urgent and self._asking is not None and not self._urgent:
            self._asking.cancel()
        key = member, change
        self._waiting[key] = False
        try:
            await self.lock.acquire()
        finally:
            called_off = self._waiting.pop(key)
        self._changing, self._change = member, change
        if called_off:
            self.release(member)
            raise RemoteError("the change was called off", 409)
        if member.number != self._roster.leader or member.channel.closed.is_set():
            self.release(member)
            raise RemoteError("this replica does not lead; ask again", 503)
        others = self._roster.others(member)
        calls = (other.channel.call("prepare", timeout=PREPARE_SECONDS, policy=policy) for other in others)
        asking = self._asking = asyncio.gather(*calls, return_exceptions=True)
        self._urgent = urgent
        try:
            results = await asking
        except asyncio.CancelledError:
            self._end(member, policy)
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise RemoteError(
                f"a rollback came before the change of {policy['model']!r} was prepared; ask again", 409
            ) from None
        finally:
            self._asking = None
        for other, result in zip(others, results, strict=True):
            if isinstance(result, BaseException) and not isinstance(result, ChannelClosed):
                self._end(member, policy)
                raise RemoteError(
                    f"replica {other.number} cannot take the change, so nothing was changed: {said(result)}", 409
                )

    def abort(self, member: Member, policy: Mapping[str, Any], change: int = 0) -> None:
        """What was prepared, is being prepared, or waits to be, is not coming."""
        if (member, change) in self._waiting:
            self._waiting[member, change] = True
        elif self._changing is member and self._change == change:
            if self._asking is not None:
                # `prepare` tells the others, and lets go.
                self._asking.cancel()
            else:
                self._end(member, policy)

    def _end(self, member: Member, policy: Mapping[str, Any]) -> None:
        for other in self._roster.others(member):
            other.channel.notify("abort", policy=policy)
        self.release(member)

    async def commit(self, member: Member, policy: Mapping[str, Any], move: bool) -> None:
        """Every other replica switches; one that does not is taken out before the change is called done."""
        if self._changing is not member:
            raise RemoteError("this replica does not lead any more", 503)
        try:
            await self._each(self._roster.others(member), "commit", _COMMIT_SECONDS, policy=policy, move=move)
            for other in self._roster.up():
                other.generations = {**other.generations, policy["model"]: policy["generation"]}
        finally:
            self.release(member)

    async def repeat(self, member: Member, deed: str, model: str, versions: list[int] | None) -> None:
        """Every other replica loads or unloads what the leader has."""
        others = self._roster.others(member)
        calls = (o.channel.call(deed, timeout=PREPARE_SECONDS, model=model, versions=versions) for o in others)
        for other, result in zip(others, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(result, BaseException) and not isinstance(result, ChannelClosed):
                raise RemoteError(f"replica {other.number} cannot {deed} {model!r}: {said(result)}", 409)

    def release(self, member: Member) -> None:
        """The change of this member, if it has one under way, is over."""
        if self._changing is member:
            self._changing = None
            self.lock.release()


def said(error: BaseException) -> str:
    """What a process that was asked answered instead."""
    return "it did not answer in time" if isinstance(error, TimeoutError) else str(error)
