"""A label matcher: `name = "value"`, `!=`, `=~`, `!~`, with Prometheus' meaning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from collectors.store.regex import compile_go

MatchOp = Literal["=", "!=", "=~", "!~"]


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on a label. A label that a series lacks is the empty string; a regex must match the whole value.

    Raises ValueError for an unknown operator or a pattern that does not compile.
    """

    name: str
    op: MatchOp
    value: str
    _regex: re.Pattern[str] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.op not in get_args(MatchOp):
            raise ValueError(f"unknown matcher operator {self.op!r}; use one of =, !=, =~, !~")
        if self.op in ("=~", "!~"):
            try:
                compiled = compile_go(self.value)
            except ValueError as error:
                raise ValueError(f"bad regular expression for label {self.name!r}: {error}") from error
            object.__setattr__(self, "_regex", compiled)

    def matches(self, value: str) -> bool:
        """Whether a label value meets the condition."""
        if self._regex is None:
            return (value == self.value) == (self.op == "=")
        return (self._regex.fullmatch(value) is not None) == (self.op == "=~")

    def matches_labels(self, labels: Mapping[str, str]) -> bool:
        """Whether a label set meets the condition."""
        return self.matches(labels.get(self.name, ""))

    def __str__(self) -> str:
        escaped = self.value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'{self.name}{self.op}"{escaped}"'
