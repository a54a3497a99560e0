"""One served model: its versions in memory, its router, and the switch from one policy to the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from serving.batcher import State
from serving.calls import Call
from serving.engine import Lane
from serving.errors import NotFound, ServingError, Unavailable
from serving.models import LoadedModel, WarmUp, load_artifact
from serving.registry import Registry
from serving.responder import Responder
from serving.router import Choice, Router
from serving.signals import Signals
from serving.traffic import FORCED, Policy


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


@dataclass(frozen=True, slots=True)
class Version:
    """A version that takes requests. `heads` are the header lines of its answers, by arm."""

    loaded: Loaded
    lane: Lane
    responder: Responder
    heads: Mapping[str, bytes]
    pinned: Choice


def load_version(registry: Registry, model: str, number: int, architectures: tuple[str, ...], max_rows: int) -> Loaded:
    """Verifies, loads and warms a version; blocks. Raises RegistryError or ArtifactError."""
    start = time.perf_counter()
    found = registry.get(model, number)
    loaded = load_artifact(registry.artifact(found), architectures=architectures, digest=found.digest)
    warm_up = loaded.warm_up(max_rows)
    return Loaded(number, loaded, warm_up, time.perf_counter() - start)


class Deployment:
    """A model on the event loop. `router` is replaced as a whole, so a request sees one policy or the next."""

    def __init__(self, model: str, make_lane: Callable[[Loaded], Lane], signals: Signals) -> None:
        self.model = model
        self.router = Router.of(Policy(model))
        self.versions: dict[int, Version] = {}
        self._make_lane = make_lane
        self._signals = signals

    @property
    def ready(self) -> bool:
        """Whether the stable version can answer."""
        stable = self.router.policy.stable
        return stable is not None and stable in self.versions

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
        self._signals.loaded(self.model, number, loaded.model.digest, loaded.seconds)
        return version

    def route(
        self, named: str | None, unit: str | None, headers: Mapping[bytes, bytes] | None = None
    ) -> tuple[Choice, Version]:
        """The arm and version for a request that may name a version. Raises NotFound or Unavailable."""
        if named is not None:
            return self._pinned(named)
        choice = self.router.choose(unit, headers=headers)
        if choice is None or choice.version not in self.versions:
            raise Unavailable(f"model {self.model!r} has no version ready; promote one or wait until it is loaded")
        return choice, self.versions[choice.version]

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
        """Forgets idle versions that the policy does not name."""
        for number in set(self.versions) - self.router.policy.loaded():
            if self.versions[number].lane.idle:
                version = self.versions.pop(number)
                version.lane.stop()
                self._signals.unloaded(self.model, number, version.loaded.model.digest)

    def observe(self) -> None:
        """Sets the gauges of the queues."""
        for number, version in self.versions.items():
            self._signals.queue(self.model, number, version.lane.queue.rows)

    def _pinned(self, named: str) -> tuple[Choice, Version]:
        version = self.versions.get(int(named)) if named.isascii() and named.isdigit() else None
        if version is None:
            raise NotFound(f"model {self.model!r} has no version {named!r} loaded; loaded are {sorted(self.versions)}")
        return version.pinned, version

    def _stable(self) -> tuple[Choice, Version]:
        choice = self.router.stable
        if choice is None or choice.version not in self.versions:
            raise Unavailable(f"model {self.model!r} has no stable version ready")
        return choice, self.versions[choice.version]

    def _show(self, policy: Policy) -> None:
        self._signals.traffic(self.model, policy.generation, policy.shares())
