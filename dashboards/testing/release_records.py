"""The story's releases by a policy and its episode of drift, as the alerts service tells them at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dashboards.testing import story as tale
from dashboards.testing.story import MODEL, Story

_STEPS = ["canary with 10 % of the requests", "canary with 50 % of the requests"]
_BLESSED = {
    "loads": "in 0.4 s",
    "answers": "each of 20 times alike, slowest 6 ms",
    "quality": "log loss below the champion's by at least 0.0102 (95 %)",
}


def releases(story: Story, now: float) -> list[dict[str, Any]]:
    """The releases, newest first; the last of them waits for a person."""
    told = [
        _walk(story, now, 3, 4, tale.LENGTH - 30, None, held="blessing", why=(
            "the blessing is open: quality: 1 840 labelled rows, fewer than the 2 000 that a bound needs")),
        _walk(story, now, 2, 3, tale.CANARY_3, tale.PROMOTED_3, why=(
            "all steps are done: the step has seen what it needs")),
        _walk(story, now, 1, 2, tale.CANARY_2, tale.BACK_2, why="harm is proved (e-value 1.29e+03 >= 100)"),
    ]  # fmt: skip
    return [walk for walk in told if walk["began_at"] <= now]


def release(story: Story, now: float) -> dict[str, Any] | None:
    """The newest, with its explanation and its rows of the journal."""
    found = releases(story, now)
    if not found:
        return None
    walk = found[0]
    rows = [(walk["began_at"], f"version {walk['version']} is to be released: asked for by ana", "ana")]
    if walk["blessing"]["verdict"] == "passed":
        rows.append((walk["began_at"] + 2, f"entering, step 1 of 2 ({_STEPS[0]}): blessed: it passed", "ana"))
    rows.append((walk["entered_at"], f"{walk['phase']}, {walk['place']}: {walk['reason']}", "ana"))
    return {**walk, "explanation": _explanation(walk), "journal": [_row(i, *row) for i, row in enumerate(rows, 1)]}


def episodes(story: Story, now: float) -> list[dict[str, Any]]:
    """The one episode: the season's drift, retrained once."""
    opened = story.begin + tale.DRIFT_FIRING
    if now < opened:
        return []
    ended = story.begin + tale.PROMOTED_3
    attempt = {"action": 2, "began_at": story.begin + tale.TRAINED_3[0], "outcome": "released",
               "ended_at": story.begin + tale.TRAINED_3[1], "why": "version 3 passed its gate"}  # fmt: skip
    over = now >= ended
    return [
        {
            "id": 1, "model": MODEL, "cause": "FeaturesDrifted", "version": "1", "opened_at": opened,
            "ended_at": ended if over else None, "waits": "" if over else "its last retraining is being judged",
            "ended_because": "version 3 came into service, with its own reference" if over else "",
            "attempts": [attempt],
        }
    ]  # fmt: skip


def _walk(
    story: Story, now: float, number: int, version: int, start: float, end: float | None, *, why: str, held: str = ""
) -> dict[str, Any]:
    began, ended = story.begin + start, None if end is None or now < story.begin + end else story.begin + end
    half = version == 3 and now >= story.begin + tale.HALF_3
    step = 2 if half else 1
    phase = "held" if held else ("promoted" if version == 3 else "rolled_back") if ended else "watching"
    checks = {name: {"state": "passed", "why": words} for name, words in _BLESSED.items()}
    if held:
        checks["quality"] = {"state": "unknown", "why": "1 840 labelled rows, fewer than the 2 000 that a bound needs"}
    place = "blessing" if held else f"step {step} of 2 ({_STEPS[step - 1]})"
    return {
        "id": number, "model": MODEL, "version": version, "release": "" if held else f"{MODEL}-{number}",
        "phase": phase, "step": step, "steps": _STEPS, "place": place, "share": 0.0 if held else 0.1,
        "held": held or None, "paused": "", "reason": why if ended or held else "the step began", "actor": "ana",
        "began_at": began, "entered_at": ended or (story.begin + tale.HALF_3 if half else began + 3), "ended_at": ended,
        "policy": "9f3b1c0d7a5e", "conclusion": None,
        "blessing": {"verdict": "unknown" if held else "passed", "reason": why, "required": list(_BLESSED),
                     "checks": checks},
    }  # fmt: skip


def _explanation(walk: dict[str, Any]) -> Sequence[str]:
    first = f"Release {walk['id']} of {MODEL}: version {walk['version']} is {walk['phase']}."
    if walk["ended_at"] is not None:
        return (first, f"Why: {walk['reason']}.")
    if walk["held"]:
        mend = f"`trimtab releases approve {MODEL} --override REASON` releases it all the same, `abort` ends it"
        return first, f"Here since 27s: {walk['reason']}.", f"It waits for a person: {mend}."
    return (
        first, "It still needs 212 more requests (88 of 300).",
        "It still needs proof that it is safe (e-value 3.1 of 100).",
        "In 9m its time is over; then it is held for a person.", "After this: promotion.",
    )  # fmt: skip


def _row(number: int, at: float, told: str, actor: str) -> dict[str, Any]:
    return {"seq": number, "time": at, "kind": "release", "body": {"told": told, "actor": actor}, "hash": "0" * 64}
