"""The journal's entries in words: why something was done, and what stood behind it. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from dashboards import format as fmt

# What an entry says of its mode stands in a column of its own.
_MODE = re.compile(r"\s*\((?:the mode is [^()]*)\)\s*$")

_EXPONENT = re.compile(r"\b\d+(?:\.\d+)?e[+-]\d+\b")


def reason_words(reason: Any, alert: str = "") -> str:
    """A reason without the name of its alert in front and without the mode behind: both are told beside it."""
    return _MODE.sub("", str(reason or "")).removeprefix(f"{alert}: " if alert else "")


def evidence_words(evidence: Any) -> str:
    """What stood behind an action: the release's verdict, else what the alert said, else its plain numbers."""
    found = _mapping(evidence)
    release, notes = _mapping(found.get("release")), _mapping(found.get("annotations"))
    said = release.get("reason") or _mapping(evidence).get("reason") or notes.get("description") or notes.get("summary")
    if said:
        return plain(said)
    if isinstance(evidence, str):
        return evidence
    numbers = [(k, v) for k, v in found.items() if isinstance(v, int | float) and not k.endswith("_at")]
    return ", ".join(f"{key.replace('_', ' ')} {fmt.number(value)}" for key, value in numbers[:5])


def why(action: Mapping[str, Any]) -> str:
    """One sentence: the verdict on the release that an action is about, else the action's reason."""
    release = _mapping(_mapping(action.get("evidence")).get("release"))
    return plain(release.get("reason") or reason_words(action.get("reason"), str(action.get("alert") or "")))


def is_result_of(event: Mapping[str, Any], actions: Iterable[Mapping[str, Any]]) -> bool:
    """True for a change of traffic that an action in the journal brought about: it is that action's deed."""
    at = float(event.get("time") or 0)
    return any(
        action.get("action") == event.get("event")
        and (action.get("release") or "") == (event.get("release") or "")
        and float(action.get("started_at") or 0) - 1 <= at <= float(action["completed_at"]) + 1
        for action in actions
        if action.get("completed_at")
    )


def plain(text: Any) -> str:
    """The same without what only machines write: `1.17e+04 >= 100` is `11 700 ≥ 100`."""
    return _EXPONENT.sub(lambda found: fmt.number(float(found[0])), str(text)).replace(">=", "≥")


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, Mapping) else {}
