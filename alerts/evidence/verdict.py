"""The verdict on a release: a pure function of its evidence, its counts, a policy and the time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from alerts.evidence.discoveries import level, log_weighted_mean
from alerts.evidence.losses import Loss


class Outcome(StrEnum):
    """What to do with a release: one word."""

    ROLLBACK = "rollback"
    ADVANCE = "advance"
    CONTINUE = "continue"
    INCONCLUSIVE = "inconclusive"


class Check(StrEnum):
    """What is asked of a release: the label `check` of its evidence."""

    ERRORS = "errors"
    LATENCY = "latency"
    QUALITY = "quality"
    SAMPLE_RATIO = "sample_ratio"
    PREDICTION = "prediction"
    AFTER_PROMOTION = "after_promotion"


class Reason(StrEnum):
    """Why the outcome is what it is: one word."""

    ERRORS = "errors"
    LATENCY = "latency"
    QUALITY = "quality"
    PROVED_SAFE = "proved_safe"
    SAMPLE_RATIO = "sample_ratio"
    INCIDENT = "incident"
    SUSPECT = "suspect"
    NO_DATA = "no_data"
    COLLECTING = "collecting"
    DEADLINE = "deadline"


def _shares() -> dict[str, float]:
    return {Check.ERRORS: 0.6, Check.LATENCY: 0.4}


def _shares_with_quality() -> dict[str, float]:
    return {Check.ERRORS: 0.5, Check.LATENCY: 0.3, Check.QUALITY: 0.2}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictPolicy:
    """When evidence suffices."""

    alpha: float = 0.01
    """Accepted probability of rolling a harmless release back, over all checks."""
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
    shares: Mapping[str, float] = field(default_factory=_shares)
    """Shares of `alpha` by check: errors, latency, quality. Fixed before a release; without one a check informs.
    Where nothing is given they are 0.6, 0.4 and 0; with a `loss` 0.5, 0.3 and 0.2."""
    latency_tolerance: float = 1.05
    """A canary may exceed each latency bound up to this many times as often before it counts as harm."""
    latency_floor_seconds: float = 0.025
    """Bounds of the histogram below this are no evidence: nobody wants a rollback for less. A good value is a quarter
    of the model's latency objective; 0 takes every bound."""
    minimum_slow: int = 4
    """Fewer canary requests above the telling bound than this never prove that it is slower."""
    minimum_error_looks: int = 3
    """Canary errors in fewer looks (seconds) than this never prove harm: one bad batch is one look."""
    incident_error_rate: float = 0.05
    """While more of both arms' requests fail than this, nothing is proved safe: the cause is common to both."""
    split_alpha: float = 0.001
    """Accepted probability of voiding a release whose traffic is split as the router says."""
    suspect: float = 10.0
    """From this e-value of harm on, no release advances."""
    warm_up_seconds: float = 0.0
    """What a release's first seconds count is left out of all; serving warms a version before it routes to it."""
    warm_up_requests: int = 5
    """Looks until the canary has answered this many requests are no evidence of slower answers: caches are cold."""
    loss: str = ""
    """How labelled predictions are judged: zero-one, brier, log, absolute or squared; "" leaves labels alone."""
    loss_bound: float = 0.0
    """A loss above this counts as this. 0 takes the loss' own: 1 for zero-one and brier, 5 for log; others need it."""
    quality_tolerance: float = 0.01
    """How much more the candidate may lose on average before it counts as harm: 0.01 is a point of accuracy."""
    minimum_labels: int = 0
    """Fewer labelled canary predictions than this never prove safety."""
    over_releases: bool = False
    """Whether alpha bounds the share of false rollbacks of all of the model's releases (e-LOND), not of each."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "max_error_rate", "incident_error_rate", "split_alpha"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name} is a probability within (0, 1), got {getattr(self, name)}")
        if self.max_ratio <= 1.0 or self.tolerance < 1.0 or self.latency_tolerance < 1.0:
            raise ValueError(
                f"max_ratio must exceed 1 and tolerances be at least 1, got {self.max_ratio}, {self.tolerance} "
                f"and {self.latency_tolerance}"
            )
        if self.warm_up_seconds < 0.0 or self.suspect < 1.0:
            raise ValueError(
                f"warm_up_seconds is at least 0 and suspect at least 1, got {self.warm_up_seconds} and {self.suspect}"
            )
        for name in (
            "latency_floor_seconds",
            "warm_up_requests",
            "minimum_error_looks",
            "minimum_slow",
            "minimum_labels",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a number from 0 on, got {getattr(self, name)}")
        if self.loss and dict(self.shares) == _shares():
            object.__setattr__(self, "shares", _shares_with_quality())
        judged = {Check.ERRORS, Check.LATENCY, Check.QUALITY}
        if not set(self.shares) <= judged or any(not 0 <= s <= 1 for s in self.shares.values()):
            raise ValueError(f"shares are of {', '.join(sorted(judged))}, 0 to 1 each, got {dict(self.shares)}")
        if sum(self.shares.values()) > 1.0 + 1e-9:
            raise ValueError(f"shares are at most 1 together, got {dict(self.shares)}")
        loss = self.labelled_loss
        if loss is not None and not 0.0 <= self.quality_tolerance < loss.bound:
            raise ValueError(
                f"quality_tolerance is a part of the loss, from 0 to below {loss.bound:g}, got {self.quality_tolerance}"
            )
        if self.minimum_labels and loss is None:
            raise ValueError("minimum_labels asks for labels, and nothing says how they are judged: give `loss`, too")

    @property
    def labelled_loss(self) -> Loss | None:
        """How labelled predictions are judged; None where they are not. ValueError for what is no loss."""
        return Loss.of(self.loss, self.loss_bound) if self.loss else None

    def level(self, release: int = 1, rollbacks: int = 0) -> float:
        """The risk that the model's release number `release` may take, `rollbacks` of those before rolled back."""
        return level(release, rollbacks, self.alpha) if self.over_releases else self.alpha


class Counts(msgspec.Struct, frozen=True):
    """Requests behind the evidence; an error is a fault of the version (`names.FAULTS`)."""

    canary_requests: float
    canary_errors: float
    stable_requests: float
    stable_errors: float


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Log e-values of the hypotheses, and when the release began (unix seconds).

    `log_harm` is by check; `log_split` speaks against the routing's probabilities and `log_shift` against equal
    predictions. `incident` says that too many requests of both arms fail now, `slow_requests` how many of the canary's
    were above the bound of `slow_seconds`, which speaks most for a slower one. `failing_looks` counts the looks in
    which the canary failed; None where nobody has counted them. `labels` are the canary's labelled predictions, and
    `quality` what they have shown, in words.
    """

    log_harm: Mapping[str, float]
    log_safety: float
    started_at: float
    log_split: float = 0.0
    log_shift: float = 0.0
    incident: bool = False
    slow_requests: float = 0.0
    slow_seconds: float = math.nan
    failing_looks: int | None = None
    labels: int = 0
    quality: str = ""

    @property
    def harm(self) -> float:
        """E-value that the canary fails more often than the stable version."""
        return bounded_exp(self.log_harm.get(Check.ERRORS, 0.0))

    @property
    def safety(self) -> float:
        """E-value that the canary is safe."""
        return bounded_exp(self.log_safety)


class Verdict(msgspec.Struct, frozen=True):
    """An outcome, its reason in one word and, in one sentence, the numbers that led to it."""

    outcome: Outcome
    because: Reason
    reason: str


def proving(evidence: Evidence, counts: Counts, policy: VerdictPolicy) -> dict[str, float]:
    """The log e-values of harm that may prove it: of checks that have seen enough."""
    proofs = dict(evidence.log_harm)
    few = evidence.failing_looks is not None and evidence.failing_looks < policy.minimum_error_looks
    if counts.canary_errors < policy.minimum_errors or few:
        proofs.pop(Check.ERRORS, None)
    if evidence.slow_requests < policy.minimum_slow:
        proofs.pop(Check.LATENCY, None)
    return proofs


def voided(evidence: Evidence, policy: VerdictPolicy) -> bool:
    """Whether the split of the traffic is off, so that no comparison of the arms means anything."""
    return evidence.log_split >= -math.log(policy.split_alpha)


def judge(evidence: Evidence, counts: Counts, policy: VerdictPolicy, now: float, alpha: float | None = None) -> Verdict:
    """Rollback, advance, continue or inconclusive; `alpha` in place of the policy's where releases share one.

    A split that is off voids everything. Then harm is looked at, then safety. No data is never healthy.
    """
    alpha = alpha or policy.alpha
    seen = (
        f"{counts.canary_errors:.0f} of {counts.canary_requests:.0f} canary requests failed, "
        f"{counts.stable_errors:.0f} of {counts.stable_requests:.0f} stable ones"
    )
    if voided(evidence, policy):
        return Verdict(
            Outcome.INCONCLUSIVE,
            Reason.SAMPLE_RATIO,
            "the canary did not get the share of the requests that the router says "
            f"(e-value {bounded_exp(evidence.log_split):.3g} >= {1 / policy.split_alpha:g}), "
            f"so nothing that is compared means anything: {seen}",
        )
    harms = proving(evidence, counts, policy)
    harm = log_weighted_mean(harms, policy.shares)
    if harm >= -math.log(alpha):
        blamed = max(harms, key=lambda check: harms[check] + math.log(policy.shares.get(check) or 1e-300))
        return Verdict(
            Outcome.ROLLBACK,
            Reason(blamed),
            f"harm is proved (e-value {bounded_exp(harm):.3g} >= {1 / alpha:g}): {_blame(blamed, evidence)}{seen}",
        )
    safe = evidence.log_safety >= -math.log(policy.beta) and counts.canary_requests >= policy.minimum_requests
    safe = safe and evidence.labels >= policy.minimum_labels
    every = harm if len(harms) == len(evidence.log_harm) else log_weighted_mean(evidence.log_harm, policy.shares)
    suspect = bounded_exp(every) >= policy.suspect
    if safe and not evidence.incident and not suspect:
        return Verdict(
            Outcome.ADVANCE,
            Reason.PROVED_SAFE,
            f"safety is proved (e-value {evidence.safety:.3g} >= {1 / policy.beta:g}): {seen}",
        )
    if now - evidence.started_at >= policy.deadline_seconds:
        return Verdict(
            Outcome.INCONCLUSIVE,
            Reason.DEADLINE,
            f"neither harm nor safety proved within {policy.deadline_seconds:g} s: {seen}",
        )
    if counts.canary_requests == 0:
        return Verdict(Outcome.CONTINUE, Reason.NO_DATA, "no canary request was seen yet")
    if evidence.incident:
        return Verdict(
            Outcome.CONTINUE, Reason.INCIDENT, f"too much fails on both versions to prove anything safe: {seen}"
        )
    return Verdict(
        Outcome.CONTINUE,
        Reason.SUSPECT if suspect else Reason.COLLECTING,
        f"evidence of harm {bounded_exp(harm):.3g}, of safety {evidence.safety:.3g}: {seen}",
    )


def bounded_exp(value: float) -> float:
    """exp(value), at most 1e300: an e-value that a float and JSON can carry."""
    return math.exp(min(value, 690.0))


def _blame(check: str, evidence: Evidence) -> str:
    if check == Check.LATENCY:
        return f"more of its answers take over {evidence.slow_seconds:g} s; "
    return f"its predictions are worse: {evidence.quality}; " if check == Check.QUALITY else ""
