"""A model's release policy: through which steps a new version gets its traffic, and what each of them must prove."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from alerts.evidence import VerdictPolicy
from alerts.notifications.intervals import TimeInterval

Then = Literal["hold", "rollback", "advance"]
Failure = Literal["rollback", "hold"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowStep:
    """Copies of requests go to the version; nobody sees its answers."""

    fraction: float = 1.0
    """Share of the requests that is copied."""
    min_pairs: int = 500
    """Pairs of answers that must have been compared."""
    max_failed_ratio: float = 0.02
    """Copies that may fail or not be comparable: the upper end of the confidence interval must be below."""
    max_disagreement_ratio: float | None = None
    """Pairs that may differ by more than `disagreement`; None leaves differences alone."""
    disagreement: float = 0.1
    """Largest absolute difference of outputs that is no disagreement: a bound of the histogram of differences."""
    min_labels: int = 0
    """Labelled pairs that must have been seen, and must prove that the version is not worse by more than
    `verdict.quality_tolerance`; 0 asks for none."""
    min_seconds: float = 0.0
    deadline_seconds: float = 3600.0
    on_deadline: Then = "hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryStep:
    """The version gets `weight` of the requests."""

    weight: float
    min_requests: int = 100
    """Canary requests that this step must see."""
    min_seconds: float = 0.0
    """How long this step lasts at least."""
    min_e_value: float | None = None
    """E-value of the proof of safety, over the whole release; None asks for the judge's own proof (1 / beta)."""
    deadline_seconds: float = 3600.0
    on_deadline: Then = "hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchStep:
    """Blue-green: the version gets all requests at once; the one before stays warm until this step has proved it."""

    min_requests: int = 1000
    min_seconds: float = 0.0
    min_e_value: float | None = None
    """E-value against "it fails at `verdict.max_error_rate` or more"; None asks for 1 / beta."""
    deadline_seconds: float = 3600.0
    on_deadline: Then = "hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentStep:
    """An A/B test of the version against stable: no winner is sought, it ends after its time or its requests."""

    weight: float = 0.5
    """Share of the version; stable has the rest."""
    sticky: str = ""
    """Request parameter, or `header:NAME`, that keeps a unit on its variant."""
    seconds: float = 0.0
    """When it ends; 0: only by its requests."""
    requests: int = 0
    """Requests of the version after which it ends; 0: only by its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldStep:
    """Waits: for a person's approval, or for a time."""

    seconds: float | None = None
    """None waits for a person."""


Step = ShadowStep | CanaryStep | SwitchStep | ExperimentStep | HoldStep


class BlessingCheck(StrEnum):
    """What is asked of a version before it gets any traffic."""

    LOADS = "loads"
    ANSWERS = "answers"
    LATENCY = "latency"
    MEMORY = "memory"
    DETERMINISTIC = "deterministic"
    QUALITY = "quality"
    SKEW = "skew"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlessingPolicy:
    """What a version must show before any traffic. A check that fails refuses; those of `require` must pass."""

    require: tuple[BlessingCheck, ...] = (BlessingCheck.LOADS, BlessingCheck.ANSWERS, BlessingCheck.DETERMINISTIC)
    max_seconds: float | None = None
    """Longest that the median answer to the canned batch may take."""
    max_bytes: float | None = None
    """Memory that the version may take in the server."""
    skew_tolerance: float = 1e-4
    """Largest difference between an output and the recorded one, relative to the larger of it and 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AfterPromotion:
    """For how long a promoted version is watched, and beside what."""

    seconds: float = 3600.0
    hold_back: float = 0.02
    """Share of the requests that stays with the last good version; 0 compares with what that one was known to do."""
    run_length: float = 7 * 86400.0
    """Seconds, on average at least, from one false alarm to the next while the version is as good as the one before."""

    @property
    def threshold(self) -> float:
        """Evidence that is an alarm, with one look a second."""
        return self.run_length


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePolicy:
    """How a model's new versions are released; without steps the shipped rules act, as they do without any policy."""

    steps: tuple[Step, ...] = ()
    on_failure: Failure = "rollback"
    """What harm, once proved, leads to; `hold` stops the release where it is and tells a person."""
    sticky: str = ""
    """Request parameter that keeps a unit on its version while there is a canary."""
    blessing: BlessingPolicy | None = field(default_factory=BlessingPolicy)
    verdict: VerdictPolicy = field(default_factory=VerdictPolicy)
    after_promotion: AfterPromotion | None = None
    """How a promoted version is watched; None: by the shipped rules alone."""
    freeze: tuple[TimeInterval, ...] = ()
    """While one of these holds no release gets more traffic; rollbacks happen at any time."""
    text: str = ""
    """The policy as JSON that `read_policy` reads: what a release in progress is led by, whatever the file says now."""

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def frozen(self, now: float) -> bool:
        """Whether no release may get more traffic at `now` (unix seconds)."""
        return any(interval.contains(now) for interval in self.freeze)

    def proof(self, step: CanaryStep | SwitchStep) -> float:
        """The e-value of safety that lets a release go on from this step."""
        return 1.0 / self.verdict.beta if step.min_e_value is None else step.min_e_value


def named(step: Step) -> str:
    """A step in a few words."""
    match step:
        case ShadowStep():
            return f"shadow of {step.fraction:.4g} of the requests"
        case CanaryStep():
            return f"canary with {step.weight * 100:.4g} % of the requests"
        case SwitchStep():
            return "switch of all requests"
        case ExperimentStep():
            return f"experiment with {step.weight * 100:.4g} % of the requests"
        case HoldStep():
            return "hold for a person" if step.seconds is None else f"hold for {step.seconds:g} s"
