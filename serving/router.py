"""Chooses the version for a request, by header, by the hash of its unit or by chance: a pure function of the policy."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from serving.routing.switches import promoted, rolled_back, with_canary, with_shadow
from serving.routing.traffic import FORCED, HELD_BACK, STEPS, Canary, Policy, Rule, Shadow, complement

Headers = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Choice:
    """What the router chose for one request: `propensity` is the probability with which it chose this arm.

    `arm` is stable, canary, hold_back (the last good version, after a promotion), shadow, `ab:NAME` (a variant of an
    experiment) or forced (a header or the caller named the version: no evidence). With a release in progress, `release`
    is its name; with a canary or a hold-back there are also `weight`, the candidate's share, and `candidate` and
    `baseline`, the two versions. `variant` is the experiment's.
    """

    version: int
    arm: str
    propensity: float
    release: str | None = None
    weight: float = 0.0
    candidate: int | None = None
    baseline: int | None = None
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class _Forced:
    """A rule made ready: header and value as bytes."""

    header: bytes
    equals: bytes | None
    prefix: bytes
    choice: Choice

    def matches(self, headers: Headers) -> bool:
        value = headers.get(self.header)
        if value is None:
            return False
        return value.startswith(self.prefix) if self.equals is None else value == self.equals


@dataclass(frozen=True, slots=True)
class Router:
    """A policy with its choices made ready: routing a request builds nothing.

    `steps[s]` is the place in `arms` of those whose hash or draw falls into step s of 10,000; it is empty when all go
    to `stable`.
    """

    policy: Policy
    stable: Choice | None = None
    canary: Choice | None = None
    arms: tuple[Choice, ...] = ()
    steps: bytes = b""
    salt: bytes = b""
    forced: tuple[_Forced, ...] = ()

    @staticmethod
    def of(policy: Policy) -> Router:
        """The router of a policy."""
        if policy.stable is None:
            return Router(policy)
        release, experiment = policy.canary, policy.experiment
        stable = Choice(policy.stable, "stable", 1.0)
        canary: Choice | None = None
        arms: tuple[Choice, ...] = ()
        steps = salt = b""
        if release is not None:
            shared = (release.release, release.weight, release.version, policy.stable)
            stable = Choice(policy.stable, "stable", complement(release.weight), *shared)
            canary = Choice(release.version, "canary", release.weight, *shared)
            arms, salt = (canary, stable), _key(release.release)
            steps = _two_arms(release.weight)
        elif policy.hold_back is not None and policy.previous is not None:
            held = policy.hold_back
            kept = complement(held.weight)
            shared = (held.release, kept, policy.stable, policy.previous)
            stable = Choice(policy.stable, "stable", kept, *shared)
            # The candidate is the first arm still, so that units stay where they were in the release.
            arms, salt = (stable, Choice(policy.previous, HELD_BACK, held.weight, *shared)), _key(held.release)
            steps = _two_arms(kept)
        elif experiment is not None:
            arms = tuple(
                Choice(v.version, v.arm, v.weight, experiment.release, variant=v.name) for v in experiment.variants
            )
            salt = _key(experiment.release)
            steps = b"".join(bytes((place,)) * count for place, count in experiment.runs)
        return Router(policy, stable, canary, arms, steps, salt, _forced(policy))

    def choose(
        self, unit: str | None, draw: Callable[[], float] = random.random, headers: Headers | None = None
    ) -> Choice | None:
        """The arm for a request: by a rule that its headers (lower-case names) meet, by the hash of its unit if it has
        one, else by `draw` (uniform in [0, 1)). None without a stable version.
        """
        if self.forced and headers is not None:
            for rule in self.forced:
                if rule.matches(headers):
                    return rule.choice
        if not self.steps:
            return self.stable
        place = draw() if unit is None else _position(self.salt, unit)
        return self.arms[self.steps[int(place * STEPS)]]


def position(salt: str, unit: str) -> float:
    """A unit's place in [0, 1), fixed for the life of a release: a higher weight only adds units to the canary."""
    return _position(_key(salt), unit)


def _position(key: bytes, unit: str) -> float:
    digest = hashlib.blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
    # 53 bits are what a double holds exactly: with all 64 the last places would round to 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _two_arms(weight: float) -> bytes:
    """The steps of which the first `weight` are the first arm's."""
    taken = round(weight * STEPS)
    return bytes(taken) + b"\x01" * (STEPS - taken)


def _key(salt: str) -> bytes:
    return hashlib.blake2b(salt.encode(), digest_size=16).digest()


def _forced(policy: Policy) -> tuple[_Forced, ...]:
    found = []
    for rule in policy.rules:
        number, variant = _target(policy, rule)
        if number is not None:
            header, prefix = rule.header.encode(), (rule.prefix or "").encode()
            equals = None if rule.equals is None else rule.equals.encode()
            found.append(_Forced(header, equals, prefix, Choice(number, FORCED, 1.0, variant=variant)))
    return tuple(found)


def _target(policy: Policy, rule: Rule) -> tuple[int | None, str | None]:
    if rule.variant is None:
        return rule.version, None
    if rule.variant == "stable":
        return policy.stable, None
    if rule.variant == "canary":
        return (policy.canary.version if policy.canary else None), None
    for variant in policy.experiment.variants if policy.experiment else ():
        if variant.name == rule.variant:
            return variant.version, variant.name
    return None, None


__all__ = [
    "Canary", "Choice", "Policy", "Router", "Shadow", "position",
    "promoted", "rolled_back", "with_canary", "with_shadow",
]  # fmt: skip
