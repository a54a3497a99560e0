"""Strict reading of YAML: unknown fields and values of the wrong kind are errors that name file and line."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NoReturn, TypeVar

import yaml

from alerts.rules import parse_duration

T = TypeVar("T")

_TRUE = frozenset(("y", "yes", "true", "on"))
_FALSE = frozenset(("n", "no", "false", "off"))


class ConfigurationError(ValueError):
    """A configuration that cannot be used; the message names the file and, where there is one, the line."""


class Value:
    """A node of a YAML file. `what` is its name in messages; every method raises ConfigurationError."""

    def __init__(self, node: yaml.Node, path: str, what: str) -> None:
        self.node = node
        self.path = path
        self.what = what

    @property
    def is_null(self) -> bool:
        """Whether nothing stands there, or `null`."""
        return isinstance(self.node, yaml.ScalarNode) and self.node.tag == "tag:yaml.org,2002:null"

    def fail(self, message: str) -> NoReturn:
        """Raise an error at this place."""
        raise ConfigurationError(f"{self.path}:{self.node.start_mark.line + 1}: {message}")

    def entries(self) -> list[tuple[str, Value]]:
        """The fields of a mapping, in order; none of a null."""
        if self.is_null:
            return []
        if not isinstance(self.node, yaml.MappingNode):
            self.fail(f"{self.what} must be a mapping")
        yaml.SafeLoader("").flatten_mapping(self.node)
        found: dict[str, Value] = {}
        for key, node in self.node.value:
            name = str(key.value)
            if name in found:
                Value(key, self.path, self.what).fail(f"{self.what} has the field {name} twice")
            found[name] = Value(node, self.path, name)
        return list(found.items())

    def fields(self, known: Collection[str], unsupported: Collection[str] = ()) -> dict[str, Value]:
        """The fields of a mapping that may have `known` ones only; those that are null count as absent."""
        found = self.entries()
        for name, value in found:
            if name in unsupported:
                value.fail(f"{self.what}: {name} is a field of Alertmanager that is not supported here; leave it out")
            if name not in known:
                value.fail(f"{self.what} has no field {name}; it may have {', '.join(sorted(known))}")
        return {name: value for name, value in found if not value.is_null}

    def items(self) -> list[Value]:
        """The items of a list; none of a null."""
        if self.is_null:
            return []
        if not isinstance(self.node, yaml.SequenceNode):
            self.fail(f"{self.what} must be a list")
        return [Value(node, self.path, self.what) for node in self.node.value]

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
    try:
        node = next(iter(yaml.compose_all(text, Loader=yaml.SafeLoader)), None)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigurationError(f"{path}:{line}: not valid YAML: {error.problem or error}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}:1: not valid YAML: {error}") from error
    if node is None:
        raise ConfigurationError(f"{path}:1: the file is empty; it needs a route and receivers")
    return Value(node, path, "the configuration")


def plain(value: Value) -> Any:
    """The value as Python's own lists, dictionaries and scalars."""
    return yaml.safe_load(yaml.serialize(value.node))
