"""What the judge has found of a release: as the API shows it, as series of a metric, and as what a replay needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from alerts.evidence.confidence import rate_interval
from alerts.evidence.prediction import total_variation
from alerts.evidence.releases import Release
from alerts.evidence.state import ReleaseState
from alerts.evidence.totals import CANARY, ERROR
from alerts.evidence.verdict import (
    Check,
    Counts,
    Evidence,
    Outcome,
    Verdict,
    VerdictPolicy,
    bounded_exp,
    judge,
    proving,
    voided,
)
from alerts.labels import labels_of
from alerts.querier import Sample
from observability import names

# The risk at which an e-value of 100, with which the shipped rules compare, is proof.
_RULES_RISK = 0.01


@dataclass(frozen=True, slots=True)
class Judgement:
    """A release with its evidence and counts at the time of the last look.

    `because` is the verdict's reason in one word. `state`, `policy` and `alpha` are all that led to it.
    """

    release: Release
    evidence: Evidence
    state: ReleaseState
    policy: VerdictPolicy
    alpha: float
    because: str = ""

    @property
    def counts(self) -> Counts:
        """Requests and failures of both arms."""
        return self.state.counts

    def to_json(self) -> dict[str, Any]:
        """The object that `/api/v1/evidence` shows. `replay` is what `replayed` makes the same verdict of."""
        counts, evidence = self.counts, self.evidence
        return {
            **self.release.labels,
            "started_at": self.release.started_at,
            "ended_at": self.release.ended_at,
            "in_progress": self.release.ended_at is None,
            "verdict": self.release.verdict.value,
            "because": self.because,
            "reason": self.release.reason,
            "decided_at": self.release.decided_at,
            "evidence": {
                **{check: {"harm": bounded_exp(value)} for check, value in evidence.log_harm.items()},
                Check.ERRORS: {"harm": evidence.harm, "safety": evidence.safety},
                Check.SAMPLE_RATIO: {
                    "mismatch": bounded_exp(evidence.log_split),
                    "voided": voided(evidence, self.policy),
                },
                Check.PREDICTION: {
                    "shift": bounded_exp(evidence.log_shift),
                    "total_variation": total_variation(self.state.predicted),
                },
            },
            "told": list(told(self.state, evidence)),
            "counts": {
                "canary": _arm(counts.canary_requests, counts.canary_errors),
                "stable": _arm(counts.stable_requests, counts.stable_errors),
            },
            "replay": {"state": self.state.to_json(), "policy": asdict(self.policy), "alpha": self.alpha},
        }


def replayed(replay: Mapping[str, Any], now: float) -> Verdict:
    """The verdict that the journalled `replay` of a judgement led to at `now`: the same, bit for bit."""
    state, policy = ReleaseState.from_json(replay["state"]), VerdictPolicy(**replay["policy"])
    return judge(state.evidence(policy), state.counts, policy, now, replay["alpha"])


def told(state: ReleaseState, evidence: Evidence) -> Iterable[str]:
    """What labels and predictions say of the release, a sentence each."""
    if state.quality is not None:
        yield f"Of its labels: {state.quality.words()}."
    if state.predicted:
        predictions = math.fsum([math.fsum(part.canary) for part in state.predicted])
        yield (
            f"Of its predictions: {predictions:.0f} of the candidate, {total_variation(state.predicted):.1%} of which "
            f"lie elsewhere than the stable version's (e-value {bounded_exp(evidence.log_shift):.3g} that they are "
            "distributed otherwise)."
        )


def samples_of(judgement: Judgement) -> Iterable[Sample]:
    """The series of a judgement: evidence by check and hypothesis, requests by arm and outcome, 1 for the verdict.

    Evidence of harm is its e-value times the check's share of the risk, so that each of them is proof by itself, at the
    risk of the policy for all together. All is scaled so that 100 is proof, whatever risks the policy takes: that is
    what the shipped rules compare with. While nothing may be concluded it is 1 at most, and so is that of safety.
    """
    labels, counts, policy = judgement.release.labels, judgement.counts, judgement.policy
    evidence, void = judgement.evidence, voided(judgement.evidence, policy)
    proofs = proving(evidence, counts, policy)

    def sample(metric: names.Metric, value: float, **more: str) -> Sample:
        return Sample(labels_of({**labels, **more, "__name__": metric.name}), value)

    for check in evidence.log_harm:
        share = policy.shares.get(check, 0.0) * judgement.alpha / _RULES_RISK
        value = share * bounded_exp(proofs.get(check, 0.0))
        yield sample(names.CANARY_EVIDENCE, min(value, 1.0) if void else value, check=check, hypothesis="harm")
    proof = evidence.safety * policy.beta / _RULES_RISK
    safety = min(proof, 1.0) if void or evidence.incident else proof
    yield sample(names.CANARY_EVIDENCE, safety, check=Check.ERRORS, hypothesis="safety")
    split = bounded_exp(evidence.log_split)
    yield sample(names.CANARY_EVIDENCE, split, check=Check.SAMPLE_RATIO, hypothesis="mismatch")
    if judgement.state.predicted:
        shift = bounded_exp(evidence.log_shift)
        shift = min(shift, 1.0) if void else shift
        yield sample(names.CANARY_EVIDENCE, shift, check=Check.PREDICTION, hypothesis="shift")
    for arm, requests, errors in (
        (CANARY, counts.canary_requests, counts.canary_errors),
        ("stable", counts.stable_requests, counts.stable_errors),
    ):
        yield sample(names.CANARY_REQUESTS, requests - errors, arm=arm, outcome="ok")
        yield sample(names.CANARY_REQUESTS, errors, arm=arm, outcome=ERROR)
    for outcome in Outcome:
        yield sample(names.CANARY_VERDICT, float(outcome is judgement.release.verdict), verdict=outcome.value)


def _arm(requests: float, errors: float) -> dict[str, Any]:
    low, high = rate_interval(errors, requests)
    return {"requests": requests, "errors": errors, "error_rate": {"low": low, "high": high, "confidence": 0.95}}
