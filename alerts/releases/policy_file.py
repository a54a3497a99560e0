"""Release policies as a YAML file, read strictly: every complaint has a line and a column, and says what to write.

```yaml
version: "2026-11-22"
defaults:
  verdict: {alpha: 0.01}
models:
  flights:
    steps:
      - shadow: {fraction: 0.2, min_pairs: 500}
      - canary: {weight: 0.01, min_requests: 200, min_e_value: 10}
      - hold: manual
      - canary: {weight: 0.25}
```
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from alerts.durations import parse_duration
from alerts.evidence import VerdictPolicy
from alerts.notifications import ConfigurationError
from alerts.notifications.configuration import read_interval
from alerts.notifications.yaml_reader import Value
from alerts.releases.policy import (
    BlessingCheck,
    BlessingPolicy,
    CanaryStep,
    ExperimentStep,
    HoldStep,
    ReleasePolicy,
    ShadowStep,
    Step,
    SwitchStep,
)
from alerts.yaml_nodes import Problem, YamlFile, is_null
from observability import names

T = TypeVar("T")
_SECTIONS = ("steps", "on_failure", "sticky", "blessing", "verdict", "freeze")
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


class ReleasePolicyError(ConfigurationError):
    """A policy file that cannot be used; `problems` say why, each with line and column."""


@dataclass(frozen=True, slots=True)
class ReleasePolicies:
    """Policies by model; `version` is what the file calls itself."""

    version: str = ""
    policies: Mapping[str, ReleasePolicy] = field(default_factory=dict)

    def of(self, model: str) -> ReleasePolicy | None:
        """The policy of a model; None where the file names none."""
        return self.policies.get(model)


def load_release_policies(path: str | Path) -> ReleasePolicies:
    """The policies of a file. Raises ReleasePolicyError."""
    return _read(YamlFile(path))


def read_release_policies(text: str, path: str = "releases.yaml") -> ReleasePolicies:
    """The policies of a file's text. Raises ReleasePolicyError."""
    return _read(YamlFile(path, text=text))


@lru_cache(maxsize=64)
def read_policy(text: str) -> ReleasePolicy:
    """A policy of its own `text`. Raises ReleasePolicyError."""
    if not text:
        return ReleasePolicy()
    file = YamlFile("policy", text=text)
    root = file.root()
    found = ReleasePolicy() if root is None else _policy(Value(root, file, "the policy"), {}, file)
    _raise(file)
    return found


def _read(file: YamlFile) -> ReleasePolicies:
    root = file.root()
    if root is None:
        if not file.problems:
            message = "the file is empty; it needs `models:` with a policy by model"
            file.problems.append(Problem(file.path, 1, "error", message, 1))
        _raise(file)
        return ReleasePolicies()
    whole = Value(root, file, "the file")
    found = whole.fields(("version", "defaults", "models"))
    defaults = found["defaults"].fields(_SECTIONS) if "defaults" in found else {}
    policies = {}
    if "models" not in found:
        file.report(root, "the file has no models; give `models:` with a policy by model's name")
    else:
        for name, section in found["models"].entries():
            policies[name] = _policy(section, defaults, file, f"models.{name}")
    version = found["version"].attempt(Value.text, "") if "version" in found else ""
    _raise(file)
    return ReleasePolicies(version, policies)


def _raise(file: YamlFile) -> None:
    wrong = [problem for problem in file.problems if problem.severity == "error"]
    if wrong:
        raise ReleasePolicyError(sorted(wrong, key=lambda problem: (problem.line, problem.column)))


def _policy(section: Value, defaults: Mapping[str, Value], file: YamlFile, what: str = "the policy") -> ReleasePolicy:
    section.what = what
    own = {**defaults, **section.fields(_SECTIONS)}
    both = {name: (defaults.get(name), own.get(name)) for name in ("verdict", "blessing")}
    raw: dict[str, Any] = {name: _plain(value.node) for name, value in own.items()}
    for name, (before, after) in both.items():
        if before is not None and after is not None and isinstance(raw[name], dict):
            under = _plain(before.node)
            raw[name] = {**(under if isinstance(under, dict) else {}), **raw[name]}
    steps = tuple(own["steps"].each(_step)) if "steps" in own else ()
    if "steps" in own:
        own["steps"].attempt(lambda value: _check_order(value, steps), None)
    verdict: VerdictPolicy | None = None
    if "verdict" in own:
        verdict = own["verdict"].attempt(lambda v: _verdict(v, both["verdict"][0], steps), None)
    else:
        verdict = _verdict(None, None, steps)
    blessing: BlessingPolicy | None = BlessingPolicy()
    if "blessing" in own:
        blessing = own["blessing"].attempt(lambda v: _blessing(v, both["blessing"][0]), None)
    failure = "rollback"
    if "on_failure" in own:
        failure = own["on_failure"].attempt(lambda v: _word(v, ("rollback", "hold")), failure)
    return ReleasePolicy(
        steps=steps,
        on_failure=failure,  # type: ignore[arg-type]
        sticky=own["sticky"].attempt(Value.text, "") if "sticky" in own else "",
        blessing=blessing,
        verdict=verdict or VerdictPolicy(),
        freeze=tuple(own["freeze"].each(read_interval)) if "freeze" in own else (),
        text=json.dumps(raw, sort_keys=True),
    )


# --- steps -----------------------------------------------------------------------------------------------------------
def _step(value: Value) -> Step:
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
        if _number(chosen) not in bounds:
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
        disagreement=_number(given["disagreement"]) if "disagreement" in given else 0.1,
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
        _duration, f"hold is {value.text()!r}; give `manual` (a person approves) or a duration such as `10m`"
    )
    return HoldStep(seconds=seconds)


_STEPS: dict[str, Callable[[Value], Step]] = {
    "shadow": _shadow, "canary": _canary, "switch": _switch, "experiment": _experiment, "hold": _hold,
}  # fmt: skip


def _check_order(value: Value, steps: tuple[Step, ...]) -> None:
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


# --- the rest --------------------------------------------------------------------------------------------------------
_VERDICT = tuple(field.name for field in fields(VerdictPolicy))
_PLAIN_VERDICT = VerdictPolicy()


def _verdict(value: Value | None, under: Value | None, steps: tuple[Step, ...]) -> VerdictPolicy:
    given: dict[str, Value] = {}
    if under is not None and under is not value:
        given |= under.fields(_VERDICT)
    if value is not None:
        given |= value.fields(_VERDICT)
    read: dict[str, Any] = {}
    for name, one in given.items():
        kind = getattr(_PLAIN_VERDICT, name)
        if name == "shares":
            read[name] = {check: _number(share) for check, share in one.entries()}
        elif isinstance(kind, bool):
            read[name] = one.flag()
        elif name.endswith("_seconds"):
            read[name] = one.read(_duration)
        else:
            read[name] = one.whole() if isinstance(kind, int) else _number(one)
    if "deadline_seconds" not in read:
        # The question stays open as long as the release may take.
        taken = sum(getattr(step, "deadline_seconds", 0.0) + (getattr(step, "seconds", 0.0) or 0.0) for step in steps)
        read["deadline_seconds"] = max(_PLAIN_VERDICT.deadline_seconds, taken)
    try:
        return VerdictPolicy(**read)
    except ValueError as error:
        assert value is not None
        value.fail(f"verdict: {error}")


def _blessing(value: Value, under: Value | None) -> BlessingPolicy | None:
    if isinstance(value.node, yaml.ScalarNode):
        if value.text() != "none":
            value.fail("blessing is a mapping such as `{max_seconds: 50ms}`, or `none`")
        return None
    known = tuple(field.name for field in fields(BlessingPolicy))
    given: dict[str, Value] = {}
    if under is not None and under is not value and isinstance(under.node, yaml.MappingNode):
        given |= under.fields(known)
    given |= value.fields(known)
    plain = BlessingPolicy()
    require = plain.require
    if "require" in given:
        require = tuple(given["require"].each(_check))
    found = BlessingPolicy(
        require=require,
        max_seconds=given["max_seconds"].read(_duration) if "max_seconds" in given else None,
        max_bytes=_number(given["max_bytes"]) if "max_bytes" in given else None,
        skew_tolerance=_number(given["skew_tolerance"]) if "skew_tolerance" in given else plain.skew_tolerance,
    )
    for check, limit in ((BlessingCheck.LATENCY, "max_seconds"), (BlessingCheck.MEMORY, "max_bytes")):
        if check in found.require and getattr(found, limit) is None:
            value.fail(f"{check.value} is required, and there is no limit: give `{limit}`")
    return found


def _check(value: Value) -> BlessingCheck:
    return BlessingCheck(_word(value, tuple(BlessingCheck)))


def _fields(value: Value, kind: type) -> dict[str, Value]:
    known = tuple(field.name for field in fields(kind))
    return {} if value.is_null else value.fields(known)


def _evidence(given: Mapping[str, Value], requests: int) -> dict[str, Any]:
    e_value = _number(given["min_e_value"]) if "min_e_value" in given else None
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
    then = _word(given["on_deadline"], ("hold", "rollback", "advance")) if "on_deadline" in given else "hold"
    return {"min_seconds": least, "deadline_seconds": deadline, "on_deadline": then}


def _share(given: Mapping[str, Value], name: str, default: float) -> float:
    if name not in given:
        return default
    share = _number(given[name])
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
    return given[name].read(_duration) if name in given else default


def _duration(text: str) -> float:
    """Seconds of a number, or of a duration such as `5m`. Raises ValueError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = parse_duration(text)
    if not 0.0 <= seconds < math.inf:
        raise ValueError(f"{text!r} is no duration; give seconds, or a duration such as 5m")
    return seconds


def _number(value: Value) -> float:
    def parse(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError("not finite")
        return number

    return value.read(parse, f"{value.what} must be a number, got {value.text()!r}")


def _word(value: Value, words: tuple[str, ...]) -> str:
    word = value.text()
    if word not in words:
        value.fail(f"{value.what} is {word!r}; give one of {', '.join(words)}")
    return word


def _plain(node: yaml.Node) -> Any:
    """A node as JSON, scalars as the texts that stand in the file: reading them again gives the same."""
    if is_null(node):
        return None
    if isinstance(node, yaml.MappingNode):
        return {key.value: _plain(value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    return str(node.value)
