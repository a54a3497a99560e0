"""The other replicas of a fleet, by way of the supervisor."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from serving.errors import Conflict, ServingError, Unavailable
from serving.fleet.channel import Channel, RemoteError
from serving.fleet.exposition import Dump
from serving.peers import View
from serving.routing.traffic import Policy
from serving.versions.status import Status

_log = logging.getLogger(__name__)
_VIEW_SECONDS = 5.0


class HubPeers:
    """The other replicas, as the control of the leading one sees them: by way of the supervisor."""

    def __init__(self, channel: Channel, number: int, needed: int) -> None:
        self._channel = channel
        self.number = number
        self.needed = needed
        self.leading = False
        # The supervisor's name for the change of each model that was prepared last.
        self._changes: dict[str, int] = {}
        self._numbers = itertools.count(1)

    async def prepare(self, policy: Policy, *, urgent: bool = False) -> None:
        """Every replica has the policy's versions loaded and verified. Raises ServingError; then nothing changes."""
        change = self._changes[policy.model] = next(self._numbers)
        try:
            await self._channel.call("prepare", policy=policy.to_json(), change=change, urgent=urgent)
        except RemoteError as error:
            raise Conflict(str(error)) from error

    async def abort(self, policy: Policy) -> None:
        """What was prepared is not coming."""
        self._channel.notify("abort", policy=policy.to_json(), change=self._changes.get(policy.model, 0))

    async def commit(self, policy: Policy, move: bool) -> None:
        """All switch; one that cannot is taken out of the traffic and started again."""
        try:
            await self._channel.call("commit", policy=policy.to_json(), move=move)
        except (ServingError, TimeoutError) as error:
            # It is stored: whoever leads next brings the others there.
            _log.error("generation %d of %s may not be in force everywhere: %s", policy.generation, policy.model, error)

    async def repeat(self, deed: str, model: str, versions: Sequence[int] | None) -> None:
        """The others do the same, if this replica leads; what the others are told to repeat they keep to themselves."""
        if self.leading:
            kept = None if versions is None else list(versions)
            await self._channel.call("repeat", deed=deed, model=model, versions=kept)

    async def views(self) -> Mapping[int, View]:
        """Where the others stand; without a supervisor that answers, none is known."""
        try:
            said: Mapping[str, Any] = await self._channel.call("views", timeout=_VIEW_SECONDS)
        except (ServingError, TimeoutError) as error:
            _log.warning("where the other replicas stand is not known: %s", error)
            return {}
        return {int(number): read_view(view) for number, view in said.items()}

    async def counts(self, families: Collection[str]) -> Sequence[Dump] | None:
        """The sums that the supervisor makes. Raises ServingError when it does not."""
        try:
            found: list[Dump] = await self._channel.call("counts", timeout=_VIEW_SECONDS, families=list(families))
        except TimeoutError as error:
            raise Unavailable("what all replicas counted is not known now; ask again") from error
        return found


def packed_view(generations: Mapping[str, int], statuses: Mapping[tuple[str, int], Status]) -> dict[str, Any]:
    """A view as it travels."""
    return {
        "generations": dict(generations),
        "statuses": [[model, number, one.state, one.reason] for (model, number), one in statuses.items()],
    }


def read_view(said: Mapping[str, Any]) -> View:
    """The inverse of `packed_view`."""
    statuses = {(model, number): Status(state, reason) for model, number, state, reason in said["statuses"]}
    return View(said["generations"], statuses)
