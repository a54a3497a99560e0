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

    async def prepare(self, member: Member, policy: Mapping[str, Any]) -> None:
        """Every other replica loads and verifies what the policy names, or nothing changes."""
        await self.lock.acquire()
        self._changing = member
        if member.number != self._roster.leader or member.channel.closed.is_set():
            self.release(member)
            raise RemoteError("this replica does not lead; ask again", 503)
        others = self._roster.others(member)
        calls = (other.channel.call("prepare", timeout=PREPARE_SECONDS, policy=policy) for other in others)
        for other, result in zip(others, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(result, BaseException) and not isinstance(result, ChannelClosed):
                self.abort(member, policy)
                raise RemoteError(
                    f"replica {other.number} cannot take the change, so nothing was changed: {said(result)}", 409
                )

    def abort(self, member: Member, policy: Mapping[str, Any]) -> None:
        """What was prepared is not coming."""
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
