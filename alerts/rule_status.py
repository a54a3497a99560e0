"""How rules and groups fare: what an evaluation goes on from, what the API shows, and what one evaluation found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from alerts.labels import Labels
from alerts.rules import Rule, RuleGroup
from alerts.states import Alert, Event, RuleState


@dataclass(slots=True)
class RuleStatus:
    """How a rule fares: its alerts, and its last evaluation (unix seconds; seconds)."""

    rule: Rule
    state: RuleState = field(default_factory=dict)
    health: Literal["unknown", "ok", "err"] = "unknown"
    last_error: str = ""
    evaluated_at: float = 0.0
    duration_seconds: float = 0.0
    written: frozenset[Labels] = frozenset()
    """The series that the rule made last; those that it makes no longer get stale markers."""


@dataclass(slots=True)
class GroupStatus:
    """How a group fares. `evaluated_at` is the last time on its grid, `looked_at` when that really was."""

    group: RuleGroup
    rules: list[RuleStatus]
    batches: list[range]
    evaluated_at: float = 0.0
    looked_at: float = 0.0
    duration_seconds: float = 0.0
    write_error: str = ""
    restored_at: float = 0.0
    """When the states that were restored had been evaluated last; 0 once evaluation goes on."""
    gone: frozenset[Labels] = frozenset()
    """Series of rules that the group had before it was read anew: they end at the next evaluation."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one evaluation of a group changed, and which alerts its successful rules hold firing now."""

    group: RuleGroup
    ts: float
    events: tuple[Event, ...]
    firing: tuple[Alert, ...]
    failures: tuple[str, ...]
    asking: tuple[Alert, ...] = ()
    """Those of them whose rule has the label `action`: one that comes from the data means nothing."""
