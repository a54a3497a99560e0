"""The control calls that change routing: from a JSON body to a pure change of the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from serving.errors import InvalidRequest
from serving.routing import switches
from serving.routing.traffic import Policy, Rule, Variant, variant_name


@dataclass(frozen=True, slots=True)
class Change:
    """`decide(policy, now)` is the next policy, or raises; `event` and `reason` are for the history."""

    event: str
    decide: Callable[[Policy, float], Policy]
    reason: str


def experiment(body: Mapping[str, Any]) -> Change:
    """`{"variants": [{"name", "version", "weight"}, …], "sticky"?}`, or `{"end": true}`. Raises InvalidRequest."""
    _only(body, "variants", "sticky", "end")
    if _flag(body, "end"):
        if body.get("variants"):
            raise InvalidRequest("both end and variants are given; send one of them")
        return Change("experiment", lambda policy, _now: switches.without_experiment(policy), "ended")
    given, sticky = body.get("variants"), body.get("sticky")
    if not isinstance(given, list) or not all(isinstance(variant, dict) for variant in given):
        raise InvalidRequest(
            'variants is missing; give a list such as [{"name": "a", "version": 1, "weight": 0.5}, …], or "end": true'
        )
    if sticky is not None and (not isinstance(sticky, str) or not sticky):
        raise InvalidRequest(f"sticky is {sticky!r}; give the name of the request parameter that holds the unit")
    variants = [_variant(variant) for variant in given]
    reason = ", ".join(f"{v.name}: version {v.version} {v.weight:g}" for v in variants)
    return Change(
        "experiment", lambda policy, now: switches.with_experiment(policy, variants, sticky or None, now), reason
    )


def hold_back(body: Mapping[str, Any]) -> Change:
    """`{"weight", "release"?, "sticky"?}`: a share stays on the version before the stable one; 0 ends that.

    Raises InvalidRequest.
    """
    _only(body, "weight", "release", "sticky")
    weight, release, sticky = body.get("weight"), body.get("release"), body.get("sticky")
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise InvalidRequest(
            f"weight is {weight!r}; give a share of the traffic such as 0.02, or 0 to end the hold-back"
        )
    for name, text in (("release", release), ("sticky", sticky)):
        if text is not None and (not isinstance(text, str) or not text):
            raise InvalidRequest(f"{name} is {text!r}; give a text, or leave it out")
    return Change(
        "hold_back",
        lambda policy, now: switches.with_hold_back(policy, float(weight), release, sticky, now),
        f"weight {weight:g}" if weight else "ended",
    )


def rules(body: Mapping[str, Any]) -> Change:
    """`{"rules": [{"header", "equals" | "prefix", "version" | "variant"}, …]}`; an empty list ends them."""
    _only(body, "rules")
    given = body.get("rules")
    if not isinstance(given, list) or not all(isinstance(rule, dict) for rule in given):
        raise InvalidRequest(
            'rules is missing; give a list such as [{"header": "x-qa", "equals": "yes", "version": 2}]; [] ends them'
        )
    found = [Rule.of(rule) for rule in given]
    return Change("route", lambda policy, _now: switches.with_rules(policy, found), f"{len(found)} rules")


def switch(body: Mapping[str, Any]) -> Change:
    """`{}` switches to the standby, `{"version"}` to that version; with `"prepare": true` it is only made ready.

    `{"version": null, "prepare": true}` ends the standby.
    """
    _only(body, "version", "prepare")
    version, prepare = _version(body.get("version")), _flag(body, "prepare")
    if prepare and "version" not in body:
        raise InvalidRequest("prepare needs a version to make ready; null ends the standby")
    if prepare:
        reason = "no standby" if version is None else f"version {version} is made ready"
        return Change("standby", lambda policy, _now: switches.with_standby(policy, version), reason)

    def decide(policy: Policy, _now: float) -> Policy:
        if version is None:
            return switches.switched(policy)
        ready = switches.with_standby(policy, version)
        return switches.switched(replace(ready, generation=policy.generation))

    return Change("switch", decide, "blue-green")


def _variant(body: Mapping[str, Any]) -> Variant:
    unknown = body.keys() - {"name", "version", "weight"}
    if unknown:
        raise InvalidRequest(f"a variant has the unknown field {min(unknown)!r}; it has name, version and weight")
    name, version, weight = variant_name(body.get("name")), _version(body.get("version")), body.get("weight")
    if version is None:
        raise InvalidRequest(f"variant {name!r} has no version; give a whole number")
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise InvalidRequest(f"variant {name!r} has the weight {weight!r}; give a share of the traffic, from 0 to 1")
    return Variant(name, version, float(weight))


def _version(value: object) -> int | None:
    if isinstance(value, str) and value.isdecimal() and value.isascii():
        value = int(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InvalidRequest(f"version is {value!r}; give a whole number from 1")
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} is {value!r}; give true or false")
    return value


def _only(body: Mapping[str, Any], *known: str) -> None:
    """A misspelt field must not be taken for one that is left out."""
    unknown = body.keys() - {*known, "reason", "actor"}
    if unknown:
        raise InvalidRequest(f"the field {min(unknown)!r} is unknown; known are {', '.join((*known, 'reason'))}")
