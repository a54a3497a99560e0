"""What a configuration file says at one place: fields, items, texts, numbers, each complaint with line and column.

A value that is wrong ends the reading of the item that it belongs to, by an error; `attempt` and `each` note it with
the file's problems, and the rest is read on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NoReturn, TypeVar

import yaml

from alerts.durations import parse_duration
from alerts.yaml_nodes import Problem, YamlFile, is_null

T = TypeVar("T")

_TRUE = frozenset(("y", "yes", "true", "on"))
_FALSE = frozenset(("n", "no", "false", "off"))


class ConfigurationError(ValueError):
    """A configuration that cannot be used; `problems` says why, each with file, line and column."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class Value:
    """A node of a file. `what` is its name in complaints; methods raise ConfigurationError, or note what is wrong."""

    def __init__(self, node: yaml.Node, file: YamlFile, what: str) -> None:
        self.node = node
        self.file = file
        self.what = what

    @property
    def is_null(self) -> bool:
        """Whether nothing stands there, or `null`."""
        return is_null(self.node)

    def fail(self, message: str) -> NoReturn:
        """Raise an error at this place."""
        mark = self.node.start_mark
        raise ConfigurationError([Problem(self.file.path, mark.line + 1, "error", message, mark.column + 1)])

    def attempt(self, read: Callable[[Value], T], default: T) -> T:
        """What `read` makes of the value; what is wrong with it is noted, and the default taken in its place."""
        try:
            return read(self)
        except ConfigurationError as error:
            self.file.problems += error.problems
            return default

    def each(self, read: Callable[[Value], T]) -> list[T]:
        """What `read` makes of each item of a list; what is wrong with one is noted, and it is left out."""
        found = []
        for item in self.items():
            try:
                found.append(read(item))
            except ConfigurationError as error:
                self.file.problems += error.problems
        return found

    def entries(self) -> list[tuple[str, Value]]:
        """The fields of a mapping, in order; none of a null. One that is there twice is noted."""
        pairs = self.file.mapping(self.node, self.what).items()
        return [(name, Value(node, self.file, name)) for name, (_, node) in pairs]

    def fields(self, known: Collection[str], unsupported: Collection[str] = ()) -> dict[str, Value]:
        """The fields of a mapping that may have `known` ones only; null ones count as absent, others are noted."""
        found = {}
        for name, (key, node) in self.file.mapping(self.node, self.what).items():
            if name in unsupported:
                message = f"{self.what}: {name} is a field of Alertmanager that is not supported here; leave it out"
                self.file.report(key, message)
            elif name not in known:
                self.file.report(key, f"{self.what} has no field {name}; it may have {', '.join(sorted(known))}")
            elif not is_null(node):
                found[name] = Value(node, self.file, name)
        return found

    def items(self) -> list[Value]:
        """The items of a list; none of a null. What is no list is noted."""
        return [Value(node, self.file, self.what) for node in self.file.items(self.node, self.what)]

    def text(self) -> str:
        """A text; numbers are taken as they are written, as Go takes them."""
        if not isinstance(self.node, yaml.ScalarNode):
            self.fail(f"{self.what} must be text")
        return "" if self.is_null else str(self.node.value)

    def texts(self) -> list[str]:
        """A list of texts."""
        return [item.text() for item in self.items()]

    def mapping(self) -> dict[str, str]:
        """A mapping of texts to texts."""
        return {name: value.text() for name, value in self.entries()}

    def flag(self) -> bool:
        """True or false."""
        word = self.text().lower()
        if word not in _TRUE | _FALSE:
            self.fail(f"{self.what} must be true or false, got {word!r}")
        return word in _TRUE

    def whole(self) -> int:
        """A whole number."""
        return self.read(int, f"{self.what} must be a whole number, got {self.text()!r}")

    def seconds(self) -> float:
        """A duration such as `5m`."""
        return self.read(parse_duration)

    def read(self, parse: Callable[[str], T], message: str = "") -> T:
        """The text as `parse` understands it; its ValueError becomes an error at this place."""
        try:
            return parse(self.text())
        except ConfigurationError:
            raise
        except ValueError as error:
            self.fail(message or f"{self.what}: {error}")

    def one_of(self, *fields: Value | None) -> None:
        """At most one of these fields may be there."""
        there = [field for field in fields if field is not None]
        if len(there) > 1:
            there[1].fail(f"at most one of {' & '.join(field.what for field in there)} must be configured")


def read_yaml(text: str, path: str) -> Value:
    """The first document of a YAML text. Raises ConfigurationError."""
    file = YamlFile(path, text=text)
    node = file.root()
    if node is None:
        raise ConfigurationError(
            [problem for problem in file.problems if problem.severity == "error"]
            or [Problem(path, 1, "error", "the file is empty; it needs a route and receivers", 1)]
        )
    return Value(node, file, "the configuration")
