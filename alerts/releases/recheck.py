"""Leads a release on once more from what its row of the journal holds: the same look must lead to the same walk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from alerts.releases.decisions import Deed, decided
from alerts.releases.progress import advance
from alerts.releases.sight import Seen
from alerts.releases.walk import Walk

# What inputs that were changed afterwards make of a step.
_UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, AssertionError)


def replay_json(before: Walk, after: Walk, seen: Seen, deed: Deed | None = None) -> dict[str, Any]:
    """What is needed to make the step from a walk to the next once more, and the digest of that next."""
    return {
        "from": before.to_json(),
        "seen": msgspec.to_builtins(seen, str_keys=True),
        "deed": None if deed is None else {k: v for k, v in msgspec.to_builtins(deed).items() if v is not None},
        "to": _digest(after),
    }


def replay_wrong(body: Mapping[str, Any]) -> str:
    """What a release's row says otherwise than its inputs do now; "" where they agree."""
    replay = body["replay"]
    try:
        before = Walk.from_json(replay["from"])
        seen = msgspec.convert(replay["seen"], Seen, str_keys=True)
        deed = None if replay["deed"] is None else msgspec.convert(replay["deed"], Deed)
        after = advance(before, seen) if deed is None else decided(before, seen, deed)
        shown = {"phase": after.phase.value, "place": after.place, "release": after.release,
                 "version": after.version, "model": after.model, "actor": after.actor,
                 "policy": after.policy.digest}  # fmt: skip
    except _UNREADABLE as error:
        return f"its inputs cannot be read any more: {error!r}"
    for name, found in shown.items():
        if body[name] != found:
            return f"{name} was {body[name]!r}, and is {found!r} now"
    return "" if _digest(after) == replay["to"] else f"it led elsewhere: {after.phase.value} at {after.place} now"


def _digest(walk: Walk) -> str:
    return hashlib.sha256(walk.dumped().encode()).hexdigest()
