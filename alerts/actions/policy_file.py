"""Policies of actions as a YAML file: for each action, and for an action of one model, which goes first.

```yaml
version: "2026-11-22"
actions:
  rollback: {mode: auto, cooldown_seconds: 5m, budget_per_hour: 6}
  promote: {mode: approve}
models:
  flights:
    rollback: {mode: approve, dry_run: true}
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from alerts.actions.action import KINDS
from alerts.actions.policy import ActionPolicy
from alerts.durations import parse_duration

_TYPES: dict[str, type] = {one.name: type(getattr(ActionPolicy(), one.name)) for one in fields(ActionPolicy)}
_SECONDS = tuple(name for name in _TYPES if name.endswith("_seconds"))


class PolicyError(ValueError):
    """A policy file that cannot be used; the message names the file and the field."""


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """`policies` are keyed by action, or by `action:model`; `version` is what the file calls itself."""

    version: str = ""
    policies: Mapping[str, ActionPolicy] = field(default_factory=dict)


def load_policies(path: str | Path, defaults: Mapping[str, ActionPolicy] | None = None) -> PolicyFile:
    """The policies of a file, over `defaults` for what it does not name. Raises PolicyError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return read_policies(text, defaults)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from None


def read_policies(text: str, defaults: Mapping[str, ActionPolicy] | None = None) -> PolicyFile:
    """The policies of a file's text. Raises PolicyError."""
    try:
        body = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PolicyError(f"is not YAML: {error}") from None
    body = _table(body if body is not None else {}, "the file", ("version", "actions", "models"))
    known = dict(defaults or {})
    for name, given in _table(body.get("actions") or {}, "actions", KINDS).items():
        known[name] = _policy(given, f"actions.{name}", known.get(name) or ActionPolicy())
    for model, actions in _table(body.get("models") or {}, "models").items():
        for name, given in _table(actions or {}, f"models.{model}", KINDS).items():
            base = known.get(f"{name}:{model}") or known.get(name) or ActionPolicy()
            known[f"{name}:{model}"] = _policy(given, f"models.{model}.{name}", base)
    return PolicyFile("" if body.get("version") is None else str(body["version"]), known)


def _policy(given: Any, where: str, base: ActionPolicy) -> ActionPolicy:
    table = _table(given or {}, where, tuple(_TYPES))
    try:
        return replace(base, **{name: _value(name, value, f"{where}.{name}") for name, value in table.items()})
    except PolicyError:
        raise
    except ValueError as error:
        raise PolicyError(f"{where}: {error}") from None


def _value(name: str, value: Any, where: str) -> Any:
    if name in _SECONDS and isinstance(value, str):
        try:
            return parse_duration(value)
        except ValueError as error:
            raise PolicyError(f"{where}: {error}") from None
    kind = _TYPES[name]
    right = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not right or (isinstance(value, bool) and kind is not bool):
        wanted = "seconds, or a duration such as 5m" if name in _SECONDS else kind.__name__
        raise PolicyError(f"{where} is {value!r}; give {wanted}")
    return kind(value)


def _table(value: Any, where: str, known: tuple[str, ...] = ()) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise PolicyError(f"{where} is {type(value).__name__}; give a mapping of names")
    for name in value:
        if not isinstance(name, str) or (known and name not in known):
            raise PolicyError(f"{where} has the unknown field {name!r}; there are {', '.join(known) or 'only texts'}")
    return value
