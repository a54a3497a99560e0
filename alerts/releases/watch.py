"""Watches a version that nothing stable of the judge's stands beside: after its promotion, a switch, an experiment.

After a promotion and in a switch it may turn bad at any time, so both are e-detectors: against the hold-back, or
against what the version before was known to do (`usual`). An experiment's arms are compared from its beginning, and by
latency alone: its failures are counted by the step. A watch is a value that a look makes the next one of, and is saved
with the walk; so it survives restarts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, cast

import msgspec

from alerts.evidence import (
    Arms,
    Check,
    Detector,
    Pace,
    Segment,
    Slow,
    VerdictPolicy,
    log_split_evidence,
    log_weighted_mean,
    rate_interval,
)
from alerts.evidence.histograms import Cumulative, Histogram
from alerts.evidence.histograms import grown as slower
from alerts.evidence.state import summed
from alerts.evidence.totals import CANARY, ERROR, Reading, Total, add_up, first_failures, first_requests, grown

# Looks are put together until each arm has so many requests: of one or two no share is known.
LEAST_REQUESTS = 5.0
# Confidence of what the version before is known to do at most.
_USUAL_RISK = 0.01
# Requests that a share which is known for sure counts for.
_SURE = 1e6


class Beside(StrEnum):
    """What the version is compared with."""

    HOLD_BACK = "hold_back"
    USUAL = "usual"
    VARIANT = "variant"


@dataclass(frozen=True, slots=True)
class Watched:
    """What a look reads: counters and histograms, whose arms are `canary` (the version watched) and another."""

    readings: Sequence[Reading] = ()
    histograms: Sequence[Histogram] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """What the version before does at most: its share of failures, and of requests above each of `bounds` (seconds).

    Without requests of it nothing is known of `bounds`.
    """

    error_rate: float
    bounds: tuple[float, ...] = ()
    slow: tuple[float, ...] = ()

    @staticmethod
    def of(seen: Watched, max_error_rate: float) -> Usual:
        """The upper ends of the confidence intervals of everything that the other arm's counters hold."""
        counts = [(r.outcome == ERROR, r.value) for r in seen.readings if r.arm != CANARY]
        requests, errors = math.fsum(v for _, v in counts), math.fsum(v for failed, v in counts if failed)
        # Of a version that has just begun to answer nothing is known: then it is what the policy calls good enough.
        rate = rate_interval(errors, requests, _USUAL_RISK)[1] if requests else max_error_rate
        bounds, slow, _ = slower([one for one in seen.histograms if one.arm != CANARY], {})
        timed = math.fsum(part.stable_requests for part in slow)
        if not timed:
            return Usual(error_rate=rate)
        above = [math.fsum(part.stable[place] for part in slow) for place in range(len(bounds))]
        shares = tuple(rate_interval(count, timed, _USUAL_RISK)[1] for count in above)
        return Usual(error_rate=rate, bounds=bounds, slow=shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """The state of a watch. `totals` and `histograms` are the counters as last read; a new one has seen nothing."""

    beside: Beside
    errors: Detector = field(default_factory=Detector)
    pace: Pace = field(default_factory=Pace)
    bounds: tuple[float, ...] = ()
    totals: tuple[Total, ...] = ()
    histograms: Mapping[str, Cumulative] = field(default_factory=dict)
    begun: bool = False
    usual: Usual | None = None

    def after(self, seen: Watched, policy: VerdictPolicy, *, sticky: bool = False) -> Watch:
        """After a look. What the counters held at the first one is not the watch's; a look without requests is none."""
        if not self.begun:
            return self._first(seen, policy)
        totals = add_up(self.totals, seen.readings)
        bounds, slow, histograms = slower(seen.histograms, self.histograms)
        arms = grown(self.totals, totals)
        if not arms and not slow:
            return self
        failed = first_failures(self.totals, totals) if sticky else None
        segments = tuple(part.errors for part in arms) if failed is None else failed
        return replace(
            self,
            totals=tuple(totals),
            histograms=histograms,
            errors=self._failed(arms, segments, policy),
            pace=self._timed(bounds, slow, policy),
            bounds=self.bounds or (bounds if slow else ()),
        )

    @property
    def counts(self) -> Arms:
        """Requests and failures of both arms since the watch began."""
        found = grown((), [total for total in self.totals if total.total > 0.0])
        return Arms(
            0.0,
            math.fsum(part.canary_requests for part in found),
            math.fsum(part.canary_errors for part in found),
            math.fsum(part.stable_requests for part in found),
            math.fsum(part.stable_errors for part in found),
        )

    def log_harm(self, policy: VerdictPolicy) -> dict[str, float]:
        """Logarithms of the evidence by check; of checks that have seen enough."""
        harm: dict[str, float] = {}
        if self.beside is not Beside.VARIANT and self.counts.canary_errors >= policy.minimum_errors:
            harm[Check.ERRORS] = self.errors.log_evidence
        found = self.pace.evidence()
        if found.bound >= 0 and self.pace.slow[found.bound] >= policy.minimum_slow:
            harm[Check.LATENCY] = found.log_evidence
        return harm

    def log_evidence(self, policy: VerdictPolicy) -> float:
        """Of all checks, by their shares of the risk; 0 while the hold-back does not get its share of the requests."""
        if self._split() >= -math.log(policy.split_alpha):
            return 0.0
        return log_weighted_mean(self.log_harm(policy), policy.shares)

    def why(self, policy: VerdictPolicy) -> str:
        """What speaks most against the version, in words."""
        harm, counts = self.log_harm(policy), self.counts
        blamed = max(harm, key=lambda check: harm[check] + math.log(policy.shares.get(check) or 1e-300), default="")
        beside = {
            Beside.HOLD_BACK: f"{counts.stable_errors:.0f} of {counts.stable_requests:.0f} held back",
            Beside.USUAL: f"the version before at most {self.usual.error_rate if self.usual else math.nan:.3g} of them",
            Beside.VARIANT: "",
        }[self.beside]
        if blamed == Check.LATENCY:
            return self.slower
        failed = f"{counts.canary_errors:.0f} of {counts.canary_requests:.0f} requests failed"
        return f"{failed}, {beside}" if beside else failed

    @property
    def slower(self) -> str:
        """Where its answers take longer, in words."""
        place = self.pace.evidence().bound
        return f"more of its answers take over {self.bounds[place]:g} s than the other version's" if place >= 0 else ""

    def to_json(self) -> dict[str, Any]:
        """All fields; `from_json` gives the same watch, bit for bit."""
        return cast(dict[str, Any], msgspec.to_builtins(self, enc_hook=float))

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> Watch:
        """Of `to_json`."""
        usual = body["usual"]
        return Watch(
            beside=Beside(body["beside"]),
            errors=Detector(tuple(body["errors"]["sums"]), body["errors"]["looks"]),
            pace=Pace.from_json(body["pace"]),
            bounds=tuple(body["bounds"]),
            totals=tuple(Total(**total) for total in body["totals"]),
            histograms={series: tuple(values) for series, values in body["histograms"].items()},
            begun=body["begun"],
            usual=None
            if usual is None
            else Usual(error_rate=usual["error_rate"], bounds=tuple(usual["bounds"]), slow=tuple(usual["slow"])),
        )

    def _first(self, seen: Watched, policy: VerdictPolicy) -> Watch:
        totals = tuple(Total(r.series, r.arm, r.propensity, r.outcome, r.value, 0.0) for r in seen.readings)
        _, _, histograms = slower(seen.histograms, {})
        usual = Usual.of(seen, policy.max_error_rate) if self.beside is Beside.USUAL else None
        return replace(self, totals=totals, histograms=histograms, begun=True, usual=usual)

    def _failed(self, arms: Sequence[Arms], segments: Sequence[Segment], policy: VerdictPolicy) -> Detector:
        if self.beside is Beside.HOLD_BACK:
            return self.errors.beside(segments, policy.tolerance)
        requests = math.fsum(part.canary_requests for part in arms)
        if self.beside is Beside.VARIANT or self.usual is None or not requests:
            return self.errors
        failed = math.fsum(part.canary_errors for part in arms)
        return self.errors.alone(requests, failed, min(self.usual.error_rate * policy.tolerance, 0.5))

    def _timed(self, bounds: tuple[float, ...], slow: Sequence[Slow], policy: VerdictPolicy) -> Pace:
        if self.beside is Beside.USUAL:
            slow = self._against_usual(bounds, slow)
        if not slow or (self.bounds and bounds != self.bounds):
            return self.pace
        return self.pace.after(
            slow,
            bounds,
            tolerance=policy.latency_tolerance,
            floor_seconds=policy.latency_floor_seconds,
            least_requests=1.0 if self.beside is Beside.VARIANT else LEAST_REQUESTS,
            since_any=self.beside is not Beside.VARIANT,
        )

    def _against_usual(self, bounds: tuple[float, ...], slow: Sequence[Slow]) -> tuple[Slow, ...]:
        """The look with what is usual as its other arm."""
        usual = self.usual
        if usual is None or bounds != usual.bounds or not slow:
            return ()
        pooled = [math.fsum(part.canary[place] for part in slow) for place in range(len(bounds))]
        requests = math.fsum(part.canary_requests for part in slow)
        return (Slow(1.0, tuple(pooled), tuple(share * _SURE for share in usual.slow), requests, _SURE),)

    def _split(self) -> float:
        if self.beside is not Beside.HOLD_BACK:
            return 0.0
        ours = [total for total in self.totals if total.total > 0.0]
        asked = first_requests((), ours) or grown((), ours)
        return log_split_evidence(
            [(part.propensity, part.canary_requests, part.stable_requests) for part in summed((), asked)]
        )
