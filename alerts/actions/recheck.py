"""Decides again from what the journal holds: the same inputs must give the same verdict and decision, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from alerts.actions.action import Action
from alerts.actions.journal import Entry
from alerts.actions.policy import ActionPolicy, decide, decision_json, proposal_of
from alerts.evidence import replayed


@dataclass(frozen=True, slots=True)
class Rechecked:
    """What a decision of the journal comes to now; `wrong` says what differs, "" when nothing does."""

    seq: int
    key: str
    verdict: bool
    """Whether the row holds a verdict that was made again."""
    wrong: str = ""


def verdict_json(evidence: Mapping[str, Any], now: float) -> dict[str, Any] | None:
    """The verdict on a release from its journalled evidence at `now` (unix seconds); None where none was judged."""
    release = evidence.get("release")
    replay = release.get("replay") if isinstance(release, Mapping) else None
    if not replay:
        return None
    verdict = replayed(replay, now)
    return {"outcome": verdict.outcome.value, "because": verdict.because.value, "reason": verdict.reason, "at": now}


def recheck(entries: Iterable[Entry]) -> list[Rechecked]:
    """Every decision among the rows that holds its inputs (those of older versions do not), made again."""
    return [_rechecked(entry) for entry in entries if entry.kind == "decided" and "proposal" in entry.body]


def _rechecked(entry: Entry) -> Rechecked:
    body = entry.body
    verdict = body.get("verdict")
    if verdict is not None:
        again = verdict_json(body["evidence"], verdict["at"])
        if again != verdict:
            return Rechecked(entry.seq, entry.key, True, f"the verdict was {verdict}, and is {again} now")
    history = [Action.decisive(fields) for fields in body["history"]]
    decision = decide(proposal_of(body["proposal"]), history, ActionPolicy(**body["policy"]["fields"]), body["now"])
    found, written = decision_json(decision), {name: body[name] for name in ("decision", "reason")}
    wrong = "" if found == written else f"the decision was {written}, and is {found} now"
    return Rechecked(entry.seq, entry.key, verdict is not None, wrong)
