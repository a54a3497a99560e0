"""A model's traffic policy as one frozen value: who answers, with which probability, how it may change."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from serving.errors import Conflict, InvalidRequest

Arm = Literal["stable", "canary", "shadow"]


@dataclass(frozen=True, slots=True)
class Canary:
    """A release in progress: `weight` (0..1) of the requests go to `version`. `started_at` is unix seconds."""

    version: int
    weight: float
    release: str
    started_at: float


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version that gets copies of `fraction` (0..1) of the requests; nobody sees its answers."""

    version: int
    fraction: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What the router chose for one request: `propensity` is the probability with which it chose this arm.

    With a release in progress, `weight` is the canary's share, `candidate` and `baseline` are the two versions.
    """

    version: int
    arm: Arm
    propensity: float
    release: str | None = None
    weight: float = 0.0
    candidate: int | None = None
    baseline: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """Who serves a model. `releases` counts those begun; `stable_release` brought the stable version in."""

    model: str
    generation: int = 0
    stable: int | None = None
    previous: int | None = None
    canary: Canary | None = None
    shadow: Shadow | None = None
    sticky: str | None = None
    releases: int = 0
    stable_release: str | None = None

    def loaded(self) -> set[int]:
        """The versions that must be in memory under this policy."""
        named = [self.stable, self.previous]
        named += [self.canary.version] if self.canary else []
        named += [self.shadow.version] if self.shadow else []
        return {version for version in named if version is not None}

    def to_json(self) -> dict[str, Any]:
        """All fields, canary and shadow as objects or null."""
        return asdict(self)

    @staticmethod
    def from_json(body: dict[str, Any]) -> Policy:
        """The inverse of `to_json`."""
        canary, shadow = body.get("canary"), body.get("shadow")
        return Policy(
            **{
                **body,
                "canary": None if canary is None else Canary(**canary),
                "shadow": None if shadow is None else Shadow(**shadow),
            }
        )


@dataclass(frozen=True, slots=True)
class Router:
    """A policy with its choices made ready: routing a request builds nothing."""

    policy: Policy
    stable: Choice | None
    canary: Choice | None

    @staticmethod
    def of(policy: Policy) -> Router:
        """The router of a policy."""
        if policy.stable is None:
            return Router(policy, None, None)
        release = policy.canary
        if release is None:
            return Router(policy, Choice(policy.stable, "stable", 1.0), None)
        shared = (release.release, release.weight, release.version, policy.stable)
        stable = Choice(policy.stable, "stable", 1.0 - release.weight, *shared)
        return Router(policy, stable, Choice(release.version, "canary", release.weight, *shared))

    def choose(self, unit: str | None, draw: Callable[[], float] = random.random) -> Choice | None:
        """The arm for a request: by its unit's hash if it has one, else by `draw`. None without a stable version."""
        if self.canary is None:
            return self.stable
        place = draw() if unit is None else position(self.canary.release or "", unit)
        return self.canary if place < self.canary.weight else self.stable


def position(salt: str, unit: str) -> float:
    """A unit's place in [0, 1), fixed for the life of a release: a higher weight only adds units to the canary."""
    digest = hashlib.blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8, key=_key(salt)).digest()
    return int.from_bytes(digest, "big") / 2**64


def _key(salt: str) -> bytes:
    return hashlib.blake2b(salt.encode(), digest_size=16).digest()


def with_canary(policy: Policy, version: int, weight: float, sticky: str | None, now: float) -> Policy:
    """The policy with `version` as canary; the same version again only changes the weight of its release.

    Raises InvalidRequest, Conflict.
    """
    if not 0.0 <= weight <= 1.0:
        raise InvalidRequest(f"weight is {weight!r}; give a share of the traffic, from 0 to 1")
    if policy.stable is None:
        raise Conflict(f"model {policy.model!r} has no stable version to compare with; promote one first")
    if version == policy.stable:
        raise Conflict(f"version {version} of {policy.model!r} is stable already")
    if policy.canary is not None and policy.canary.version != version:
        raise Conflict(
            f"release {policy.canary.release} is in progress with version {policy.canary.version}; "
            "promote it or roll it back"
        )
    if policy.canary is not None:
        ramped = replace(policy.canary, weight=weight)
        return replace(policy, generation=policy.generation + 1, canary=ramped, sticky=sticky or policy.sticky)
    number = policy.releases + 1
    canary = Canary(version, weight, f"{policy.model}-{number}", now)
    return replace(policy, generation=policy.generation + 1, canary=canary, sticky=sticky, releases=number)


def with_shadow(policy: Policy, version: int, fraction: float) -> Policy:
    """The policy with a shadow; a fraction of 0 ends it. Raises Conflict."""
    if not 0.0 <= fraction <= 1.0:
        raise InvalidRequest(f"fraction is {fraction!r}; give a share of the requests, from 0 to 1")
    shadow = Shadow(version, fraction) if fraction > 0 else None
    return replace(policy, generation=policy.generation + 1, shadow=shadow)


def promoted(policy: Policy, version: int | None, release: str | None) -> Policy:
    """The policy with the canary, or a named version, as stable; the old stable becomes previous. Conflict."""
    canary = policy.canary
    if release is not None and (canary is None or canary.release != release):
        raise Conflict(f"release {release!r} is not in progress for {policy.model!r}")
    target = version if version is not None else (canary.version if canary else None)
    if target is None:
        raise Conflict(f"model {policy.model!r} has no canary; name the version to promote")
    ends_release = canary is not None and canary.version == target
    if canary is not None and not ends_release:
        raise Conflict(f"release {canary.release} is in progress with version {canary.version}; roll it back first")
    if target == policy.stable:
        return policy
    number = policy.releases + (0 if ends_release else 1)
    return replace(
        policy,
        generation=policy.generation + 1,
        stable=target,
        previous=policy.stable,
        canary=None,
        sticky=None,
        releases=number,
        stable_release=canary.release if canary else f"{policy.model}-{number}",
    )


def rolled_back(policy: Policy, release: str | None) -> Policy | None:
    """The policy after a rollback, or None when there is nothing left to roll back. Raises Conflict.

    With a canary (of that release, if one is named) all traffic goes to stable; otherwise stable goes to previous.
    """
    generation = policy.generation + 1
    if policy.canary is not None and release in (None, policy.canary.release):
        return replace(policy, generation=generation, canary=None, sticky=None)
    if release is not None and release != policy.stable_release:
        return None
    if policy.previous is None:
        return None
    return replace(
        policy,
        generation=generation,
        stable=policy.previous,
        previous=None,
        canary=None,
        sticky=None,
        stable_release=None,
    )
