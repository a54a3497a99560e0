"""Changes of a traffic policy: pure functions from one policy to the next, refused where they do not fit together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from serving.errors import Conflict, InvalidRequest
from serving.routing.traffic import (
    STEPS,
    Canary,
    Experiment,
    HoldBack,
    Policy,
    Rule,
    Shadow,
    Variant,
    share,
    variant_name,
)

MAX_SHADOWS = 8
MAX_VARIANTS = 64
MAX_RULES = 100
MAX_HOLD_BACK = 0.1


def with_canary(policy: Policy, version: int, weight: float, sticky: str | None, now: float) -> Policy:
    """The policy with `version` as canary; the same version again only changes the weight of its release.

    `weight` is rounded to steps of 0.01 %. Raises InvalidRequest, Conflict.
    """
    weight = share(weight, "weight")
    _stable(policy)
    if version == policy.stable:
        raise Conflict(f"version {version} of {policy.model!r} is stable already")
    if policy.canary is not None and policy.canary.version == version:
        ramped = replace(policy.canary, weight=weight)
        return _next(policy, canary=ramped, sticky=sticky or policy.sticky)
    _nothing_in_progress(policy)
    number = policy.releases + 1
    canary = Canary(version, weight, f"{policy.model}-{number}", now)
    return _next(policy, canary=canary, sticky=sticky, releases=number, hold_back=None)


def with_experiment(policy: Policy, variants: Sequence[Variant], sticky: str | None, now: float) -> Policy:
    """The policy with an A/B test; the same variants again, or more, or fewer, only change its weights.

    Weights are rounded to steps of 0.01 % and sum to 1. A change of weights moves only as many units as it must: those
    that a variant loses go to the ones that gain, nobody else moves. Raises InvalidRequest, Conflict.
    """
    _stable(policy)
    if not 2 <= len(variants) <= MAX_VARIANTS:
        raise InvalidRequest(f"the experiment has {len(variants)} variants; give 2 to {MAX_VARIANTS}")
    names = [variant_name(variant.name) for variant in variants]
    if len(set(names)) != len(names):
        raise InvalidRequest(f"the variant {next(n for n in names if names.count(n) > 1)!r} is named twice")
    steps = _whole_steps([variant.weight for variant in variants], names)
    rounded = tuple(replace(v, weight=count / STEPS) for v, count in zip(variants, steps, strict=True))
    running = policy.experiment
    if running is None:
        _nothing_in_progress(policy)
        number = policy.releases + 1
        runs = tuple((place, count) for place, count in enumerate(steps) if count)
        experiment = Experiment(f"{policy.model}-{number}", rounded, runs, now)
        return _next(policy, experiment=experiment, sticky=sticky, releases=number, hold_back=None)
    before = {variant.name: variant.version for variant in running.variants}
    for variant in rounded:
        if before.get(variant.name, variant.version) != variant.version:
            raise Conflict(
                f"variant {variant.name!r} of {running.release} is version {before[variant.name]}, not "
                f"{variant.version}: it has answered already; end the experiment, or give the variant another name"
            )
    places = [names.index(v.name) if v.name in names else -1 for v in running.variants]
    changed = replace(running, variants=rounded, runs=_moved(running.runs, places, steps))
    return _without_lost_variants(_next(policy, experiment=changed, sticky=sticky or policy.sticky))


def without_experiment(policy: Policy) -> Policy:
    """The policy with its A/B test ended: all goes to stable. Raises Conflict when there is none."""
    if policy.experiment is None:
        raise Conflict(f"model {policy.model!r} has no experiment in progress")
    return _without_lost_variants(_next(policy, experiment=None, sticky=None))


def with_hold_back(policy: Policy, weight: float, release: str | None, sticky: str | None, now: float) -> Policy:
    """The policy that leaves `weight` of the requests on the version before the stable one; 0 ends that.

    Units keep the arm that they had in the release: those that had the version before longest are held back. `release`
    is the one that must have brought the stable version in, if it is named. Raises InvalidRequest, Conflict.
    """
    weight = share(weight, "weight")
    if weight > MAX_HOLD_BACK:
        raise InvalidRequest(f"weight is {weight:g}; a hold-back is at most {MAX_HOLD_BACK:g}: more is a canary")
    _stable(policy)
    if not weight and policy.hold_back is None:
        raise Conflict(f"model {policy.model!r} has no hold-back")
    if release is not None and release != policy.stable_release:
        raise Conflict(f"release {release!r} did not bring in what is stable now; {policy.stable_release!r} did")
    if not weight:
        return _next(policy, hold_back=None, sticky=None)
    _nothing_in_progress(policy)
    if policy.previous is None or policy.stable_release is None:
        raise Conflict(f"model {policy.model!r} has no version before the stable one that could be held back on")
    held = HoldBack(weight, policy.stable_release, policy.hold_back.started_at if policy.hold_back else now)
    return _next(policy, hold_back=held, sticky=sticky or (policy.sticky if policy.hold_back else None))


def with_shadow(policy: Policy, version: int, fraction: float) -> Policy:
    """The policy with `fraction` of the requests copied to `version` beside the other shadows; 0 ends this shadow.

    Raises InvalidRequest.
    """
    if not 0.0 <= fraction <= 1.0:
        raise InvalidRequest(f"fraction is {fraction!r}; give a share of the requests, from 0 to 1")
    places = {shadow.version: shadow.fraction for shadow in policy.shadows} | {version: fraction}
    shadows = tuple(Shadow(number, copied) for number, copied in places.items() if copied > 0)
    if len(shadows) > MAX_SHADOWS:
        raise InvalidRequest(f"model {policy.model!r} would have {len(shadows)} shadows; end one (fraction 0) first")
    return _next(policy, shadows=shadows)


def with_rules(policy: Policy, rules: Sequence[Rule]) -> Policy:
    """The policy with these rules, the first that a request meets counts; none ends them. InvalidRequest, Conflict."""
    _stable(policy)
    if len(rules) > MAX_RULES:
        raise InvalidRequest(f"{len(rules)} rules are given; a request looks at each of them: give at most {MAX_RULES}")
    variants = {v.name for v in policy.experiment.variants} if policy.experiment else set()
    for rule in rules:
        if rule.variant is not None and rule.variant not in variants | {"stable", "canary"}:
            raise InvalidRequest(
                f"the rule on {rule.header!r} names variant {rule.variant!r}; there are "
                f"{', '.join(sorted(variants | {'stable', 'canary'}))}"
            )
    generation = policy.generation + 1
    return _next(policy, rules=tuple(rules), rules_before=policy.rules, rules_at=generation)


def with_standby(policy: Policy, version: int | None) -> Policy:
    """The policy that keeps `version` loaded and warm beside stable, for `switched`; None ends it. Raises Conflict."""
    _stable(policy)
    if version is not None and version == policy.stable:
        raise Conflict(f"version {version} of {policy.model!r} is stable already; the standby must be another")
    return _next(policy, standby=version)


def switched(policy: Policy) -> Policy:
    """Blue-green: stable and standby change places in one step; once more is the way back. Raises Conflict."""
    if policy.standby is None:
        raise Conflict(f"model {policy.model!r} has no standby to switch to; name a version")
    _stable(policy)
    _nothing_in_progress(policy)
    number = policy.releases + 1
    return _next(
        policy,
        stable=policy.standby,
        previous=policy.stable,
        standby=policy.stable,
        releases=number,
        stable_release=f"{policy.model}-{number}",
        stable_at=policy.generation + 1,
        **_NO_HOLD_BACK if policy.hold_back else {},
    )


def promoted(policy: Policy, version: int | None, release: str | None) -> Policy:
    """The policy with the canary, or a named version, as stable; the old stable becomes previous. Conflict.

    With an experiment in progress the version must be one of its variants'; that ends the experiment.
    """
    canary, experiment = policy.canary, policy.experiment
    running = canary or experiment
    if release is not None and (running is None or running.release != release):
        raise Conflict(f"release {release!r} is not in progress for {policy.model!r}")
    target = version if version is not None else (canary.version if canary else None)
    if target is None:
        known = "an experiment, which has no winner by itself" if experiment else "no canary"
        raise Conflict(f"model {policy.model!r} has {known}; name the version to promote")
    if experiment is not None:
        ends_release = target in {variant.version for variant in experiment.variants}
    else:
        ends_release = canary is not None and canary.version == target
    if running is not None and not ends_release:
        raise Conflict(f"release {running.release} is in progress {_with(policy)}; roll it back first")
    if target == policy.stable:
        return policy if experiment is None else without_experiment(policy)
    number = policy.releases + (0 if ends_release else 1)
    return _without_lost_variants(
        _next(
            policy,
            stable=target,
            previous=policy.stable,
            canary=None,
            experiment=None,
            sticky=None,
            standby=None if policy.standby == target else policy.standby,
            releases=number,
            stable_release=running.release if running else f"{policy.model}-{number}",
            hold_back=None,
            stable_at=policy.generation + 1,
        )
    )


def rolled_back(policy: Policy, release: str | None) -> Policy | None:
    """The policy after a rollback, or None when there is nothing left to roll back.

    With a canary or an experiment (of that release, if one is named) all traffic goes to stable. Otherwise the later of
    two goes back: the rules to those before, or the stable version to the previous one (always, if its release is
    named). Rules that name a version which a rollback takes out go with it.
    """
    running = policy.canary or policy.experiment
    if running is not None and release in (None, running.release):
        out = _in_release(policy) - {policy.stable}
        rules = tuple(rule for rule in policy.rules if rule.version not in out)
        return _without_lost_variants(_next(policy, canary=None, experiment=None, sticky=None, rules=rules))
    rules_came_last = policy.rules_before is not None and policy.rules_at > policy.stable_at
    if release is None and rules_came_last and policy.rules_before is not None:
        return _without_lost_variants(_next(policy, rules=policy.rules_before, rules_before=None))
    if release is not None and release != policy.stable_release:
        return None
    if policy.previous is None:
        return None
    return _without_lost_variants(
        _next(
            policy,
            stable=policy.previous,
            previous=None,
            canary=None,
            experiment=None,
            sticky=None,
            standby=None if policy.standby == policy.previous else policy.standby,
            rules=tuple(rule for rule in policy.rules if rule.version != policy.stable),
            stable_release=None,
            stable_at=policy.generation + 1,
            hold_back=None,
        )
    )


def taken_out(before: Policy, after: Policy) -> tuple[str | None, int | None]:
    """The release that a rollback from `before` to `after` ended, and its version, if it is a single one."""
    if before.stable != after.stable:
        return before.stable_release, before.stable
    running = before.canary or before.experiment
    if running is not None and after.canary is None and after.experiment is None:
        out = _in_release(before) - {before.stable}
        return running.release, out.pop() if len(out) == 1 else None
    out = {rule.version for rule in before.rules if rule.version} - after.routed()
    return None, out.pop() if len(out) == 1 else None


def _next(policy: Policy, **changes: object) -> Policy:
    return replace(policy, generation=policy.generation + 1, **changes)  # type: ignore[arg-type]


_NO_HOLD_BACK: dict[str, Any] = {"hold_back": None, "sticky": None}


def _stable(policy: Policy) -> None:
    if policy.stable is None:
        raise Conflict(f"model {policy.model!r} has no stable version to compare with; promote one first")


def _nothing_in_progress(policy: Policy) -> None:
    running = policy.canary or policy.experiment
    if running is not None:
        raise Conflict(f"release {running.release} is in progress {_with(policy)}; promote it or roll it back")


def _in_release(policy: Policy) -> set[int]:
    if policy.canary is not None:
        return {policy.canary.version}
    return {variant.version for variant in policy.experiment.variants} if policy.experiment else set()


def _with(policy: Policy) -> str:
    if policy.canary is not None:
        return f"with version {policy.canary.version}"
    assert policy.experiment is not None
    return f"with the variants {', '.join(variant.name for variant in policy.experiment.variants)}"


def _without_lost_variants(policy: Policy) -> Policy:
    """Rules to variants that are gone would catch a later experiment's variant of the same name."""
    names = {variant.name for variant in policy.experiment.variants} if policy.experiment else set()
    kept = tuple(rule for rule in policy.rules if rule.variant in (None, "stable", "canary") or rule.variant in names)
    return policy if kept == policy.rules else replace(policy, rules=kept)


def _whole_steps(weights: Sequence[float], names: Sequence[str]) -> list[int]:
    """Weights as steps that sum to all 10,000, by the largest remainders."""
    for weight, name in zip(weights, names, strict=True):
        share(weight, f"the weight of variant {name!r}")
    total = math.fsum(weights)
    if abs(total - 1.0) > 0.0005 * len(weights) + 1e-9:
        raise InvalidRequest(f"the weights of the variants {', '.join(names)} sum to {total:g}; they must sum to 1")
    exact = [weight / total * STEPS for weight in weights]
    steps = [math.floor(value + 1e-6) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda place: steps[place] - exact[place])
    for place in by_remainder[: STEPS - sum(steps)]:
        steps[place] += 1
    return steps


def _moved(runs: Sequence[tuple[int, int]], places: Sequence[int], steps: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The runs for new shares with the fewest steps moved. `places[i]` is the new place of old variant i, -1 for none.

    Where there is a choice, steps move towards the layout that the shares would get afresh; two variants always have
    that one.
    """
    owners = np.concatenate([np.full(count, places[place]) for place, count in runs])
    fresh = np.repeat(np.arange(len(steps)), steps)
    free = owners < 0
    for place, wanted in enumerate(steps):
        own = np.flatnonzero(owners == place)
        surplus = len(own) - wanted
        if surplus > 0:
            foreign = fresh[own] != place
            free[np.concatenate([own[foreign], own[~foreign][::-1]])[:surplus]] = True
    owners[free] = -1
    for at_home in (True, False):
        for place, wanted in enumerate(steps):
            missing = wanted - np.count_nonzero(owners == place)
            left = np.flatnonzero((owners < 0) & ((fresh == place) | (not at_home)))
            owners[left[:missing]] = place
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    counts = np.diff(starts, append=len(owners))
    return tuple((int(owners[start]), int(count)) for start, count in zip(starts, counts, strict=True))


def without_version(policy: Policy, number: int) -> Policy:
    """The policy for a server that cannot load `number`, which is not stable: it gets no traffic and no copies.

    What needed it ends: a canary, an experiment, a hold-back, the standby. A new generation only where live traffic
    changes.
    """
    shadows = tuple(shadow for shadow in policy.shadows if shadow.version != number)
    standby = None if policy.standby == number else policy.standby
    rules = tuple(rule for rule in policy.rules if rule.version != number)
    changed = replace(policy, shadows=shadows, standby=standby, rules=rules)
    if policy.hold_back is not None and number == policy.previous:
        return _next(changed, **_NO_HOLD_BACK)
    if number in _in_release(policy):
        return _without_lost_variants(_next(changed, canary=None, experiment=None, sticky=None))
    return changed if rules == policy.rules else _next(changed)
