"""Steps of a release policy as they stand in a file, and the shares, numbers and durations in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import yaml

from alerts.durations import format_duration, parse_duration
from alerts.notifications.yaml_reader import Value
from alerts.releases.policy import (
    AfterPromotion,
    CanaryStep,
    ExperimentStep,
    HoldStep,
    ShadowStep,
    Step,
    SwitchStep,
)
from observability import names

# More is a canary: most of the users have the new version.
MOST_HELD_BACK = 0.1
# The average time to a false alarm is at least so many times as long as the watch.
LEAST_RUNS = 10.0
# What other systems call things: a hint for who knows them.
_ELSEWHERE = {
    "setWeight": "Argo Rollouts' `setWeight: 20` is `canary: {weight: 0.2}` here",
    "pause": "Argo Rollouts' `pause: {}` is `hold: manual` here, `pause: {duration: 10m}` is `hold: 10m`",
    "analysis": "evidence is judged at each step: give `min_requests`, `min_seconds` or `min_e_value` there",
    "stepWeight": "give each weight as a step: `canary: {weight: 0.1}`",
    "maxWeight": "the last canary step's weight is the largest; promotion follows it",
    "mirror": "Flagger's `mirror` is a step here: `shadow: {fraction: 1}`",
    "threshold": "there is no number of failed looks: harm is proved at the risk `verdict: {alpha: 0.01}`",
    "interval": "releases are judged each second",
}


def read_step(value: Value) -> Step:
    value.what = "a step"
    entries = value.entries()
    if len(entries) != 1:
        value.fail(f"a step has one name, such as `canary: {{weight: 0.05}}`; this one has {len(entries)}")
    name, body = entries[0]
    if name not in _STEPS:
        hint = _ELSEWHERE.get(name)
        value.fail(f"unknown step {name!r}; there are {', '.join(_STEPS)}" + (f" ({hint})" if hint else ""))
    return _STEPS[name](body)


def _shadow(value: Value) -> ShadowStep:
    given = _fields(value, ShadowStep)
    bounds = names.SHADOW_DIFFERENCE.buckets or ()
    if "disagreement" in given:
        chosen = given["disagreement"]
        if number_of(chosen) not in bounds:
            known = ", ".join(f"{bound:g}" for bound in bounds)
            chosen.fail(
                f"disagreement is {chosen.text()}; the server counts differences above {known}: give one of them"
            )
    return ShadowStep(
        fraction=_share(given, "fraction", 1.0),
        min_pairs=_whole(given, "min_pairs", 500, least=1),
        max_failed_ratio=_share(given, "max_failed_ratio", 0.02),
        max_disagreement_ratio=_share(given, "max_disagreement_ratio", 0.0)
        if "max_disagreement_ratio" in given
        else None,
        disagreement=number_of(given["disagreement"]) if "disagreement" in given else 0.1,
        min_labels=_whole(given, "min_labels", 0, least=0),
        **_pace(given),
    )


def _canary(value: Value) -> CanaryStep:
    given = _fields(value, CanaryStep)
    if "weight" not in given:
        value.fail("a canary step needs its weight: a share of the requests, such as `weight: 0.05`")
    return CanaryStep(weight=_share(given, "weight", 0.0), **_evidence(given, 100), **_pace(given))


def _switch(value: Value) -> SwitchStep:
    given = _fields(value, SwitchStep)
    return SwitchStep(**_evidence(given, 1000), **_pace(given))


def _experiment(value: Value) -> ExperimentStep:
    given = _fields(value, ExperimentStep)
    step = ExperimentStep(
        weight=_share(given, "weight", 0.5),
        sticky=given["sticky"].text() if "sticky" in given else "",
        seconds=_seconds(given, "seconds", 0.0),
        requests=_whole(given, "requests", 0, least=0),
    )
    if not step.seconds and not step.requests:
        value.fail(
            "an experiment needs an end: give `seconds: 7d`, `requests: 10000`, or both (the first of them ends it)"
        )
    if step.weight >= 1.0:
        given["weight"].fail("the weight of an experiment is below 1: stable has the rest")
    return step


def _hold(value: Value) -> HoldStep:
    if not isinstance(value.node, yaml.ScalarNode) or value.is_null:
        value.fail("hold is `manual` (a person approves) or a duration such as `10m`")
    if value.text() == "manual":
        return HoldStep()
    seconds = value.read(
        duration, f"hold is {value.text()!r}; give `manual` (a person approves) or a duration such as `10m`"
    )
    return HoldStep(seconds=seconds)


_STEPS: dict[str, Callable[[Value], Step]] = {
    "shadow": _shadow, "canary": _canary, "switch": _switch, "experiment": _experiment, "hold": _hold,
}  # fmt: skip


def check_order(value: Value, steps: tuple[Step, ...]) -> None:
    """Shadow first, weights that rise, one way to give traffic, nothing after what ends the release."""
    items = value.items()
    if len(items) != len(steps):
        return  # a step was wrong: it is complained of already
    traffic = [step for step in steps if not isinstance(step, ShadowStep | HoldStep)]
    if steps and not traffic:
        value.fail("the steps give no traffic: add `canary: {weight: …}`, `switch: {}` or `experiment: {…}`")
    weight, seen = 0.0, False
    for item, step in zip(items, steps, strict=True):
        if isinstance(step, ShadowStep) and seen:
            item.fail("a shadow comes before all traffic: move this step to the front")
        seen = seen or not isinstance(step, HoldStep)
        if isinstance(step, CanaryStep):
            if step.weight <= weight:
                item.fail(f"the weight {step.weight:g} does not rise: the canary step before has {weight:g}")
            weight = step.weight
    if any(isinstance(step, SwitchStep | ExperimentStep) for step in traffic[:-1]) or (
        len(traffic) > 1 and not isinstance(traffic[-1], CanaryStep)
    ):
        value.fail(
            "a switch or an experiment is the only step with traffic: a canary is promoted after its last weight"
        )
    ends = next((place for place, step in enumerate(steps) if isinstance(step, SwitchStep | ExperimentStep)), None)
    if ends is not None and ends != len(steps) - 1:
        items[ends + 1].fail("nothing comes after a switch or an experiment: it ends the release")


def read_after_promotion(value: Value, steps: tuple[Step, ...]) -> AfterPromotion | None:
    """`none`, or a mapping; None where a promoted version is not watched."""
    if isinstance(value.node, yaml.ScalarNode) and not value.is_null:
        if value.text() != "none":
            value.fail("after_promotion is a mapping such as `{hold_back: 0.02, seconds: 1h}`, or `none`")
        return None
    given, plain = _fields(value, AfterPromotion), AfterPromotion()
    if any(isinstance(step, ExperimentStep) for step in steps):
        value.fail("an experiment promotes nothing, so nothing comes after: leave `after_promotion` out")
    share = plain.hold_back
    if "hold_back" in given:
        share = number_of(given["hold_back"])
        if not 0.0 <= share <= MOST_HELD_BACK:
            hint = f"; {share:g} % is {share / 100:g}" if 1.0 <= share <= 100 * MOST_HELD_BACK else ""
            given["hold_back"].fail(
                f"hold_back is {share:g}; give a share from 0 (no hold-back) to {MOST_HELD_BACK:g}, such as 0.02{hint}"
            )
    seconds = _seconds(given, "seconds", plain.seconds)
    if not seconds:
        given["seconds"].fail("seconds is 0; give how long a promoted version is watched, such as `seconds: 1h`")
    length = _seconds(given, "run_length", max(plain.run_length, LEAST_RUNS * seconds))
    if length < LEAST_RUNS * seconds:
        given["run_length"].fail(
            f"run_length is {length:g} s, which makes a false alarm within the {seconds:g} s likelier than "
            f"{1 / LEAST_RUNS:.0%}; give at least {format_duration(math.ceil(LEAST_RUNS * seconds))}"
        )
    return AfterPromotion(seconds=seconds, hold_back=share, run_length=length)


def _fields(value: Value, kind: type) -> dict[str, Value]:
    known = tuple(field.name for field in fields(kind))
    return {} if value.is_null else value.fields(known)


def _evidence(given: Mapping[str, Value], requests: int) -> dict[str, Any]:
    e_value = number_of(given["min_e_value"]) if "min_e_value" in given else None
    if e_value is not None and e_value < 1.0:
        given["min_e_value"].fail(
            f"min_e_value is {e_value:g}; it is at least 1 (no proof), 100 is proof at a risk of 1 %"
        )
    return {"min_requests": _whole(given, "min_requests", requests, least=1), "min_e_value": e_value}


def _pace(given: Mapping[str, Value]) -> dict[str, Any]:
    least, deadline = _seconds(given, "min_seconds", 0.0), _seconds(given, "deadline_seconds", 3600.0)
    if deadline <= least:
        place = given.get("deadline_seconds") or given["min_seconds"]
        place.fail(f"the deadline of {deadline:g} s is over before the {least:g} s that the step lasts at least")
    then = word_of(given["on_deadline"], ("hold", "rollback", "advance")) if "on_deadline" in given else "hold"
    return {"min_seconds": least, "deadline_seconds": deadline, "on_deadline": then}


def _share(given: Mapping[str, Value], name: str, default: float) -> float:
    if name not in given:
        return default
    share = number_of(given[name])
    if not 0.0 < share <= 1.0:
        hint = f"; {share:g} % is {share / 100:g}" if 1.0 < share <= 100.0 else ""
        given[name].fail(f"{name} is {share:g}; give a share above 0 and at most 1{hint}")
    return share


def _whole(given: Mapping[str, Value], name: str, default: int, *, least: int) -> int:
    if name not in given:
        return default
    number = given[name].whole()
    if number < least:
        zero = ": no data is never healthy" if least else ""
        given[name].fail(f"{name} is {number}; it is at least {least}{zero}")
    return number


def _seconds(given: Mapping[str, Value], name: str, default: float) -> float:
    return given[name].read(duration) if name in given else default


def duration(text: str) -> float:
    """Seconds of a number, or of a duration such as `5m`. Raises ValueError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = parse_duration(text)
    if not 0.0 <= seconds < math.inf:
        raise ValueError(f"{text!r} is no duration; give seconds, or a duration such as 5m")
    return seconds


def number_of(value: Value) -> float:
    def parse(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError("not finite")
        return number

    return value.read(parse, f"{value.what} must be a number, got {value.text()!r}")


def word_of(value: Value, words: tuple[str, ...]) -> str:
    word = value.text()
    if word not in words:
        value.fail(f"{value.what} is {word!r}; give one of {', '.join(words)}")
    return word
