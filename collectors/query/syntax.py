"""PromQL as a tree of frozen, hashable nodes: what the evaluator reads. Durations and times are milliseconds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from collectors.store import Matcher

# The `@` modifier: a time in ms, or the start or end of the whole query.
At = int | Literal["start", "end"]
Cardinality = Literal["one-to-one", "many-to-one", "one-to-many", "many-to-many"]


@dataclass(frozen=True, slots=True)
class Number:
    """A number, or a duration in seconds. `sign` tells 0 from -0, which are equal but not the same divisor."""

    value: float
    sign: float = field(init=False, repr=False, default=1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sign", math.copysign(1.0, self.value))


@dataclass(frozen=True, slots=True)
class Text:
    """A string literal."""

    value: str


@dataclass(frozen=True, slots=True)
class Selector:
    """Series at one moment. The metric name is a matcher on `__name__`."""

    matchers: tuple[Matcher, ...]
    offset_ms: int = 0
    at: At | None = None


@dataclass(frozen=True, slots=True)
class RangeSelector:
    """Series over a range: `selector[range]`."""

    selector: Selector
    range_ms: int


@dataclass(frozen=True, slots=True)
class Subquery:
    """An expression over a range: `expr[range:step]`; without a step the engine's default holds."""

    expr: Node
    range_ms: int
    step_ms: int | None
    offset_ms: int = 0
    at: At | None = None


@dataclass(frozen=True, slots=True)
class Negation:
    """`-expr`."""

    expr: Node


@dataclass(frozen=True, slots=True)
class Matching:
    """How the sides of a binary operator find each other. `include` are the labels of group_left or group_right."""

    cardinality: Cardinality
    on: bool
    labels: tuple[str, ...]
    include: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Binary:
    """`left op right`."""

    op: str
    left: Node
    right: Node
    matching: Matching
    return_bool: bool = False


@dataclass(frozen=True, slots=True)
class Aggregate:
    """`op by|without (labels) (param, expr)`."""

    op: str
    expr: Node
    param: Node | None
    labels: tuple[str, ...]
    without: bool


@dataclass(frozen=True, slots=True)
class Call:
    """`name(args)`."""

    name: str
    args: tuple[Node, ...]


Node = Number | Text | Selector | RangeSelector | Subquery | Negation | Binary | Aggregate | Call
