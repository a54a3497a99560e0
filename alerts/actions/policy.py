"""Whether an action may run: a pure function of the proposal, the model's past actions, a policy and the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from alerts.actions.action import PROMOTE, RETRAIN, ROLLBACK, TRAFFIC_ACTIONS, Action, ActionState

Mode = Literal["advise", "approve", "auto"]
_HAPPENED = (ActionState.RUNNING, ActionState.DONE)
_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionPolicy:
    """How freely an action runs on a model."""

    mode: Mode = "auto"
    """advise: only say it; approve: wait for a person; auto: do it."""
    cooldown_seconds: float = 300.0
    """Time after an action of the kind before the machine does the next."""
    budget_per_hour: int = 6
    """Most actions of the kind that the machine does in an hour."""
    hold_seconds: float = 3600.0
    """How long a person's decision stands before the machine may decide otherwise."""

    def __post_init__(self) -> None:
        if self.mode not in ("advise", "approve", "auto"):
            raise ValueError(f"unknown action mode {self.mode!r}; use advise, approve or auto")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """An action that an alert asks for, and what else is known of the model now."""

    action: str
    model: str
    release: str = ""
    release_in_progress: str = ""
    has_hook: bool = True


@dataclass(frozen=True, slots=True)
class Run:
    """Do it now."""

    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask a person."""

    reason: str


@dataclass(frozen=True, slots=True)
class Advise:
    """Only say it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Not now; looked at again while the alert fires. The reason names no passing number, so that it is told once."""

    reason: str


Decision = Run | Wait | Advise | Hold


def decide(proposal: Proposal, history: Sequence[Action], policy: ActionPolicy, now: float) -> Decision:
    """What to do about a proposal. `history` holds the model's past actions, in any order; `now` is unix seconds."""
    conflict = (
        _human_conflict(proposal, history, policy, now)
        or _release_conflict(proposal, history)
        or _retrain_conflict(proposal, history)
    )
    if conflict:
        return Hold(conflict)
    if not proposal.has_hook:
        return Advise(f"no hook is set for {proposal.action}: name a URL or a command for it in the settings")
    if policy.mode == "advise":
        return Advise("the mode is advise")
    spent = _cooldown(proposal, history, policy, now) or _budget(proposal, history, policy, now)
    if spent:
        return Hold(spent)
    if policy.mode == "approve":
        return Wait("the mode is approve: a person decides")
    return Run("the mode is auto")


def _human_conflict(proposal: Proposal, history: Sequence[Action], policy: ActionPolicy, now: float) -> str:
    """A person's decision on the same release, or for what has none on the same kind of action."""
    for past in history:
        if not past.actor or past.decided_at is None or now - past.decided_at >= policy.hold_seconds:
            continue
        if proposal.action in TRAFFIC_ACTIONS:
            concerns = past.action in TRAFFIC_ACTIONS and past.release == proposal.release
        else:
            concerns = past.action == proposal.action
        if concerns:
            until = past.decided_at + policy.hold_seconds
            return f"{past.actor} decided on {past.action} ({past.state}); that stands until {_clock(until)}"
    return ""


def _release_conflict(proposal: Proposal, history: Sequence[Action]) -> str:
    if proposal.action not in TRAFFIC_ACTIONS or not proposal.release:
        return ""
    for past in history:
        if past.action in TRAFFIC_ACTIONS and past.release == proposal.release and past.state in _HAPPENED:
            done = {ROLLBACK: "rolled back", PROMOTE: "promoted"}[past.action]
            return f"release {proposal.release} was {done} by action {past.id}"
    return ""


def _retrain_conflict(proposal: Proposal, history: Sequence[Action]) -> str:
    if proposal.action != RETRAIN:
        return ""
    if proposal.release_in_progress:
        return f"release {proposal.release_in_progress} is in progress: a retrained model would have no place to go"
    running = [past for past in history if past.action == RETRAIN and past.state is ActionState.RUNNING]
    return f"retrain {running[0].id} is still running" if running else ""


def _cooldown(proposal: Proposal, history: Sequence[Action], policy: ActionPolicy, now: float) -> str:
    ended = [
        past.completed_at or past.started_at or past.created_at
        for past in history
        if past.action == proposal.action and past.state in (*_HAPPENED, ActionState.FAILED)
    ]
    if ended and now - max(ended) < policy.cooldown_seconds:
        return f"cooling down after the last {proposal.action} until {_clock(max(ended) + policy.cooldown_seconds)}"
    return ""


def _budget(proposal: Proposal, history: Sequence[Action], policy: ActionPolicy, now: float) -> str:
    spent = [
        past
        for past in history
        if past.action == proposal.action and past.started_at is not None and now - past.started_at < _HOUR
    ]
    if len(spent) >= policy.budget_per_hour:
        return f"the budget of {policy.budget_per_hour} {proposal.action} actions an hour is spent"
    return ""


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S} UTC"
