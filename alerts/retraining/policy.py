"""When an episode is worth another retraining: a pure function of its attempts, the labels since, and a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

Outcome = Literal["open", "refused", "failed", "released", "forbidden"]
"""open: waits or runs; refused: by its gate; failed: killed, or it broke; released: passed; forbidden: by a person."""
_DAY = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainingPolicy:
    """How episodes begin and end, and how often one retrains. Times are seconds."""

    calm_seconds: float = 900.0
    """An episode ends when nothing has asked for so long. One that opens within it of an end goes on where that was."""
    backoff_seconds: float = 1800.0
    """Wait after a retraining that did not help; twice as long after each further one."""
    max_backoff_seconds: float = 86_400.0
    min_new_labels: int = 500
    """Labelled events that must have come since a retraining that did not help."""
    min_age_seconds: float = 3600.0
    """Where nobody counts labels: how old that retraining must be instead."""
    failure_backoff_seconds: float = 60.0
    """Wait after a retraining that broke (killed, out of memory, no answer); twice as long after each further one."""
    max_failures: int = 3
    """So many in a row break an episode's retraining for good; a person may still ask for one."""
    settle_seconds: float = 600.0
    """How long a candidate that passed may take to come into service before it counts as of no help."""
    budget_per_day: int = 6
    """Most retrainings of a model that the machine begins in a day."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One retraining of an episode, or of the one that it goes on from; times are unix seconds."""

    outcome: Outcome
    ended_at: float = 0.0
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Retrain:
    """Begin another attempt."""

    reason: str


@dataclass(frozen=True, slots=True)
class Again:
    """Ask for the last attempt once more: it has not begun, or is under way."""


@dataclass(frozen=True, slots=True)
class NotYet:
    """Nothing now. The reason names no passing number, so that it is told once."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a decision on an episode rests on.

    `attempts` are its own and those of the episodes that it goes on from, oldest first; `new_labels` the labelled
    events since the last one ended, None where that is not known; `begun_today` the machine's retrainings of the model
    in the last 24 hours; `busy` what is under way with the model's traffic, "" for nothing; `now` unix seconds.
    """

    attempts: tuple[Attempt, ...]
    new_labels: float | None
    begun_today: int
    busy: str
    policy: RetrainingPolicy
    now: float

    def decide(self) -> Retrain | Again | NotYet:
        """What to do about the episode."""
        return next_attempt(self.attempts, self.new_labels, self.begun_today, self.busy, self.policy, self.now)


def decision_json(decision: Retrain | Again | NotYet) -> dict[str, str]:
    """A decision as the journal has it."""
    return {"decision": _WORDS[type(decision)], "reason": "" if isinstance(decision, Again) else decision.reason}


_WORDS: dict[type[Any], str] = {Retrain: "retrain", Again: "again", NotYet: "not yet"}


def over(
    version: str, quiet_since: float | None, served: Sequence[str], calm_seconds: float, now: float
) -> tuple[str, str] | None:
    """How an episode of a version ends, and why, where it does: `promoted` or `calm`."""
    if version and served and version not in served:
        in_service = "version " + " and ".join(served)
        return "promoted", f"{in_service} came into service, with its own reference"
    if quiet_since is not None and now - quiet_since >= calm_seconds:
        return "calm", f"nothing asked for {calm_seconds:g} s"
    return None


def next_attempt(
    attempts: Sequence[Attempt],
    new_labels: float | None,
    begun_today: int,
    busy: str,
    policy: RetrainingPolicy,
    now: float,
) -> Retrain | Again | NotYet:
    """What to do about an episode that goes on.

    `attempts` are its own and those of the episodes that it goes on from, oldest first; `new_labels` the labelled
    events since the last one ended, None where that is not known; `begun_today` the machine's retrainings of the model
    in the last 24 hours; `busy` what is under way with the model's traffic, "" for nothing; `now` unix seconds.
    """
    last = attempts[-1] if attempts else None
    if last is not None:
        if last.outcome == "open":
            return Again()
        if last.outcome == "forbidden":
            return NotYet(f"a person forbade it: {last.why}")
        if busy:
            return NotYet(f"release {busy} is in progress: what the last retraining made is being judged")
        wait = _wait(attempts, new_labels, policy, now)
        if wait:
            return NotYet(wait)
    if begun_today >= policy.budget_per_day:
        return NotYet(f"the budget of {policy.budget_per_day} retrainings in 24 hours is spent")
    return Retrain("the first of its episode" if last is None else f"the last one is {last.outcome}: {last.why}")


def _wait(attempts: Sequence[Attempt], new_labels: float | None, policy: RetrainingPolicy, now: float) -> str:
    last = attempts[-1]
    if last.outcome == "failed":
        failures = _row(attempts, lambda one: one.outcome == "failed")
        if failures >= policy.max_failures:
            return f"{failures} retrainings in a row broke, the last: {last.why}"
        until = last.ended_at + policy.failure_backoff_seconds * 2.0 ** (failures - 1)
        return f"the last retraining broke; it is tried again at {_clock(until)}" if now < until else ""
    helpless = sum(one.outcome in ("refused", "released") for one in attempts)
    until = last.ended_at + min(policy.backoff_seconds * 2.0 ** (helpless - 1), policy.max_backoff_seconds)
    if last.outcome == "released":
        until = max(until, last.ended_at + policy.settle_seconds)
    if now < until:
        return f"the last retraining did not help ({last.why}); the next may begin at {_clock(until)}"
    if new_labels is None:
        until = last.ended_at + policy.min_age_seconds
        return f"nobody counts labels: the last retraining must be older, until {_clock(until)}" if now < until else ""
    if new_labels < policy.min_new_labels:
        return f"another needs {policy.min_new_labels} labelled events more than the last one, which did not help, had"
    return ""


def _row(attempts: Sequence[Attempt], matches: Any) -> int:
    count = 0
    for one in reversed(attempts):
        if not matches(one):
            break
        count += 1
    return count


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
