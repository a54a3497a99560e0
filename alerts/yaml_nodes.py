"""Strict reading of YAML: every complaint has a line and a column, and reading goes on after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import yaml

from alerts.durations import parse_duration

_MERGE = "tag:yaml.org,2002:merge"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times faster, and not everywhere
_NULL = "tag:yaml.org,2002:null"

Value = TypeVar("Value")
Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong (`error`) or unwise (`warning`) in a file. Lines and columns count from 1; 0 is all of it."""

    path: str
    line: int
    severity: Severity
    message: str
    column: int = 0

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}:{self.column}" if self.column else f"{self.path}:{self.line}"
        return f"{place}: {self.severity}: {self.message}"


class YamlFile:
    """One file on its way in: collects problems instead of stopping at the first."""

    def __init__(self, path: str | Path, *, strict: bool = True, text: str | None = None) -> None:
        """With `text` the file's text is known already, and the path is its name in complaints."""
        self.path = str(path)
        self.problems: list[Problem] = []
        self._strict = strict
        self._text = text

    def root(self) -> yaml.Node | None:
        """The first document, which like Prometheus is the only one that counts."""
        documents = self.documents()
        first, second = next(documents, None), next(documents, None)
        if second is not None:
            self.report(second, "only the first document of a file counts; move this one to its own", "warning")
        return None if is_null(first) else first

    def documents(self) -> Iterator[yaml.Node]:
        """The documents, up to what is not YAML; what cannot be read is reported."""
        try:
            text = Path(self.path).read_text(encoding="utf-8") if self._text is None else self._text
            yield from yaml.compose_all(text, Loader=_LOADER)
        except OSError as error:
            self._add(0, 0, f"cannot read the file: {error.strerror or error}", "error")
        except UnicodeDecodeError as error:
            self._add(0, 0, f"the file is not UTF-8: {error}", "error")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            self._add(*((mark.line + 1, mark.column + 1) if mark else (0, 0)), f"not YAML: {error.problem}", "error")
        except yaml.reader.ReaderError as error:
            self._add(0, 0, f"not YAML: {error.reason}", "error")

    def report(self, node: yaml.Node, message: str, severity: Severity = "error") -> None:
        """Note a problem at a node."""
        self._add(node.start_mark.line + 1, node.start_mark.column + 1, message, severity)

    def fields(self, node: yaml.Node, what: str, allowed: Sequence[str]) -> dict[str, yaml.Node]:
        """The fields of a mapping; unknown and repeated ones are reported."""
        known = self.mapping(node, what)
        if self._strict:
            for name, (key, _) in known.items():
                if name not in allowed:
                    self.report(key, f"unknown field {name!r} in {what}; known are {', '.join(allowed)}")
        return {name: value for name, (_, value) in known.items() if name in allowed}

    def mapping(self, node: yaml.Node | None, what: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Keys and values by name, what `<<` merges among them."""
        if node is None or is_null(node):
            return {}
        if not isinstance(node, yaml.MappingNode):
            self.report(node, f"{what} must be a mapping")
            return {}
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for part in parts:
                    merged = {**self.mapping(part, what), **merged}
            elif not isinstance(key, yaml.ScalarNode):
                self.report(key, f"a field's name in {what} must be text")
            elif key.value in own:
                self.report(key, f"field {key.value!r} appears twice in {what}")
            else:
                own[key.value] = (key, value)
        return {**merged, **own}

    def items(self, node: yaml.Node | None, what: str) -> list[yaml.Node]:
        """The items of a list."""
        if node is None or is_null(node):
            return []
        if not isinstance(node, yaml.SequenceNode):
            self.report(node, f"{what} must be a list")
            return []
        return list(node.value)

    def text(self, node: yaml.Node | None, what: str) -> str:
        """A scalar's text as it stands in the file; "" for none."""
        if node is None or is_null(node):
            return ""
        if not isinstance(node, yaml.ScalarNode):
            self.report(node, f"{what} must be text")
            return ""
        return str(node.value)

    def duration(self, node: yaml.Node | None, what: str) -> float:
        """Seconds; 0 for none."""
        return self.value(node, what, parse_duration, 0.0)

    def value(self, node: yaml.Node | None, what: str, read: Callable[[str], Value], default: Value) -> Value:
        """What `read` makes of a scalar's text; its ValueError is reported."""
        text = self.text(node, what)
        if node is None or not text:
            return default
        try:
            return read(text)
        except ValueError as error:
            self.report(node, f"{what}: {error}")
            return default

    def texts(self, node: yaml.Node | None, what: str) -> Iterator[tuple[yaml.Node, yaml.Node, str, str]]:
        """Key node, value node, name and text of a mapping of names to text."""
        for name, (key, value) in self.mapping(node, what).items():
            yield key, value, name, self.text(value, f"{what} {name!r}")

    def _add(self, line: int, column: int, message: str, severity: Severity) -> None:
        self.problems.append(Problem(self.path, line, severity, message, column))


def is_null(node: yaml.Node | None) -> bool:
    """Whether a node is absent or null."""
    return node is None or (isinstance(node, yaml.ScalarNode) and node.tag == _NULL)
