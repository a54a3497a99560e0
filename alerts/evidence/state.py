"""What a release's evidence rests on: sums that grow look by look, and the evidence that they are.

`ReleaseState.after(look, policy)` is a pure function and the state goes through JSON bit for bit, so that replaying the
looks of a journal gives the same verdicts. An e-process is never restarted within a release.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, Self, TypeVar

from alerts.evidence.errors import Recent, calm, log_rate_safety, mean_safety
from alerts.evidence.latency import WEIGH_AFTER, Slow, slowness, weights_of
from alerts.evidence.prediction import Predicted, log_shift_evidence
from alerts.evidence.quality import Bet
from alerts.evidence.sample_ratio import log_split_evidence
from alerts.evidence.segments import HARM_RATIOS, Bets, Segment, log_mixture, log_ratio_safety
from alerts.evidence.verdict import Counts, Evidence, VerdictPolicy


class _Part(Protocol):
    """Counts while the router used one probability."""

    @property
    def propensity(self) -> float: ...

    def plus(self, other: Self) -> Self: ...


_P = TypeVar("_P", bound=_Part)


@dataclass(frozen=True, slots=True)
class Arms:
    """Requests and failures of both arms while the router sent one to the canary with one probability."""

    propensity: float
    canary_requests: float = 0.0
    canary_errors: float = 0.0
    stable_requests: float = 0.0
    stable_errors: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.propensity <= 1.0:
            raise ValueError(f"propensity is a probability, got {self.propensity}")
        if self.canary_errors > self.canary_requests or self.stable_errors > self.stable_requests:
            raise ValueError(f"errors must lie within requests, got {self}")

    @property
    def errors(self) -> Segment:
        """The failures by arm."""
        return Segment(self.propensity, self.canary_errors, self.canary_errors + self.stable_errors)

    def plus(self, other: Arms) -> Arms:
        """With further requests of the same probability."""
        return Arms(
            self.propensity,
            self.canary_requests + other.canary_requests,
            self.canary_errors + other.canary_errors,
            self.stable_requests + other.stable_requests,
            self.stable_errors + other.stable_errors,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was counted since the look before; `at` is unix seconds, `bounds` the histogram's in seconds.

    Where units keep their arm, requests are not independent and `sticky` says so: `first_failures` are the failures of
    units that had not failed before (without them each failure of `arms` counts), and `units` the units' first requests
    (without them the sample ratio is not tested). `losses` are differences of losses for `quality`.
    """

    at: float
    arms: tuple[Arms, ...] = ()
    bounds: tuple[float, ...] = ()
    slow: tuple[Slow, ...] = ()
    predicted: tuple[Predicted, ...] = ()
    losses: tuple[float, ...] = ()
    first_failures: tuple[Segment, ...] | None = None
    units: tuple[Arms, ...] = ()
    sticky: bool = False

    @property
    def failures(self) -> tuple[Segment, ...]:
        """The failures that count, by arm."""
        return tuple(arms.errors for arms in self.arms) if self.first_failures is None else self.first_failures


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseState:
    """All that the verdict on a release needs; segments are ordered by propensity. A new one has seen nothing."""

    started_at: float
    arms: tuple[Arms, ...] = ()
    failures: tuple[Segment, ...] = ()
    calm: tuple[Segment, ...] = ()
    recent: Recent = field(default_factory=Recent)
    bounds: tuple[float, ...] = ()
    slow: tuple[Slow, ...] = ()
    weights: tuple[float, ...] = ()
    predicted: tuple[Predicted, ...] = ()
    units: tuple[Arms, ...] = ()
    sticky: bool = False
    quality: Bet | None = None

    def after(self, look: Look, policy: VerdictPolicy) -> ReleaseState:
        """With what a look has counted; a look within the warm-up is left out. Other bounds than before are refused."""
        if look.at < self.started_at + policy.warm_up_seconds:
            return self
        if look.slow and self.slow and look.bounds != self.bounds:
            raise ValueError(f"the histogram's bounds were {self.bounds} and are {look.bounds} now")
        if look.losses and self.quality is None:
            raise ValueError("there are losses, but the state was begun without a bet on quality")
        requests = math.fsum([a.canary_requests + a.stable_requests for a in look.arms])
        failures = [segment for segment in look.failures if segment.total_events]
        errors = math.fsum([segment.total_events for segment in failures])
        recent, share = calm(
            self.recent,
            look.at,
            requests,
            errors,
            normal_rate=policy.max_error_rate,
            incident_rate=policy.incident_error_rate,
        )
        arms, units, slow = (
            _summed(self.arms, look.arms), _summed(self.units, look.units), _summed(self.slow, look.slow)
        )  # fmt: skip
        return replace(
            self,
            arms=arms,
            failures=_summed(self.failures, failures),
            calm=_summed(self.calm, [segment.times(share) for segment in failures]) if share else self.calm,
            recent=recent,
            bounds=look.bounds or self.bounds,
            slow=slow,
            weights=self.weights or _weights(slow, units or arms),
            predicted=_summed(self.predicted, look.predicted),
            units=units,
            sticky=self.sticky or look.sticky,
            quality=self.quality.after(look.losses) if self.quality is not None and look.losses else self.quality,
        )

    @property
    def counts(self) -> Counts:
        """Requests and failures of both arms."""
        canary = canary_errors = stable = stable_errors = 0.0
        for part in self.arms:
            canary += part.canary_requests
            canary_errors += part.canary_errors
            stable += part.stable_requests
            stable_errors += part.stable_errors
        return Counts(canary, canary_errors, stable, stable_errors)

    def evidence(self, policy: VerdictPolicy) -> Evidence:
        """Of the whole history."""
        counts = self.counts
        failures = [(part.propensity, part.canary_events, part.total_events) for part in self.failures]
        harm: dict[str, float] = {"errors": log_mixture(failures, Bets.of(HARM_RATIOS, policy.tolerance))}
        slow_requests, slow_seconds = 0.0, math.nan
        if self.slow and self.weights:
            slower = slowness(self.slow, tolerance=policy.latency_tolerance, weights=self.weights)
            harm["latency"] = slower.log_evidence
            if slower.bound >= 0:
                slow_requests = math.fsum([part.canary[slower.bound] for part in self.slow])
                slow_seconds = self.bounds[slower.bound]
        if self.quality is not None:
            harm["quality"] = self.quality.log_wealth
        absolute = 0.0
        if not self.sticky:  # a rate is one of requests, which say nothing together when they are one user's
            absolute = log_rate_safety(counts.canary_errors, counts.canary_requests, policy.max_error_rate)
        return Evidence(
            log_harm=harm,
            log_safety=mean_safety(absolute, log_ratio_safety(self.calm, policy.max_ratio)),
            started_at=self.started_at,
            log_split=self._split(),
            log_shift=log_shift_evidence(self.predicted) if self.predicted else 0.0,
            incident=self.recent.incident(policy.incident_error_rate),
            slow_requests=slow_requests,
            slow_seconds=slow_seconds,
        )

    def to_json(self) -> str:
        """The state as text; `from_json` gives the same bits."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> ReleaseState:
        """The state again. ValueError when it is none."""
        try:
            body = json.loads(text)
            return ReleaseState(
                started_at=body["started_at"],
                arms=tuple(Arms(**part) for part in body["arms"]),
                failures=tuple(Segment(**part) for part in body["failures"]),
                calm=tuple(Segment(**part) for part in body["calm"]),
                recent=Recent(**body["recent"]),
                bounds=tuple(body["bounds"]),
                slow=tuple(Slow(**_tuples(part)) for part in body["slow"]),
                weights=tuple(body["weights"]),
                predicted=tuple(Predicted(**_tuples(part)) for part in body["predicted"]),
                units=tuple(Arms(**part) for part in body["units"]),
                sticky=body["sticky"],
                quality=Bet(**body["quality"]) if body["quality"] else None,
            )
        except (TypeError, KeyError) as error:
            raise ValueError(f"this is no state of a release: {error!r}") from error

    def _split(self) -> float:
        split = self.units if self.units or self.sticky else self.arms
        return log_split_evidence([(a.propensity, a.canary_requests, a.stable_requests) for a in split])


def _summed(before: tuple[_P, ...], more: Iterable[_P]) -> tuple[_P, ...]:
    found = {part.propensity: part for part in before}
    for part in more:
        known = found.get(part.propensity)
        found[part.propensity] = part if known is None else known.plus(part)
    return tuple(found[propensity] for propensity in sorted(found))


def _weights(slow: Sequence[Slow], asked: Iterable[Arms]) -> tuple[float, ...]:
    requests = math.fsum([part.canary_requests + part.stable_requests for part in asked])
    return weights_of(slow, requests) if slow and slow[0].canary and requests >= WEIGH_AFTER else ()


def _tuples(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in body.items()}
