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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from alerts.evidence import VerdictPolicy
from alerts.notifications import ConfigurationError
from alerts.notifications.configuration import read_interval
from alerts.notifications.yaml_reader import Value
from alerts.releases.policy import (
    AfterPromotion,
    BlessingCheck,
    BlessingPolicy,
    ReleasePolicy,
    ShadowStep,
    Step,
)
from alerts.releases.step_file import check_order, duration, number_of, read_after_promotion, read_step, word_of
from alerts.yaml_nodes import Problem, YamlFile, is_null

T = TypeVar("T")
_SECTIONS = ("steps", "on_failure", "sticky", "blessing", "verdict", "after_promotion", "freeze")


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
    steps = tuple(own["steps"].each(read_step)) if "steps" in own else ()
    if "steps" in own:
        own["steps"].attempt(lambda value: check_order(value, steps), None)
    verdict: VerdictPolicy | None = None
    if "verdict" in own:
        verdict = own["verdict"].attempt(lambda v: _verdict(v, both["verdict"][0], steps), None)
    else:
        verdict = _verdict(None, None, steps)
    if verdict is not None and not verdict.loss and "steps" in own:
        own["steps"].attempt(lambda value: _check_labels(value, steps), None)
    blessing: BlessingPolicy | None = BlessingPolicy()
    if "blessing" in own:
        blessing = own["blessing"].attempt(lambda v: _blessing(v, both["blessing"][0]), None)
    failure = "rollback"
    if "on_failure" in own:
        failure = own["on_failure"].attempt(lambda v: word_of(v, ("rollback", "hold")), failure)
    return ReleasePolicy(
        steps=steps,
        on_failure=failure,  # type: ignore[arg-type]
        sticky=own["sticky"].attempt(Value.text, "") if "sticky" in own else "",
        blessing=blessing,
        verdict=verdict or VerdictPolicy(),
        after_promotion=own["after_promotion"].attempt(_after_promotion(steps), None)
        if "after_promotion" in own
        else None,
        freeze=tuple(own["freeze"].each(read_interval)) if "freeze" in own else (),
        text=json.dumps(raw, sort_keys=True),
    )


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
            read[name] = {check: number_of(share) for check, share in one.entries()}
        elif isinstance(kind, bool):
            read[name] = one.flag()
        elif isinstance(kind, str):
            read[name] = one.text()
        elif name.endswith("_seconds"):
            read[name] = one.read(duration)
        else:
            read[name] = one.whole() if isinstance(kind, int) else number_of(one)
    if "deadline_seconds" not in read:
        # The question stays open as long as the release may take.
        taken = sum(getattr(step, "deadline_seconds", 0.0) + (getattr(step, "seconds", 0.0) or 0.0) for step in steps)
        read["deadline_seconds"] = max(_PLAIN_VERDICT.deadline_seconds, taken)
    try:
        return VerdictPolicy(**read)
    except ValueError as error:
        assert value is not None
        value.fail(f"verdict: {error}")


def _check_labels(value: Value, steps: tuple[Step, ...]) -> None:
    if any(isinstance(step, ShadowStep) and step.min_labels for step in steps):
        value.fail("min_labels asks for labels, and nothing says how they are judged: give `verdict: {loss: zero-one}`")


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
        max_seconds=given["max_seconds"].read(duration) if "max_seconds" in given else None,
        max_bytes=number_of(given["max_bytes"]) if "max_bytes" in given else None,
        skew_tolerance=number_of(given["skew_tolerance"]) if "skew_tolerance" in given else plain.skew_tolerance,
    )
    for check, limit in ((BlessingCheck.LATENCY, "max_seconds"), (BlessingCheck.MEMORY, "max_bytes")):
        if check in found.require and getattr(found, limit) is None:
            value.fail(f"{check.value} is required, and there is no limit: give `{limit}`")
    return found


def _after_promotion(steps: tuple[Step, ...]) -> Callable[[Value], AfterPromotion | None]:
    def read(value: Value) -> AfterPromotion | None:
        return read_after_promotion(value, steps)

    return read


def _check(value: Value) -> BlessingCheck:
    return BlessingCheck(word_of(value, tuple(BlessingCheck)))


def _plain(node: yaml.Node) -> Any:
    """A node as JSON, scalars as the texts that stand in the file: reading them again gives the same."""
    if is_null(node):
        return None
    if isinstance(node, yaml.MappingNode):
        return {key.value: _plain(value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    return str(node.value)
