"""Matchers as Alertmanager reads and orders them: `name="value"`, alone or as a list in braces.

Source of the syntax: Alertmanager, pkg/labels/parse.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from alerts.labels import Matcher

_MATCHER = re.compile(r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(=~|!=|!~|=)\s*(.*?)\s*\Z", re.DOTALL)
_KINDS = ("=", "!=", "=~", "!~")


def parse_matcher(text: str) -> Matcher:
    """One matcher; its value may stand in double quotes. `\\"`, `\\n`, `\\\\` are escapes. Raises ValueError."""
    found = _MATCHER.match(text)
    if found is None:
        raise ValueError(f"bad matcher format: {text}")
    name, kind, raw = found.groups()
    return Matcher(name, kind, _unquoted(raw))


def parse_matchers(text: str) -> list[Matcher]:
    """Matchers with commas between them, in braces or not. Raises ValueError."""
    inner = text[1:] if text.startswith("{") else text
    inner = inner[:-1] if inner.endswith("}") else inner
    return [parse_matcher(part) for part in _parts(inner)]


def in_order(matchers: Iterable[Matcher]) -> tuple[Matcher, ...]:
    """By name, value, kind: the order of a route's key."""
    return tuple(sorted(matchers, key=lambda m: (m.name, m.value, _KINDS.index(m.op))))


def text_of(matchers: Iterable[Matcher]) -> str:
    """The matchers in braces, as a group's key has them."""
    return "{" + ",".join(map(str, matchers)) + "}"


def _parts(text: str) -> list[str]:
    """The text cut at commas outside quotes."""
    parts: list[str] = []
    part, quoted, escaped = "", False, False
    for character in text:
        if character == "," and not quoted:
            parts.append(part)
            part = ""
            continue
        if character == '"' and not escaped:
            quoted = not quoted
        escaped = character == "\\" and not escaped
        part += character
    return [*parts, part.strip()] if part.strip() else parts


def _unquoted(raw: str) -> str:
    quoted = raw.startswith('"')
    body = raw[1:] if quoted else raw
    value, place = "", 0
    while place < len(body):
        character = body[place]
        if character == "\\" and place < len(body) - 1:
            following = body[place + 1]
            value += {"n": "\n", '"': '"', "\\": "\\"}.get(following, "\\" + following)
            place += 2
            continue
        if character == '"':
            if not quoted or place < len(body) - 1:
                raise ValueError(f"matcher value contains unescaped double quote: {raw}")
            return value
        value += character
        place += 1
    if quoted:
        raise ValueError(f"matcher value contains unescaped double quote: {raw}")
    return value
