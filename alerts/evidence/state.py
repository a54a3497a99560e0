"""What a release's evidence rests on: sums that grow look by look, and the evidence that they are.

`ReleaseState.after(look, policy)` is a pure function and the state goes through JSON bit for bit, so that replaying the
looks of a journal gives the same verdicts. An e-process is never restarted within a release.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

import msgspec

from alerts.evidence.errors import Recent, calm, log_rate_safety, mean_safety
from alerts.evidence.exceedances import Slow, slowness
from alerts.evidence.labels import Labelled, Quality
from alerts.evidence.latency import Pace
from alerts.evidence.prediction import Predicted, log_shift_evidence
from alerts.evidence.sample_ratio import log_split_evidence
from alerts.evidence.segments import HARM_RATIOS, Bets, Segment, log_mixture, log_ratio_safety
from alerts.evidence.verdict import Counts, Evidence, VerdictPolicy


class _Part(Protocol):
    """Counts while the router used one probability."""

    @property
    def propensity(self) -> float: ...

    def plus(self, other: Self) -> Self: ...


_P = TypeVar("_P", bound=_Part)

# What `to_json` calls its form. States without a number (the first) are read for what they are: their evidence of
# slower answers is made of sums of requests, and they take no further looks (`continued` does).
FORMAT = 2
# Failures of the canary in one look that may count as so many: more of them came of one cause, such as one bad batch.
MOST_FAILURES = 3.0


class Arms(msgspec.Struct, frozen=True):
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


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted since the look before; `at` is unix seconds, `bounds` the histogram's in seconds.

    Where units keep their arm, requests are not independent and `sticky` says so: `first_failures` are the failures of
    units that had not failed before (without them each failure of `arms` counts), and `units` the units' first requests
    (without them the sample ratio is not tested); `slow` are then of the units' first requests, too. `labelled`
    are predictions whose labels have come.
    """

    at: float
    arms: tuple[Arms, ...] = ()
    bounds: tuple[float, ...] = ()
    slow: tuple[Slow, ...] = ()
    predicted: tuple[Predicted, ...] = ()
    labelled: tuple[Labelled, ...] = ()
    first_failures: tuple[Segment, ...] | None = None
    units: tuple[Arms, ...] = ()
    sticky: bool = False

    @property
    def failures(self) -> tuple[Segment, ...]:
        """The failures that count, by arm."""
        return tuple(arms.errors for arms in self.arms) if self.first_failures is None else self.first_failures


class ReleaseState(msgspec.Struct, frozen=True, kw_only=True):
    """All that the verdict on a release needs; segments are ordered by propensity. A new one has seen nothing.

    `failures` are those that count as harm, at most `MOST_FAILURES` of the canary's a look, and `failing_looks` the
    looks that had one of the canary's (None in states of the first format, which did not count them). `pace` is the bet
    on slower answers. `slow` and `weights` are in states of the first format only.
    """

    started_at: float
    arms: tuple[Arms, ...] = ()
    failures: tuple[Segment, ...] = ()
    failing_looks: int | None = 0
    calm: tuple[Segment, ...] = ()
    recent: Recent = Recent()
    bounds: tuple[float, ...] = ()
    pace: Pace = Pace()
    slow: tuple[Slow, ...] = ()
    weights: tuple[float, ...] = ()
    predicted: tuple[Predicted, ...] = ()
    units: tuple[Arms, ...] = ()
    sticky: bool = False
    quality: Quality | None = None

    def after(self, look: Look, policy: VerdictPolicy) -> ReleaseState:
        """With what a look has counted; a look within the warm-up is left out. Other bounds than before are refused.

        ValueError for a state of the first format, too: `continued` makes one that goes on.
        """
        if look.at < self.started_at + policy.warm_up_seconds:
            return self
        if self.slow:
            raise ValueError("this state was saved by an older version, with sums that nothing is added to any more")
        if look.slow and self.bounds and look.bounds != self.bounds:
            raise ValueError(f"the histogram's bounds were {self.bounds} and are {look.bounds} now")
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
        return ReleaseState(
            started_at=self.started_at,
            arms=summed(self.arms, look.arms),
            failures=summed(self.failures, _bounded(failures)),
            failing_looks=None
            if self.failing_looks is None
            else self.failing_looks + any(segment.canary_events for segment in failures),
            calm=summed(self.calm, [segment.times(share) for segment in failures]) if share else self.calm,
            recent=recent,
            bounds=look.bounds or self.bounds,
            pace=self._pace(look, policy),
            slow=self.slow,
            weights=self.weights,
            predicted=summed(self.predicted, look.predicted),
            units=summed(self.units, look.units),
            sticky=self.sticky or look.sticky,
            quality=self._quality(look, policy),
        )

    def continued(self) -> ReleaseState:
        """The state to go on from: of one that an older version saved, all but its evidence of slower answers."""
        return msgspec.structs.replace(self, slow=(), weights=(), bounds=()) if self.slow or self.weights else self

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
        slow_requests, slow_seconds, slower = 0.0, math.nan, self.pace.evidence()
        if self.slow and self.weights:
            slower = slowness(self.slow, tolerance=policy.latency_tolerance, weights=self.weights)
        if slower.bound >= 0:
            harm["latency"] = slower.log_evidence
            slow_seconds = self.bounds[slower.bound]
            slow_requests = self.pace.slow[slower.bound] if self.pace.slow else 0.0
            slow_requests += sum([part.canary[slower.bound] for part in self.slow])
        if self.quality is not None:
            harm["quality"] = self.quality.log_harm
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
            failing_looks=self.failing_looks,
            labels=0 if self.quality is None else self.quality.candidate.labels,
            quality="" if self.quality is None else self.quality.words(),
        )

    def to_json(self) -> str:
        """The state as text; `from_json` gives the same bits."""
        return json.dumps({"format": FORMAT, **msgspec.to_builtins(self, enc_hook=float)}, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> ReleaseState:
        """The state again, also one of the first format. ValueError when it is none, or one of a later version."""
        try:
            body = json.loads(text)
            form = body.get("format", 1)
            if form not in (1, FORMAT):
                raise ValueError(f"the state of a release has format {form!r}; this version reads up to {FORMAT}")
            return ReleaseState(
                started_at=body["started_at"],
                arms=tuple(Arms(**part) for part in body["arms"]),
                failures=tuple(Segment(**part) for part in body["failures"]),
                calm=tuple(Segment(**part) for part in body["calm"]),
                recent=Recent(**body["recent"]),
                bounds=tuple(body["bounds"]),
                slow=tuple(Slow(**_tuples(part)) for part in body["slow"]),
                weights=tuple(body["weights"]),
                pace=Pace.from_json(body["pace"]) if form > 1 else Pace(),
                failing_looks=body["failing_looks"] if form > 1 else None,
                predicted=tuple(Predicted(**_tuples(part)) for part in body["predicted"]),
                units=tuple(Arms(**part) for part in body["units"]),
                sticky=body["sticky"],
                quality=Quality.from_json(body["quality"]) if body["quality"] else None,
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"this is no state of a release: {error!r}") from error

    def _pace(self, look: Look, policy: VerdictPolicy) -> Pace:
        if not look.slow:
            return self.pace
        return self.pace.after(
            look.slow,
            look.bounds,
            tolerance=policy.latency_tolerance,
            floor_seconds=policy.latency_floor_seconds,
            warm_up_requests=policy.warm_up_requests,
        )

    def _quality(self, look: Look, policy: VerdictPolicy) -> Quality | None:
        if not look.labelled:
            return self.quality
        begun = self.quality or Quality.begun(policy, of_pairs=False)
        return None if begun is None else begun.after(look.labelled)

    def _split(self) -> float:
        split = self.units if self.units or self.sticky else self.arms
        return log_split_evidence([(a.propensity, a.canary_requests, a.stable_requests) for a in split])


def summed(before: tuple[_P, ...], more: Sequence[_P]) -> tuple[_P, ...]:
    """Counts and further ones, those of one probability as one, in its order. `before` is such a sum, or empty."""
    if not more:
        return before
    found = {part.propensity: part for part in before}
    for part in more:
        known = found.get(part.propensity)
        found[part.propensity] = part if known is None else known.plus(part)
    return tuple(found[propensity] for propensity in sorted(found))


def _bounded(failures: Iterable[Segment]) -> list[Segment]:
    """With at most `MOST_FAILURES` of the canary's in all. Fewer are never more evidence of harm."""
    left, found = MOST_FAILURES, []
    for segment in failures:
        canary = min(segment.canary_events, left)
        left -= canary
        stable = segment.total_events - segment.canary_events
        found.append(Segment(segment.propensity, canary, canary + stable))
    return found


def _tuples(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in body.items()}
