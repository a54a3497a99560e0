"""What OpenSLO adds to YAML: numbers, flags, choices, durations with a month."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import yaml

from alerts.yaml_nodes import YamlFile, is_null

_SHORTHAND = re.compile(r"(\d+)(ms|s|m|h|d|w|M|Q|Y)\Z")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_YES_NO = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Reader(YamlFile):
    """One file's nodes on their way in; what is wrong with them collects in `problems`."""

    def fields(self, node: yaml.Node | None, what: str, allowed: Sequence[str]) -> dict[str, yaml.Node]:
        """The fields of a mapping that are not null; unknown and repeated ones are reported."""
        found = super().fields(node, what, allowed) if node is not None else {}
        return {name: value for name, value in found.items() if not is_null(value)}

    def text(self, node: yaml.Node | None, what: str, default: str = "") -> str:
        """Text; a number or a word is taken as it is written."""
        if node is None:
            return default
        if not isinstance(node, yaml.ScalarNode):
            self.report(node, f"{what} must be text")
            return default
        return str(node.value)

    def number(self, node: yaml.Node | None, what: str) -> float | None:
        """A finite number, None where there is none."""
        if node is None:
            return None
        try:
            value = float(self.text(node, what))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            self.report(node, f"{what} must be a number, got {getattr(node, 'value', '')!r}")
            return None
        return value

    def flag(self, node: yaml.Node | None, what: str, default: bool) -> bool:
        """true or false."""
        if node is None:
            return default
        value = _YES_NO.get(self.text(node, what).lower())
        if value is None:
            self.report(node, f"{what} must be true or false, got {getattr(node, 'value', '')!r}")
        return default if value is None else value

    def choice(self, node: yaml.Node | None, what: str, allowed: Sequence[str], default: str = "") -> str:
        """One of some words."""
        value = self.text(node, what, default)
        if node is not None and value not in allowed:
            self.report(node, f"{what} must be one of {', '.join(allowed)}, got {value!r}")
            return default
        return value

    def shorthand(self, node: yaml.Node | None, what: str) -> tuple[int, str] | None:
        """OpenSLO's duration shorthand as number and unit: `4w`, `1M`."""
        if node is None:
            return None
        found = _SHORTHAND.match(self.text(node, what))
        if found is None or int(found[1]) < 1:
            got = getattr(node, "value", "")
            self.report(node, f"{what} must be a whole number and a unit, like 5m, 1h, 30d, 4w or 1M, got {got!r}")
            return None
        return int(found[1]), found[2]

    def seconds(self, node: yaml.Node | None, what: str) -> float | None:
        """Seconds of a duration shorthand with a fixed length."""
        pair = self.shorthand(node, what)
        if pair is None or node is None:
            return None
        if pair[1] not in _UNITS:
            self.report(node, f"{what}: {pair[0]}{pair[1]} has no fixed length; write it in days, like 30d")
            return None
        return pair[0] * _UNITS[pair[1]]

    def pairs(self, node: yaml.Node | None, what: str) -> dict[str, tuple[str, yaml.Node]]:
        """A mapping of names to text, each with its node."""
        pairs = self.mapping(node, what).items()
        return {name: (self.text(value, f"{what} {name!r}"), value) for name, (_, value) in pairs}
