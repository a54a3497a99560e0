"""Which versions are in memory: loaded one at a time beside the event loop, within a budget, and let go when idle."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from serving.errors import ArtifactError, GaveWay, NotFound, ServingError, Unavailable
from serving.telemetry.signals import Signals
from serving.versions.deployment import EVICTED, Deployment, Loaded, Version
from serving.versions.memory import Held, giving_way, release_unused
from serving.versions.status import GAVE_WAY, NOT_LOADED, Status

_log = logging.getLogger(__name__)
Key = tuple[str, int]
# A loading thread gives the interpreter to a waiting event loop after so long: Python's own 5 ms would be felt.
_SWITCH_SECONDS = 0.0005
_POLL_SECONDS = 0.005
_DRAIN_SECONDS = 30.0
_RELEASE_SECONDS = 0.1
# After a version that gave way could not be loaded again, until that is tried anew.
_AGAIN_SECONDS = 1.0


class Residency:
    """Loads, evicts and unloads. Everything here runs on the event loop, but for the loading itself.

    `load` verifies, loads and warms a version; `size` estimates its bytes before. `budget` is in bytes, 0 means none.
    First those give way that no policy names, then whole models that nothing but their stable version answers for;
    never `pins`, what a control call is about to use, and a model's own versions for another of its own.
    """

    def __init__(
        self,
        deployments: Mapping[str, Deployment],
        load: Callable[[str, int], Loaded],
        size: Callable[[str, int], int],
        signals: Signals,
        *,
        budget: int = 0,
        pins: frozenset[Key] = frozenset(),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._deployments = deployments
        self._load = load
        self._size = size
        self._signals = signals
        self._budget = budget
        self._pins = pins
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self._loader = ThreadPoolExecutor(1, "model-loader")
        self._states: dict[Key, Status] = {}
        self._tasks: dict[Key, asyncio.Task[ServingError | None]] = {}
        # When a version that gave way could not be loaded again.
        self._failures: dict[Key, float] = {}
        signals.memory_budget(budget)

    def adopt(self, deployment: Deployment) -> None:
        """Takes a deployment's versions under its rule; called once, when it is made."""
        deployment.kept |= {number for model, number in self._pins if model == deployment.model}
        deployment.missing = lambda number: self._missing(deployment, number)
        deployment.dropped = lambda version, reason: self._dropped(deployment.model, version, reason)

    def pinned(self, model: str) -> list[int]:
        """The versions of a model that the settings keep in memory."""
        return sorted(number for name, number in self._pins if name == model)

    def status(self, model: str, number: int) -> Status:
        """Where a version stands."""
        deployment = self._deployments.get(model)
        if deployment is not None and number in deployment.leaving:
            return Status("UNLOADING", deployment.leaving[number])
        if deployment is not None and number in deployment.versions:
            stalled = deployment.versions[number].lane.stalled
            return Status("READY") if stalled is None else Status("UNAVAILABLE", stalled)
        return self._states.get((model, number), NOT_LOADED)

    def statuses(self) -> dict[Key, Status]:
        """Where the versions stand that are in memory, or of which there is something to say."""
        known = set(self._states)
        known |= {(model, number) for model, deployment in self._deployments.items() for number in deployment.versions}
        return {key: self.status(*key) for key in known}

    async def ensure(self, deployment: Deployment, number: int, reason: str = "policy") -> Version:
        """The version, in memory and guarded until the deployment's guards are lifted.

        `reason` is what asked for it: policy, repository, pinned or demand. Raises ArtifactError, RegistryError,
        OverBudget; then nothing that was in memory has gone that was not due to go.
        """
        deployment.guards.add(number)
        # Who asks for one that is giving way waits until it is gone: its room is somebody else's already.
        found = None if deployment.leaving.get(number) == EVICTED else self._present(deployment, number)
        if found is not None:
            return found
        async with self._one_at_a_time:
            found = self._present(deployment, number)
            if found is not None:
                return found
            key = (deployment.model, number)
            self._states[key] = Status("LOADING")
            try:
                loaded = await self._loaded(key)
            except ServingError as error:
                self._failed(key, reason, str(error))
                raise
            except Exception as error:
                _log.exception("version %d of %s could not be loaded", number, deployment.model)
                self._failed(key, reason, repr(error))
                raise ArtifactError(f"version {number} of {deployment.model!r} did not load: {error!r}") from error
            except BaseException:
                self._failed(key, reason, "loading was cancelled")
                raise
            del self._states[key]
            self._signals.load(deployment.model, reason, "ok")
            self._signals.memory(deployment.model, number, loaded.footprint)
            deployment.used[number] = self._clock()
            return deployment.add(loaded)

    async def unload(self, deployment: Deployment, number: int, reason: str) -> None:
        """Takes a version out once every request it has is answered. Raises Unavailable when that takes too long."""
        deployment.leaving.setdefault(number, reason)
        limit = self._clock() + _DRAIN_SECONDS
        while number in deployment.leaving and not deployment.drop(number):
            if self._clock() > limit:
                if reason == EVICTED:
                    deployment.leaving.pop(number)
                raise Unavailable(f"version {number} of {deployment.model!r} still has requests: try again later")
            await asyncio.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Ends the loading thread and what was asked of it."""
        for task in self._tasks.values():
            task.cancel()
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _present(self, deployment: Deployment, number: int) -> Version | None:
        version = deployment.versions.get(number)
        if version is not None:
            # One that was about to go stays.
            deployment.leaving.pop(number, None)
            deployment.used[number] = self._clock()
        return version

    async def _loaded(self, key: Key) -> Loaded:
        loop = asyncio.get_running_loop()
        if self._budget:
            await self._make_room(key[0], await loop.run_in_executor(self._loader, self._size, *key))
        loaded = await loop.run_in_executor(self._loader, self._gently, key)
        if self._budget:
            # What it took is more than its file said.
            await self._make_room(key[0], loaded.footprint.bytes)
        return loaded

    def _gently(self, key: Key) -> Loaded:
        with _short_turns():
            return self._load(*key)

    async def _make_room(self, for_model: str, needed: int) -> None:
        # Looked at anew after each: while one is drained, requests come for others.
        while chosen := giving_way(list(self._held(for_model)), needed, self._budget):
            model, number = chosen[0]
            deployment = self._deployments[model]
            _log.info("version %d of %s gives way to another", number, model, extra={"model": model, "version": number})
            await self.unload(deployment, number, EVICTED)

    def _held(self, for_model: str) -> Iterator[Held[Key]]:
        for model, deployment in self._deployments.items():
            policy = deployment.router.policy
            answering = policy.loaded()
            quiet = model != for_model and answering <= {policy.stable, policy.previous}
            needed = deployment.guards | set(self.pinned(model)) | (set() if quiet else answering)
            for number, version in deployment.versions.items():
                used = max(deployment.used.get(number, 0.0), version.lane.used)
                yield Held(
                    (model, number), version.loaded.footprint.bytes, used, number in needed, number in answering
                )  # fmt: skip

    def _missing(self, deployment: Deployment, number: int) -> ServingError:
        """What to tell a request for a version that is not in memory; one that gave way is loaded again."""
        key = (deployment.model, number)
        status = self._states.get(key, NOT_LOADED)
        if not deployment.asleep(number):
            if status.state == "LOADING":
                return Unavailable(f"version {number} of {deployment.model!r} is loading")
            return NotFound(
                f"model {deployment.model!r} has no version {number} loaded; loaded are {sorted(deployment.versions)}"
            )
        if self._clock() < self._failures.get(key, -math.inf) + _AGAIN_SECONDS:
            return Unavailable(f"version {number} of {deployment.model!r} cannot be loaded again: {status.reason}")
        if key not in self._tasks:
            self._tasks[key] = asyncio.get_running_loop().create_task(self._again(deployment, number))
            self._tasks[key].add_done_callback(lambda _: self._tasks.pop(key, None))
        return GaveWay(
            f"version {number} of {deployment.model!r} had given way to others and is being loaded again",
            self._tasks[key],
        )

    async def _again(self, deployment: Deployment, number: int) -> ServingError | None:
        """Loads a version that gave way; gives what to tell those who wait for it when that fails."""
        guarded, key = number in deployment.guards, (deployment.model, number)
        try:
            await self.ensure(deployment, number, "demand")
        except ServingError as error:
            _log.warning("version %d of %s cannot be loaded again: %s", number, deployment.model, error)
            self._failures[key] = self._clock()
            return Unavailable(f"version {number} of {deployment.model!r} cannot be loaded again: {error}")
        finally:
            if not guarded:
                deployment.guards.discard(number)
        self._failures.pop(key, None)
        if number not in deployment.router.policy.loaded():
            deployment.kept.add(number)
        return None

    def _failed(self, key: Key, reason: str, why: str) -> None:
        self._states[key] = Status("UNAVAILABLE", why)
        self._signals.load(key[0], reason, "failed")

    def _dropped(self, model: str, version: Version, reason: str) -> None:
        number = version.loaded.number
        self._states[model, number] = GAVE_WAY if reason == EVICTED else Status("UNAVAILABLE", "unloaded")
        if reason == EVICTED:
            self._deployments[model].gave_way.add(number)
        self._signals.unload(model, number, reason)
        # The allocator keeps what was freed; the machine shall have it back, once those who dropped it have let go.
        loop = asyncio.get_running_loop()
        loop.call_later(_RELEASE_SECONDS, loop.run_in_executor, None, release_unused)


def pin(text: str) -> Key:
    """`MODEL:VERSION` as (model, version). Raises ValueError."""
    model, _, number = text.rpartition(":")
    if not model or not number.isdigit():
        raise ValueError(f"pinned version {text!r}: write MODEL:VERSION, such as flights:3")
    return model, int(number)


@contextmanager
def _short_turns() -> Iterator[None]:
    """Threads take turns at the interpreter more often, while it lasts."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _SWITCH_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
