"""The turns that a walk may take at any place: it begins to act, waits for a person, or is over."""

from __future__ import annotations

from dataclasses import replace

from alerts.releases.sight import Seen
from alerts.releases.walk import Held, Phase, Walk


def begun(walk: Walk, seen: Seen, phase: Phase, reason: str) -> Walk:
    """A phase that acts, on what serving shows now."""
    generation = walk.generation if seen.page is None else max(walk.generation, seen.page.generation)
    return replace(
        walk, phase=phase, held=None, reason=reason, attempt=walk.attempt + 1, tries=0, retry_at=0.0,
        entered_at=seen.now, generation=generation,
    )  # fmt: skip


def held(walk: Walk, what: Held, reason: str) -> Walk:
    """Where it is, until a person decides."""
    return replace(walk, phase=Phase.HELD, held=what, reason=reason)


def over(walk: Walk, seen: Seen, phase: Phase, reason: str) -> Walk:
    """At its end."""
    return replace(walk, phase=phase, held=None, paused="", reason=reason, ended_at=seen.now)
