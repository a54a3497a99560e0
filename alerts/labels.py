"""Label sets as sorted tuples of pairs, their fingerprint, and matchers over them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from collectors.store.regex import compile_go

Labels = tuple[tuple[str, str], ...]

LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*\Z")
METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_MATCHER = re.compile(
    r"""\s*(?P<name>[a-zA-Z_][a-zA-Z0-9_]*)\s*(?P<op>=~|!~|!=|=)\s*(?P<value>"(?:[^"\\]|\\.)*"|[^",}]*?)\s*\Z"""
)
_ESCAPES = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}


def labels_of(pairs: Mapping[str, str] | Iterable[tuple[str, str]]) -> Labels:
    """The label set of a mapping. Empty values are dropped: to Prometheus they are absent labels."""
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    return tuple(sorted((name, value) for name, value in items if value != ""))


def fingerprint(labels: Labels) -> str:
    """Alertmanager's fingerprint of a label set: 64-bit FNV-1a, 16 hex digits."""
    digest = 0xCBF29CE484222325
    for name, value in labels:
        for byte in name.encode() + b"\xff" + value.encode() + b"\xff":
            digest = ((digest ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{digest:016x}"


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on a label: `=`, `!=`, `=~` or `!~` (anchored). A missing label has the value ""."""

    name: str
    op: str
    value: str
    _pattern: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.op not in ("=", "!=", "=~", "!~"):
            raise ValueError(f"unknown matcher operator {self.op!r}; use =, !=, =~ or !~")
        if not LABEL_NAME.match(self.name):
            raise ValueError(f"{self.name!r} is not a label name")
        try:
            pattern = compile_go(self.value) if self.op.endswith("~") else None
        except ValueError as error:
            raise ValueError(f"bad regular expression {self.value!r} for label {self.name}: {error}") from error
        object.__setattr__(self, "_pattern", pattern)

    def matches(self, labels: Labels) -> bool:
        """Whether the label set meets the condition."""
        value = next((text for name, text in labels if name == self.name), "")
        same = self._pattern.fullmatch(value) is not None if self._pattern else value == self.value
        return same != self.op.startswith("!")

    @property
    def matches_empty(self) -> bool:
        """Whether a label set without the label meets the condition."""
        return self.matches(())

    def __str__(self) -> str:
        escaped = self.value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'{self.name}{self.op}"{escaped}"'


def parse_matcher(text: str) -> Matcher:
    """A matcher from `name="value"`, `name=~value` and so on. Raises ValueError that shows the text."""
    found = _MATCHER.match(text)
    if found is None:
        raise ValueError(f'cannot read the matcher {text!r}; write it as name="value"')
    value = found["value"]
    if value.startswith('"'):
        value = re.sub(r'\\[n"\\]', lambda escape: _ESCAPES[escape[0]], value[1:-1])
    return Matcher(found["name"], found["op"], value)


def match_all(matchers: Iterable[Matcher], labels: Labels) -> bool:
    """Whether the label set meets every condition."""
    return all(matcher.matches(labels) for matcher in matchers)
