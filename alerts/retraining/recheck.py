"""Decides once more on episodes from what the journal holds: the same look must give the same decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from alerts.retraining.policy import Look, decision_json, over


def attempt_wrong(episode: Mapping[str, Any]) -> str:
    """What the decision on an attempt, or on waiting, says otherwise than its look does now; "" where they agree."""
    rests_on = episode["rests_on"]
    try:
        found = decision_json(msgspec.convert(rests_on["look"], Look).decide())
    except (KeyError, TypeError, ValueError) as error:
        return f"its look cannot be read any more: {error!r}"
    written = {name: rests_on.get(name) for name in found}
    if found != written:
        return f"the decision was {written}, and is {found} now"
    told = episode.get("reason", found["reason"])
    return "" if told == found["reason"] else f"the reason was {told!r}, and is {found['reason']!r} now"


def end_wrong(body: Mapping[str, Any]) -> str:
    """What the end of an episode says otherwise than what it rests on; "" where they agree."""
    try:
        found = over(**body["rests_on"])
    except TypeError as error:
        return f"what it rests on cannot be read any more: {error!r}"
    written = (body["ended"], body["why"])
    return "" if found == written else f"its end was {written}, and is {found} now"
