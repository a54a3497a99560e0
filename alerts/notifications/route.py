"""The routing tree: which receivers hear of an alert, in which groups, and how often.

Source: Alertmanager, dispatch/route.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from alerts.labels import Labels, Matcher, match_all
from alerts.notifications.matchers import text_of

GROUP_WAIT_SECONDS = 30.0
GROUP_INTERVAL_SECONDS = 300.0
REPEAT_INTERVAL_SECONDS = 4 * 3600.0
ALL_LABELS = ("...",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A node of the tree, with what it inherits filled in; `place` (such as "0.2") tells nodes with one key apart."""

    receiver: str
    matchers: tuple[Matcher, ...] = ()
    group_by: tuple[str, ...] = ()
    group_wait_seconds: float = GROUP_WAIT_SECONDS
    group_interval_seconds: float = GROUP_INTERVAL_SECONDS
    repeat_interval_seconds: float = REPEAT_INTERVAL_SECONDS
    mute_time_intervals: tuple[str, ...] = ()
    active_time_intervals: tuple[str, ...] = ()
    goes_on: bool = False
    routes: tuple[Route, ...] = ()
    key: str = field(default="", compare=False)
    place: str = field(default="", compare=False)

    def match(self, labels: Labels) -> list[Route]:
        """The nodes that take an alert, depth first: children before this one, which is taken only if no child is."""
        if not match_all(self.matchers, labels):
            return []
        found: list[Route] = []
        for child in self.routes:
            matched = child.match(labels)
            found += matched
            if matched and not child.goes_on:
                break
        return found or [self]

    def group_labels(self, labels: Labels) -> Labels:
        """The labels that name an alert's group."""
        if self.group_by == ALL_LABELS:
            return labels
        return tuple(pair for pair in labels if pair[0] in self.group_by)

    def walk(self) -> Iterator[Route]:
        """This node and all below it."""
        yield self
        for child in self.routes:
            yield from child.walk()


def keyed(route: Route, above: str = "", place: str = "0") -> Route:
    """The tree with the keys and places of its nodes set: a key is the matchers on the way from the root."""
    key = f"{above}/{text_of(route.matchers)}" if above else text_of(route.matchers)
    children = tuple(keyed(child, key, f"{place}.{number}") for number, child in enumerate(route.routes))
    return replace(route, key=key, place=place, routes=children)


def group_key(route: Route, labels: Labels) -> str:
    """The key of a group in notifications and in the log of them."""
    inner = ", ".join(sorted(f"{name}={go_quoted(value)}" for name, value in labels))
    return f"{route.key}:{{{inner}}}"


def go_quoted(text: str) -> str:
    """The text as Go's %q writes it."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    known = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\b": "\\b", "\f": "\\f",
             "\v": "\\v"}  # fmt: skip
    if character in known:
        return known[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
