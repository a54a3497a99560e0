"""YAML documents as texts, and where in them something is."""

from __future__ import annotations

import copy
import re
from typing import Any

import yaml

_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]|\[\.\.\.\]")


class Refused(Exception):
    """Why something in the file cannot be, and where: a path such as `.scrape_configs[0].params`."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(reason)
        self.where = where


class _TextLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Every scalar is the text that it is, as Go's decoder has it for a text field: `shard: 01` is "01"."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML reads it from the class
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def parsed_text(body: str) -> Any:
    """A YAML document with all scalars as texts. yaml.YAMLError."""
    return parsed(body)[1]


def parsed(body: str) -> tuple[yaml.Node | None, Any]:
    """The document's nodes, which know their lines, and its data."""
    loader = _TextLoader(body)
    try:
        root = loader.get_single_node()
        # The constructor writes merged keys into the nodes that it goes through.
        return copy.deepcopy(root), None if root is None else _without_nulls(loader.construct_document(root))
    finally:
        loader.dispose()


def check_keys(node: yaml.Node | None, where: str = "") -> None:
    """Raises Refused where a mapping has a key twice."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen and key.value != "<<":
                    raise Refused(f"{where}.{key.value}", "it is given twice")
                seen.add(key.value)
                check_keys(value, f"{where}.{key.value}")
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            check_keys(item, f"{where}[{number}]")


def line_of(root: yaml.Node | None, where: str) -> int:
    """The line of a path, or of the part of it that the file has; lines count from 1."""
    node, line = root, 1
    for name, number in _STEP.findall(where):
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if getattr(key, "value", None) == name]
            if not pairs:
                break
            line, node = pairs[-1][0].start_mark.line + 1, pairs[-1][1]
        elif isinstance(node, yaml.SequenceNode) and number and int(number) < len(node.value):
            node = node.value[int(number)]
            line = node.start_mark.line + 1
    return line


def _without_nulls(value: Any) -> Any:
    """A field without a value is one that is not given."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
