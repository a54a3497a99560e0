"""One served model: its versions in memory, its router, and the switch from one policy to the next."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.batcher import State
from serving.calls import Call
from serving.engine import Lane
from serving.errors import GaveWay, NotFound, ServingError, Unavailable
from serving.models import LoadedModel, WarmUp, load_artifact
from serving.protocol.responder import Responder
from serving.registry import Registry
from serving.router import Choice, Router
from serving.routing.traffic import FORCED, Policy
from serving.telemetry.signals import Signals
from serving.versions.memory import Footprint, release_unused, resident_bytes

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 0.02
EVICTED = "evicted"  # why a version leaves that gives way to others

if TYPE_CHECKING:
    from serving.cache import ResponseCache


class _Heads(dict[str, bytes]):
    """The header lines of one version's answers by arm, each made when it is first needed."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def __missing__(self, arm: str) -> bytes:
        head = b"content-type: application/json\r\nx-trimtab-version: %d\r\nx-trimtab-arm: %b\r\n"
        self[arm] = head % (self._number, arm.encode())
        return self[arm]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version that is verified, loaded and warm, not yet on the event loop."""

    number: int
    model: LoadedModel
    warm_up: WarmUp
    seconds: float
    footprint: Footprint


@dataclass(frozen=True, slots=True)
class Version:
    """A version that takes requests. `heads` are the header lines of its answers, by arm."""

    loaded: Loaded
    lane: Lane
    responder: Responder
    heads: Mapping[str, bytes]
    pinned: Choice


def load_version(
    registry: Registry, model: str, number: int, architectures: tuple[str, ...], max_rows: int, quick: float = 0.0,
    device: str = "cpu",
) -> Loaded:  # fmt: skip
    """Verifies, loads and warms a version; for more than `max_rows` where that takes at most `quick` seconds. Blocks.

    Raises RegistryError or ArtifactError.
    """
    start = time.perf_counter()
    found = registry.get(model, number)
    # What others have let go, and the file's bytes at the end, would count as this version's or hide what it takes.
    release_unused()
    before = resident_bytes()
    loaded = load_artifact(registry.folder(found), architectures=architectures, digest=found.digest, device=device)
    warm_up = loaded.warm_up(max_rows, quick=quick)
    if max_rows > 1 and loaded.mixes_rows():
        _log.warning(
            "%s %d answers a row otherwise beside other rows: requests share batches, so that answers depend on who "
            "else asks; with max_batch_rows = 1 each row is answered by itself", model, number,
        )  # fmt: skip
    release_unused()
    footprint = Footprint(loaded.nbytes, max(0, resident_bytes() - before))
    return Loaded(number, loaded, warm_up, time.perf_counter() - start, footprint)


class Deployment:
    """A model on the event loop. `router` is replaced as a whole, so a request sees one policy or the next."""

    def __init__(self, model: str, make_lane: Callable[[Loaded], Lane], signals: Signals) -> None:
        self.model = model
        self.router = Router.of(Policy(model))
        self.versions: dict[int, Version] = {}
        self.cache: ResponseCache | None = None
        # Versions that stay without a place in the policy, that a control call is about to use, and that are drained
        # (with the reason); when a version was last asked for by its number.
        self.kept: set[int] = set()
        self.guards: set[int] = set()
        self.leaving: dict[int, str] = {}
        self.used: dict[int, float] = {}
        # Those that gave way to others, and are loaded again for the first request.
        self.gave_way: set[int] = set()
        # Why the stable version could not be loaded at the start; nothing once one was.
        self.trouble = ""
        # Set while the whole model is taken out: it takes no requests.
        self.closing = False
        self.missing: Callable[[int], ServingError] = self._unknown
        self.dropped: Callable[[Version, str], None] = lambda _version, _reason: None
        self._make_lane = make_lane
        self._signals = signals

    @property
    def ready(self) -> bool:
        """Whether the stable version can answer."""
        stable = self.router.policy.stable
        return stable is not None and self.unready(stable) is None

    def unready(self, number: int) -> str | None:
        """Why a version cannot answer; None when it can."""
        version = self.versions.get(number)
        if self.asleep(number) and not self.closing:
            return None
        if version is None or self.closing or number in self.leaving:
            return "not loaded" if version is None else "being unloaded"
        return version.lane.stalled

    def asleep(self, number: int) -> bool:
        """Whether the version gave way to others, or is about to: a request for it waits until it is loaded again."""
        return number in self.gave_way or self.leaving.get(number) == EVICTED

    def add(self, loaded: Loaded) -> Version:
        """Makes a loaded version servable."""
        number = loaded.number
        version = Version(
            loaded,
            self._make_lane(loaded),
            Responder(self.model, number, loaded.model.signature),
            _Heads(number),
            Choice(number, FORCED, 1.0),
        )
        self.versions[number] = version
        self.gave_way.discard(number)
        self.trouble = ""
        self._signals.loaded(self.model, number, loaded.model.digest, loaded.seconds)
        return version

    def route(
        self, named: str | None, unit: str | None, headers: Mapping[bytes, bytes] | None = None
    ) -> tuple[Choice, Version]:
        """The arm and version for a request that may name a version. Raises NotFound or Unavailable, GaveWay for one
        that is loaded again now.
        """
        if self.closing:
            raise Unavailable(f"model {self.model!r} is being unloaded")
        if named is not None:
            return self._pinned(named)
        choice = self.router.choose(unit, headers=headers)
        if choice is not None and self.asleep(choice.version):
            raise self.missing(choice.version)
        if choice is None or choice.version not in self.versions:
            why = f": {self.trouble}" if self.trouble else "; promote one or wait until it is loaded"
            raise Unavailable(f"model {self.model!r} has no version ready{why}")
        return choice, self.versions[choice.version]

    async def awake(self, named: str | None) -> tuple[Choice, Version]:
        """The same, with the patience to wait for a version that is loaded again."""
        while True:
            try:
                return self.route(named, None)
            except GaveWay as away:
                trouble = await asyncio.shield(away.coming)
                if trouble is not None:
                    raise trouble from None

    def switch(self, policy: Policy, *, move: bool = False) -> list[int]:
        """Puts the policy in force. With `move`, waiting requests of versions that lost their traffic go to stable.

        Returns the versions that lost their traffic.
        """
        before = self.router.policy
        self.router = Router.of(policy)
        self._show(policy)
        lost = [number for number in before.routed() - policy.routed() if number in self.versions]
        if move:
            for number in lost:
                lane = self.versions[number].lane
                for pending in lane.withdraw():
                    if isinstance(pending, Call):
                        self.resubmit(pending)
        return lost

    def resubmit(self, call: Call) -> None:
        """Hands a waiting call of a version that lost its traffic to stable; a pinned one stays."""
        try:
            if call.choice is self.versions[call.choice.version].pinned:
                self.versions[call.choice.version].lane.submit(call, admitted=True)
                return
            choice, version = self._stable()
            call.rebind(choice, version.loaded.model.signature)
            version.lane.submit(call, admitted=True)
        except ServingError as error:
            call.state = State.DONE
            call.finish(error)

    def retire(self) -> None:
        """Forgets the versions that nothing needs, those that are busy as soon as they are idle."""
        for number in set(self.versions) - self.router.policy.loaded() - self.kept - self.guards:
            self.leaving.setdefault(number, "retired")
        self._drop_idle()

    def _drop_idle(self) -> None:
        busy = False
        for number in [number for number, reason in self.leaving.items() if reason == "retired"]:
            if number in self.router.policy.loaded() | self.guards:
                del self.leaving[number]
            else:
                busy |= not self.drop(number)
        if busy:
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._drop_idle)

    def drop(self, number: int) -> bool:
        """Forgets a version that is leaving, if it is idle; whether it is gone."""
        version = self.versions.get(number)
        if version is not None:
            if not version.lane.idle:
                return False
            del self.versions[number]
            version.lane.stop()
            self._signals.unloaded(self.model, number, version.loaded.model.digest)
            self.dropped(version, self.leaving.get(number, "retired"))
        self.leaving.pop(number, None)
        self.kept.discard(number)
        self.used.pop(number, None)
        return True

    def observe(self) -> None:
        """Sets the gauges of the queues."""
        for number, version in self.versions.items():
            self._signals.queue(self.model, number, version.lane.state())
            self._signals.in_flight(self.model, number, version.lane.in_flight)
        if self.cache is not None:
            self._signals.cache(self.model, self.cache)

    def _pinned(self, named: str) -> tuple[Choice, Version]:
        if not (named.isascii() and named.isdigit() and len(named) < 10):
            raise NotFound(f"model {self.model!r} has no version {named!r}; versions are numbers")
        number = int(named)
        version = self.versions.get(number)
        if version is None or self.asleep(number):
            raise self.missing(number)
        if number in self.leaving:
            raise Unavailable(f"version {number} of {self.model!r} is being unloaded")
        self.used[number] = time.perf_counter()
        return version.pinned, version

    def _unknown(self, number: int) -> ServingError:
        return NotFound(f"model {self.model!r} has no version {number} loaded; loaded are {sorted(self.versions)}")

    def _stable(self) -> tuple[Choice, Version]:
        choice = self.router.stable
        if choice is None or choice.version not in self.versions:
            raise Unavailable(f"model {self.model!r} has no stable version ready")
        return choice, self.versions[choice.version]

    def _show(self, policy: Policy) -> None:
        self._signals.traffic(self.model, policy.generation, policy.shares(), sticky=policy.sticky is not None)
