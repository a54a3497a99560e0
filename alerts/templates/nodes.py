"""The parsed form of a Go template. `str` of a node is its source as Go writes it in errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alerts.templates.values import Value


@dataclass(frozen=True, slots=True)
class Node:
    """A piece of a template and where it begins, in characters."""

    position: int


@dataclass(frozen=True, slots=True)
class Literal(Node):
    """A number, a string, true or false, with its source."""

    source: str
    value: Value

    def __str__(self) -> str:
        return self.source


@dataclass(frozen=True, slots=True)
class Nil(Node):
    """`nil`."""

    def __str__(self) -> str:
        return "nil"


@dataclass(frozen=True, slots=True)
class Dot(Node):
    """`.`"""

    def __str__(self) -> str:
        return "."


@dataclass(frozen=True, slots=True)
class Identifier(Node):
    """A function's name."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Variable(Node):
    """`$name.Field.Field`; the first name holds the `$`."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(self.names)


@dataclass(frozen=True, slots=True)
class Field(Node):
    """`.Field.Field`"""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return "".join(f".{name}" for name in self.names)


@dataclass(frozen=True, slots=True)
class Chain(Node):
    """`(pipeline).Field.Field`"""

    node: Node
    names: tuple[str, ...]

    def __str__(self) -> str:
        inner = f"({self.node})" if isinstance(self.node, Pipe) else str(self.node)
        return inner + "".join(f".{name}" for name in self.names)


@dataclass(frozen=True, slots=True)
class Command(Node):
    """An operand or function with its arguments."""

    arguments: tuple[Node, ...]

    def __str__(self) -> str:
        return " ".join(f"({part})" if isinstance(part, Pipe) else str(part) for part in self.arguments)


@dataclass(frozen=True, slots=True)
class Pipe(Node):
    """Commands, each given what the one before it made; `declared` are the variables that the last value goes to."""

    declared: tuple[str, ...]
    assigns: bool
    commands: tuple[Command, ...]

    def __str__(self) -> str:
        sink = f"{', '.join(self.declared)} := " if self.declared else ""
        return sink + " | ".join(map(str, self.commands))


@dataclass(frozen=True, slots=True)
class Text(Node):
    """Text that stands for itself."""

    text: str


@dataclass(frozen=True, slots=True)
class Action(Node):
    """`{{pipeline}}`"""

    pipe: Pipe

    def __str__(self) -> str:
        return f"{{{{{self.pipe}}}}}"


@dataclass(frozen=True, slots=True)
class Branch(Node):
    """`if`, `with` (which moves the dot) or `range`."""

    kind: str
    pipe: Pipe
    body: Sequence[Node]
    otherwise: Sequence[Node]


@dataclass(frozen=True, slots=True)
class TemplateCall(Node):
    """`{{template "name" pipeline}}`"""

    name: str
    pipe: Pipe | None

    def __str__(self) -> str:
        return f'{{{{template "{self.name}"{f" {self.pipe}" if self.pipe else ""}}}}}'


@dataclass(frozen=True, slots=True)
class Leave(Node):
    """`{{break}}` or `{{continue}}`."""

    kind: str

    def __str__(self) -> str:
        return f"{{{{{self.kind}}}}}"
