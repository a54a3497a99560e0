"""A release's way through its policy's steps, in words and marks. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Mark = Literal["done", "now", "waits", "bad", "later"]

_WELL_ENDED = ("promoted", "compared")
_ON_THE_WAY = ("entering", "watching", "leaving", "held")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a release, and whether it is done, under way, waited in, where it ended badly, or to come."""

    name: str
    mark: Mark


def stages(walk: Mapping[str, Any]) -> list[Stage]:
    """Blessing, the policy's steps, and what comes after them, for a release as the API tells it.

    A phase that is not known here stands after the steps, by its own name.
    """
    phase, steps = str(walk.get("phase") or ""), [str(step) for step in walk.get("steps") or ()]
    in_blessing = phase in ("blessing", "refused") or walk.get("held") == "blessing"
    place = -1 if in_blessing else int(walk.get("step") or 1) - 1
    mark = _mark(walk, phase)
    after = phase not in (*_WELL_ENDED, *_ON_THE_WAY, "blessing", "refused", "rolling_back", "rolled_back")
    if after or phase in _WELL_ENDED:
        place = len(steps)
    named = [Stage(name, _placed(i, place, mark)) for i, name in enumerate(["blessing", *steps], -1)]
    if after:
        named.append(Stage(phase.replace("_", " "), mark))
    return named


def state(walk: Mapping[str, Any]) -> str:
    """The release's state in a word or two."""
    return "paused" if walk.get("paused") else str(walk.get("phase") or "").replace("_", " ")


def ended(walk: Mapping[str, Any]) -> bool:
    """Whether the release is over."""
    return walk.get("ended_at") is not None


def decisions(walk: Mapping[str, Any]) -> list[str]:
    """What a person can decide about the release now."""
    if not walk or ended(walk):
        return []
    held, paused = walk.get("held"), bool(walk.get("paused"))
    approve = ["approve"] if held and held != "harm" else []
    return [*approve, *(["resume"] if paused or held in ("action", "deadline") else ["pause"]), "abort"]


def needed(walk: Mapping[str, Any]) -> list[str]:
    """The sentences on where it is, without the first, which the page's heading says, and in the page's words."""
    said: Sequence[str] = walk.get("explanation") or ()
    return [str(line) for line in said[1:]]


def checks(walk: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The blessing's checks: name, state and why; one that is required and was not looked at is open."""
    blessing = walk.get("blessing") or {}
    found = {str(name): one for name, one in (blessing.get("checks") or {}).items()}
    missing = [str(name) for name in blessing.get("required") or () if name not in found]
    told = [(name, str(one.get("state")), str(one.get("why") or "")) for name, one in found.items()]
    return told + [(name, "unknown", "not looked at") for name in missing]


def _mark(walk: Mapping[str, Any], phase: str) -> Mark:
    if phase in ("rolled_back", "rolling_back", "refused") or walk.get("held") == "harm":
        return "bad"
    return "waits" if walk.get("paused") or phase == "held" else "now"


def _placed(number: int, place: int, mark: Mark) -> Mark:
    if number == place:
        return mark
    return "done" if number < place else "later"
