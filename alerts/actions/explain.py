"""An action in words: what asked for it, what was seen, who decided by which policy, what was done and found after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from alerts.actions.action import Action
from alerts.actions.journal import Entry


def explain(action: Action, entries: Sequence[Entry]) -> list[str]:
    """Sentences in the order of what happened; times are UTC."""
    told = [_heading(action)]
    for entry in entries:
        told += [f"{_time(entry.time)}  {line}" for line in _TELLERS.get(entry.kind, _nothing)(entry.body)]
    if entries:
        told.append(f"Journal rows {', '.join(str(entry.seq) for entry in entries)}; key {action.key}.")
    return told


def _heading(action: Action) -> str:
    release = f", release {action.release}" if action.release else ""
    return f"Action {action.id}: {action.action} of {action.model}{release} is {action.state.value}."


def _decided(body: Mapping[str, Any]) -> list[str]:
    lines = []
    labels, evidence = body.get("labels", {}), body.get("evidence", {})
    summary = evidence.get("annotations", {}).get("summary") or f"value {evidence.get('value')}"
    lines.append(f"The alert {body.get('alert')} asked for {labels.get('action', 'it')}: {summary}.")
    release = evidence.get("release") or {}
    if counts := release.get("counts"):
        arms = [f"{n['errors']:.0f} of {n['requests']:.0f} {arm} requests failed" for arm, n in counts.items()]
        lines.append(f"Seen: {', '.join(arms)}.")
    if verdict := body.get("verdict"):
        lines.append(f"Verdict: {verdict['outcome']} ({verdict['because']}): {verdict['reason']}.")
    if episode := evidence.get("episode"):
        lines.append(f"It is attempt {episode['attempt']} of episode {episode['id']}.")
    decision = {
        "run": "it runs", "wait": "it waits for a person", "advise": "it is only advised", "hold": "it is held back",
        "rehearse": "it is rehearsed and not done",
    }.get(body.get("decision", ""), str(body.get("decision")))  # fmt: skip
    policy = body.get("policy") or {}
    version = f"version {policy['version']}, " if policy.get("version") else ""
    by = f" Policy: {version}digest {policy['digest']}." if policy else ""
    lines.append(f"Decided: {decision}, since {body.get('reason')}.{by}")
    return lines


def _requested(body: Mapping[str, Any]) -> list[str]:
    return [f"{body.get('actor')} asked for it: {body.get('reason')}."]


def _approved(body: Mapping[str, Any]) -> list[str]:
    return [f"{body.get('actor')} let it run."]


def _rejected(body: Mapping[str, Any]) -> list[str]:
    return [f"{body.get('actor')} forbade it."]


def _intent(body: Mapping[str, Any]) -> list[str]:
    return [f"Written down before it is done, under the idempotency key {body.get('key')}."]


def _retried(body: Mapping[str, Any]) -> list[str]:
    return [f"Taken up again: {body.get('why')}."]


def _prepared(body: Mapping[str, Any]) -> list[str]:
    return [f"Found before: {_short(body.get('before'))}. Target: {_short(body.get('target'))}."]


def _rehearsed(body: Mapping[str, Any]) -> list[str]:
    return [f"Dry run: {_short(body.get('result'))}."]


def _result(body: Mapping[str, Any]) -> list[str]:
    result = body.get("result") or {}
    lines = []
    if proof := result.get("proved"):
        lines.append(f"It was done already, which is proved: {proof}.")
    if error := result.get("error"):
        lines.append(f"It is {body.get('state')}: {error}.")
    else:
        lines.append(f"It is {body.get('state')}.")
    if result.get("after"):
        lines.append(f"Found after: {_short(result['after'])}.")
    return lines


def _nothing(body: Mapping[str, Any]) -> list[str]:
    return []


_TELLERS = {
    "decided": _decided,
    "requested": _requested,
    "approved": _approved,
    "rejected": _rejected,
    "intent": _intent,
    "retried": _retried,
    "prepared": _prepared,
    "rehearsed": _rehearsed,
    "result": _result,
}


def _short(value: Any) -> str:
    """A JSON value in a line, without the braces of an object."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(item)}" for name, item in value.items() if item is not None) or "nothing"
    return value if isinstance(value, str) else json.dumps(value)


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]
