"""What a policy would have done with what the journal recorded: the same proposals and people, other limits.

An alert's proposal is decided again at every moment at which the journal shows a decision on it, with the past that the
simulated policy would have made; people's requests, approvals and rejections stand as they were. What the policy holds
back runs at the next of those moments that lets it: how long an alert went on to ask after the last is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from alerts.actions.action import Action, ActionState
from alerts.actions.journal import Entry
from alerts.actions.policy import (
    ActionPolicy,
    Advise,
    Decision,
    Hold,
    Rehearse,
    Run,
    Wait,
    decide,
    proposal_of,
    relevant,
)

# How long an action is taken to last that the journal does not show to end.
_USUAL_SECONDS = 1.0
_STATES: dict[type[Decision], ActionState] = {
    Run: ActionState.DONE, Wait: ActionState.WAITING, Advise: ActionState.ADVISED, Rehearse: ActionState.ADVISED,
    Hold: ActionState.HELD,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """One action: what was decided when, and what the other policy decides."""

    time: float
    key: str
    action: str
    model: str
    release: str
    was: str
    was_reason: str
    would: str
    would_reason: str

    @property
    def differs(self) -> bool:
        """Whether the policy decides otherwise."""
        return self.was != self.would

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {name: getattr(self, name) for name in self.__slots__} | {"differs": self.differs}


def simulate(entries: Iterable[Entry], policies: Mapping[str, ActionPolicy], since: float = 0.0) -> list[Outcome]:
    """The outcome of every action that was asked for from `since` on (unix seconds), by the last look at it.

    `entries` are rows of the journal in order, earlier ones too: cool-downs and budgets reach back.
    """
    rows = list(entries)
    lasted = _lasted(rows)
    past: dict[str, Action] = {}
    told: dict[str, Outcome] = {}
    for entry in rows:
        body = entry.body
        if entry.kind == "decided" and "proposal" in body:
            proposal = proposal_of(body["proposal"])
            known = past.get(entry.key)
            number = known.id if known else len(past) + 1
            if known is None or known.state is ActionState.HELD:
                policy = policies.get(f"{proposal.action}:{proposal.model}") or policies.get(proposal.action)
                policy = policy or ActionPolicy(mode="advise")
                others = [one for key, one in past.items() if key != entry.key and one.model == proposal.model]
                decision = decide(proposal, relevant(proposal, others, policy, entry.time), policy, entry.time)
                state = _STATES[type(decision)]
                end, failed = lasted.get(entry.key, (entry.time + _USUAL_SECONDS, False))
                ran = state is ActionState.DONE
                past[entry.key] = Action(
                    id=number, key=entry.key, action=proposal.action, model=proposal.model, release=proposal.release,
                    state=ActionState.FAILED if ran and failed else state, created_at=entry.time,
                    started_at=entry.time if ran else None, completed_at=max(end, entry.time) if ran else None,
                )  # fmt: skip
                would, why = type(decision).__name__.lower(), decision.reason
            else:
                would, why = told[entry.key].would, told[entry.key].would_reason
            first = told[entry.key].time if entry.key in told else entry.time
            told[entry.key] = Outcome(
                first, entry.key, proposal.action, proposal.model, proposal.release,
                body["decision"], body["reason"], would, why,
            )  # fmt: skip
        elif entry.kind in ("requested", "approved", "rejected"):
            _person(entry, past, lasted)
        elif entry.kind == "intent" and entry.key in past and not past[entry.key].action:
            past[entry.key] = replace(
                past[entry.key], action=body["action"], model=body["model"], release=body["release"]
            )
    return [outcome for outcome in told.values() if outcome.time >= since]


def _person(entry: Entry, past: dict[str, Action], lasted: Mapping[str, tuple[float, bool]]) -> None:
    """A person's decision stands in the simulation as it did."""
    end, failed = lasted.get(entry.key, (entry.time + _USUAL_SECONDS, False))
    rejected = entry.kind == "rejected"
    state = ActionState.REJECTED if rejected else ActionState.FAILED if failed else ActionState.DONE
    base = past.get(entry.key)
    if base is None:  # asked for by a person: what it is stands in the intent that follows
        base = Action(id=len(past) + 1, key=entry.key, action="", model="", state=state, created_at=entry.time)
    past[entry.key] = replace(
        base, state=state, actor=str(entry.body.get("actor", "")), decided_at=entry.time,
        started_at=None if rejected else entry.time, completed_at=entry.time if rejected else end,
    )  # fmt: skip


def _lasted(rows: Iterable[Entry]) -> dict[str, tuple[float, bool]]:
    """When each action ended as the journal has it, and whether it failed."""
    ends = [(row.key, row.time, row.body.get("state")) for row in rows if row.kind == "result"]
    return {key: (time, state == ActionState.FAILED.value) for key, time, state in ends if state != "held"}
