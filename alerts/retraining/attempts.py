"""What became of a retraining, read from its action: refused by its gate, broken, or released."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from alerts.actions.action import Action, ActionState
from alerts.retraining.policy import Attempt

# `trimtab retrain` ends with this when the gate refused the challenger.
_REFUSED_STATUS = 2


def attempt_of(action: Action) -> Attempt:
    """The attempt that an action is."""
    ended = action.completed_at or action.created_at
    if action.state is ActionState.REJECTED:
        return Attempt(outcome="forbidden", ended_at=ended, why=f"{action.actor} rejected action {action.id}")
    if action.state not in (ActionState.DONE, ActionState.FAILED):
        return Attempt(outcome="open", why=action.reason)
    result = dict(action.result or {})
    job = job_of(result)
    refused = job.get("passed") is False and job.get("outcome") != "failed"
    if refused or result.get("exit_status") == _REFUSED_STATUS:
        return Attempt(outcome="refused", ended_at=ended, why=_text(job.get("reason") or "its gate refused it"))
    if action.state is ActionState.FAILED or job.get("outcome") == "failed":
        return Attempt(outcome="failed", ended_at=ended, why=_text(job.get("reason") or result.get("error") or "?"))
    version = f"version {job['version']} passed its gate" if job.get("version") else "it was carried out"
    return Attempt(outcome="released", ended_at=ended, why=version)


def job_of(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the retraining says of itself: a function's answer, an HTTP answer, or a command's last line as JSON."""
    answer = result.get("answer")
    if isinstance(answer, Mapping):
        return answer
    output = result.get("output")
    if isinstance(output, str):
        for line in reversed(output.strip().splitlines()):
            if line.startswith("{"):
                try:
                    found = json.loads(line)
                except ValueError:
                    continue
                return found if isinstance(found, Mapping) else {}
        return {}
    return result


def _text(value: Any) -> str:
    return str(value)[:300]
