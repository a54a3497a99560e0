"""A model's traffic policy as one frozen value: who answers, with which share, who gets copies, who is kept warm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from serving.errors import InvalidRequest

STEPS = 10_000
"""Shares of traffic are whole numbers of 1/10,000 (0.01 %)."""
FORCED, HELD_BACK = "forced", "hold_back"
_ARMS = ("stable", "canary", "shadow", HELD_BACK, FORCED)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


@dataclass(frozen=True, slots=True)
class Canary:
    """A release in progress: `weight` (0..1) of the requests go to `version`. `started_at` is unix seconds."""

    version: int
    weight: float
    release: str
    started_at: float


@dataclass(frozen=True, slots=True)
class HoldBack:
    """After a promotion `weight` (0..1) of the requests stay with the last good version, to compare the new one with.

    `release` is the one that brought the stable version in. `started_at` is unix seconds.
    """

    weight: float
    release: str
    started_at: float


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version that gets copies of `fraction` (0..1) of the requests; nobody sees its answers."""

    version: int
    fraction: float


@dataclass(frozen=True, slots=True)
class Variant:
    """One arm of an experiment: `weight` (0..1) of the requests go to `version`."""

    name: str
    version: int
    weight: float

    @property
    def arm(self) -> str:
        """The arm as events and answers name it."""
        return f"ab:{self.name}"


@dataclass(frozen=True, slots=True)
class Experiment:
    """An A/B test: all requests go to its variants, and no winner is sought. `started_at` is unix seconds.

    `runs` lays the 10,000 steps of the units' hash out over the variants: (place of the variant, number of steps), one
    behind the other. It is kept, not computed from the weights: so a change of weights moves the fewest units.
    """

    release: str
    variants: tuple[Variant, ...]
    runs: tuple[tuple[int, int], ...]
    started_at: float


@dataclass(frozen=True, slots=True)
class Rule:
    """Requests whose header `header` (lower case) equals a value, or begins with it, go to a version or a variant.

    `variant` is one of the experiment in progress, or `stable` or `canary`. A rule whose variant is not in force
    matches nothing.
    """

    header: str
    equals: str | None = None
    prefix: str | None = None
    version: int | None = None
    variant: str | None = None

    @staticmethod
    def of(body: Mapping[str, Any]) -> Rule:
        """From the control API's JSON object. Raises InvalidRequest."""
        known = {"header", "equals", "prefix", "version", "variant"}
        if body.keys() - known:
            raise InvalidRequest(f"a rule has the field {min(body.keys() - known)!r}; known are {sorted(known)}")
        header, version, variant = body.get("header"), body.get("version"), body.get("variant")
        equals, prefix = body.get("equals"), body.get("prefix")
        if not isinstance(header, str) or not _TOKEN.fullmatch(header):
            raise InvalidRequest(f"a rule's header is {header!r}; give the name of a request header")
        if (equals is None) == (prefix is None) or not isinstance(equals if prefix is None else prefix, str):
            raise InvalidRequest(f"the rule on {header!r} must have either equals or prefix, a text")
        if not str(equals if prefix is None else prefix).isprintable():
            raise InvalidRequest(f"the rule on {header!r} compares with characters that no header holds")
        if (version is None) == (variant is None):
            raise InvalidRequest(f"the rule on {header!r} must name either a version or a variant to go to")
        if version is not None and (isinstance(version, bool) or not isinstance(version, int) or version < 1):
            raise InvalidRequest(f"the rule on {header!r} names version {version!r}; give a whole number from 1")
        if variant is not None and not isinstance(variant, str):
            raise InvalidRequest(f"the rule on {header!r} names variant {variant!r}; give a text")
        return Rule(header.lower(), equals, prefix, version, variant)


@dataclass(frozen=True, slots=True)
class Policy:
    """Who serves a model. `releases` counts those begun; `stable_release` brought the stable version in.

    `previous` is where a rollback goes, `standby` the warm partner of a blue-green pair. A canary and an experiment are
    never in progress together; `sticky` is the request parameter that keeps a unit on its arm in either, and beside a
    `hold_back` on `previous`.
    `rules_before` are the rules that a rollback restores; `rules_at` and `stable_at` are the generations at which the
    rules and the stable version were set.
    """

    model: str
    generation: int = 0
    stable: int | None = None
    previous: int | None = None
    canary: Canary | None = None
    shadows: tuple[Shadow, ...] = ()
    sticky: str | None = None
    releases: int = 0
    stable_release: str | None = None
    standby: int | None = None
    experiment: Experiment | None = None
    rules: tuple[Rule, ...] = ()
    rules_before: tuple[Rule, ...] | None = None
    rules_at: int = 0
    stable_at: int = 0
    hold_back: HoldBack | None = None

    @property
    def shadow(self) -> Shadow | None:
        """The first shadow, if there is one."""
        return self.shadows[0] if self.shadows else None

    def loaded(self) -> set[int]:
        """The versions that must be in memory under this policy."""
        return self.routed() | {number for number in (self.previous, self.standby) if number is not None}

    def routed(self) -> set[int]:
        """The versions that requests or their copies may reach."""
        named = {self.stable, *(shadow.version for shadow in self.shadows), *(rule.version for rule in self.rules)}
        if self.canary is not None:
            named.add(self.canary.version)
        if self.experiment is not None:
            named |= {variant.version for variant in self.experiment.variants}
        if self.hold_back is not None:
            named.add(self.previous)
        return {number for number in named if number is not None}

    def shares(self) -> dict[tuple[int, str], float]:
        """The share of the requests by (version, role): stable, canary, `ab:NAME`; shadows have their fraction."""
        shares: dict[tuple[int, str], float] = {}
        if self.experiment is not None:
            shares |= {(variant.version, variant.arm): variant.weight for variant in self.experiment.variants}
        elif self.stable is not None:
            beside = self.canary or self.hold_back
            shares[self.stable, "stable"] = 1.0 if beside is None else complement(beside.weight)
        if self.hold_back is not None and self.previous is not None:
            shares[self.previous, HELD_BACK] = self.hold_back.weight
        if self.canary is not None:
            shares[self.canary.version, "canary"] = self.canary.weight
        return shares | {(shadow.version, "shadow"): shadow.fraction for shadow in self.shadows}

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values; `shadow` is the first of `shadows`."""
        body = asdict(self)
        return {**body, "shadow": body["shadows"][0] if body["shadows"] else None}

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> Policy:
        """The inverse of `to_json`; also reads the policies of earlier releases, which knew one shadow."""
        canary, experiment, before = body.get("canary"), body.get("experiment"), body.get("rules_before")
        hold_back = body.get("hold_back")
        shadows = body.get("shadows", [body["shadow"]] if body.get("shadow") else [])
        derived = {"shadow"}
        return Policy(
            **{
                **{name: value for name, value in body.items() if name not in derived},
                "canary": None if canary is None else Canary(**{**canary, "weight": share(canary["weight"], "weight")}),
                "shadows": tuple(Shadow(**shadow) for shadow in shadows),
                "experiment": None if experiment is None else _experiment(experiment),
                "rules": tuple(Rule(**rule) for rule in body.get("rules", ())),
                "rules_before": None if before is None else tuple(Rule(**rule) for rule in before),
                "hold_back": None if hold_back is None else HoldBack(**hold_back),
            }
        )


def share(value: float, name: str) -> float:
    """The share of traffic in whole steps of 0.0001, at least one unless it is 0. InvalidRequest outside 0 to 1."""
    if not 0.0 <= value <= 1.0:
        raise InvalidRequest(f"{name} is {value!r}; give a share of the traffic, from 0 to 1")
    return max(round(value * STEPS), value > 0) / STEPS


def complement(weight: float) -> float:
    """What is left of all traffic, in whole steps: 1 - 0.9 is 0.1, not 0.09999999999999998."""
    return (STEPS - round(weight * STEPS)) / STEPS


def variant_name(name: object) -> str:
    """The name, if a header and a label can carry it. Raises InvalidRequest."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _ARMS:
        raise InvalidRequest(
            f"a variant is named {name!r}; use 1 to 40 letters, digits, '.', '_' and '-', and not "
            f"{', '.join(_ARMS[:-1])} or {_ARMS[-1]}"
        )
    return name


def _experiment(body: Mapping[str, Any]) -> Experiment:
    return Experiment(
        body["release"],
        tuple(Variant(**variant) for variant in body["variants"]),
        tuple((place, steps) for place, steps in body["runs"]),
        body["started_at"],
    )
