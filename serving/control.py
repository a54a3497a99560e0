"""Changes of traffic, one at a time a model: load, verify, persist, switch, verify again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from serving.errors import ArtifactError, Conflict, NotFound, RegistryError, RegistryUnavailable, ServingError
from serving.examination import examined
from serving.pages.model_page import model_page
from serving.peers import Alone, Peers
from serving.registry import ModelVersion, Registry, newest
from serving.routing import switches
from serving.routing.changes import Change
from serving.routing.policies import PolicyStore
from serving.routing.traffic import Policy
from serving.routing.turns import Overtaken, Turns
from serving.versions.deployment import Deployment, Version
from serving.versions.residency import Residency

_log = logging.getLogger(__name__)
_RUNNING_BATCH_SECONDS = 2.0
# A model's description is read often; the whole history is in the database.
_DESCRIBED_SWITCHES = 500


class Control:
    """The control API's deeds. Every method that changes traffic raises ServingError and then has changed nothing."""

    def __init__(
        self,
        registry: Registry,
        store: PolicyStore,
        deployments: dict[str, Deployment],
        make: Callable[[str], Deployment],
        residency: Residency,
        publish_reference: Callable[[ModelVersion, bytes | None], None],
        clock: Callable[[], float] = time.time,
        peers: Peers | None = None,
    ) -> None:
        self._peers = peers or Alone()
        self._registry = registry
        self._store = store
        self._deployments = deployments
        self._make = make
        self._residency = residency
        self._publish_reference = publish_reference
        self._clock = clock
        self._turns = Turns(deployments)

    # --- reading ---------------------------------------------------------------------------------------------------
    async def models(self, only: tuple[str, ...] = ()) -> list[str]:
        """All models that are registered, or those of `only` that are."""
        known = await asyncio.to_thread(self._registry.models)
        return [name for name in known if not only or name in only]

    async def describe(self, model: str) -> dict[str, Any]:
        """The model's policy, versions and history, as the control API gives them. Raises RegistryError."""
        versions = await asyncio.to_thread(self._registry.versions, model)
        if not versions:
            raise RegistryError(f"model {model!r} is not in the registry")
        history = await asyncio.to_thread(self._store.history, model, _DESCRIBED_SWITCHES)
        views = await self._peers.views()
        deployment = self._deployments.get(model)
        policy = deployment.router.policy if deployment else Policy(model)
        loaded = deployment.versions if deployment else ()
        return model_page(policy, versions, history, loaded, replica=self._peers.number, views=views)

    # --- start -----------------------------------------------------------------------------------------------------
    async def restore(self, model: str) -> None:
        """Loads what the stored policy, or the alias `stable`, names. ServingError if stable does not load."""
        async with self._turns[model]:
            await self._restore(model)
            for number in self._residency.pinned(model):
                try:
                    await self._ensure(self._deployment(model), number, "pinned")
                except ServingError as error:
                    _log.error("pinned version %d of %s cannot be loaded: %s", number, model, error)

    async def _restore(self, model: str) -> None:
        """Takes up the stored policy, or the alias `stable`; the model's lock is held."""
        policy = await asyncio.to_thread(self._store.load, model)
        if policy is None:
            policy = await self._from_alias(model)
        if policy is None or policy.stable is None:
            return
        deployment = self._deployment(model)
        await self._ensure(deployment, policy.stable)
        deployment.switch(Policy(model, policy.generation, policy.stable))
        for number in sorted(policy.loaded() - {policy.stable}):
            try:
                await self._ensure(deployment, number)
            except RegistryUnavailable:
                # It says nothing about the version, which shall keep its traffic.
                raise
            except ServingError as error:
                _log.error("version %d of %s cannot be loaded: %s", number, model, error)
                without = switches.without_version(policy, number)
                if without.generation > policy.generation:
                    release, _ = switches.taken_out(policy, without)
                    await self._save(without, "rollback", release, number, f"did not load at start: {error}", "serving")
                policy = without
        deployment.switch(policy)

    # --- the memory ------------------------------------------------------------------------------------------------
    async def load(self, model: str, versions: Sequence[int] | None, actor: str) -> None:
        """Brings versions into memory, to stay until they are unloaded or give way; None means what the policy names.

        A model without any stable version gets the newest of them that is no variant of another: there is nothing that
        it could be compared with.
        """
        async with self._turns[model]:
            known = await asyncio.to_thread(self._registry.versions, model)
            if not known:
                raise RegistryError(f"model {model!r} is not in the registry; register a version first")
            if model not in self._deployments or self._deployments[model].router.policy.stable is None:
                await self._restore(model)
            deployment = self._deployment(model)
            stable = deployment.router.policy.stable
            wanted = sorted(versions) if versions is not None else sorted(deployment.router.policy.loaded())
            first = newest([version for version in known if version.version in wanted] or known).version
            for number in wanted or [first]:
                await self._turns[model].prepared(self._ensure(deployment, number, "repository"))
                if versions is not None:
                    deployment.kept.add(number)
            if stable is None:
                await self._verify(deployment.versions[first])
                policy = switches.promoted(deployment.router.policy, first, None)
                reason = "loaded by the repository API; there was no stable version"
                await self._apply(deployment, policy, "promote", policy.stable_release, first, reason, actor)
                await asyncio.to_thread(self._registry.set_alias, model, "stable", first)
            await self._peers.repeat("load", model, versions)

    async def unload(self, model: str, version: int | None) -> None:
        """Takes a version, or the whole model, out of memory, when the requests it has are answered.

        The stored policy stays: loading the model again, or a restart, restores it. Raises NotFound, Conflict.
        """
        async with self._turns[model]:
            deployment = self._deployments.get(model)
            if deployment is not None and version in deployment.gave_way - deployment.router.policy.loaded():
                deployment.gave_way.discard(version)
                await self._peers.repeat("unload", model, [version])
                return
            if deployment is None or (version is not None and version not in deployment.versions):
                raise NotFound(f"{model!r}{'' if version is None else f' version {version}'} is not loaded")
            policy = deployment.router.policy
            if version is not None:
                if version in policy.loaded():
                    raise Conflict(
                        f"version {version} of {model!r} is named by the traffic policy; take it out of the traffic "
                        "first, or unload the whole model"
                    )
                await self._residency.unload(deployment, version, "repository")
                await self._peers.repeat("unload", model, [version])
                return
            deployment.closing = True
            try:
                deployment.switch(Policy(model, generation=policy.generation))
                deployment.leaving |= dict.fromkeys(deployment.versions, "repository")
                await asyncio.gather(*(
                    self._residency.unload(deployment, number, "repository") for number in list(deployment.versions)
                ))  # fmt: skip
            except BaseException:
                deployment.leaving.clear()
                deployment.switch(policy)
                deployment.closing = False
                raise
            del self._deployments[model]
            await self._peers.repeat("unload", model, None)

    # --- following the changes that another replica makes ----------------------------------------------------------
    async def prepare(self, policy: Policy) -> None:
        """Loads, warms and verifies every version that the policy names. Raises ServingError; no traffic changes."""
        async with self._turns[policy.model]:
            deployment = self._deployment(policy.model)
            await self._turns[policy.model].prepared(self._load_all(deployment, policy))
            for number in sorted(policy.loaded() & set(deployment.versions)):
                await self._verify(deployment.versions[number])

    async def abandon(self, model: str) -> None:
        """What is being prepared here is not coming, nor what was."""
        self._turns[model].end_preparing()
        self.retire(model)

    async def adopt(self, policy: Policy, *, move: bool = False) -> None:
        """Switches to a policy that is stored already. Raises ServingError if a version of it does not load."""
        async with self._turns[policy.model]:
            deployment = self._deployment(policy.model)
            if deployment.router.policy.generation < policy.generation:
                await self._load_all(deployment, policy)
                lost = deployment.switch(policy, move=move)
                if move:
                    await self._quiet(deployment, lost)
            deployment.retire()

    async def follow(self, model: str) -> None:
        """Adopts the stored policy, if it is newer than the one in force here. Never writes. Raises ServingError."""
        policy = await asyncio.to_thread(self._store.load, model)
        if policy is not None and policy.stable is not None:
            await self.adopt(policy)

    async def _load_all(self, deployment: Deployment, policy: Policy) -> None:
        answering = policy.loaded() - {policy.previous} | policy.routed()
        for number in sorted(policy.loaded()):
            try:
                await self._ensure(deployment, number)
            except ServingError as error:
                # Nobody is routed to the previous version: a rollback to it will say that it does not load.
                if number in answering:
                    raise
                _log.error("version %d of %s cannot be loaded: %s", number, policy.model, error)

    def retire(self, model: str) -> None:
        """Forgets the idle versions that the policy in force does not name."""
        if model in self._deployments:
            self._deployments[model].retire()

    # --- changing --------------------------------------------------------------------------------------------------
    async def canary(
        self, model: str, version: int, weight: float, sticky: str | None, reason: str, actor: str
    ) -> dict[str, Any]:
        """Loads and warms the version, then gives it `weight` of the traffic."""
        async with self._turns[model]:
            deployment = await self._known(model)
            switches.with_canary(deployment.router.policy, version, weight, sticky, 0.0)
            await self._turns[model].prepared(self._ensure(deployment, version))
            policy = switches.with_canary(deployment.router.policy, version, weight, sticky, self._clock())
            release = policy.canary.release if policy.canary else None
            await self._apply(deployment, policy, "canary", release, version, reason or f"weight {weight:g}", actor)
        return await self.describe(model)

    async def examine(self, model: str, version: int, inputs: Mapping[str, Any] | None, repeats: int) -> dict[str, Any]:
        """What the version shows when it is tried: loaded, and asked one batch again and again, beside all traffic.

        Nothing is counted or recorded, and no policy changes; a version that no policy names is let go afterwards.
        """
        turn = self._turns[model]

        async def tried(deployment: Deployment) -> dict[str, Any]:
            began = time.monotonic()
            try:
                loaded = (await self._ensure(deployment, version)).loaded
            except RegistryUnavailable:
                raise
            except (ArtifactError, RegistryError) as error:
                return {"unloadable": str(error)}
            seconds = time.monotonic() - began
            found = await asyncio.to_thread(examined, loaded.model, inputs, repeats)
            sizes = {"load_seconds": seconds, "bytes": loaded.footprint.bytes}
            return {"digest": loaded.model.digest, **sizes, **found}

        async with turn:
            deployment = await self._known(model)
            try:
                # As what is prepared it never keeps a rollback waiting.
                return {"model": model, "version": version, **await turn.prepared(tried(deployment))}
            finally:
                deployment.guards.discard(version)
                deployment.retire()

    async def shadow(self, model: str, version: int, fraction: float, reason: str, actor: str) -> dict[str, Any]:
        """Loads and warms the version, then copies `fraction` of the traffic to it; 0 ends the shadow."""
        async with self._turns[model]:
            deployment = await self._known(model)
            policy = switches.with_shadow(deployment.router.policy, version, fraction)
            await self._turns[model].prepared(self._ensure(deployment, version))
            await self._apply(deployment, policy, "shadow", None, version, reason or f"fraction {fraction:g}", actor)
        return await self.describe(model)

    async def change(self, model: str, change: Change, reason: str, actor: str) -> dict[str, Any]:
        """Loads and warms what a change of routing needs, then puts the policy in force that it decides on."""
        async with self._turns[model]:
            deployment = await self._known(model)
            before = deployment.router.policy
            policy = change.decide(before, self._clock())
            await self._turns[model].prepared(self._load_all(deployment, policy))
            running = policy.experiment or policy.canary or policy.hold_back or before.experiment or before.hold_back
            release = policy.stable_release if policy.stable != before.stable else running.release if running else None
            if policy.stable is not None and policy.stable != before.stable:
                await self._verify(deployment.versions[policy.stable])
            said = f"{change.reason}: {reason}" if reason else change.reason
            await self._apply(deployment, policy, change.event, release, _only_version(before, policy), said, actor)
            if policy.stable is not None and policy.stable != before.stable:
                await asyncio.to_thread(self._registry.set_alias, model, "stable", policy.stable)
        return await self.describe(model)

    async def promote(
        self, model: str, version: int | None, release: str | None, reason: str, actor: str
    ) -> dict[str, Any]:
        """Makes the canary, or a named version, stable."""
        async with self._turns[model]:
            deployment = await self._known(model)
            policy = switches.promoted(deployment.router.policy, version, release)
            if policy is not deployment.router.policy and policy.stable is not None:
                await self._verify(await self._turns[model].prepared(self._ensure(deployment, policy.stable)))
                await self._apply(deployment, policy, "promote", policy.stable_release, policy.stable, reason, actor)
                await asyncio.to_thread(self._registry.set_alias, model, "stable", policy.stable)
        return await self.describe(model)

    async def rollback(self, model: str, release: str | None, reason: str, actor: str) -> dict[str, Any]:
        """Takes the canary, or else the stable version, out of the traffic; verified before and after.

        It does not wait for versions that another change of the model loads: that change ends with a Conflict.
        """
        async with self._turn_of_rollback(model, release):
            deployment = await self._known(model)
            before = deployment.router.policy
            policy = switches.rolled_back(before, release)
            if policy is None:
                return await self._already(before, release)
            assert policy.stable is not None
            ended, gone = switches.taken_out(before, policy)
            target = await self._ensure(deployment, policy.stable)
            await self._verify(target)
            lost = await self._apply(deployment, policy, "rollback", ended, gone, reason, actor, move=True)
            await self._quiet(deployment, lost)
            await self._observe(deployment, policy)
            if policy.stable != before.stable:
                await asyncio.to_thread(self._registry.set_alias, model, "stable", policy.stable)
            completed_at = self._clock()
            deployment.retire()
        return {
            "model": model, "generation": policy.generation, "stable": policy.stable, "release": ended,
            "rolled_back": gone, "completed_at": completed_at, "already": False,
        }  # fmt: skip

    def _turn_of_rollback(self, model: str, release: str | None) -> AbstractAsyncContextManager[None]:
        """At once where there is something to roll back; else when the change under way is made: it may be that one."""
        turn, deployment = self._turns[model], self._deployments.get(model)
        if deployment is not None and switches.rolled_back(deployment.router.policy, release) is not None:
            return turn.overtaking()
        return turn

    async def _already(self, policy: Policy, release: str | None) -> dict[str, Any]:
        history = await asyncio.to_thread(self._store.history, policy.model)
        ends = [line for line in history if line["event"] == "rollback" and release in (None, line["release"])]
        if not ends or (release is None and history[-1]["event"] != "rollback"):
            named = f"release {release!r}" if release else "a canary or a previous version"
            raise Conflict(f"model {policy.model!r} has nothing to roll back: {named} is not there")
        last = ends[-1]
        return {
            "model": policy.model, "generation": policy.generation, "stable": policy.stable, "release": last["release"],
            "rolled_back": last["version"], "completed_at": last["time"], "already": True,
        }  # fmt: skip

    async def _apply(
        self, deployment: Deployment, policy: Policy, event: str, release: str | None, version: int | None, reason: str,
        actor: str, *, move: bool = False,
    ) -> list[int]:  # fmt: skip
        turn = self._turns[policy.model]
        try:
            if event == "rollback":
                await self._peers.prepare(policy, urgent=True)
            else:
                await turn.prepared(self._peers.prepare(policy))
        except Overtaken:
            await self._peers.abort(policy)
            raise
        # Stored before it is in force: a crash in between restores the decision, not the traffic before it.
        try:
            await self._save(policy, event, release, version, reason, actor)
        except BaseException:
            await self._peers.abort(policy)
            raise
        lost = deployment.switch(policy, move=move)
        await self._peers.commit(policy, move)
        if not move:
            deployment.retire()
        _log.info(
            "%s of %s: %s", event, policy.model, reason or "no reason given",
            extra={"model": policy.model, "generation": policy.generation, "release": release, "version": version,
                   "actor": actor},
        )  # fmt: skip
        return lost

    async def _quiet(self, deployment: Deployment, lost: list[int]) -> None:
        """Waits until the lanes that lost their traffic are quiet; takes a batch away that runs for long."""
        limit = time.monotonic() + _RUNNING_BATCH_SECONDS
        for number in lost:
            lane = deployment.versions[number].lane
            while lane.busy and time.monotonic() < limit:
                await asyncio.sleep(0.001)
            for pending in lane.abandon():
                deployment.resubmit(pending)  # type: ignore[arg-type]

    async def _observe(self, deployment: Deployment, policy: Policy) -> None:
        stored = await asyncio.to_thread(self._store.load, policy.model)
        if stored != policy or deployment.router.policy != policy:
            raise Conflict(f"the policy of {policy.model!r} is not the one just set: stored is {stored}")

    async def _verify(self, version: Version) -> None:
        """The version answers its manifest's example with finite outputs, now. Raises ArtifactError."""
        try:
            await asyncio.to_thread(version.loaded.model.answer_example)
        except ArtifactError:
            raise
        except Exception as error:
            raise ArtifactError(f"version {version.loaded.number} does not answer its example: {error!r}") from error

    async def _ensure(self, deployment: Deployment, number: int, reason: str = "policy") -> Version:
        if number in deployment.versions:
            return await self._residency.ensure(deployment, number, reason)
        version = await self._residency.ensure(deployment, number, reason)
        found = await asyncio.to_thread(self._registry.get, deployment.model, number)
        profile = await asyncio.to_thread(self._registry.profile, deployment.model, number)
        self._publish_reference(found, profile)
        return version

    async def _known(self, model: str) -> Deployment:
        if not await asyncio.to_thread(self._registry.versions, model):
            raise RegistryError(f"model {model!r} is not in the registry; register a version first")
        return self._deployment(model)

    def _deployment(self, model: str) -> Deployment:
        if model not in self._deployments:
            self._deployments[model] = self._make(model)
        return self._deployments[model]

    async def _from_alias(self, model: str) -> Policy | None:
        number = await asyncio.to_thread(self._registry.alias, model, "stable")
        if number is None:
            return None
        policy = switches.promoted(Policy(model), number, None)
        await self._save(policy, "promote", policy.stable_release, number, "alias stable at start", "serving")
        return policy

    async def _save(
        self, policy: Policy, event: str, release: str | None, version: int | None, reason: str, actor: str
    ) -> None:
        await asyncio.to_thread(
            self._store.save, policy, event,
            time=self._clock(), release=release, version=version, reason=reason, actor=actor,
        )  # fmt: skip


def _only_version(before: Policy, policy: Policy) -> int | None:
    """The version that a change is about, if it is about one."""
    if policy.stable != before.stable:
        return policy.stable
    if policy.standby != before.standby:
        return policy.standby
    return None
