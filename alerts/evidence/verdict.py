"""The verdict on a release: a pure function of its evidence, its counts, a policy and the time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from alerts.evidence.errors import Segment, log_evidence, log_safety


class Outcome(StrEnum):
    """What to do with a release: one word."""

    ROLLBACK = "rollback"
    ADVANCE = "advance"
    CONTINUE = "continue"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictPolicy:
    """When evidence suffices."""

    alpha: float = 0.01
    """Accepted probability of rolling a harmless release back."""
    beta: float = 0.01
    """Accepted probability of advancing an unsafe one."""
    max_error_rate: float = 0.01
    """A canary that fails less often than this is safe."""
    max_ratio: float = 2.0
    """A canary that fails less than this many times as often as the stable version is safe too."""
    tolerance: float = 1.0
    """A canary may fail up to this many times as often before it counts as harm."""
    minimum_requests: int = 100
    """Fewer canary requests than this never prove safety."""
    minimum_errors: int = 2
    """Fewer canary errors than this never prove harm."""
    deadline_seconds: float = 3600.0
    """Age of a release at which an open question becomes `inconclusive`."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "max_error_rate"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name} is a probability within (0, 1), got {getattr(self, name)}")
        if self.max_ratio <= 1.0 or self.tolerance < 1.0:
            raise ValueError(
                f"max_ratio must exceed 1 and tolerance be at least 1, got {self.max_ratio} and {self.tolerance}"
            )


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests behind the evidence; an error is a fault of the version (`names.FAULTS`)."""

    canary_requests: float
    canary_errors: float
    stable_requests: float
    stable_errors: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """Log e-values of the two hypotheses, and when the release began (unix seconds)."""

    log_harm: float
    log_safety: float
    started_at: float

    @property
    def harm(self) -> float:
        """E-value that the canary fails more often than the stable version."""
        return bounded_exp(self.log_harm)

    @property
    def safety(self) -> float:
        """E-value that the canary is safe."""
        return bounded_exp(self.log_safety)


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome and, in one sentence, the numbers that led to it."""

    outcome: Outcome
    reason: str


def weigh(segments: list[Segment], counts: Counts, policy: VerdictPolicy, started_at: float) -> Evidence:
    """Evidence of a release from its whole history (an e-process is never restarted within a release)."""
    return Evidence(
        log_harm=log_evidence(segments, tolerance=policy.tolerance),
        log_safety=log_safety(
            segments,
            counts.canary_errors,
            counts.canary_requests,
            max_rate=policy.max_error_rate,
            max_ratio=policy.max_ratio,
        ),
        started_at=started_at,
    )


def judge(evidence: Evidence, counts: Counts, policy: VerdictPolicy, now: float) -> Verdict:
    """Rollback, advance, continue or inconclusive. Harm is looked at first; no data is never healthy."""
    seen = (
        f"{counts.canary_errors:.0f} of {counts.canary_requests:.0f} canary requests failed, "
        f"{counts.stable_errors:.0f} of {counts.stable_requests:.0f} stable ones"
    )
    if evidence.log_harm >= -math.log(policy.alpha) and counts.canary_errors >= policy.minimum_errors:
        return Verdict(
            Outcome.ROLLBACK, f"harm is proved (e-value {evidence.harm:.3g} >= {1 / policy.alpha:g}): {seen}"
        )
    if evidence.log_safety >= -math.log(policy.beta) and counts.canary_requests >= policy.minimum_requests:
        return Verdict(
            Outcome.ADVANCE, f"safety is proved (e-value {evidence.safety:.3g} >= {1 / policy.beta:g}): {seen}"
        )
    if now - evidence.started_at >= policy.deadline_seconds:
        return Verdict(
            Outcome.INCONCLUSIVE, f"neither harm nor safety proved within {policy.deadline_seconds:g} s: {seen}"
        )
    if counts.canary_requests == 0:
        return Verdict(Outcome.CONTINUE, "no canary request was seen yet")
    return Verdict(Outcome.CONTINUE, f"evidence of harm {evidence.harm:.3g}, of safety {evidence.safety:.3g}: {seen}")


def bounded_exp(value: float) -> float:
    """exp(value), at most 1e300: an e-value that a float and JSON can carry."""
    return math.exp(min(value, 690.0))
