"""What the demo reports: one JSON object, a field a step; a step that did not happen is null."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from trimtab.demo.replay import Tally

Json = dict[str, Any]


@dataclass(slots=True)
class Report:
    """What `--json` prints."""

    trained: Json | None = None
    rollback: Json | None = None
    drift: Json | None = None
    retrain: Json | None = None
    promoted: Json | None = None
    requests: Json = field(default_factory=dict)
    missing: str | None = None
    """Why the story ended early."""
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        steps = (self.trained, self.rollback, self.drift, self.retrain, self.promoted)
        return all(step is not None for step in steps) and self.missing is None

    def as_json(self) -> Json:
        names = ("trained", "rollback", "drift", "retrain", "promoted", "requests", "missing", "seconds")
        return {name: getattr(self, name) for name in names}


def rolled_back(action: Json, released_at: float, tally: Tally) -> Json:
    """The step `rollback`; all times are unix seconds."""
    completed_at = float((action["result"] or {}).get("completed_at") or action["completed_at"])
    return {
        "alert": action["alert"],
        "release": action["labels"].get("release"),
        "release_at": released_at,
        "detected_at": action["created_at"],
        "completed_at": completed_at,
        "seconds": round(completed_at - released_at, 2),
        "reason": action["reason"],
        "evidence": action["evidence"],
        "bad_requests": tally.failed(version="2"),
        "failed_by_switch": tally.failed(other_than="2", since=released_at),
        "answered_after_switch": tally.served_since("2", completed_at),
    }


def seen(action: Json) -> str:
    """The alert behind an action and its summary, as the rule words it."""
    evidence = action["evidence"] if isinstance(action["evidence"], dict) else {}
    return f"{action['alert']}: {evidence.get('annotations', {}).get('summary') or action['reason']}"


def job_outcome(action: Json) -> Json:
    """What a retraining command printed in its last line; empty if that is no JSON object."""
    result = action["result"] if isinstance(action["result"], dict) else {}
    lines = str(result.get("output", "")).strip().splitlines() or ["{}"]
    try:
        outcome = json.loads(lines[-1])
    except ValueError:
        return {}
    return outcome if isinstance(outcome, dict) else {}
