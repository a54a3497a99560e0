"""The other replicas of a server of several processes, as one replica sees them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serving.routing.traffic import Policy
from serving.versions.status import Status


@dataclass(frozen=True, slots=True)
class View:
    """What another replica has: the generation of each model's policy in force, and where each version stands."""

    generations: Mapping[str, int]
    statuses: Mapping[tuple[str, int], Status]


class Peers(Protocol):
    """They follow the changes made here. `number` is this replica's; `needed` are to be ready for the server to be."""

    number: int
    needed: int

    async def prepare(self, policy: Policy, *, urgent: bool = False) -> None:
        """Each has the policy's versions loaded and verified. Raises ServingError: then nothing changes.

        What is `urgent` does not wait for a change of another model that is only being prepared: that one fails.
        """

    async def abort(self, policy: Policy) -> None:
        """What was prepared is not coming."""

    async def commit(self, policy: Policy, move: bool) -> None:
        """All switch to the stored policy; one that cannot is taken out of the traffic. Never raises."""

    async def repeat(self, deed: str, model: str, versions: Sequence[int] | None) -> None:
        """All `load` or `unload` what was loaded or unloaded here. Raises ServingError, naming who could not."""

    async def views(self) -> Mapping[int, View]:
        """Where those that take requests stand, by number; who does not say so in time is left out."""

    async def counts(self, families: Collection[str]) -> Sequence[Any] | None:
        """These families of metrics, added up over all replicas, this one included; None when there is no other."""


class Alone:
    """No other replicas."""

    number = 0
    needed = 1

    async def prepare(self, policy: Policy, *, urgent: bool = False) -> None:
        """Nothing to do."""

    async def abort(self, policy: Policy) -> None:
        """Nothing to do."""

    async def commit(self, policy: Policy, move: bool) -> None:
        """Nothing to do."""

    async def repeat(self, deed: str, model: str, versions: Sequence[int] | None) -> None:
        """Nothing to do."""

    async def views(self) -> Mapping[int, View]:
        """None."""
        return {}

    async def counts(self, families: Collection[str]) -> Sequence[Any] | None:
        """This process counts alone."""
        return None
