"""Whether an action may run: a pure function of the proposal, the model's past actions, a policy and the time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from alerts.actions.action import (
    ADVANCE,
    PAUSE,
    PROMOTE,
    RETRAIN,
    ROLLBACK,
    STEP,
    TRAFFIC_ACTIONS,
    Action,
    ActionState,
)

Mode = Literal["advise", "approve", "auto"]
_HAPPENED = (ActionState.RUNNING, ActionState.DONE)
_OPEN = (ActionState.RUNNING, ActionState.WAITING, ActionState.HELD, ActionState.ADVISED)
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
    breaker_failures: int = 3
    """So many failures of the kind in a row open the circuit breaker: the machine tries no more; 0 is none."""
    breaker_seconds: float = 1800.0
    """How long the breaker stays open after the last failure; then one action may try."""
    dry_run: bool = False
    """Do everything but the action itself: decide, look at the target, write down what would be done."""

    def __post_init__(self) -> None:
        if self.mode not in ("advise", "approve", "auto"):
            raise ValueError(f"unknown action mode {self.mode!r}; use advise, approve or auto")
        for name in ("cooldown_seconds", "hold_seconds", "breaker_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("budget_per_hour", "breaker_failures"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of the fields: equal policies have equal digests."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """An action that an alert asks for, and what else is known of the model now."""

    action: str
    model: str
    release: str = ""
    release_in_progress: str = ""
    has_hook: bool = True
    planned: bool = False
    """A release's policy asks for it: it has a pace of its own, and neither cool-down nor budget stop it."""

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


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
class Rehearse:
    """A dry run: look at what it would be done to, and say what would be done."""

    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Not now; looked at again while the alert fires. The reason names no passing number, so that it is told once."""

    reason: str


Decision = Run | Wait | Advise | Rehearse | Hold


def decide(proposal: Proposal, history: Sequence[Action], policy: ActionPolicy, now: float) -> Decision:
    """What to do about a proposal. `history` holds the model's past actions, in any order; `now` is unix seconds.

    What people decided goes first, then what is in progress, then the policy.
    """
    conflict = (
        _human_conflict(proposal, history, policy, now)
        or _release_conflict(proposal, history)
        or _pause_conflict(proposal, history)
        or _retrain_conflict(proposal, history)
        or _running_conflict(proposal, history)
    )
    if conflict:
        return Hold(conflict)
    if not proposal.has_hook:
        return Advise(f"no hook is set for {proposal.action}: name a URL or a command for it in the settings")
    if policy.mode == "advise":
        return Advise("the mode is advise")
    spent = _breaker(proposal, history, policy, now)
    if not proposal.planned:
        spent = spent or _cooldown(proposal, history, policy, now) or _budget(proposal, history, policy, now)
    if spent:
        return Hold(spent)
    if policy.mode == "approve":
        return Wait("the mode is approve: a person decides")
    if policy.dry_run:
        return Rehearse("a dry run: the mode is auto, and it would run now")
    return Run("the mode is auto")


def relevant(proposal: Proposal, history: Sequence[Action], policy: ActionPolicy, now: float) -> list[Action]:
    """The past actions that `decide` may need, newest first: what a journal must hold to decide again."""
    reach = max(_HOUR, policy.cooldown_seconds, policy.hold_seconds, policy.breaker_seconds)
    kept, of_the_kind = [], 0
    for past in sorted(history, key=lambda action: action.id, reverse=True):
        same = past.action == proposal.action and past.state in (ActionState.DONE, ActionState.FAILED)
        of_the_kind += same
        latest = max(past.created_at, past.decided_at or 0.0, past.started_at or 0.0, past.completed_at or 0.0)
        about_release = bool(proposal.release) and past.release == proposal.release
        recent_failure = same and of_the_kind <= policy.breaker_failures
        if now - latest < reach or about_release or recent_failure or past.state in _OPEN:
            kept.append(past)
    return kept


def decision_json(decision: Decision) -> dict[str, str]:
    """A decision as the journal has it."""
    return {"decision": type(decision).__name__.lower(), "reason": decision.reason}


def proposal_of(body: Mapping[str, Any]) -> Proposal:
    """The proposal of its JSON."""
    return Proposal(**body)


def _human_conflict(proposal: Proposal, history: Sequence[Action], policy: ActionPolicy, now: float) -> str:
    """A person's decision on the same release, or for what has none on the same kind of action."""
    for past in history:
        if not past.actor or past.decided_at is None or now - past.decided_at >= policy.hold_seconds:
            continue
        if proposal.action in TRAFFIC_ACTIONS:
            # Who pauses a release, or lets it go a step on, has not said that it must stay when it harms.
            ends = past.action in (ROLLBACK, PROMOTE) or past.action == proposal.action
            concerns = ends and past.release == proposal.release
        else:
            concerns = past.action == proposal.action
        if concerns:
            until = past.decided_at + policy.hold_seconds
            return f"{past.actor} decided on {past.action} ({past.state}); that stands until {_clock(until)}"
    return ""


def _release_conflict(proposal: Proposal, history: Sequence[Action]) -> str:
    if proposal.action not in TRAFFIC_ACTIONS:
        return ""
    running = proposal.release_in_progress
    if running and proposal.release != running:
        return f"release {running} is in progress: {proposal.action} is not asked for it and would go over it"
    if not proposal.release:
        return ""
    for past in history:
        ended = past.action in (ROLLBACK, PROMOTE)
        if past.action == PROMOTE and proposal.planned and proposal.action in (ROLLBACK, STEP):
            continue  # its policy watches what it promoted, and takes it back
        if ended and past.release == proposal.release and past.state in _HAPPENED:
            done = {ROLLBACK: "rolled back", PROMOTE: "promoted"}[past.action]
            return f"release {proposal.release} was {done} by action {past.id}"
    return ""


def _pause_conflict(proposal: Proposal, history: Sequence[Action]) -> str:
    """A release that was paused neither advances nor is promoted, until a person lets it."""
    if proposal.action not in (PROMOTE, ADVANCE, STEP) or not proposal.release:
        return ""
    about = [past for past in history if past.release == proposal.release and past.state in _HAPPENED]
    paused = [past.id for past in about if past.action == PAUSE]
    resumed = [past.id for past in about if past.action == ADVANCE and past.actor]
    if paused and max(paused) > max(resumed, default=0):
        return f"release {proposal.release} is paused by action {max(paused)}: a person lets it go on"
    return ""


def _retrain_conflict(proposal: Proposal, history: Sequence[Action]) -> str:
    if proposal.action != RETRAIN:
        return ""
    if proposal.release_in_progress:
        return f"release {proposal.release_in_progress} is in progress: a retrained model would have no place to go"
    running = [past for past in history if past.action == RETRAIN and past.state is ActionState.RUNNING]
    return f"retrain {running[0].id} is still running" if running else ""


def _running_conflict(proposal: Proposal, history: Sequence[Action]) -> str:
    """One change of a model's traffic at a time; a rollback waits for no other kind."""
    if proposal.action not in TRAFFIC_ACTIONS:
        return ""
    kinds = (ROLLBACK,) if proposal.action == ROLLBACK else TRAFFIC_ACTIONS
    running = [past for past in history if past.action in kinds and past.state is ActionState.RUNNING]
    return f"{running[0].action} {running[0].id} is still running" if running else ""


def _breaker(proposal: Proposal, history: Sequence[Action], policy: ActionPolicy, now: float) -> str:
    """Failures in a row: what breaks each time is not mended by trying again."""
    if policy.breaker_failures == 0:
        return ""
    ended = [
        past
        for past in history
        if past.action == proposal.action and past.state in (ActionState.DONE, ActionState.FAILED)
    ]
    ended.sort(key=lambda past: (past.completed_at or 0.0, past.id), reverse=True)
    last = ended[: policy.breaker_failures]
    if len(last) < policy.breaker_failures or any(past.state is ActionState.DONE for past in last):
        return ""
    until = (last[0].completed_at or last[0].created_at) + policy.breaker_seconds
    if now >= until:
        return ""
    return (
        f"the circuit breaker is open: the last {len(last)} {proposal.action} actions failed; it lets one try at "
        f"{_clock(until)}"
    )


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
