"""Relabelling: the rules that rewrite, keep or drop label sets of targets and of samples, as Prometheus has them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from collectors.store.regex import compile_go

Action = Literal[
    "replace", "keep", "drop", "keepequal", "dropequal", "hashmod", "labelmap", "labeldrop", "labelkeep", "lowercase",
    "uppercase",
]  # fmt: skip
ACTIONS: tuple[str, ...] = get_args(Action)
DEFAULT_REGEX, DEFAULT_SEPARATOR, DEFAULT_REPLACEMENT = "(.*)", ";", "$1"
_NEEDS_TARGET = ("replace", "hashmod", "lowercase", "uppercase", "keepequal", "dropequal")
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_TARGET_TEMPLATE = re.compile(r"(?:(?:[a-zA-Z_]|\$(?:\{\w+\}|\w+))+\w*)+", re.ASCII)
_REFERENCE = re.compile(r"\$(?:(\$)|\{(\w+)\}|(\w+))", re.ASCII)


class BadRule(ValueError):
    """A relabelling rule that cannot be; the message says which field and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelabelRule:
    """One rule of `relabel_configs` or `metric_relabel_configs`; the fields are those of Prometheus' `relabel_config`.

    BadRule for what Prometheus refuses (model/relabel/relabel.go, `Validate`).
    """

    action: Action = "replace"
    source_labels: tuple[str, ...] = ()
    separator: str = DEFAULT_SEPARATOR
    regex: str = DEFAULT_REGEX
    modulus: int = 0
    target_label: str = ""
    replacement: str = DEFAULT_REPLACEMENT
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "_pattern", compile_go(self.regex))
        except ValueError as error:
            raise BadRule(f"regex: {error}") from error
        reason = self._refusal()
        if reason:
            raise BadRule(reason)

    @property
    def pattern(self) -> re.Pattern[str]:
        """The compiled regular expression; a value matches it as a whole."""
        return self._pattern

    def _refusal(self) -> str | None:
        action, target = self.action, self.target_label
        if action not in ACTIONS:
            return f"unknown relabel action {action!r}: there are {', '.join(ACTIONS)}"
        if action == "hashmod" and self.modulus == 0:
            return "relabel configuration for hashmod requires non-zero modulus"
        if action in _NEEDS_TARGET and not target:
            return f"relabel configuration for {action} action requires 'target_label' value"
        if action == "replace" and "$" in target:
            named = _TARGET_TEMPLATE.fullmatch(target) is not None
        else:
            named = action not in _NEEDS_TARGET or is_label_name(target)
        if not named:
            return f"{target!r} is invalid 'target_label' for {action} action"
        if action in ("lowercase", "uppercase", "keepequal", "dropequal") and self.replacement != DEFAULT_REPLACEMENT:
            return f"'replacement' can not be set for {action} action"
        if action == "labelmap" and not _TARGET_TEMPLATE.fullmatch(self.replacement):
            return f"{self.replacement!r} is invalid 'replacement' for labelmap action"
        return self._superfluous()

    def _superfluous(self) -> str | None:
        """Fields that an action does not read, and that Prometheus therefore refuses."""
        plain = (self.modulus, self.separator, self.replacement) == (0, DEFAULT_SEPARATOR, DEFAULT_REPLACEMENT)
        if self.action in ("keepequal", "dropequal") and (not plain or self.regex != DEFAULT_REGEX):
            return f"{self.action} action requires only 'source_labels' and `target_label`, and no other fields"
        if self.action in ("labeldrop", "labelkeep") and (not plain or self.source_labels or self.target_label):
            return f"{self.action} action requires only 'regex', and no other fields"
        return None


def relabelled(labels: Mapping[str, str], rules: Sequence[RelabelRule]) -> dict[str, str] | None:
    """The label set after all rules in order, without empty values; None when a rule drops it."""
    current = {name: value for name, value in labels.items() if value}
    for rule in rules:
        if not _apply(rule, current):
            return None
    return current


def is_label_name(name: str) -> bool:
    """Whether this may be the name of a label."""
    return _LABEL_NAME.fullmatch(name) is not None


def _apply(rule: RelabelRule, labels: dict[str, str]) -> bool:
    """Applies one rule in place; False when it drops the label set."""
    text = rule.separator.join(labels.get(name, "") for name in rule.source_labels)
    match rule.action:
        case "keep":
            return rule.pattern.fullmatch(text) is not None
        case "drop":
            return rule.pattern.fullmatch(text) is None
        case "keepequal":
            return labels.get(rule.target_label, "") == text
        case "dropequal":
            return labels.get(rule.target_label, "") != text
        case "replace":
            _replace(rule, text, labels)
        case "lowercase":
            _set(labels, rule.target_label, _cased(text, str.lower))
        case "uppercase":
            _set(labels, rule.target_label, _cased(text, str.upper))
        case "hashmod":
            _set(labels, rule.target_label, str(hash_of(text) % rule.modulus))
        case "labelmap":
            _map_names(rule, labels)
        case "labeldrop":
            _remove(labels, [name for name in labels if rule.pattern.fullmatch(name)])
        case "labelkeep":
            _remove(labels, [name for name in labels if not rule.pattern.fullmatch(name)])
    return True


def hash_of(text: str) -> int:
    """The hash of `hashmod`: the last eight bytes of the MD5, as an unsigned big-endian number."""
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[8:], "big")


def expanded(template: str, match: re.Match[str]) -> str:
    """A template as Go's `Expand` fills it: `$1`, `$name`, `${1}`, `$$`; a group that is not there is empty.

    A name is as long as it can be: `$1x` is the group `1x`. A `$` that begins no reference stays.
    """

    def filled(reference: re.Match[str]) -> str:
        return "$" if reference[1] else _group(match, reference[2] or reference[3])

    return _REFERENCE.sub(filled, template) if "$" in template else template


def _group(match: re.Match[str], name: str) -> str:
    if name.isdigit() and (name == "0" or name[0] != "0"):
        return (match[int(name)] or "") if int(name) <= match.re.groups else ""
    return (match[name] or "") if name in match.re.groupindex else ""


def _replace(rule: RelabelRule, text: str, labels: dict[str, str]) -> None:
    match = rule.pattern.fullmatch(text)
    if match is None:
        return
    target = expanded(rule.target_label, match)
    if is_label_name(target):
        _set(labels, target, expanded(rule.replacement, match))


def _map_names(rule: RelabelRule, labels: dict[str, str]) -> None:
    for name, value in sorted(labels.items()):
        match = rule.pattern.fullmatch(name)
        if match is not None:
            _set(labels, expanded(rule.replacement, match), value)


def _cased(text: str, change: Callable[[str], str]) -> str:
    """Every letter by itself, as Go does it: a letter whose other case is several letters stays."""
    if text.isascii():
        return change(text)
    return "".join(other if len(other := change(letter)) == 1 else letter for letter in text)


def _set(labels: dict[str, str], name: str, value: str) -> None:
    if value:
        labels[name] = value
    else:
        labels.pop(name, None)


def _remove(labels: dict[str, str], names: Iterable[str]) -> None:
    for name in names:
        del labels[name]
